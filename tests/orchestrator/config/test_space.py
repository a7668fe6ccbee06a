import math

import pytest

from orchestrator.config.search_config import CategoricalParameter, FloatParameter, IntParameter, Parameter
from orchestrator.config.space import (
    conditions,
    contexts,
    drawing_order,
    draws_of,
    grid_size,
    grid_values,
    names_within,
    numbers_of_every_trial,
)

SPACE: dict[str, Parameter] = {
    "d": IntParameter(low=1, high=2, when={"b": ["x"], "c": [3, 4]}),
    "c": IntParameter(low=1, high=9, when={"b": ["x", "y"]}),
    "b": CategoricalParameter(choices=["x", "y", "z"]),
    "a": FloatParameter(low=0, high=1, or_exactly=0.5),
}


def test_what_waits_is_drawn_after_what_it_waits_for_and_all_else_as_it_stands() -> None:
    assert drawing_order(SPACE) == ["b", "c", "d", "a"]
    assert drawing_order({"a": SPACE["a"], "b": SPACE["b"]}) == ["a", "b"]


def test_contexts_are_all_ways_to_meet_the_conditions() -> None:
    assert contexts(SPACE, "a") == contexts(SPACE, "b") == [{}]
    assert contexts(SPACE, "c") == [{"b": "x"}, {"b": "y"}]
    assert contexts(SPACE, "d") == [{"b": "x", "c": 3}, {"b": "x", "c": 4}]


def test_all_draws_of_some_settings_hold_what_they_depend_on() -> None:
    assert draws_of(SPACE, []) == [{}]
    assert draws_of(SPACE, ["b"]) == [{"b": "x"}, {"b": "y"}, {"b": "z"}]
    assert draws_of(SPACE, ["c", "unknown"]) == [
        *({"b": "x", "c": value} for value in (1, 9)),
        *({"b": "y", "c": value} for value in (1, 9)),
        {"b": "z"},
    ]
    three = IntParameter(low=3, high=9, when={"b": ["x", "y"]})
    assert [draw["d"] for draw in draws_of(SPACE | {"c": three}, ["d"]) if "d" in draw] == [1, 2]


def test_a_setting_of_a_method_waits_for_the_methods_that_have_it() -> None:
    space = {
        "method.name": CategoricalParameter(choices=["cross_entropy", "mfrw", "difficulty_net"]),
        "method.meta_lr": FloatParameter(low=0.1, high=1),
        "method.detach_inputs": CategoricalParameter(choices=[True, False]),
        "method.hidden_width": IntParameter(low=1, high=2, when={"method.name": ["mfrw", "cross_entropy"]}),
    }
    assert conditions(space, "method.name") == {}
    assert conditions(space, "method.meta_lr") == {"method.name": ["mfrw", "difficulty_net"]}
    assert conditions(space, "method.detach_inputs") == conditions(space, "method.hidden_width") == {"method.name": ["mfrw"]}


def test_a_setting_of_a_loss_waits_for_the_losses_that_have_it_and_for_the_methods_that_have_losses() -> None:
    space = {
        "method.name": CategoricalParameter(choices=["cross_entropy", "class_balanced", "difficulty_net"]),
        "method.base_loss.name": CategoricalParameter(choices=["cross_entropy", "focal"]),
        "method.base_loss.gamma": FloatParameter(low=0, high=2),
        "method.meta_loss.name": CategoricalParameter(choices=["cross_entropy", "focal"]),
    }
    weighting = {"method.name": ["class_balanced", "difficulty_net"]}
    assert conditions(space, "method.base_loss.name") == weighting
    assert conditions(space, "method.base_loss.gamma") == weighting | {"method.base_loss.name": ["focal"]}
    assert conditions(space, "method.meta_loss.name") == {"method.name": ["difficulty_net"]}
    del space["method.name"]
    assert conditions(space, "method.base_loss.gamma") == {"method.base_loss.name": ["focal"]}
    assert names_within(space, "method.base_loss.name") == {
        "method.base_loss.name",
        "method.base_loss.gamma",
        "method.base_loss.detach_modulation",
    }


def test_the_grid_lies_evenly_on_the_scale_of_the_parameter_with_both_bounds() -> None:
    assert grid_values(FloatParameter(low=0, high=1, points=5)) == [0, 0.25, 0.5, 0.75, 1]
    log = grid_values(FloatParameter(low=1e-4, high=0.1, log=True, points=4, or_exactly=0.0))
    assert log == pytest.approx([1e-4, 1e-3, 1e-2, 0.1, 0])
    assert (log[0], log[3]) == (1e-4, 0.1)
    assert grid_values(FloatParameter(low=0, high=1, points=2, or_exactly=0.0)) == [0, 1]
    assert list(grid_values(IntParameter(low=3, high=6))) == [3, 4, 5, 6]
    assert grid_values(IntParameter(low=1, high=64, log=True, points=4)) == [1, 4, 16, 64]
    assert grid_values(IntParameter(low=1, high=2, points=9)) == [1, 2]
    assert grid_values(CategoricalParameter(choices=["a", "b", "a"])) == ["a", "b"]


def test_the_size_of_a_grid_is_the_product() -> None:
    space = {"a": FloatParameter(low=0, high=1, points=3, or_exactly=0.7), "b": IntParameter(low=1, high=5), "c": SPACE["b"]}
    assert grid_size(space) == math.prod([4, 5, 3])
    assert grid_size({}) == 1


def test_every_trial_draws_the_numbers_without_atom_and_condition() -> None:
    assert numbers_of_every_trial(SPACE) == []
    assert numbers_of_every_trial(SPACE | {"e": FloatParameter(low=0, high=1), "f": IntParameter(low=0, high=1)}) == ["e", "f"]
