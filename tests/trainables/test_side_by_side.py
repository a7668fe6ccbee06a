"""Trials in one process: fused or not, each gives what it gives alone."""

import pytest
from fused_trials import ADAPTERS, ALONE, METHODS, assert_close, compared, members_of, sizes_of_fused_runs, started

from trainables.classifier_config import SmallCNNConfig
from trainables.config import TrialConfig
from trainables.engine.health import TrialEnded
from trainables.method_config import CrossEntropyConfig
from trainables.side_by_side import SideBySide
from trainables.trial_run import TrialRun


def assert_as_alone(configs: list[TrialConfig], epochs: int, fused: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains all side by side; `fused` says how many trials each FusedRun had that was made."""
    made = sizes_of_fused_runs(monkeypatch)
    runs, alone, side_by_side = started(configs), started(configs), SideBySide()
    for _ in range(epochs):
        for run, solo, metrics in zip(runs, alone, side_by_side.run_epoch(runs), strict=True):
            assert isinstance(metrics, dict), metrics
            assert_close(compared(run, metrics), compared(solo, solo.run_epoch()), solo.config.method.name)
    assert made == fused


def test_trials_that_fit_are_fused_and_the_others_are_trained_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    own = ALONE.model_copy(update={"optim": ALONE.optim.model_copy(update={"nesterov": True, "momentum": 0.9})})
    configs = [
        *members_of(ALONE, METHODS[:2]),
        ALONE.model_copy(update={"classifier": SmallCNNConfig(widths=[2, 2])}),  # trains alone
        *members_of(own, METHODS[4:7]),  # do not fit the first ones
        ALONE.model_copy(update={"seed": 3}),  # nor do other batches
    ]
    assert_as_alone(configs, epochs=2, fused=[2, 3], monkeypatch=monkeypatch)


def test_a_later_stage_is_trained_by_each_trial_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ALONE.model_dump() | {"stages": [{"name": "representation"}, {"name": "crt", "epochs": 1}], "epochs": 3}
    settings["optim"]["ema"] = 0.8  # the new head is trained behind what was evaluated
    base = TrialConfig.model_validate(settings)
    assert_as_alone(members_of(base, METHODS[:3]), epochs=3, fused=[3], monkeypatch=monkeypatch)


def test_whoever_leaves_or_ends_the_others_go_on_as_they_would_alone() -> None:
    configs = members_of(ALONE, METHODS[:4])
    configs[2] = configs[2].model_copy(update={"optim": configs[2].optim.model_copy(update={"lr": 1e300})})
    runs, alone, side_by_side = started(configs), started(configs), SideBySide()
    first = side_by_side.run_epoch(runs)
    assert [isinstance(outcome, TrialEnded) for outcome in first] == [False, False, True, False]
    left = [runs[0], runs[3]]
    for run, solo, metrics in zip(left, [alone[0], alone[3]], side_by_side.run_epoch(left), strict=True):
        assert isinstance(metrics, dict)
        solo.run_epoch()
        assert_close(compared(run, metrics), compared(solo, solo.run_epoch()))
    assert_close(compared(runs[1], {}), compared(advanced(alone[1]), {}))  # it is where it has left


@pytest.mark.parametrize("base", [ALONE, ADAPTERS], ids=["linear", "adapters"])
def test_the_last_trial_of_several_goes_on_alone(base: TrialConfig) -> None:
    configs = members_of(base, METHODS[:2])
    runs, alone, side_by_side = started(configs), started(configs), SideBySide()
    side_by_side.run_epoch(runs)
    [metrics] = side_by_side.run_epoch(runs[:1])
    assert isinstance(metrics, dict)
    advanced(alone[0])
    assert_close(compared(runs[0], metrics), compared(alone[0], alone[0].run_epoch()))


def advanced(run: TrialRun) -> TrialRun:
    run.run_epoch()
    return run


def test_one_trial_is_trained_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_as_alone([ALONE.model_copy(update={"method": CrossEntropyConfig()})], epochs=2, fused=[], monkeypatch=monkeypatch)
