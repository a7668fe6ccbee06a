import multiprocessing
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
import pytest
import requests
from http_server import http_server
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

from orchestrator.config.search_config import FloatParameter
from orchestrator.config.sweep_config import SearchConfig, SweepConfig, TrackingConfig
from orchestrator.ledger.events import Event
from orchestrator.ledger.ledger import Ledger, read_ledger
from orchestrator.tracking import mlflow_runs, page
from orchestrator.tracking import tracker as tracking
from orchestrator.tracking.tracker import Tracker, tracking_uri
from trainables.config import TrialConfig
from trainables.method_config import CrossEntropyConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
]
SWEEP = SweepConfig(search=SearchConfig(trials=6), space={"optim.lr": FloatParameter(low=0.01, high=1)}).model_dump()
TRIAL = TrialConfig(method=CrossEntropyConfig()).model_dump()
CHANGES = ("changes-000000000000.diff", "changes-111111111111.diff")
PLACES = ("", "best", "tables")
"""Folders of a run's files."""


def wait_for(condition: Callable[[], Any], limit_s: float = 60) -> None:
    """Waits until something is so."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


def record(folder: Path, config: SweepConfig, tracker: Tracker) -> None:
    """A short sweep: one trial finished, one diverged, one interrupted, one only suggested."""
    folder.mkdir(parents=True)
    best = folder / "best"
    best.mkdir()
    (best / "card.md").write_text("# card")
    clock = iter(range(1000, 2000))
    with Ledger(folder, clock=lambda: float(next(clock))) as ledger:
        ledger.listen(tracker)
        ledger.append("sweep_start", config=config.model_dump(), split_sha256="abc", git_commit=None, versions={"torch": "2.14"})
        for number, status in enumerate(("finished", "diverged", "interrupted", "running")):
            ledger.append("suggest", trial_id=f"t{number}", role="search", variant="", seed=0, config=TRIAL)
            if status == "running":
                continue
            ledger.append("trial_start", trial_id=f"t{number}", attempt=1)
            for epoch in (1, 2):
                metrics = {"val/acc": 0.5 + 0.1 * epoch, "val/acc_many": float("nan")}
                ledger.append("epoch", trial_id=f"t{number}", epoch=epoch, attempt=1, metrics=metrics)
            reason = None if status == "finished" else "why"
            ledger.append("trial_end", trial_id=f"t{number}", status=status, stop_reason=reason, best_epoch=2, best_value=0.7)
        ledger.append("suggest", trial_id="t4", role="search", variant="", seed=0, config=TRIAL)
        ledger.append(
            "trial_end", trial_id="t4", status="failed", stop_reason="Traceback\n  ...\nValueError: no"
        )  # it never started
        ledger.append("export", trial_id="t0", path=str(best), metrics={"best/val/acc": 0.7, "test/acc": 0.6})
        ledger.append("sweep_end", status="finished")
    tracker.close()


def test_mlflow_holds_what_the_ledger_says(config: SweepConfig, empty: Path, tmp_path: Path) -> None:
    shutil.copy(empty, tmp_path / "mlflow.db")
    tracker = Tracker(config.tracking, tmp_path, "demo")
    record(tmp_path / "demo", config, tracker)
    assert tracker.error is None
    client = mlflow.MlflowClient(tracking_uri(config.tracking, tmp_path))
    experiment = client.get_experiment_by_name("tailtune")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {name: run.info.status for name, run in runs.items()} == {
        "demo": "FINISHED",
        "t0": "FINISHED",
        "t1": "FAILED",
        "t2": "KILLED",
        "t4": "FAILED",
    }
    parent, child = runs["demo"], runs["t0"]
    assert parent.data.metrics == {"best/val/acc": 0.7, "test/acc": 0.6}
    assert parent.data.params["space.method.meta_lr.high"] == "0.1"
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert {
        key: child.data.tags[key]
        for key in ("method", "dataset", "imbalance_factor", "role", "variant", "seed", "split_sha256", "status")
    } == {
        "method": "cross_entropy",
        "dataset": "digits",
        "imbalance_factor": "50",
        "role": "search",
        "variant": "",
        "seed": "0",
        "split_sha256": "abc",
        "status": "finished",
    }
    assert runs["t1"].data.tags["stop_reason"] == "why"
    assert runs["t4"].data.tags["stop_reason"] == "ValueError: no"
    assert child.data.params["method.name"] == "cross_entropy"
    history = client.get_metric_history(child.info.run_id, "val/acc")
    assert [(point.step, point.value) for point in history] == [(1, 0.6), (2, 0.7)]
    assert history[0].timestamp == child.info.start_time + 1000  # the ledger's clock, in milliseconds
    assert "val/acc_many" not in child.data.metrics  # an empty band is not a number
    assert child.data.metrics["best/val/acc"] == 0.7
    assert [file.path for file in client.list_artifacts(child.info.run_id)] == ["config.yaml"]
    assert [file.path for file in client.list_artifacts(parent.info.run_id, "best")] == ["best/card.md"]
    names, pages = zip(*tracker.pages(), strict=True)
    assert names == ("all trials", "charts")
    key = parent.data.tags["tailtune.sweep"]
    assert all(f"/#/experiments/{experiment.experiment_id}/runs?" in page and key in page for page in pages)
    assert key in "".join(experiment.tags)


def test_a_server_that_is_not_there_costs_two_notes_and_a_bounded_time(
    config: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "LAST_TRIES_S", 2.0)
    notes: list[str] = []
    tracker = Tracker(TrackingConfig(uri="http://127.0.0.1:9"), tmp_path, "demo", notes.append)
    wait_for(lambda: notes)
    began = time.monotonic()
    record(tmp_path / "demo", config, tracker)
    assert time.monotonic() - began < 30
    assert tracker.error is not None
    first, second = notes
    assert first.startswith("MLflow at http://127.0.0.1:9 cannot be reached: ")
    assert second == "MLflow at http://127.0.0.1:9 did not come back; the ledger has everything"
    assert (tmp_path / "demo" / "ledger.jsonl").read_text().count("\n") == 21


def test_a_file_that_is_no_database_is_noted_once(config: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 1)
    (tmp_path / "mlflow.db").write_text("this is a letter\n" * 100)
    notes: list[str] = []
    tracker = Tracker(config.tracking, tmp_path, "demo", notes.append)
    record(tmp_path / "demo", config, tracker)
    tracker.close()
    (note,) = notes
    assert "mlflow.db ended: " in note
    assert "not a database" in note


def test_a_failure_that_cannot_even_be_noted_leaves_the_sweep_alone(
    config: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(text: str) -> None:
        raise UserWarning(text)

    monkeypatch.setattr(tracking, "LAST_TRIES_S", 0.0)
    tracker = Tracker(TrackingConfig(uri="http://127.0.0.1:9"), tmp_path, "demo", refuse)
    record(tmp_path / "demo", config, tracker)
    assert tracker.error is not None


def test_a_failure_after_the_patience_has_ended_is_not_noted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def connect(uri: str) -> None:
        released.wait()
        raise RuntimeError("it had hung")

    monkeypatch.setattr(tracking, "connect", connect)
    notes: list[str] = []
    tracker = Tracker(TrackingConfig(), tmp_path, "demo", notes.append)
    tracker.close(timeout_s=0)
    released.set()
    tracker.close()
    assert tracker.error is not None
    (note,) = notes
    assert "has not taken everything after 0 s" in note


# A sweep in two segments. The first is interrupted and leaves t1 ended by that, t2 without an end and t3 without a start; in the
# second t2 repeats an epoch, and t4 never says how it ended.
def write_story(folder: Path) -> None:
    best = folder / "best"
    best.mkdir(exist_ok=True)
    (best / "card.md").write_text("# card")
    clock = iter(range(1000, 2000))
    with Ledger(folder, clock=lambda: float(next(clock))) as ledger:
        # t1 collapses for good, t0 recovers.
        zero_weights = {("t1", epoch, 1): 2.0 for epoch in (2, 3)} | {("t0", 1, 1): 3.0}

        def suggest(trial_id: str, **more: Any) -> None:
            ledger.append("suggest", trial_id=trial_id, role="search", variant="", seed=0, config=TRIAL, **more)

        def train(trial_id: str, *epochs: int, attempt: int = 1) -> None:
            ledger.append("trial_start", trial_id=trial_id, attempt=attempt)
            for epoch in epochs:
                metrics = {"val/acc": 0.5 + 0.1 * epoch, "val/acc_many": None, "train/loss": 1 / epoch}
                metrics["collapse/zero_weight_classes"] = zero_weights.get((trial_id, epoch, attempt), 0.0)
                ledger.append("epoch", trial_id=trial_id, epoch=epoch, attempt=attempt, metrics=metrics)

        def end(trial_id: str, status: str, best_epoch: int) -> None:
            best = {"best_epoch": best_epoch, "best_value": 0.5 + 0.1 * best_epoch}
            ledger.append("trial_end", trial_id=trial_id, status=status, stop_reason=f"{trial_id} {status}", **best)

        first = {"split_sha256": "abc", "git_commit": None, "versions": {"torch": "2.14"}, "changes": CHANGES[0]}
        ledger.append("sweep_start", config=SWEEP, **first)
        for number in range(4):
            suggest(f"t{number}", parent=None, confirms=None)
        train("t0", 1, 2)
        end("t0", "finished", 2)
        train("t1", 1, 2)
        train("t2", 1, 2)
        end("t1", "interrupted", 2)
        ledger.append("slots", slots=1, gpus_per_slot=0.0)
        ledger.append("sweep_end", status="interrupted")
        ledger.append("damaged", path="checkpoints/t2/0002-1", reason="digest")
        raised = SWEEP | {"search": SWEEP["search"] | {"trials": 9}}
        ledger.append("sweep_resume", segment=1, config=raised, versions={}, git_commit=None, changes=CHANGES[1])
        train("t1", 3)
        ledger.append("retry", trial_id="t2", attempt=2, reason="worker lost")
        train("t2", 2, attempt=2)
        ledger.append("decide", trial_id="t2", epoch=2, action="pause", cutoff=0.6, rank=1, of=2)
        end("t1", "finished", 3)
        ledger.append("retry", trial_id="t2", attempt=3, reason="worker lost")
        train("t2", 3, attempt=3)
        end("t2", "diverged", 3)
        train("t3")
        ledger.append("trial_end", trial_id="t3", status="failed", stop_reason="ValueError: no")
        suggest("t4", parent={"trial_id": "t0", "epoch": 2})
        train("t4", 1)
        for trial_id in ("t5", "t6"):
            suggest(trial_id, confirms="t0")
        train("t5", 1)
        end("t5", "finished", 1)
        train("t6", 1, 2)
        end("t6", "finished", 2)
        ledger.append("export", trial_id="t0", path=str(best), metrics={"best/val/acc": 0.7, "test/acc": 0.6})
        ledger.append("sweep_end", status="finished")


class Store:
    """An MLflow store of its own, and what it shows."""

    def __init__(self, results: Path, empty: Path) -> None:
        results.mkdir(exist_ok=True)
        shutil.copy(empty, results / "mlflow.db")  # to make one takes six seconds
        self.results, self.notes = results, list[str]()
        self.best = results / "demo" / "best"
        self.best.mkdir(parents=True)
        (self.best / "card.md").write_text("# card")
        for name in (*CHANGES, "trials.parquet", "classes.parquet", "report.html"):
            (self.best.parent / name).write_text(name)

    def here(self, events: Sequence[Event]) -> list[Event]:
        """The events as if the story had happened in this folder."""
        return [event | {"path": str(self.best)} if str(event.get("path")).endswith("/best") else event for event in events]

    def tracker(self, past: Sequence[Event] = (), name: str = "demo") -> Tracker:
        return Tracker(TrackingConfig(), self.results, name, self.notes.append, self.here(past))

    def follow(self, past: Sequence[Event], events: Sequence[Event], name: str = "demo") -> Tracker:
        tracker = self.tracker(past, name)
        for event in self.here(events):
            tracker(event)
        tracker.close()
        return tracker

    @property
    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(tracking_uri(TrackingConfig(), self.results))

    def runs(self) -> dict[str, Any]:
        """All runs by trial id, the parent as "sweep"."""
        runs = self.client.search_runs([self.client.get_experiment_by_name("tailtune").experiment_id])
        names = [run.data.tags.get("trial_id", "sweep") for run in runs]
        assert len(set(names)) == len(names), f"two runs of the same: {names}"
        return dict(zip(names, runs, strict=True))

    def shown(self) -> dict[str, Any]:
        """What a person finds there, without the numbers that MLflow makes up."""
        client, runs = self.client, self.runs()
        ids = {run.info.run_id: name for name, run in runs.items()}

        def named(text: str) -> str:
            for run_id, name in ids.items():
                text = text.replace(run_id, name)
            return text

        return {
            name: {
                "name": run.info.run_name,
                "status": run.info.status,
                "from": run.info.start_time,
                "to": run.info.end_time,
                "params": run.data.params,
                "latest": run.data.metrics,
                "tags": {key: named(value) for key, value in run.data.tags.items()},
                "data": [(entry.dataset.name, entry.dataset.digest) for entry in run.inputs.dataset_inputs],
                "curves": {
                    key: {(point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)}
                    for key in run.data.metrics
                },
                "files": [file.path for place in PLACES for file in client.list_artifacts(run.info.run_id, place or None)],
            }
            for name, run in runs.items()
        }


@pytest.fixture(scope="module")
def empty(mlflow_store: Path) -> Path:
    """An MLflow database without runs."""
    return mlflow_store


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    """The ledger of a sweep in two segments."""
    folder = tmp_path_factory.mktemp("story")
    write_story(folder)
    return read_ledger(folder)


@pytest.fixture(scope="module")
def told(empty: Path, story: list[Event], tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store to which one process sent the whole story."""
    store = Store(tmp_path_factory.mktemp("told"), empty)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store.follow((), story)
    assert store.notes == []
    return store


