"""A sweep whose machine is lost goes on elsewhere, from what a store has of it, although the store fails again and again."""

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import mlflow
import pytest
from copied_ledger import copied_trials
from faulty_store import faulty_store

from orchestrator import resume
from orchestrator.copy.fetch import fetch
from orchestrator.copy.results_store import ResultsStore
from orchestrator.ledger.events import Kind, Status
from orchestrator.ledger.ledger import read_ledger

SWEEP = [
    "search.trials=4", "search.references={}", "search.deterministic=false", "scheduler.name=none", "trial.epochs=24",
    "trial.data={source: generated, meta_per_class: 2}", "resources.max_concurrent=1",
]  # fmt: skip


def sweep(place: Path, *words: str) -> "subprocess.Popen[str]":
    place.mkdir()
    command = [sys.executable, "-m", "orchestrator.sweep", "--name", "copied", *words]
    return subprocess.Popen(
        command, cwd=place, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


@pytest.mark.slow
def test_a_sweep_whose_machine_is_lost_goes_on_from_its_copy_in_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with faulty_store() as s3:
        results = s3.address("bucket", "results")
        store = ResultsStore(results).inside("copied")
        s3.fail_every(10)
        first = sweep(tmp_path / "first", *SWEEP, "--results", results)
        deadline = time.monotonic() + 240
        while not copied_trials(store) and first.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(first.pid, signal.SIGKILL)  # the machine is gone, with its disk
        first.communicate()
        fetch(store, tmp_path / "look", lambda text: None)
        before = read_ledger(tmp_path / "look")
        assert first.returncode == -signal.SIGKILL  # in mid-sweep
        ended = [event["trial_id"] for event in before if event["event"] == Kind.TRIAL_END]
        s3.go_away(5)
        (tmp_path / "second").mkdir()
        monkeypatch.chdir(tmp_path / "second")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MLflow uses what SQLAlchemy deprecates
            code = resume.main(["copied", "--results", results])
        s3.heal()
        said = capsys.readouterr()
        assert code == 0, said
        assert f"going on: {len(ended)} of" in " ".join(said.out.split())
        folder = tmp_path / "second" / "results" / "copied"
        events = list(read_ledger(folder))
        assert events[: len(before)] == list(before)
        finished = [event["trial_id"] for event in events if event["event"] == Kind.TRIAL_END]
        assert sorted(finished) == [f"t{number:04d}" for number in range(4)]  # none is lost, none ends twice
        assert {event["status"] for event in events if event["event"] == Kind.TRIAL_END} == {Status.FINISHED}
        fetch(store, tmp_path / "copy", lambda text: None)
        here, there = (
            {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}
            for place in (folder, tmp_path / "copy")
        )
        assert there.keys() == here.keys()
        assert there == here  # with the export, the tables and the ledger's last line
        assert "best/model.safetensors" in there
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow uses what SQLAlchemy deprecates
        tracked = mlflow.MlflowClient(f"sqlite:///{tmp_path}/second/results/mlflow.db")
        runs = tracked.search_runs([tracked.get_experiment_by_name("tailtune").experiment_id])
    trials = [run for run in runs if run.data.tags["tailtune.kind"] == "trial"]
    assert len(trials) == 4  # also those that ended on the lost machine, whose database is lost
    assert {run.info.status for run in trials} == {"FINISHED"}
