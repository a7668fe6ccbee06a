"""Schedulers beside implementations of other people, or beside a few plain lines."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.schedulers import MedianStoppingRule, TrialScheduler
from ray.tune.schedulers.async_hyperband import _Bracket

from orchestrator.config.scheduler_config import AshaConfig
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.schedulers import Asha, Hyperband, Median, Pbt, Promotion, Verdict, build_scheduler, explore, rungs
from trainables.config import MUTABLE
from trainables.config_file import Origin, check

EPOCHS = 12
histories = st.lists(
    st.lists(st.floats(0, 1).map(lambda value: round(value, 2)), min_size=EPOCHS, max_size=EPOCHS), min_size=1, max_size=12
)


class RaysTrial:
    """What Ray's schedulers look at."""

    def __init__(self, number: int) -> None:
        self.trial_id, self.status = str(number), "RUNNING"


def sweep(scheduler: dict[str, Any], epochs: int = EPOCHS, **search: Any) -> SweepConfig:
    space = {
        "method.driver_weight": {"type": "float", "low": 0.001, "high": 1.0, "log": True, "or_exactly": 0.0},
        "method.meta_lr": {"type": "float", "low": 0.001, "high": 0.1, "log": True},
        "method.hidden_width": {"type": "int", "low": 4, "high": 64},
    }
    tree = {"trial": {"epochs": epochs}, "space": space, "search": {"trials": 20, **search}, "scheduler": scheduler}
    return check(SweepConfig, tree, Origin("test"))


def best_so_far(values: list[float]) -> list[float]:
    return np.maximum.accumulate(values).tolist()


@given(histories, st.integers(1, 4), st.sampled_from([2, 3, 4]))
def test_asha_decides_as_ray_does(values: list[list[float]], grace: int, factor: int) -> None:
    ours = Asha(sweep({"name": "asha", "grace_epochs": grace, "reduction_factor": factor}))
    rays = _Bracket(min_t=grace, max_t=EPOCHS, reduction_factor=factor, s=0)
    for number, history in enumerate(values):  # one after the other: Ray judges before it knows of later ones
        for epoch, value in enumerate(history, 1):
            ours.record(number, epoch, value)
            theirs = rays.on_result(RaysTrial(number), epoch, best_so_far(history)[epoch - 1])
            if not ours.is_due(number, epoch):
                assert theirs == TrialScheduler.CONTINUE or epoch == EPOCHS
                continue
            verdict = ours.judge(number, epoch)
            assert (verdict.action == "stop") == (theirs == TrialScheduler.STOP)
            if verdict.action == "stop":
                break


@given(histories, st.integers(1, 4))
def test_the_median_rule_decides_as_ray_does(values: list[list[float]], least: int) -> None:
    ours = Median(sweep({"name": "median", "grace_epochs": 1, "min_trials": least}))
    rays = MedianStoppingRule("epoch", metric="value", mode="max", grace_period=1, min_samples_required=least)
    controller = SimpleNamespace(get_live_trials=list)
    for number, history in enumerate(values):
        trial = RaysTrial(number)
        for epoch, value in enumerate(history, 1):
            ours.record(number, epoch, value)
            theirs = rays.on_trial_result(controller, trial, {"epoch": epoch, "value": value})
            if ours.is_due(number, epoch):
                verdict = ours.judge(number, epoch)
                equal = verdict.cutoff is not None and abs(max(history[:epoch]) - verdict.cutoff) < 1e-9  # but for rounding
                assert equal or (verdict.action == "stop") == (theirs == TrialScheduler.STOP), (number, epoch)
                if theirs == TrialScheduler.STOP:
                    break


def test_the_median_rule_judges_from_its_first_epoch_on_at_its_intervals() -> None:
    scheduler = Median(sweep({"name": "median", "grace_epochs": 3, "interval_epochs": 4}))
    assert [epoch for epoch in range(1, EPOCHS + 1) if scheduler.is_due(0, epoch)] == [3, 7, 11]


