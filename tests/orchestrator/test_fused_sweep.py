"""Whole sweeps whose trials are trained together: the same sweep as with each trial alone, whatever happens on the way."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from running import Running, is_slot

from orchestrator.decide.conductor import decisions
from orchestrator.ledger.events import Event
from orchestrator.ledger.ledger import read_ledger
from orchestrator.ledger.trial_states import State, trial_states_of
from orchestrator.ledger.usage import usage_of
from orchestrator.sweep import main

SWEEP = """
trial:
  epochs: 8
  data:
    {source: generated, num_classes: 6, n_max: 300, images_per_class: 400, image_size: 6, val_per_class: 20,
     noise: {kind: symmetric, rate: 0.7}}
  classifier: {name: linear}
  method: {name: cross_entropy}
  compute: {precision: float64}
  optim: {lr: 0.05, batch_size: 8, schedule: cosine}
  bilevel: {meta_batch_size: 24}
space:
  method.name: {type: categorical, choices: [cross_entropy, logit_adjustment, difficulty_net, meta_weight_net]}
  optim.lr: {type: float, low: 1.0e-3, high: 0.1, log: true}  # step sizes that diverge slowly would blow up the last digit
  method.tau: {type: float, low: 0.25, high: 4.0, log: true}
  method.meta_lr: {type: float, low: 1.0e-4, high: 1.0e-2, log: true}
  method.hidden_width: {type: int, low: 4, high: 12}
search: {sampler: tpe, per_method: 4, deterministic: true, wave: 8, confirm: {top: 1, seeds: 2}}
scheduler: {name: asha, grace_epochs: 4, reduction_factor: 2}
tracking: {mlflow: false}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    (home / "heads.yaml").write_text(SWEEP)
    return home


def sweep(home: Path, name: str, *more: str) -> list[Event]:
    """The events of a whole sweep."""
    assert main([str(home / "heads.yaml"), *more, "--name", name, "--results", str(home / "results")]) == 0
    return list(read_ledger(home / "results" / name))


@pytest.fixture(scope="module")
def alone(home: Path) -> list[Event]:
    return sweep(home, "alone")


@pytest.fixture(scope="module")
def fused(home: Path) -> list[Event]:
    return sweep(home, "fused", "resources.fused=4")


def of_epochs(events: Sequence[Event]) -> dict[tuple[str, int], dict[str, float]]:
    found = {}
    for event in events:
        if event["event"] == "epoch":
            metrics = {name: value for name, value in event["metrics"].items() if not name.startswith("time/")}
            found[event["trial_id"], event["epoch"]] = metrics
    return found


def assert_equal_sweeps(ours: Sequence[Event], theirs: Sequence[Event]) -> None:
    assert list(decisions(ours)) == list(decisions(theirs))
    found, expected = of_epochs(ours), of_epochs(theirs)
    assert found.keys() == expected.keys()
    for key, metrics in expected.items():
        assert found[key] == pytest.approx(metrics, abs=1e-9, nan_ok=True), key


def test_a_sweep_of_fused_trials_is_the_sweep_of_the_same_trials_alone(alone: list[Event], fused: list[Event]) -> None:
    assert_equal_sweeps(fused, alone)
    statuses = Counter(event["status"] for event in fused if event["event"] == "trial_end")
    assert statuses["stopped_early"] >= 3
    assert statuses["finished"] >= 8
    shared = Counter(event.get("shared_by", 1) for event in fused if event["event"] == "epoch")
    assert shared[4] > sum(shared.values()) / 2
    assert not any("shared_by" in event for event in alone)


def test_fused_trials_share_the_time_of_their_process(fused: list[Event]) -> None:
    usage = usage_of(fused)
    assert 0.1 * usage.slot_s() < sum(usage.busy_s().values()) <= usage.slot_s() + 0.01


def test_without_waves_trials_leave_one_by_one(home: Path) -> None:
    events = sweep(home, "no_waves", "resources.fused=6", "search.deterministic=false", "search.wave=null")
    ends = Counter(event["status"] for event in events if event["event"] == "trial_end")
    assert set(ends) == {"finished", "stopped_early"}
    shared = [event.get("shared_by", 1) for event in events if event["event"] == "epoch"]
    assert len(set(shared)) > 2  # a process goes on with those that are left


def test_a_killed_process_and_a_killed_sweep_change_nothing(alone: list[Event], home: Path) -> None:
    """First a process dies with its trials, each of which goes on alone; then the sweep in the middle of a wave."""
    running = Running(home, "heads.yaml", "resources.fused=4")
    running.wait_for(lambda events: num_shared(events) > 4 and in_epoch(events, 2, 3, 4))
    next(child for child in running.started.values() if is_slot(child)).kill()
    running.wait_for(lambda events: any(event["event"] == "retry" for event in events) and in_epoch(events, 5, 6))
    running.process.kill()
    running.process.communicate(timeout=60)
    before = list(read_ledger(running.folder))
    lost = {event["trial_id"] for event in before if event["event"] == "retry"}
    assert len(lost) > 1
    assert before[-1]["event"] != "sweep_end"
    assert any(trial.state == State.RUNNING for trial in trial_states_of(before).values())

    events = sweep(home, "demo", "resources.fused=4", "--resume")
    assert_equal_sweeps(events, alone)
    assert not any(event["event"] == "trial_end" and event["status"] == "failed" for event in events)


def num_shared(events: Sequence[Any]) -> int:
    return sum(event["event"] == "epoch" and event.get("shared_by", 1) > 1 for event in events)


def in_epoch(events: Sequence[Any], *epochs: int) -> bool:
    """Whether the last thing that happened is that a trial ended one of these epochs: none of them is a rung, or the last one."""
    return events[-1]["event"] == "epoch" and events[-1]["epoch"] in epochs