class Mortal:
    """A client that counts the requests that change something; its process is killed at one of them."""

    def __init__(self, client: Any, lives: int) -> None:
        self._client, self._lives = client, lives
        self.requests: list[tuple[str, Any]] = []

    def __getattr__(self, method: str) -> Any:
        def request(*args: Any, **kwargs: Any) -> Any:
            if not method.startswith(("get_", "search_")):
                if len(self.requests) == self._lives:
                    raise RuntimeError("killed")
                self.requests.append((method, kwargs))
            return getattr(self._client, method)(*args, **kwargs)

        return request


def mortal(patch: pytest.MonkeyPatch, lives: int) -> list[Mortal]:
    """From now on trackers have `lives` requests to live; returns their clients."""
    clients: list[Mortal] = []

    def connect(uri: str) -> Mortal:
        clients.append(Mortal(mlflow_runs.connect(uri), lives))
        return clients[-1]

    patch.setattr(tracking, "connect", connect)
    return clients


def number_of(story: list[Event], kind: str) -> int:
    """Place of the first event of a kind."""
    return next(event["n"] for event in story if event["event"] == kind)


def test_a_story_in_two_segments_ends_as_the_ledger_says(told: Store) -> None:
    shown = told.shown()
    assert {name: (run["status"], run["tags"].get("status")) for name, run in shown.items()} == {
        "sweep": ("FINISHED", None),
        "t0": ("FINISHED", "finished"),
        "t1": ("FINISHED", "finished"),  # after it was interrupted
        "t2": ("FAILED", "diverged"),
        "t3": ("FAILED", "failed"),
        "t4": ("KILLED", None),  # nobody said how it ended
        "t5": ("FINISHED", "finished"),
        "t6": ("FINISHED", "finished"),
    }
    tables = ["tables/classes.parquet", "tables/trials.parquet"]
    assert shown["sweep"]["files"] == [
        *("best", *CHANGES, "report.html", "sweep.yaml", "tables", "versions.txt", "best/card.md"),
        *tables,
    ]
    assert shown["sweep"]["tags"]["segments"] == "2"
    assert shown["sweep"]["params"]["search.trials"] == "6"  # as it was begun
    assert shown["t2"]["tags"]["retries"] == "2"
    assert (shown["t4"]["tags"]["parent_trial"], shown["t4"]["tags"]["parent_epoch"]) == ("t0", "2")
    assert shown["t5"]["tags"]["confirms"] == "t0"
    assert "parent_trial" not in shown["t0"]["tags"]
    assert "confirms" not in shown["t0"]["tags"]
    collapsed = {name: run["tags"]["tailtune.collapse"] for name, run in shown.items() if "tailtune.collapse" in run["tags"]}
    assert collapsed == {"t1": "the weights of 2 classes are 0"}
    assert shown["t1"]["curves"]["val/acc"] == {(1, 0.6), (2, 0.7), (3, 0.8)}


