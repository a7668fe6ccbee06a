"""Sweeps on a cluster whose machines come and go: real Ray with its autoscaler; machines are processes (clusters/fake.yaml).

`make cluster-test` runs these.
"""

import json
import platform
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
from copied_ledger import copied_trials
from faulty_store import faulty_store
from tools import need

from benchmarks.fake_cluster import FakeCluster, fake_cluster, unavailable
from orchestrator.copy.results_store import ResultsStore
from orchestrator.ledger.ledger import read_ledger
from trainables.export_model import read_test

ROOT = Path(__file__).parents[2]
IDLE_S = 20
SWEEP = [
    "search.trials=12", "search.references={}", "search.deterministic=false", "scheduler.name=none", "trial.epochs=12",
    "trial.classifier.widths=[4, 8]", "trial.device=cpu",
    "resources.gpus_per_worker=1", "resources.cpus_per_worker=0.5", "resources.workers=2", "resources.max_concurrent=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def cluster() -> Iterator[FakeCluster]:
    need(unavailable())
    with fake_cluster(idle_timeout_minutes=IDLE_S / 60) as found:
        yield found


def begin(cluster: FakeCluster, folder: Path, *changes: str, results: str = "results") -> "subprocess.Popen[str]":
    place = ["--address", cluster.address, "--cluster", str(cluster.file)]
    words = ["-m", "orchestrator.sweep", *place, "--results", results, "--name", "fake", *SWEEP, *changes]
    folder.mkdir(exist_ok=True)
    with (folder / "out").open("w") as output:
        return cluster.start(*words, cwd=folder, stdout=output, stderr=subprocess.STDOUT)


def wait_until(condition: Callable[[], object], limit_s: float, what: str) -> float:
    """Seconds until a condition holds."""
    since = time.monotonic()
    while not condition():
        assert time.monotonic() - since < limit_s, what
        time.sleep(0.2)
    return time.monotonic() - since


def events(folder: Path, kind: str = "") -> list[dict[str, Any]]:
    ledger = folder / "results" / "fake" / "ledger.jsonl"
    lines = ledger.read_text().splitlines() if ledger.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("}")]
    return [event for event in found if not kind or event["event"] == kind]


def machines_with(function: str, cluster: FakeCluster) -> set[int]:
    """The process ids of the cluster's machines on which Ray runs a function at this moment; 0 stands for the head."""
    found, ids = set(), {machine.pid for machine in cluster.machines()}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cmdline()[:1] == [f"ray::{function}"]:  # the title that Ray gives a worker while it runs the function
                machine = psutil.Process(process.ppid())
                if str(cluster.file.parent) in " ".join(machine.cmdline()):
                    found.add(machine.pid if machine.pid in ids else 0)
    return found


