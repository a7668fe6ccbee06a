import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from orchestrator.conductor import Checkpoint, Stint
from orchestrator.search import StintCallback, StintScheduler, StintSearch
from orchestrator.trial import Report


class Recorder:
    """Notes what it is told."""

    def __init__(self, *stints: Stint | None) -> None:
        self.stints, self.over, self.told = list(stints), False, list[Any]()

    def next_stint(self) -> Stint | None:
        return self.stints.pop(0) if self.stints else None

    def on_report(self, trial_id: str, report: Report) -> bool:
        self.told.append((trial_id, report.epoch))
        return report.epoch == 2

    def on_error(self, trial_id: str, text: str) -> None:
        self.told.append((trial_id, text))

    def on_start(self, trial_id: str) -> None:
        self.told.append(trial_id)

    def poll(self) -> None:
        self.told.append("poll")


def tune_trial(error_file: str | None = None, **fields: Any) -> Any:
    return SimpleNamespace(config={"trial_id": "t0007"}, error_file=error_file, **fields)


def test_tune_gets_stints_until_there_will_be_none() -> None:
    recorder = Recorder(Stint("t0000", {"seed": 1}, [Checkpoint(3, "place", "abc")], 2, 1, [5]), None)
    search = StintSearch(recorder)
    stint = search.suggest("tune")
    assert stint["trial_id"] == "t0000"
    assert stint["checkpoints"] == [{"epoch": 3, "path": "place", "sha256": "abc"}]
    assert search.suggest("tune") is None
    recorder.over = True
    assert search.suggest("tune") == Searcher.FINISHED


def test_a_stint_ends_when_the_recorder_says_so() -> None:
    recorder = Recorder()
    scheduler = StintScheduler(recorder, 2)
    decisions = [scheduler.on_trial_result(None, tune_trial(), {"report": Report(epoch)}) for epoch in (1, 2)]
    assert decisions == [TrialScheduler.CONTINUE, TrialScheduler.STOP]
    StintCallback(recorder).on_trial_start(0, [], tune_trial())
    StintCallback(recorder).on_step_begin(0, [])
    scheduler.on_trial_error(None, tune_trial())
    assert recorder.told == [("t0007", 1), ("t0007", 2), "t0007", "poll", ("t0007", "no reason known")]


def test_the_reason_of_an_error_is_what_ray_has_written_by_then(tmp_path: Path) -> None:
    recorder = Recorder()
    scheduler = StintScheduler(recorder, 1)
    for _ in range(2):
        scheduler.on_trial_error(None, tune_trial(str(tmp_path / "error.txt")))
        (tmp_path / "error.txt").write_text("The actor died.\n")
    assert recorder.told == [("t0007", "no reason known"), ("t0007", "The actor died.")]


def test_tune_is_told_once_to_keep_all_processes_that_wait() -> None:
    kept = []
    controller = SimpleNamespace(_actor_cache=SimpleNamespace(increase_max=lambda key, by: kept.append((key, by))))
    scheduler = StintScheduler(Recorder(), 3)
    for _ in range(2):
        scheduler.on_trial_add(controller, tune_trial(placement_group_factory="one core"))
    assert kept == [("one core", 3)]


def test_pickled_doors_carry_nothing() -> None:
    for door in (StintSearch(Recorder()), StintScheduler(Recorder(), 2), StintCallback(Recorder())):
        assert vars(pickle.loads(pickle.dumps(door))) == {}
