"""The importance of searched settings, on objectives whose truth is known."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from orchestrator.config.search_config import CategoricalParameter, FloatParameter, IntParameter
from orchestrator.config.space import Space
from orchestrator.decide.importance import FANOVA_TRIALS, Importance, importances

UNIT = FloatParameter(low=0.0, high=1.0)
SPACE: Space = {"a": UNIT, "b": UNIT, "irrelevant": UNIT}
RESAMPLES, FEW = 40, 8
"""Where intervals are compared, and where estimates are: a call takes 0.2 s with few of them."""
Trials = list[tuple[dict[str, Any], float]]


def ten_a_plus_b(number: int, seed: int = 0) -> Trials:
    """Random trials whose objective is 10 a + b and a little noise."""
    rng = np.random.default_rng(seed)
    settings = [{name: float(rng.random()) for name in SPACE} for _ in range(number)]
    return [(values, 10 * values["a"] + values["b"] + 0.1 * float(rng.normal())) for values in settings]


def by_name(found: list[Importance]) -> dict[str, Importance]:
    return {importance.name: importance for importance in found}


def mapped(trials: Trials, settings: Callable[[dict[str, Any]], dict[str, Any]]) -> Trials:
    return [(settings(values), objective) for values, objective in trials]


@pytest.fixture(scope="module")
def of_24() -> list[Importance]:
    return importances(SPACE, ten_a_plus_b(24), resamples=RESAMPLES)


@pytest.fixture(scope="module")
def of_60() -> list[Importance]:
    return importances(SPACE, ten_a_plus_b(60), resamples=RESAMPLES)


def test_the_setting_that_decides_dominates_and_comes_first(of_24: list[Importance]) -> None:
    first, *others = of_24
    assert (first.name, first.num_trials) == ("a", 24)
    assert first.ped_anova > 0.6
    assert first.fanova > 0.8
    for other in others:
        assert other.fanova_high < first.fanova_low


def test_the_interval_of_an_irrelevant_setting_reaches_down_to_0(of_24: list[Importance]) -> None:
    irrelevant = by_name(of_24)["irrelevant"]
    assert irrelevant.ped_anova_low < 0.05
    assert irrelevant.fanova_low < 0.02
    assert irrelevant.fanova_high < 0.2


def test_without_any_effect_no_setting_stands_out() -> None:
    rng = np.random.default_rng(0)
    noise = [(values, float(rng.normal())) for values, _ in ten_a_plus_b(24)]
    first, *others = importances(SPACE, noise, resamples=RESAMPLES)
    assert all(other.ped_anova_high > first.ped_anova_low for other in others)
    assert all(other.fanova_high > first.fanova_low for other in others)


def test_shares_add_up_to_1_and_main_effects_to_no_more(of_24: list[Importance]) -> None:
    assert sum(importance.ped_anova for importance in of_24) == pytest.approx(1)
    assert 0.8 < sum(importance.fanova for importance in of_24) <= 1


@pytest.mark.slow
def test_what_two_settings_do_together_is_missing_from_the_sum_of_main_effects() -> None:
    trials = [(values, (values["a"] - 0.5) * (values["b"] - 0.5)) for values, _ in ten_a_plus_b(72)]
    assert sum(importance.fanova for importance in importances(SPACE, trials, resamples=FEW)) < 0.6


@pytest.mark.slow
def test_intervals_hold_the_estimate(of_24: list[Importance], of_60: list[Importance]) -> None:
    for importance in [*of_24, *of_60]:
        assert 0 <= importance.ped_anova_low <= importance.ped_anova <= importance.ped_anova_high <= 1
        assert 0 <= importance.fanova_low <= importance.fanova <= importance.fanova_high <= 1


@pytest.mark.slow
def test_intervals_shrink_with_more_trials(of_24: list[Importance], of_60: list[Importance]) -> None:
    few, many = by_name(of_24)["a"], by_name(of_60)["a"]
    assert many.ped_anova_high - many.ped_anova_low < 0.7 * (few.ped_anova_high - few.ped_anova_low)
    assert many.fanova_high - many.fanova_low < 0.7 * (few.fanova_high - few.fanova_low)


def test_a_constant_in_all_objectives_changes_nothing() -> None:
    trials = ten_a_plus_b(12)
    shifted = [(values, value + 1000) for values, value in trials]
    assert importances(SPACE, shifted, resamples=FEW) == importances(SPACE, trials, resamples=FEW)


def test_the_same_seed_gives_the_same_numbers_and_another_seed_other_intervals() -> None:
    first, again, other = (importances(SPACE, ten_a_plus_b(12), resamples=FEW, seed=seed)[0] for seed in (0, 0, 1))
    assert first == again
    assert other.ped_anova == first.ped_anova
    assert other.ped_anova_low != first.ped_anova_low


def test_the_best_trials_are_those_with_the_highest_objectives() -> None:
    # Only the upper end depends on `up`, only the lower end on `down`: PED-ANOVA looks at the upper end.
    rng = np.random.default_rng(0)
    settings = [{"up": float(rng.random()), "down": float(rng.random())} for _ in range(48)]
    trials = [(values, max(values["up"], 0.6) + min(values["down"], 0.4)) for values in settings]
    first, _ = importances({"up": UNIT, "down": UNIT}, trials, resamples=FEW)
    assert first.name == "up"


def test_a_logarithmic_setting_is_measured_on_its_own_scale(of_24: list[Importance]) -> None:
    space = SPACE | {"a": FloatParameter(low=1e-4, high=1.0, log=True)}
    trials = mapped(ten_a_plus_b(24), lambda values: values | {"a": 1e-4 ** (1 - values["a"])})
    found = by_name(importances(space, trials, resamples=FEW))
    for expected in of_24:
        assert found[expected.name].ped_anova == pytest.approx(expected.ped_anova, abs=0.01)
        assert found[expected.name].fanova == pytest.approx(expected.fanova, abs=0.01)


@pytest.mark.parametrize("exact", [0.0, 0.75, 2.0])
def test_a_setting_that_can_be_switched_off_has_one_importance_by_how_often_it_is_off(exact: float) -> None:
    space = SPACE | {"b": FloatParameter(low=0.5, high=1.0, or_exactly=exact, exactly_probability=0.4)}
    trials = mapped(ten_a_plus_b(36), lambda values: values | {"b": exact if values["b"] < 0.4 else values["b"] / 1.2 + 1 / 6})
    # Variances over the space: 0.4 * 0.6 of being off, and the same of sqrt(12 * 0.24) a, since a is uniform.
    trials = [(values, float(values["b"] == exact) + (12 * 0.24) ** 0.5 * values["a"]) for values, _ in trials]
    found = by_name(importances(space, trials, resamples=FEW))
    assert found.keys() == SPACE.keys()
    assert found["b"].fanova == pytest.approx(0.5, abs=0.2)


def test_words_and_whole_numbers_are_compared_with_numbers() -> None:
    space: Space = {
        "word": CategoricalParameter(choices=["good", "bad"]),
        "count": IntParameter(low=1, high=4),
        "width": IntParameter(low=4, high=64, log=True),
        "alone": CategoricalParameter(choices=["only"]),
    }
    rng = np.random.default_rng(0)
    settings = [
        {"word": ["good", "bad"][rng.integers(2)], "count": int(rng.integers(1, 5)), "width": int(rng.integers(4, 65))}
        for _ in range(24)
    ]
    trials = [(values | {"alone": "only"}, 1.0 * (values["word"] == "good") + 0.01 * values["count"]) for values in settings]
    found = importances(space, trials, resamples=FEW)
    assert found[0].name == "word"
    assert {importance.name for importance in found} == {"word", "count", "width"}


def test_a_setting_that_some_trial_did_not_draw_is_left_out() -> None:
    word = CategoricalParameter(choices=["on", "off"])
    space = SPACE | {"word": word, "depends": FloatParameter(low=0.0, high=1.0, when={"word": ["on"]})}
    # Where the word is off, the setting stands in the trial with its default.
    trials = mapped(ten_a_plus_b(12), lambda values: values | {"word": "on" if values["b"] > 0.5 else "off", "depends": 0.5})
    assert "depends" not in by_name(importances(space, trials, resamples=FEW))
    always = mapped(trials, lambda values: values | {"word": "on"})
    assert "depends" in by_name(importances(space, always, resamples=FEW))


def test_equal_objectives_make_all_importances_0() -> None:
    found = importances(SPACE, [(values, 0.25) for values, _ in ten_a_plus_b(12)], resamples=FEW)
    assert [importance[1:] for importance in found] == [(0.0,) * 6 + (12,)] * 3


def test_one_objective_that_differs_gives_numbers() -> None:
    trials = [(values, float(number == 0)) for number, (values, _) in enumerate(ten_a_plus_b(12))]
    assert all(np.isfinite(importance[1:]).all() for importance in importances(SPACE, trials, resamples=FEW))


def test_too_little_to_compare_is_refused() -> None:
    with pytest.raises(ValueError, match="there are 9 trials to compare; allowed: 10 or more"):
        importances(SPACE, ten_a_plus_b(9))
    with pytest.raises(ValueError, match="all trials share 1 searched settings; allowed: 2 or more"):
        importances({"a": UNIT}, ten_a_plus_b(10))


def test_fanova_looks_at_no_more_trials_than_it_can_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def count(names: list[str], trials: list[Any], trees: int, seed: int) -> np.ndarray[Any, Any]:
        seen.append(len(trials))
        return np.zeros(len(names))

    monkeypatch.setattr("orchestrator.decide.importance._fanova", count)
    found = importances(SPACE, ten_a_plus_b(FANOVA_TRIALS + 20), resamples=FEW)
    assert set(seen) == {FANOVA_TRIALS}
    assert found[0].num_trials == FANOVA_TRIALS + 20