def test_machines_come_with_the_work_one_is_lost_all_trials_finish_and_the_machines_go(
    cluster: FakeCluster, tmp_path: Path
) -> None:
    assert cluster.machines() == []
    most, process = 0, begin(cluster, tmp_path)
    lost: list[psutil.Process] = []
    read_on: set[int] = set()

    def watch() -> bool:
        nonlocal most
        machines = cluster.machines()
        most = max(most, len(machines))
        read_on.update(machines_with("read_test_of", cluster))
        if not lost and len(events(tmp_path, "epoch")) > 24:
            lost.append(machines[0])
            machines[0].kill()
        return process.poll() is not None

    wait_until(watch, 400, "the sweep does not end")
    said = (tmp_path / "out").read_text()
    assert process.returncode == 0, said
    assert most == 4
    read_ledger(tmp_path / "results" / "fake")  # whole and in order
    assert len(events(tmp_path, "trial_end")) == 12
    assert {event["status"] for event in events(tmp_path, "trial_end")} == {"finished"}
    (group_lost,) = events(tmp_path, "group_lost")
    epochs = [(event["trial_id"], event["epoch"]) for event in events(tmp_path, "epoch")]
    assert len(epochs) == len(set(epochs)) == 12 * 12  # what was lost had not been reported: less than an epoch
    assert group_lost["reason"]
    assert [event["slots"] for event in events(tmp_path, "slots")][:3] == [1, 2, 1]  # as the machines came and went
    assert {event["gpus_per_slot"] for event in events(tmp_path, "slots")} == {2}
    spent = events(tmp_path, "machines")[-1]
    assert spent["starting_s"] > 15  # four machines, and one in place of the lost one
    assert spent["up_s"] > spent["starting_s"]
    assert "GPUs of the machines" in said
    assert len(read_on) == 1
    assert 0 not in read_on  # the sealed test was read on a machine of the cluster, and not on the head
    (test_read,) = events(tmp_path, "test_read")
    here = read_test(tmp_path / "results" / "fake" / "best" / "model.safetensors")
    assert test_read["metrics"] == json.loads(json.dumps(here).replace("NaN", "null"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow uses what SQLAlchemy deprecates
        store = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'results' / 'mlflow.db'}")
        runs = store.search_runs([store.get_experiment_by_name("tailtune").experiment_id])
    assert sum(run.data.tags["tailtune.kind"] == "trial" for run in runs) == 12
    searched = {"method.driver_weight", "method.meta_lr", "method.hidden_width", "method.refresh_interval"}
    assert all(searched <= run.data.params.keys() for run in runs if run.data.tags["tailtune.kind"] == "trial")
    wait_until(lambda: not cluster.machines(), IDLE_S + 15, "machines without work stay")


def test_a_dry_run_times_its_steps_on_a_machine_of_the_cluster(cluster: FakeCluster, tmp_path: Path) -> None:
    process, timed_on = begin(cluster, tmp_path, "--dry-run"), set[int]()

    def watch() -> bool:
        timed_on.update(machines_with("time_here", cluster))
        return process.poll() is not None

    wait_until(watch, 200, "the dry run does not end")
    said = (tmp_path / "out").read_text()
    assert process.returncode == 0, said
    assert len(timed_on) == 1
    assert 0 not in timed_on
    assert f"cpu of the cluster's machine {platform.node()})" in " ".join(said.split())
    assert "2 trials at a time of 2 workers each" in " ".join(said.split())
    assert not (tmp_path / "results").exists()
    wait_until(lambda: not cluster.machines(), IDLE_S + 15, "machines without work stay")


def test_a_sweep_that_does_not_fit_is_refused_before_a_machine_comes(cluster: FakeCluster, tmp_path: Path) -> None:
    process = begin(cluster, tmp_path, "resources.workers=5")
    assert process.wait(60) == 2
    assert "resources.workers is 5, but the machines of" in (tmp_path / "out").read_text()
    assert cluster.machines() == []
    assert not (tmp_path / "results").exists()


def test_machines_that_never_come_are_named_and_ctrl_c_ends_the_waiting(tmp_path: Path) -> None:
    """The cluster's file promises machines, but this head's autoscaler may start none."""
    need(unavailable())
    with fake_cluster(port=6409, max_workers=0) as barren:
        promise = barren.file.with_name("promise.yaml")
        promise.write_text((ROOT / "clusters" / "fake.yaml").read_text())
        process = begin(barren._replace(file=promise), tmp_path)
        out = tmp_path / "out"
        wait_until(
            lambda: "waiting for a machine with 0.5 CPU and 1 GPU" in out.read_text(), 120, "nobody says what is waited for"
        )
        assert "the autoscaler starts no machine" in out.read_text()
        inner = psutil.Process(process.pid)
        (inner.children() or [inner])[0].send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert "interrupted before the sweep began" in out.read_text()


def test_a_head_that_is_lost_is_replaced_and_the_sweep_goes_on_from_the_copy_in_a_store(tmp_path: Path) -> None:
    """The store throttles and fails every tenth request, and is gone for 20 s while the sweep runs."""
    need(unavailable())
    lost, new, longer = tmp_path / "lost", tmp_path / "new", "trial.epochs=36"  # it must outlast the 20 s
    with faulty_store() as s3:
        results = s3.address("results", "cluster")
        store = ResultsStore(results).inside("fake")
        s3.throttle(0.1)
        s3.fail_every(10)
        with fake_cluster(port=6419) as first:
            process = begin(first, lost, longer, results=results)
            wait_until(lambda: len(events(lost, "trial_end")) >= 2, 300, "no trial ends")
            s3.go_away(20)
            wait_until(lambda: len(events(lost, "trial_end")) >= 4, 300, "the sweep does not go on without the store")
            wait_until(lambda: len(copied_trials(store)) >= 4, 120, "the store is not used again")
        process.wait(60)  # it was among the head's processes
        copied = copied_trials(store)
        with fake_cluster(port=6429) as second:
            process = begin(second, new, longer, "--resume", results=results)
            wait_until(lambda: process.poll() is not None, 400, "the resumed sweep does not end")
    said = (new / "out").read_text()
    assert process.returncode == 0, said
    assert f"going on: {len(copied)} of" in said
    # A trial of this length may end by its own rules; no trial is lost, and none ends twice.
    assert sorted(event["trial_id"] for event in events(new, "trial_end")) == [f"t{number:04d}" for number in range(12)]
    epochs = [(event["trial_id"], event["epoch"]) for event in events(new, "epoch")]
    assert len(epochs) - len(set(epochs)) <= 2  # at most the epoch of each slot whose state had not reached the store