def kill_and_resume(
    empty: Path, story: list[Event], told: Store, lives: int, heard: int, written: int, max_batch: int = 1
) -> None:
    """A process gets `heard` events and is killed at a request; another one takes up a ledger of `written` events."""
    with TemporaryDirectory() as folder:
        store = Store(Path(folder), empty)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mlflow_runs, "MAX_BATCH", max_batch)  # 1: it may be killed in the middle of an epoch
            mortal(patch, lives)
            store.follow((), story[:heard])
        store.follow(story[:written], story[written:])
        assert len(store.notes) <= 1  # the first process could not go on, the second one can
        assert store.shown() == told.shown()


@settings(max_examples=10)
@given(draw=st.data())
def test_a_sweep_killed_anywhere_and_resumed_shows_the_same(
    empty: Path, story: list[Event], told: Store, draw: st.DataObject
) -> None:
    lives = draw.draw(st.integers(0, 80), label="requests of the first process")
    heard = draw.draw(st.integers(0, len(story)), label="events that it heard")
    written = draw.draw(st.integers(heard, len(story)), label="events in the ledger")
    kill_and_resume(empty, story, told, lives, heard, written)


@pytest.mark.parametrize("lives", range(1, 8))
def test_a_sweep_killed_while_a_run_is_being_made_shows_the_same(
    lives: int, empty: Path, story: list[Event], told: Store
) -> None:
    kill_and_resume(empty, story, told, lives, len(story), len(story))


