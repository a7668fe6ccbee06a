"""Machines that join a cluster while a sweep runs, and leave it. Ray is real; there is no autoscaler, and GPUs are invented."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table

from orchestrator.cluster.machines import Fleet, Machines
from orchestrator.cluster.placement import needs_of_worker
from orchestrator.config.sweep_config import SweepConfig, read_sweep
from orchestrator.ledger.events import Event
from orchestrator.ledger.ledger import Ledger, read_ledger
from orchestrator.run.runner import run_trials

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:`use_.*` is deprecated")]
DIGITS = Path(__file__).parents[2] / "search_spaces" / "digits_lt.yaml"
SWEEP = [
    "search.references={}", "trial.data.n_max=20", "trial.data.imbalance_factor=5", "trial.method={name: cross_entropy}",
    "space={}", "space.optim.lr={type: float, low: 1.0e-3, high: 1.0, log: true}", "resources.gpus_per_worker=1",
    "resources.max_concurrent=4", "trial.device=cpu", "search.trials=24", "scheduler.name=none", "search.deterministic=false",
    "trial.epochs=8",
]  # fmt: skip


def add_machine(cluster: Cluster, gpus: int) -> Any:
    """A machine with invented GPUs joins."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)  # Ray counts the GPUs in there, and these are not real
        return cluster.add_node(num_cpus=gpus, num_gpus=gpus)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without GPUs, and a machine with two of them."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0, "include_dashboard": False})
    add_machine(cluster, gpus=2)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def of(events: list[Event], kind: str) -> list[Any]:
    return [event for event in events if event["event"] == kind]


class Impatient(Machines):
    """As where an autoscaler ends machines that are idle for 5 s."""

    patience_s = 5.0

    def look(self) -> Fleet:
        fleet = super().look()
        self.come_and_go = True
        return fleet


@pytest.mark.parametrize("fused", [1, 3])
def test_slots_follow_machines_that_join_and_leave_and_idle_ones_are_given_back(
    cluster: Cluster, tmp_path: Path, fused: int
) -> None:
    joined: dict[str, Any] = {}

    def change(event: Event) -> None:
        if event["event"] == "trial_end" and not joined:
            joined["machine"] = add_machine(cluster, gpus=1)
        slots_at_work = {line["slot"] for line in read_ledger(tmp_path) if line["event"] == "group_start"}
        if event["event"] == "epoch" and len(slots_at_work) == 3 and (machine := joined.pop("machine", None)):
            joined["left"] = machine
            cluster.remove_node(machine)

    changes = [] if fused == 1 else [f"resources.fused={fused}", "trial.classifier={name: linear}", "trial.epochs=40"]
    config: SweepConfig = read_sweep(DIGITS, [*SWEEP, *changes])
    with Ledger(tmp_path) as ledger:
        ledger.listen(change)
        machines = Impatient(needs_of_worker(config))
        assert run_trials(config, tmp_path, ledger, print, machines=machines) == ("finished", None)
    events = list(read_ledger(tmp_path))
    assert {event["status"] for event in of(events, "trial_end")} <= {"finished", "stopped_early"}
    assert len(of(events, "trial_end")) == 24
    assert [event["slots"] for event in of(events, "slots")] == [2, 3, 2]
    assert "left" in joined
    if (
        fused == 1
    ):  # while the trial whose machine has gone waits for another, the other slots have no work; bundles give them some
        assert of(events, "group_end")
    assert len({(event["slot"], event["epoch"]) for event in of(events, "group_lost")}) == 1
    assert max(event.get("shared_by", 1) for event in of(events, "epoch")) == fused
    assert of(events, "retry") == []
    assert [event["gpus_up"] for event in of(events, "machines")][:-1] == [2, 3, 2]
    assert of(events, "machines")[-1]["up_s"] > 0
    assert not [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