@given(histories, st.sampled_from([2, 3]))
def test_promotion_lets_the_best_of_the_highest_rung_go_on(values: list[list[float]], factor: int) -> None:
    """Algorithm 2 of Li et al., in sets of (value, trial)."""
    scheduler = Promotion(sweep({"name": "promotion", "grace_epochs": 1, "reduction_factor": factor}))
    at, reached, promoted = scheduler.rungs, [dict[int, float]() for _ in scheduler.rungs], [set[int]() for _ in scheduler.rungs]
    paused: dict[int, int] = {}

    def run(number: int, begin: int, end: int) -> None:
        for epoch in range(begin, end + 1):
            scheduler.record(number, epoch, values[number][epoch - 1])
        if end in at:
            assert scheduler.judge(number, end).action == "pause"
            paused[number] = end
            reached[at.index(end)][number] = max(values[number][:end])

    fresh = list(range(len(values)))
    while True:
        expected = None
        for k in reversed(range(len(at))):
            top = sorted(reached[k], key=lambda number, k=k: (-reached[k][number], number))[: len(reached[k]) // factor]
            waiting = [number for number in top if number not in promoted[k]]
            if waiting:
                expected = (waiting[0], k)
                break
        found = scheduler.promote(paused)
        assert (found[0] if found else None) == (expected[0] if expected else None)
        if expected:
            number, k = expected
            promoted[k].add(number)
            del paused[number]
            run(number, at[k] + 1, at[k + 1] if k + 1 < len(at) else EPOCHS)
        elif fresh:
            run(fresh.pop(0), 1, at[0])
        else:
            break


def test_rungs_are_powers_below_the_last_epoch() -> None:
    assert rungs(AshaConfig(grace_epochs=15, reduction_factor=2), 40) == [15, 30]
    assert rungs(AshaConfig(grace_epochs=1, reduction_factor=3), 81) == [1, 3, 9, 27]
    assert rungs(AshaConfig(grace_epochs=5, reduction_factor=1.5), 20) == [5, 8, 12, 17]
    assert rungs(AshaConfig(grace_epochs=4, reduction_factor=2), 4) == []
    assert rungs(AshaConfig(grace_epochs=25, reduction_factor=2.2), 56) == [25, 55]  # though 25 * 2.2 comes out a bit above
    assert rungs(AshaConfig(grace_epochs=1, reduction_factor=1.2), 5) == [1, 2, 3, 4]  # each once


def test_brackets_have_the_sizes_of_the_hyperband_paper() -> None:
    """Table 1 of Li et al. (JMLR 2018), R = 81, eta = 3: 81, 34, 15, 8 and 5 configurations."""
    scheduler = Hyperband(sweep({"name": "hyperband", "grace_epochs": 1, "reduction_factor": 3}, epochs=81))
    dealt = [scheduler.bracket(number) for number in range(81 + 34 + 15 + 8 + 5)]
    assert np.bincount(dealt).tolist() == [81, 34, 15, 8, 5]
    assert all(abs(dealt[:n].count(b) - n * size / 143) < 2 for n in range(143) for b, size in enumerate((81, 34, 15, 8, 5)))


def test_a_bracket_begins_at_its_rung_and_compares_its_own_trials_only() -> None:
    scheduler = Hyperband(sweep({"name": "hyperband", "grace_epochs": 1, "reduction_factor": 3}, epochs=81))
    first = {scheduler.bracket(number): number for number in reversed(range(40))}
    assert [epoch for epoch in range(1, 81) if scheduler.is_due(first[0], epoch)] == [1, 3, 9, 27]
    assert [epoch for epoch in range(1, 81) if scheduler.is_due(first[2], epoch)] == [9, 27]
    assert not any(scheduler.is_due(first[4], epoch) for epoch in range(1, 82))
    for number in range(40):
        for epoch in range(1, 10):
            scheduler.record(number, epoch, 0.1 if scheduler.bracket(number) == 0 else 0.9)
    assert scheduler.judge(first[0], 9).action == "continue"  # the 0.9 are of other brackets


@pytest.mark.parametrize("name", ["asha", "promotion", "hyperband", "median", "pbt"])
def test_a_value_that_is_no_number_loses(name: str) -> None:
    scheduler = build_scheduler(sweep({"name": name}, epochs=40))
    epoch = next(epoch for epoch in range(1, 40) if scheduler.is_due(0, epoch))
    for number in range(40):
        for at in range(1, epoch + 1):
            scheduler.record(number, at, None if number == 0 else 0.5 + number / 100)
    verdict = scheduler.settle(dict.fromkeys(range(40), epoch))[0]
    assert verdict.action in ("stop", "pause", "replace")
    assert verdict.rank == verdict.of
    assert scheduler.promote({0: epoch}) is None


def test_an_epoch_without_a_number_changes_neither_the_mean_nor_the_best() -> None:
    scheduler = Median(sweep({"name": "median", "grace_epochs": 3, "min_trials": 1}))
    for number, values in enumerate([(0.8, None, 0.4), (0.7, None, 0.1), (0.5, 0.5, 0.5)]):
        for epoch, value in enumerate(values, 1):
            scheduler.record(number, epoch, value)
    verdict = scheduler.judge(1, 3)
    assert verdict.cutoff == pytest.approx((0.6 + 0.5) / 2)
    assert (verdict.action, verdict.rank, verdict.of) == ("continue", 1, 3)


def at_first_rung(scheduler: dict[str, Any], *values: float | None) -> Any:
    """A scheduler whose trials have all done one epoch."""
    built = build_scheduler(sweep({**scheduler, "grace_epochs": 1}))
    for number, value in enumerate(values):
        built.record(number, 1, value)
    return built


def test_asha_says_which_place_a_trial_has_and_below_what_it_would_have_stopped() -> None:
    equals = at_first_rung({"name": "asha", "reduction_factor": 2}, 0.5, 0.75, 0.5, 0.25)
    assert equals.judge(0, 1) == Verdict("continue", 0.5, 2, 4)
    assert equals.judge(3, 1) == Verdict("stop", 0.5, 4, 4)
    without_numbers = at_first_rung({"name": "asha", "reduction_factor": 2}, 0.5, None, None, 0.75)
    assert without_numbers.judge(0, 1) == Verdict("stop", 0.75, 2, 4)  # what is no number lowers no cutoff


def test_promotion_says_which_place_a_trial_has_and_who_has_the_last_one() -> None:
    scheduler = at_first_rung({"name": "promotion", "reduction_factor": 2}, 0.25, 0.75, 0.5, 0.125)
    paused = dict.fromkeys(range(4), 1)
    assert scheduler.promote(paused) == (1, Verdict("promote", 0.5, 1, 4))
    del paused[1]
    assert scheduler.promote(paused) == (2, Verdict("promote", 0.5, 2, 4))
    del paused[2]
    assert scheduler.promote(paused) is None
    many = at_first_rung({"name": "promotion", "reduction_factor": 2.2}, *(1 - number / 100 for number in range(33)))
    assert many.promote({14: 1}) is not None  # 33 / 2.2 is 15, though a bit less as a floating-point number
    assert many.promote({15: 1}) is None


def test_the_median_rule_stops_nobody_who_is_as_good_as_all_others() -> None:
    scheduler = Median(sweep({"name": "median", "grace_epochs": 3, "min_trials": 1}))
    for number in range(3):
        for epoch in range(1, 4):
            scheduler.record(number, epoch, 0.1)  # whose mean is a bit above it
    assert scheduler.judge(0, 3).action == "continue"


def test_a_population_is_ranked_by_the_last_epoch_of_a_generation() -> None:
    scheduler = Pbt(sweep({"name": "pbt", "interval_epochs": 3}))
    for number, values in enumerate([(0.9, 0.9, 0.1), (0.5, 0.5, 0.5), (0.4, 0.4, 0.4)]):
        for epoch, value in enumerate(values, 1):
            scheduler.record(number, epoch, value)
    verdicts = scheduler.settle(dict.fromkeys(range(3), 3))
    assert verdicts[0] == Verdict("replace", 0.4, 3, 3, donor=1)
    assert verdicts[1] == Verdict("continue", None, 1, 3)


def test_nobody_replaces_the_only_member_of_a_population() -> None:
    scheduler = Pbt(sweep({"name": "pbt", "interval_epochs": 1}))
    scheduler.record(0, 1, 0.5)
    assert scheduler.settle({0: 1}) == {0: Verdict("continue", None, 1, 1)}


@given(st.lists(st.floats(0, 1).map(lambda value: round(value, 2)), min_size=2, max_size=17), st.integers(0, 5))
def test_a_population_replaces_its_worst_by_offspring_of_its_best(values: list[float], seed: int) -> None:
    config = sweep({"name": "pbt", "interval_epochs": 3, "quantile": 0.25}, seed=seed)
    scheduler = Pbt(config)
    for number, value in enumerate(values):
        for epoch in range(1, 4):
            scheduler.record(number, epoch, value)
    verdicts = scheduler.settle(dict.fromkeys(range(len(values)), 3))
    count = max(1, len(values) // 4)
    ranked = sorted(range(len(values)), key=lambda number: (-values[number], number))
    replaced = {number for number, verdict in verdicts.items() if verdict.action == "replace"}
    assert replaced == set(ranked[-count:])
    assert {verdict.donor for verdict in verdicts.values() if verdict.action == "replace"} <= set(ranked[:count])
    # Those that were decided before a crash change nothing for the rest.
    rest = dict.fromkeys(range(len(values) // 2, len(values)), 3)
    assert all(scheduler.settle(rest)[number] == verdicts[number] for number in rest)


@given(st.integers(0, 10_000), st.floats(0.001, 1.0), st.floats(0.001, 0.1))
def test_offspring_differ_in_mutable_settings_only_and_stay_in_the_space(number: int, lam: float, beta: float) -> None:
    config = sweep({"name": "pbt"})
    values = {"method.driver_weight": lam, "method.meta_lr": beta, "method.hidden_width": 16}
    found = explore(config, values, number)
    assert set(found) == MUTABLE & set(config.space)
    assert found == explore(config, values, number)
    assert found["method.driver_weight"] == 0.0 or 0.001 <= found["method.driver_weight"] <= 1.0
    assert 0.001 <= found["method.meta_lr"] <= 0.1


def test_offspring_are_perturbed_three_times_in_four() -> None:
    config = sweep({"name": "pbt", "resample_probability": 0.25})
    values = {"method.driver_weight": 0.0, "method.meta_lr": 0.01, "method.hidden_width": 16}
    found = [explore(config, values, number) for number in range(2000)]
    near = sum(any(abs(new["method.meta_lr"] - 0.01 * factor) < 1e-12 for factor in (0.8, 1.2)) for new in found)
    assert 0.72 < near / 2000 < 0.78
    at_atom = sum(new["method.driver_weight"] == 0.0 for new in found)  # stays, or is drawn anew half of the time
    assert 0.85 < at_atom / 2000 < 0.9


def test_offspring_are_never_what_their_donor_is() -> None:
    """Where one setting stays at its or_exactly value, and the other is at its bound and often pushed against it."""
    values = {"method.driver_weight": 0.0, "method.meta_lr": 0.1, "method.hidden_width": 16}
    assert all(explore(sweep({"name": "pbt"}), values, number).items() - values.items() for number in range(100))


def test_settings_that_are_drawn_anew_come_from_their_range_as_the_sampler_draws_them() -> None:
    """One with `log`: as often below the geometric middle, 0.01, as above."""
    config = sweep({"name": "pbt", "resample_probability": 1.0})
    values = {"method.driver_weight": 0.5, "method.meta_lr": 0.05, "method.hidden_width": 16}
    below = sum(explore(config, values, number)["method.meta_lr"] < 0.01 for number in range(1000))
    assert 450 < below < 550


def test_offspring_keep_settings_whose_condition_is_not_met() -> None:
    tree = sweep({"name": "pbt"}).model_dump()
    tree["space"]["method.driver_weight"]["when"] = {"method.hidden_width": 4}
    config = check(SweepConfig, tree, Origin("test"))
    values = {"method.driver_weight": 0.5, "method.meta_lr": 0.05, "method.hidden_width": 16}
    assert set(explore(config, values, 1)) == {"method.meta_lr"}
    assert set(explore(config, values | {"method.hidden_width": 4}, 1)) == {"method.meta_lr", "method.driver_weight"}