def test_killed_again_and_again_it_still_shows_the_same(empty: Path, story: list[Event], told: Store, tmp_path: Path) -> None:
    store = Store(tmp_path, empty)
    with pytest.MonkeyPatch.context() as patch:
        mortal(patch, 9)
        for heard in range(5, len(story), 5):
            store.follow(story[: heard - 2], story[heard - 2 : heard])
    store.follow(story, ())
    assert store.shown() == told.shown()


def test_a_sweep_that_is_resumed_is_running_again(empty: Path, story: list[Event], tmp_path: Path) -> None:
    store, resume = Store(tmp_path, empty), number_of(story, "sweep_resume")
    store.follow((), story[:resume])
    assert {run.info.status for run in store.runs().values()} == {"FINISHED", "KILLED"}
    tracker = store.tracker(story[:resume], "renamed")
    for event in story[resume : resume + 3]:  # t1 goes on
        tracker(event)
    tracker({"event": "trial_start"})  # nobody can read that: the process ends here
    tracker.close()
    runs = store.runs()
    assert {name: runs[name].info.status for name in ("sweep", "t0", "t1")} == {
        "sweep": "RUNNING",
        "t0": "FINISHED",
        "t1": "RUNNING",
    }
    assert runs["sweep"].info.run_name == "demo"


