from types import SimpleNamespace

import pytest
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from orchestrator.config import SEARCHED, RunAllConfig, SweepConfig
from orchestrator.schedule import build_scheduler


def run(scheduler: TrialScheduler, number: int, variant: str, value: float) -> list[str]:
    """Decisions on epochs 1 to 40 of a trial whose objective stays the same, until it is stopped."""
    trial = SimpleNamespace(trial_id=f"tune{number}", config={"variant": variant})
    scheduler.on_trial_add(None, trial)
    decisions = []
    for epoch in range(1, 41):
        decisions.append(scheduler.on_trial_result(None, trial, {"epoch": epoch, "objective": value}))
        if decisions[-1] == TrialScheduler.STOP:
            break
    return decisions


def test_asha_stops_the_lower_half_at_its_rungs_of_15_and_30_epochs(config: SweepConfig) -> None:
    scheduler = build_scheduler(config)
    assert len(run(scheduler, 0, SEARCHED, 0.8)) == 40  # the first one has nothing to compare with
    assert len(run(scheduler, 1, SEARCHED, 0.5)) == 15
    assert len(run(scheduler, 2, SEARCHED, 0.9)) == 40
    assert len(run(scheduler, 3, SEARCHED, 0.7)) == 15


def test_a_reference_is_never_stopped_but_counts(config: SweepConfig) -> None:
    scheduler = build_scheduler(config)
    run(scheduler, 0, SEARCHED, 0.8)
    decisions = run(scheduler, 1, "paper", 0.5)
    assert decisions == [TrialScheduler.CONTINUE] * 40
    assert len(run(scheduler, 2, SEARCHED, 0.6)) == 15


def test_without_a_scheduler_every_trial_runs_to_its_end(config: SweepConfig) -> None:
    scheduler = build_scheduler(config.model_copy(update={"scheduler": RunAllConfig()}))
    assert isinstance(scheduler, FIFOScheduler)


@pytest.mark.parametrize("value", [float("nan")])
def test_a_diverged_trial_does_not_move_the_cutoff(config: SweepConfig, value: float) -> None:
    scheduler = build_scheduler(config)
    run(scheduler, 0, SEARCHED, 0.8)
    trial = SimpleNamespace(trial_id="tune1", config={"variant": SEARCHED})
    scheduler.on_trial_add(None, trial)
    scheduler.on_trial_complete(None, trial, {"epoch": 15, "objective": value})
    assert len(run(scheduler, 2, SEARCHED, 0.9)) == 40
