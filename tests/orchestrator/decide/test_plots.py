import math

import numpy as np
import pytest

from orchestrator.config.search_config import CategoricalParameter, FloatParameter, IntParameter
from orchestrator.decide.plots import Tried, contour_plot, history_plot, place_of, slice_plot, with_values

SPACE = {
    "b": FloatParameter(low=1e-4, high=1.0, log=True, or_exactly=0.0),
    "a": IntParameter(low=1, high=9),
    "c": CategoricalParameter(choices=["x", "y"]),
}
TRIED = [
    Tried(3, {"b": 0.0, "a": 2, "c": "x"}, 0.3),
    Tried(4, {"b": 0.01, "a": 5, "c": "y"}, 0.7),
    Tried(8, {"b": 0.5, "a": 9, "c": "x"}, 0.5),
    Tried(9, {"b": 0.2, "a": None, "c": "x"}, 0.6),
]


def test_the_history_is_drawn_over_the_numbers_of_the_trials() -> None:
    trials, best, *_ = history_plot(TRIED).data
    assert (list(trials.x), list(trials.y)) == ([3, 4, 8, 9], [0.3, 0.7, 0.5, 0.6])
    assert list(best.y) == [0.3, 0.7, 0.7, 0.7]


def test_a_slice_has_the_trials_that_drew_the_setting() -> None:
    (trace,) = (trace for trace in slice_plot(SPACE, TRIED, "a").data if len(trace.x))
    assert (list(trace.x), list(trace.y)) == ([2, 5, 9], [0.3, 0.7, 0.5])
    assert [trial.number for trial in with_values(TRIED, ["a"])] == [3, 4, 8]


@pytest.mark.parametrize("names", [("a", "b"), ("a", "c"), ("b", "c")])
def test_a_contour_has_the_objective_of_each_trial_at_its_settings(names: tuple[str, str]) -> None:
    surface = contour_plot(SPACE, TRIED, *names).data[0]
    z = np.array(surface.z)
    for trial in with_values(TRIED, names):
        x, y = (place_of(SPACE[name], trial.values[name]) for name in names)
        assert z[list(surface.y).index(y), list(surface.x).index(x)] == trial.objective


def test_a_zero_lies_a_little_below_a_logarithmic_range() -> None:
    assert math.log10(place_of(SPACE["b"], 0.0)) == pytest.approx(-4 - 0.08 * 4)
    assert place_of(SPACE["b"], 0.01) == 0.01
    assert place_of(FloatParameter(low=1.0, high=10.0, log=True, or_exactly=100.0), 100.0) == pytest.approx(10**1.08)
    assert place_of(SPACE["c"], "y") == "y"