def test_a_process_that_ends_without_the_sweep_leaves_nothing_running(empty: Path, story: list[Event], tmp_path: Path) -> None:
    store = Store(tmp_path, empty)
    store.follow((), story[: number_of(story, "trial_end")])
    assert {name: run.info.status for name, run in store.runs().items()} == {"sweep": "KILLED", "t0": "KILLED"}


def test_a_process_that_is_killed_after_the_end_of_the_sweep_leaves_nothing_running(
    empty: Path, story: list[Event], tmp_path: Path
) -> None:
    store = Store(tmp_path, empty)
    store.follow((), [*story, {"event": "trial_start"}])  # nobody can read that: the process ends here
    assert "RUNNING" not in {run.info.status for run in store.runs().values()}


def test_what_mlflow_has_is_not_sent_again(told: Store, story: list[Event], monkeypatch: pytest.MonkeyPatch) -> None:
    clients, shown = mortal(monkeypatch, 1000), told.shown()
    told.follow(story, ())
    # t4 has no end: what the ledger says about it last goes out again.
    assert [method for method, _ in clients[0].requests] == ["update_run", "log_batch", "set_terminated"]
    assert told.shown() == shown


def test_a_weighting_that_recovers_in_another_process_is_no_longer_said_to_have_collapsed(
    empty: Path, story: list[Event], told: Store, tmp_path: Path
) -> None:
    store, heard = Store(tmp_path, empty), number_of(story, "epoch") + 1
    store.follow((), story[:heard])
    assert store.runs()["t0"].data.tags["tailtune.collapse"] == "the weights of 3 classes are 0"
    store.follow(story[:heard], story[heard:])
    assert store.shown() == told.shown()


def test_an_attempt_that_was_repeated_leaves_no_verdict(empty: Path, story: list[Event], tmp_path: Path) -> None:
    store, heard = Store(tmp_path, empty), number_of(story, "epoch") + 1
    store.follow((), story[:heard])
    assert "tailtune.collapse" in store.runs()["t0"].data.tags
    again = {**story[heard - 1], "n": heard, "time": 3000.0, "attempt": 2, "metrics": {"val/acc": 0.6}}
    store.follow([*story[:heard], again], ())
    assert "tailtune.collapse" not in store.runs()["t0"].data.tags


