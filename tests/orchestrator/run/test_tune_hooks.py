import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from orchestrator.decide.conductor import Checkpoint, Stint
from orchestrator.run.member import EpochReport
from orchestrator.run.tune_hooks import StintCallback, StintScheduler, StintSearch


class Supervisor:
    """Notes what it is told."""

    def __init__(self, *stints: Stint) -> None:
        self.stints, self.over, self.told = list(stints), False, list[Any]()

    def next_stints(self) -> list[Stint]:
        stints, self.stints = self.stints, []
        return stints

    def on_reports(self, bundle: int, reports: tuple[EpochReport, ...]) -> bool:
        self.told.append((bundle, *(report.epoch for report in reports)))
        return reports[0].epoch == 2

    def on_error(self, bundle: int, trial_ids: list[str], text: str) -> None:
        self.told.append((bundle, trial_ids, text))

    def on_start(self, trial_ids: list[str]) -> None:
        self.told.append(trial_ids)

    def poll(self) -> None:
        self.told.append("poll")


def tune_trial(error_file: str | None = None, **fields: Any) -> Any:
    return SimpleNamespace(
        config={"bundle": 5, "stints": [{"trial_id": "t0007"}, {"trial_id": "t0009"}]}, error_file=error_file, **fields
    )


def test_tune_gets_stints_until_there_will_be_none() -> None:
    first = Stint("t0000", {"seed": 1}, [Checkpoint(3, "place", "abc")], 2, 1, [5], bundle=4)
    supervisor = Supervisor(first, first._replace(trial_id="t0003"))
    search = StintSearch(supervisor)
    bundle = search.suggest("tune")
    assert bundle["bundle"] == 4
    assert [stint["trial_id"] for stint in bundle["stints"]] == ["t0000", "t0003"]
    assert bundle["stints"][0]["checkpoints"] == [{"epoch": 3, "path": "place", "sha256": "abc"}]
    assert search.suggest("tune") is None
    supervisor.over = True
    assert search.suggest("tune") == Searcher.FINISHED


def test_a_bundle_ends_when_the_supervisor_says_so() -> None:
    supervisor = Supervisor()
    scheduler = StintScheduler(supervisor, 2)
    reports = [(EpochReport("t0007", epoch), EpochReport("t0009", epoch)) for epoch in (1, 2)]
    decisions = [scheduler.on_trial_result(None, tune_trial(), {"reports": both}) for both in reports]
    assert decisions == [TrialScheduler.CONTINUE, TrialScheduler.STOP]
    StintCallback(supervisor).on_trial_start(0, [], tune_trial())
    StintCallback(supervisor).on_step_begin(0, [])
    scheduler.on_trial_error(None, tune_trial())
    both = ["t0007", "t0009"]
    assert supervisor.told == [(5, 1, 1), (5, 2, 2), both, "poll", (5, both, "no reason known")]


def test_the_reason_of_an_error_is_what_ray_has_written_by_then(tmp_path: Path) -> None:
    supervisor = Supervisor()
    scheduler = StintScheduler(supervisor, 1)
    for _ in range(2):
        scheduler.on_trial_error(None, tune_trial(str(tmp_path / "error.txt")))
        (tmp_path / "error.txt").write_text("The actor died.\n")
    assert [text for _, _, text in supervisor.told] == ["no reason known", "The actor died."]


def test_tune_is_told_once_to_keep_all_processes_that_wait() -> None:
    kept = []
    controller = SimpleNamespace(_actor_cache=SimpleNamespace(increase_max=lambda key, by: kept.append((key, by))))
    scheduler = StintScheduler(Supervisor(), 3)
    for _ in range(2):
        scheduler.on_trial_add(controller, tune_trial(placement_group_factory="one core"))
    assert kept == [("one core", 3)]


def test_pickled_doors_carry_nothing() -> None:
    for door in (StintSearch(Supervisor()), StintScheduler(Supervisor(), 2), StintCallback(Supervisor())):
        assert vars(pickle.loads(pickle.dumps(door))) == {}
