"""Sweeps whose trials run over groups of workers, in clusters of real processes."""

import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table

from orchestrator.config.sweep_config import SweepConfig, read_sweep
from orchestrator.ledger.events import Event
from orchestrator.ledger.ledger import Ledger, read_ledger
from orchestrator.run.runner import prepare_slots, run_trials
from trainables.workers.commands import Hello
from trainables.workers.worker_group import kill as kill_worker

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:`use_.*` is deprecated")]
DIGITS = Path(__file__).parents[3] / "search_spaces" / "digits_lt.yaml"
SLOT = ("ResourceTrainable", "Trial")
"""What Ray calls the process of a slot: Tune's name at first, then that of our class."""
SHORT = [
    "search.trials=12",
    "search.references={}",
    "trial.epochs=2",
    "scheduler.grace_epochs=1",
    "trial.data={source: generated, meta_per_class: 2}",  # the least work: these sweeps are about processes
    "trial.method={name: cross_entropy}",
    "space={}",
    "space.optim.lr={type: float, low: 1.0e-3, high: 1.0, log: true}",
]


def run(folder: Path, *changes: str, listener: Callable[[Event], None] | None = None) -> list[Event]:
    """The ledger of a sweep in the connected cluster."""
    config: SweepConfig = read_sweep(DIGITS, [*SHORT, *changes])
    with Ledger(folder) as ledger:
        if listener:
            ledger.listen(listener)
        notes: list[str] = []
        assert run_trials(config, folder, ledger, notes.append) == ("finished", None), notes
    return list(read_ledger(folder))


def of(events: list[Event], kind: str) -> list[Event]:
    return [event for event in events if event["event"] == kind]


def processes_of_groups() -> list[str]:
    """What is left of workers and of Ray Train's own actors among the processes of this cluster."""
    names = ("RayTrainWorker", "TrainController", "SynchronizationActor", *SLOT, "PlacementGroupCleaner")
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        found += [title for name in names if title.startswith(f"ray::{name}")]
    return found


def reserved() -> dict[str, Any]:
    """The placement groups that are there."""
    return {name: group for name, group in placement_group_table().items() if group["state"] != "REMOVED"}


def nothing_is_left() -> None:
    assert reserved() == {}
    deadline = time.monotonic() + 60
    while processes_of_groups() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert processes_of_groups() == []


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """A head without GPUs, and a machine with four of them."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0, "include_dashboard": False})
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)  # Ray counts the GPUs in there, and these are not real
        cluster.add_node(num_cpus=2, num_gpus=4)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
    cluster.shutdown()


def test_twelve_trials_share_two_groups_of_two_gpus_on_another_machine_and_leave_nothing(tmp_path: Path) -> None:
    resources = "{workers: 2, gpus_per_worker: 1, cpus_per_worker: 0.5, max_concurrent: 2}"
    events = run(tmp_path, f"resources={resources}", "trial.device=cpu")
    statuses = [event["status"] for event in of(events, "trial_end")]
    assert len(statuses) == 12
    assert set(statuses) == {"finished", "stopped_early"}
    assert [event["workers"] for event in of(events, "group_start")] == [2, 2]
    assert len({event["slot"] for event in of(events, "group_start")}) == 2
    nothing_is_left()


def test_single_gpus_on_another_machine_get_a_group_of_one_each(tmp_path: Path) -> None:
    resources = "{gpus_per_worker: 1, cpus_per_worker: 0.5, max_concurrent: 8}"
    slots, reserved = prepare_slots(read_sweep(DIGITS, [*SHORT, f"resources={resources}"]), tmp_path, tmp_path)
    assert slots.group is not None
    assert (slots.number, slots.group.max_workers, slots.group.gpus_per_worker) == (4, 1, 1)
    assert not reserved.keys() & {"CPU", "GPU"}  # the slots' own processes stay on the head


def kill(*names: str) -> int:
    """Kills a process of the cluster, by the beginning of its name."""
    titles = tuple(f"ray::{name}" for name in names)
    victims = [p for p in psutil.Process().children(recursive=True) if " ".join(p.cmdline()).startswith(titles)]
    os.kill(victims[0].pid, signal.SIGKILL)
    return victims[0].pid


def kill_slot_while_its_group_starts() -> None:
    """... as soon as the workers' placement group is there."""
    deadline = time.monotonic() + 120
    while not any(len(group["bundles"]) == 2 for group in reserved().values()) and time.monotonic() < deadline:
        time.sleep(0.02)
    kill(*SLOT)