def test_when_a_sweep_goes_on_after_its_end_nothing_old_is_sent_again(
    empty: Path, story: list[Event], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, events = Store(tmp_path, empty), [event for event in story if event.get("trial_id") != "t4"]
    store.follow((), events)
    clients = mortal(monkeypatch, 1000)
    again = {"n": len(story), "time": 3000.0, "event": "sweep_resume", "segment": 2, "config": SWEEP}
    store.follow([*events, again], ())
    sent = ["log_artifact", "set_tag", "update_run", "set_tag", "set_terminated"]
    assert [method for method, _ in clients[0].requests] == sent
    sweep = store.runs()["sweep"]
    assert (sweep.info.status, sweep.data.tags["segments"]) == ("KILLED", "3")


def test_of_a_trial_that_was_running_only_the_last_epoch_is_sent_again(
    empty: Path, story: list[Event], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, end = Store(tmp_path, empty), number_of(story, "trial_end")
    store.follow((), story[:end])
    clients = mortal(monkeypatch, 1000)
    store.follow(story[:end], ())
    sent = [point.step for _, request in clients[0].requests for point in request.get("metrics", ())]
    assert set(sent) == {2}


def test_an_end_like_the_one_before_is_not_taken_for_it(empty: Path, story: list[Event], tmp_path: Path) -> None:
    store, resume = Store(tmp_path, empty), number_of(story, "sweep_resume")
    twice = [
        event | {"status": "interrupted"} if (event["event"], event.get("trial_id")) == ("trial_end", "t1") else event
        for event in story
    ]
    store.follow((), twice[:resume])
    store.follow(twice, ())
    assert (3, 0.8) in store.shown()["t1"]["curves"]["val/acc"]


def test_of_a_repeated_epoch_the_last_attempt_is_sent(empty: Path, story: list[Event], tmp_path: Path) -> None:
    store = Store(tmp_path, empty)
    first = number_of(story, "epoch")
    other = story[first] | {"metrics": story[first]["metrics"] | {"val/acc": 0.1}}
    store.follow([*story[:first], other, *story[first + 1 :]], ())  # t0: an epoch of its only attempt
    assert (1, 0.1) in store.shown()["t0"]["curves"]["val/acc"]
    again = Store(tmp_path / "again", empty)
    repeated = [event | {"n": 2 * event["n"]} for event in story]
    repeated.insert(first, other | {"n": 2 * first - 1})
    again.follow(repeated, ())
    assert again.shown()["t0"]["curves"]["val/acc"] == {(1, 0.6), (2, 0.7)}


def test_runs_are_found_on_every_page(told: Store, story: list[Event], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_runs, "PAGE", 2)
    shown = told.shown()
    tracker = told.follow(story, ())
    assert tracker.pages()
    assert told.shown() == shown


def test_a_run_that_was_deleted_comes_back_from_the_ledger(empty: Path, story: list[Event], told: Store, tmp_path: Path) -> None:
    store = Store(tmp_path, empty)
    store.follow((), story)
    store.client.delete_run(store.runs()["t1"].info.run_id)
    store.follow(story, ())
    assert store.shown() == told.shown()


def test_another_sweep_of_the_same_name_has_runs_of_its_own(empty: Path, story: list[Event], tmp_path: Path) -> None:
    store = Store(tmp_path, empty)
    events = story[: number_of(story, "trial_start")]
    store.follow((), events)
    store.follow((), [events[0] | {"time": 7.0}, *events[1:]])
    with pytest.raises(AssertionError, match="two runs"):
        store.runs()


class Moody:
    """A client whose requests fail while `away`, as those to a server that answers 503."""

    def __init__(self, client: Any, away: threading.Event) -> None:
        self._client, self._away = client, away

    def __getattr__(self, method: str) -> Any:
        def request(*args: Any, **kwargs: Any) -> Any:
            if self._away.is_set():
                raise MlflowException("API request failed with error code 503 != 200", error_code=TEMPORARILY_UNAVAILABLE)
            return getattr(self._client, method)(*args, **kwargs)

        return request


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """While it is set, MLflow is away."""
    event = threading.Event()
    monkeypatch.setattr(tracking, "connect", lambda uri: Moody(mlflow_runs.connect(uri), event))
    monkeypatch.setattr(tracking, "FIRST_PAUSE_S", 0.05)
    return event


def write_again(store: Store) -> None:
    """The story as the ledger of `demo`: what was lost is read from there."""
    write_story(store.results / "demo")


@pytest.mark.parametrize("lost", [0, 1, 7, 12, 30])
def test_after_an_outage_everything_arrives(lost: int, empty: Path, told: Store, tmp_path: Path, away: threading.Event) -> None:
    store = Store(tmp_path, empty)
    write_again(store)
    own = read_ledger(store.results / "demo")
    tracker = store.tracker()
    for event in own[:lost]:
        tracker(event)
    away.set()
    for event in own[lost:]:
        tracker(event)
    wait_for(lambda: store.notes)
    away.clear()
    tracker.close()
    assert tracker.error is None
    first, second = store.notes
    assert "cannot be reached: API request failed with error code 503" in first
    assert second.endswith("is back, and has everything of the ledger")
    shown, expected = store.shown(), told.shown()
    assert shown == expected


def test_a_server_that_is_slower_than_the_sweep_gets_everything_from_the_ledger(
    empty: Path, told: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "MOST_WAITING", 3)
    store = Store(tmp_path, empty)
    write_again(store)
    tracker = store.tracker()  # it takes a while to connect
    for event in read_ledger(store.results / "demo"):
        tracker(event)
    assert tracker._events.qsize() <= 3
    tracker.close()
    assert tracker.error is None
    assert store.notes == []
    assert store.shown() == told.shown()


def test_what_was_skipped_before_an_outage_arrives_although_the_sweep_ends_in_it(
    empty: Path, told: Store, tmp_path: Path, away: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "MOST_WAITING", 3)
    store = Store(tmp_path, empty)
    write_again(store)
    away.set()
    tracker = store.tracker()
    for event in read_ledger(store.results / "demo"):
        tracker(event)
    threading.Timer(1.0, away.clear).start()
    tracker.close()
    assert tracker.error is None
    assert store.shown() == told.shown()


def test_files_that_a_server_refuses_do_not_keep_the_rest(
    empty: Path, story: list[Event], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Choosy:
        def __init__(self, client: Any) -> None:
            self._client = client

        def __getattr__(self, method: str) -> Any:
            return getattr(self._client, method)

        def log_artifact(self, *_: Any) -> None:
            response = requests.Response()
            response.status_code = 413
            raise requests.HTTPError("too large", response=response)

    monkeypatch.setattr(tracking, "connect", lambda uri: Choosy(mlflow_runs.connect(uri)))
    store = Store(tmp_path, empty)
    store.follow((), story)
    assert store.runs()["sweep"].info.status == "FINISHED"
    assert "mlflow.note.content" in store.runs()["sweep"].data.tags
    refused = [CHANGES[0], "trials.parquet", "classes.parquet", CHANGES[1], "report.html"]
    for name, note in zip(refused, store.notes, strict=True):
        assert f"did not take the files of {name} (HTTP status 413)" in note


def test_a_trial_that_goes_on_from_an_earlier_state_shows_where_it_ended(empty: Path, story: list[Event], tmp_path: Path) -> None:
    """Its last epoch comes before the one at which it was interrupted."""
    store, last = Store(tmp_path, empty), story[-1]["n"]
    event = {"trial_id": "t1", "n": last + 1, "time": 3000.0, "prev": ""}
    metrics = {"val/acc": 0.9, "collapse/zero_weight_classes": 0.0}
    more = [
        event | {"event": "sweep_resume", "segment": 2, "config": SWEEP},
        event | {"event": "epoch", "n": last + 2, "epoch": 2, "attempt": 2, "metrics": metrics},
        event
        | {"event": "trial_end", "n": last + 3, "status": "finished", "stop_reason": None, "best_epoch": 2, "best_value": 0.9},
    ]
    store.follow((), [*story, *more])
    shown = store.runs()["t1"].data
    assert (shown.metrics["last/val/acc"], shown.metrics["best/val/acc"]) == (0.9, 0.9)
    assert shown.tags["best_epoch"] == "2"


def test_a_trial_on_another_seed_has_other_data(empty: Path, story: list[Event], tmp_path: Path) -> None:
    store = Store(tmp_path, empty)
    seeded = [
        event | {"config": event["config"] | {"seed": 7}} if event["event"] == "suggest" and event["trial_id"] == "t5" else event
        for event in story
    ]
    store.follow((), seeded)
    data = {name: run.inputs.dataset_inputs[0].dataset for name, run in store.runs().items()}
    assert data["t0"].digest == data["sweep"].digest == "abc"
    assert data["t5"].digest.startswith("settings ")


def test_a_server_that_is_known_to_be_away_is_not_told_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "LAST_TRIES_S", 0.0)
    notes: list[str] = []
    Tracker(TrackingConfig(uri="http://127.0.0.1:9"), tmp_path, "demo", notes.append, (), is_known_to_be_away=True).close()
    assert notes == ["MLflow at http://127.0.0.1:9 did not come back; the ledger has everything"]


def test_an_outage_of_two_requests_is_survived_in_the_middle_of_a_sweep(
    empty: Path, tmp_path: Path, away: threading.Event
) -> None:
    store = Store(tmp_path, empty)
    write_again(store)
    own = read_ledger(store.results / "demo")
    tracker = store.tracker()
    for number, event in enumerate(own):
        if number in (10, 20):
            away.set()
            before = len(store.notes)
            tracker(event)
            wait_for(lambda before=before: len(store.notes) > before)  # type: ignore[misc]
            away.clear()
            wait_for(lambda before=before: len(store.notes) > before + 1)  # type: ignore[misc]
        else:
            tracker(event)
    tracker.close()
    assert len(store.notes) == 4
    assert store.runs()["sweep"].info.status == "FINISHED"


@pytest.fixture(params=[500, 503, None], ids=["error", "busy", "hangs"])
def unwell(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server that answers with an error, or not at all."""

    def answer(asked: BaseHTTPRequestHandler) -> None:
        time.sleep(20) if request.param is None else asked.send_error(request.param)

    with http_server(answer) as uri:
        yield uri


def test_an_answer_that_is_an_error_may_pass_and_a_password_is_not_told(
    unwell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", unwell.replace("//", "//someone:sesame@"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr(tracking, "LAST_TRIES_S", 0.0)
    notes: list[str] = []
    tracker = Tracker(TrackingConfig(), tmp_path, "demo", notes.append)
    wait_for(lambda: notes)
    tracker.close()
    assert tracker.error is not None
    assert mlflow_runs.may_pass(tracker.error)
    assert "sesame" not in "".join(notes)
    assert notes[0].startswith("MLflow at http://***@127.0.0.1:")


def test_a_store_that_cannot_be_written_is_noted_and_the_sweep_goes_on(
    config: SweepConfig, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "LAST_TRIES_S", 0.0)
    monkeypatch.chdir(tmp_path)  # MLflow makes a folder `file:` there
    shutil.copy(empty, tmp_path / "mlflow.db")
    notes: list[str] = []
    tracker = Tracker(TrackingConfig(uri=f"sqlite:///file:{tmp_path}/mlflow.db?mode=ro&uri=true"), tmp_path, "demo", notes.append)
    record(tmp_path / "demo", config, tracker)
    assert tracker.error is not None
    (note,) = notes
    assert "readonly" in note


def test_an_experiment_that_is_deleted_under_our_feet_ends_the_tracking_and_not_the_sweep(
    empty: Path, story: list[Event], tmp_path: Path
) -> None:
    store = Store(tmp_path, empty)
    tracker = store.tracker()
    for event in store.here(story[:12]):
        tracker(event)
    wait_for(lambda: tracker.is_connected and len(store.runs()) > 2)
    store.client.delete_experiment(store.client.get_experiment_by_name("tailtune").experiment_id)
    for event in store.here(story[12:]):
        tracker(event)
    tracker.close()
    assert tracker.error is not None
    (note,) = store.notes
    assert "the sweep goes on, and the ledger has everything" in note


def test_a_setting_that_is_too_long_for_mlflow_says_where_it_is_whole(empty: Path, story: list[Event], tmp_path: Path) -> None:
    store, long = Store(tmp_path, empty), "x" * 6001
    started = [
        event | {"config": event["config"] | {"name": long, "unicode": "Bäume 木"}} if event["event"] == "suggest" else event
        for event in story
    ]
    store.follow((), started)
    params = store.runs()["t0"].data.params
    assert len(params["name"]) == 6000
    assert params["name"].endswith(" ... (6001 characters; all are in config.yaml)")
    assert params["unicode"] == "Bäume 木"
    whole = store.client.download_artifacts(store.runs()["t0"].info.run_id, "config.yaml", str(tmp_path))
    assert long in Path(whole).read_text().replace("\n", "")


def test_a_configuration_on_several_seeds_has_them_below_its_run(told: Store) -> None:
    runs = told.runs()
    assert runs["t5"].data.tags["mlflow.parentRunId"] == runs["t0"].info.run_id
    seeds = {key: value for key, value in runs["t0"].data.metrics.items() if key.startswith("seeds/")}
    assert (seeds["seeds/n"], seeds["seeds/mean"]) == (2, pytest.approx((0.6 + 0.7) / 2))  # of t5 and t6
    assert not any(key.startswith("seeds/") for key in runs["t1"].data.metrics)


def test_the_star_moves_with_the_export_and_the_tables_come_with_the_end(empty: Path, story: list[Event], tmp_path: Path) -> None:
    store = Store(tmp_path, empty)
    store.follow((), story)
    assert [name for name, run in store.runs().items() if "best" in run.data.tags] == ["t0"]
    parent = store.runs()["sweep"].info.run_id
    files = {file.path for file in store.client.list_artifacts(parent, "tables")}
    assert files == {"tables/trials.parquet", "tables/classes.parquet"}
    resumed = {"n": len(story), "time": 3000.0, "event": "sweep_resume", "segment": 2, "config": SWEEP}
    exported = {
        "n": len(story) + 1,
        "time": 3001.0,
        "event": "export",
        "trial_id": "t1",
        "path": "",
        "metrics": {"test/acc": 1.0},
    }
    store.follow([*story, resumed, exported], ())
    assert [name for name, run in store.runs().items() if "best" in run.data.tags] == ["t1"]


def test_runs_of_an_older_version_are_found_and_get_the_tag_by_which_they_are_found(
    empty: Path, story: list[Event], told: Store, tmp_path: Path
) -> None:
    store = Store(tmp_path, empty)
    store.follow((), story)
    for run in store.runs().values():
        if page.OF in run.data.tags:
            store.client.delete_tag(run.info.run_id, page.OF)
            store.client.set_tag(run.info.run_id, "mlflow.parentRunId", store.runs()["sweep"].info.run_id)
    store.follow(story, ())
    assert len(store.runs()) == len(told.runs())
    assert all(page.OF in run.data.tags for name, run in store.runs().items() if name != "sweep")


def test_the_uri_of_the_environment_counts_where_none_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://someone:sesame@host/db")
    assert tracking_uri(TrackingConfig(), tmp_path) == "postgresql://someone:sesame@host/db"
    assert tracking_uri(TrackingConfig(uri="http://host"), tmp_path) == "http://host"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert tracking_uri(TrackingConfig(), tmp_path).startswith("sqlite:///")


def begin_on(uri: str, barrier: Any, failures: Any) -> None:
    """A process that makes the store and the experiment, if nobody has."""
    mlflow_runs.connect("sqlite://")  # imports MLflow, which takes its time
    barrier.wait()
    try:
        mlflow_runs.find_or_make(mlflow_runs.connect(uri), "tailtune", None)
    except Exception as error:
        failures.put(repr(error))
    failures.put(None)


def test_two_processes_may_begin_on_a_fresh_store(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, failures = context.Barrier(2), context.Queue()
    arguments = (f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}", barrier, failures)
    both = [context.Process(target=begin_on, args=arguments) for _ in range(2)]
    for process in both:
        process.start()
    found = [failures.get(timeout=120) for _ in range(2)]
    for process in both:
        process.join()
    assert found == [None, None]


def test_an_experiment_that_another_process_makes_meanwhile_is_taken(empty: Path, tmp_path: Path) -> None:
    store = Store(tmp_path, empty)

    class Late:
        """Sees the experiment only after it has tried to make it."""

        def __init__(self) -> None:
            self.looked = False

        def get_experiment_by_name(self, name: str) -> Any:
            found = store.client.get_experiment_by_name(name) if self.looked else None
            self.looked = True
            return found

        def create_experiment(self, name: str, artifact_location: str | None) -> str:
            return str(store.client.create_experiment(name))

    number = store.client.create_experiment("tailtune")
    assert mlflow_runs.find_or_make(Late(), "tailtune", None) == number


def test_files_of_an_export_are_sent_from_inside_the_folder_only(empty: Path, story: list[Event], tmp_path: Path) -> None:
    """A ledger that came from somebody else may name any folder; what this process writes is its own."""
    store, foreign = Store(tmp_path / "results", empty), tmp_path / "home"
    foreign.mkdir()
    (foreign / "key").write_text("secret")
    crafted = [event | {"path": str(foreign)} if event["event"] == "export" else event for event in story]
    store.follow(crafted, ())
    assert "best" not in store.shown()["sweep"]["files"]
    again = Store(tmp_path / "again", empty)
    again.follow((), crafted)
    assert "best/key" in again.shown()["sweep"]["files"]
