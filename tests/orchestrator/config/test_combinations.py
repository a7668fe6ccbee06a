"""Settings that are valid one by one and not together are found before anything starts."""

import itertools
from typing import Any

import pytest

from orchestrator.config.combinations import check_combinations, covering_draws
from orchestrator.config.search_config import extreme_values
from orchestrator.config.space import contexts
from orchestrator.config.sweep_config import SweepConfig
from trainables.config_file import ConfigError, Origin, check

HEAD = {"type": "categorical", "choices": ["linear", "cosine"]}
SCALE = {"type": "float", "low": 5.0, "high": 50.0}
OPTIMIZER = {"type": "categorical", "choices": ["sgd", "adamw"]}
MOMENTUM = {"type": "float", "low": 0.5, "high": 0.99}
NESTEROV = {"type": "categorical", "choices": [True, False]}
LR = {"type": "float", "low": 0.01, "high": 0.1}


def sweep(space: dict[str, Any], **trial: Any) -> SweepConfig:
    return check(SweepConfig, {"trial": trial, "space": space}, Origin("FILE"))


@pytest.mark.parametrize(
    ("space", "trial", "names", "cure"),
    [
        (
            {"classifier.head": HEAD, "optim.lr": LR, "classifier.scale": SCALE},
            {"classifier": {"name": "small_cnn", "head": "cosine"}},
            "space.classifier.head and space.classifier.scale do not go together",
            "space.classifier.scale.when: {classifier.head: [cosine]}",
        ),
        (
            {"optim.momentum": MOMENTUM, "optim.optimizer": OPTIMIZER},
            {},
            "space.optim.momentum and space.optim.optimizer do not go together",
            "space.optim.momentum.when: {optim.optimizer: [sgd]}",
        ),
        (
            {"optim.optimizer": OPTIMIZER, "optim.nesterov": NESTEROV},
            {},
            "space.optim.optimizer and space.optim.nesterov do not go together",
            "space.optim.nesterov.when: {optim.optimizer: [sgd]}",
        ),
        (
            {"stages.1.epochs": {"type": "int", "low": 1, "high": 5}, "stages.2.epochs": {"type": "int", "low": 1, "high": 5}},
            {"epochs": 8, "stages": [{"name": "representation"}, {"name": "crt", "epochs": 1}, {"name": "lws", "epochs": 1}]},
            "space.stages.1.epochs and space.stages.2.epochs do not go together",
            "`when` in space.stages.2.epochs, or a narrower range",
        ),
    ],
)
def test_two_settings_that_exclude_each_other_are_named_with_the_cure(
    space: dict[str, Any], trial: dict[str, Any], names: str, cure: str
) -> None:
    with pytest.raises(ConfigError) as error:
        sweep(space, **trial)
    assert names in str(error.value)
    assert str(error.value).endswith(f"a condition keeps them apart: {cure}")


def test_the_cure_cures() -> None:
    sweep({"classifier.head": HEAD, "classifier.scale": SCALE | {"when": {"classifier.head": "cosine"}}})
    sweep({"optim.optimizer": OPTIMIZER, "optim.momentum": MOMENTUM | {"when": {"optim.optimizer": "sgd"}}})
    sweep({"optim.optimizer": OPTIMIZER, "optim.nesterov": NESTEROV | {"when": {"optim.optimizer": "sgd"}}})


def test_few_draws_hold_every_two_values_in_every_context() -> None:
    space = sweep(
        {
            "method.name": {"type": "categorical", "choices": ["cross_entropy", "focal", "difficulty_net", "mfrw"]},
            "method.gamma": {"type": "float", "low": 0.5, "high": 2.0},
            "method.meta_lr": {"type": "float", "low": 0.001, "high": 0.1},
            "method.driver_weight": {"type": "float", "low": 0.1, "high": 1.0, "or_exactly": 0.0},
            "optim.optimizer": OPTIMIZER,
            "optim.momentum": MOMENTUM | {"when": {"optim.optimizer": "sgd"}},
            "optim.lr": LR,
            "optim.batch_size": {"type": "int", "low": 8, "high": 64},
        }
    ).space
    draws = list(covering_draws(space))
    wanted = 0
    for first, second in itertools.combinations(space, 2):
        for one, other in itertools.product(contexts(space, first), contexts(space, second)):
            for a, b in itertools.product(extreme_values(space[first]), extreme_values(space[second])):
                settings = [*one.items(), *other.items(), (first, a), (second, b)]
                if len(dict(settings)) == len(set(settings)):  # no setting has two values
                    wanted += 1
                    assert any(dict(settings).items() <= draw.items() for draw in draws)
    assert len(draws) < wanted / 4
    for draw in draws:
        assert ("method.gamma" in draw) == (draw["method.name"] == "focal")
        assert ("optim.momentum" in draw) == (draw["optim.optimizer"] == "sgd")


def test_three_settings_of_which_any_two_go_together_are_found_and_named() -> None:
    def apply(values: dict[str, Any]) -> None:
        if values.get("optim.lr") == values.get("optim.momentum") == values.get("optim.decay") == 0.2:
            raise ConfigError("space: all of them are 0.2")

    pair = {"type": "float", "low": 0.1, "high": 0.2}
    trial = {"optim": {"schedule": "multistep", "milestones": [3.0]}}
    space = sweep({f"optim.{name}": pair for name in ("lr", "momentum", "decay")}, **trial).space
    with pytest.raises(ConfigError, match=r"space.optim.lr, space.optim.momentum and space.optim.decay do not go together"):
        check_combinations(space, apply)


def test_what_a_culprit_depends_on_stays_in_the_error() -> None:
    """Without `optimizer: sgd`, the error would be about the trial's own adamw, which is not the fault."""
    only_sgd = {"when": {"optim.optimizer": "sgd"}}
    space = {
        "optim.optimizer": OPTIMIZER,
        "optim.momentum": {"type": "float", "low": 0.0, "high": 0.99, **only_sgd},
        "optim.nesterov": NESTEROV | only_sgd,
    }
    with pytest.raises(ConfigError, match="nesterov is True, but momentum is 0;") as error:
        sweep(space, optim={"optimizer": "adamw"})
    assert str(error.value).endswith("space.optim.momentum.when: {optim.nesterov: [False]}")