def test_lost_workers_and_lost_slots_cost_no_trial_and_no_resources(tmp_path: Path) -> None:
    struck: dict[str, int] = {}

    def strike(event: Event) -> None:
        if event["event"] == "suggest" and event["trial_id"] == "t0000":
            threading.Thread(target=kill_slot_while_its_group_starts, daemon=True).start()
        victims = {"t0002": ("RayTrainWorker",), "t0003": SLOT}
        trial_id = event.get("trial_id")
        if event["event"] == "epoch" and event["epoch"] == 1 and trial_id in victims and trial_id not in struck:
            struck[trial_id] = kill(*victims[trial_id])

    changes = ("search.trials=5", "resources.workers=2", "resources.slots=1", "scheduler.name=none", "trial.epochs=3")
    events = run(tmp_path, *changes, listener=strike)
    ends: dict[str, Any] = {event["trial_id"]: event for event in of(events, "trial_end")}
    assert [ends[trial]["status"] for trial in sorted(ends)] == ["finished"] * 5
    assert sorted(event["trial_id"] for event in of(events, "retry")) == ["t0000", "t0003"]
    (lost,) = of(events, "group_lost")
    assert (lost["trial_id"], lost["epoch"]) == ("t0002", 2)
    assert str(struck["t0002"]) in lost["reason"]
    for trial_id in ("t0002", "t0003"):  # no epoch was trained twice
        rows = [(event["epoch"], event["attempt"]) for event in of(events, "epoch") if event["trial_id"] == trial_id]
        assert rows == [(1, 1), (2, 2), (3, 2)]
    assert len(of(events, "group_start")) == 3
    nothing_is_left()


def test_a_group_trains_several_trials_together_and_those_of_a_killed_worker_go_on_together(tmp_path: Path) -> None:
    struck: list[int] = []

    def strike(event: Event) -> None:
        if event["event"] == "epoch" and event["epoch"] == 2 and not struck:
            struck.append(kill("RayTrainWorker"))

    resources = "{gpus_per_worker: 1, cpus_per_worker: 0.5, max_concurrent: 2, fused: 4}"
    changes = ["search.trials=8", "search.deterministic=true", "scheduler.name=none", "trial.epochs=4", "checkpoint_interval=3"]
    head = "trial.classifier={name: linear}"
    events = run(tmp_path, f"resources={resources}", "trial.device=cpu", head, *changes, listener=strike)
    assert [event["status"] for event in of(events, "trial_end")] == ["finished"] * 8
    assert of(events, "retry") == []
    epochs = of(events, "epoch")
    assert Counter((event["trial_id"], event["epoch"]) for event in epochs) == Counter(
        (f"t000{trial}", epoch) for trial in range(8) for epoch in range(1, 5)
    )
    assert {event["shared_by"] for event in epochs} == {4}
    lost = of(events, "group_lost")
    assert Counter(str(struck[0]) in event["reason"] for event in lost) == {True: 4}  # all four trials know of it
    assert len({event["trial_id"] for event in lost}) == 4
    assert Counter(event["shared_by"] for event in of(events, "group_start")) == {4: 3 * 4}
    nothing_is_left()


def test_a_worker_is_killed_on_its_own_machine_and_nobody_in_its_stead_on_another() -> None:
    other = next(node["NodeID"] for node in ray.nodes() if node["Resources"].get("GPU"))
    with subprocess.Popen(["sleep", "60"]) as bystander, subprocess.Popen(["sleep", "60"]) as worker:
        kill_worker(Hello(0, bystander.pid, other[::-1], "", "", {}))  # of a machine that is gone
        kill_worker(Hello(0, worker.pid, other, "", "", {}))
        assert worker.wait(60) == -signal.SIGKILL
        assert bystander.poll() is None
        bystander.kill()
