import os
import platform
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
from ray.util.placement_group import placement_group_table

from trainables.checkpoint import read_checkpoint, write_checkpoint
from trainables.classifier_config import SmallCNNConfig
from trainables.config import ComputeConfig, OptimConfig, TrialConfig
from trainables.data_config import GeneratedConfig
from trainables.engine.health import TrialEnded
from trainables.method_config import CrossEntropyConfig, DifficultyNetConfig
from trainables.program import versions
from trainables.trial_run import TrialRun
from trainables.workers import worker_group
from trainables.workers.commands import Command, Ended, GroupLost, Hello, WorkerReport
from trainables.workers.worker_group import GroupConfig, WorkerGroup

pytestmark = pytest.mark.filterwarnings("ignore:`use_.*` is deprecated")  # Ray's own settings, read by Ray Train
SMALL = TrialConfig(
    epochs=4,
    data=GeneratedConfig(meta_per_class=2),
    classifier=SmallCNNConfig(widths=[4, 8]),
    method=DifficultyNetConfig(hidden_width=4),
    optim=OptimConfig(batch_size=8),
    device="cpu",
    compute=ComputeConfig(precision="float64", batch_norm="sync"),
)
CONFIG = GroupConfig(
    min_workers=1,
    max_workers=2,
    cpus_per_worker=0.5,
    gpus_per_worker=0,
    device="cpu",
    heartbeat_timeout_s=20,
    start_s=300,
    restarts=1,
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def hit(group: WorkerGroup, rank: int, number: signal.Signals) -> int:
    """Sends a signal to a worker; returns its process id."""
    assert group._running
    pid = group._running._workers.hellos[rank].pid
    os.kill(pid, number)
    return pid


def new_events(group: WorkerGroup) -> list[dict[str, Any]]:
    events, group.events = group.events, []
    return events


@pytest.fixture(scope="module")
def story(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """What a group lives through: good and bad trials, a killed worker, a hanging one, and its end."""
    seen, folder = SimpleNamespace(), tmp_path_factory.mktemp("checkpoint")
    group = WorkerGroup(CONFIG, tmp_path_factory.mktemp("group"))
    group.start(SMALL)
    seen.start = new_events(group)
    seen.first = [group.run_epoch() for _ in range(2)]
    seen.class_table, seen.best = group.class_table(), group.best
    group.save(folder)
    with pytest.raises(ValueError) as seen.refused:  # noqa: PT011
        group.start(SMALL.model_copy(update={"data": GeneratedConfig(n_max=10_000)}))
    group.start(SMALL.model_copy(update={"optim": OptimConfig(lr=1e150, batch_size=8)}))
    with pytest.raises(TrialEnded) as seen.diverged:
        group.run_epoch()
    group.start(SMALL)
    seen.again = [group.run_epoch() for _ in range(2)]
    group.load(folder, SMALL)
    seen.loaded_epoch, seen.quiet = group.epoch, new_events(group)

    group.load(folder, SMALL)
    seen.killed = hit(group, 1, signal.SIGKILL)
    seen.after_kill, seen.epoch_after_kill, seen.kill_events = group.run_epoch(), group.epoch, new_events(group)
    seen.stopped = hit(group, 0, signal.SIGSTOP)
    assert group._running
    group._running._workers._heartbeat_timeout_s /= 10  # long enough for the work, it would be a long wait for nothing
    with pytest.raises(TrialEnded) as seen.failed:
        group.run_epoch()
    seen.hang_events = new_events(group)
    group.start(SMALL)
    seen.next_trial, seen.next_events = group.run_epoch(), new_events(group)
    assert group._running
    seen.last_pid = group._running._workers.hellos[0].pid
    group.close()
    return seen


@pytest.mark.slow
def test_a_group_starts_once_and_serves_one_trial_after_another(story: SimpleNamespace) -> None:
    assert [(event["event"], event["workers"]) for event in story.start] == [("group_start", 2)]
    assert story.quiet == []
    assert [metrics["train/loss"] for metrics in story.first] == [metrics["train/loss"] for metrics in story.again]
    alone = TrialRun()
    alone.start(SMALL)
    for metrics in story.first:
        expected = {key: value for key, value in alone.run_epoch().items() if not key.startswith("time/")}
        assert {key: metrics[key] for key in expected} == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert len(story.class_table["accuracy"]) == 4
    assert story.best.metrics["val/acc"] == max(metrics["val/acc"] for metrics in story.first)


@pytest.mark.slow
def test_bad_input_and_a_diverged_trial_leave_the_group_as_it_was(story: SimpleNamespace) -> None:
    assert "data.n_max" in str(story.refused.value)
    assert story.diverged.value.status == "diverged"
    assert "became" in str(story.diverged.value)


@pytest.mark.slow
def test_a_killed_worker_costs_no_finished_epoch_and_an_elastic_group_goes_on_with_fewer(story: SimpleNamespace) -> None:
    assert story.loaded_epoch == 2
    assert story.epoch_after_kill == 3
    lost, started = story.kill_events
    assert lost.pop("lost_at") <= time.time()
    assert lost == {"event": "group_lost", "reason": f"worker 1 (process {story.killed}) died"}
    assert (started["event"], started["workers"]) == ("group_start", 1)


@pytest.mark.slow
def test_a_hanging_worker_is_found_and_too_many_losses_fail_that_trial_alone(story: SimpleNamespace) -> None:
    silence = f"no heartbeat from worker 0 (process {story.stopped}) for 2 s, told to epoch"
    (lost,) = story.hang_events
    assert (lost["event"], lost["reason"]) == ("group_lost", silence)
    assert story.failed.value.status == "failed"
    assert str(story.failed.value) == f"the workers were lost 2 times in this trial, at last: {silence}"
    assert story.next_trial["train/loss"] == pytest.approx(story.first[0]["train/loss"])
    assert [event["event"] for event in story.next_events] == ["group_start"]


@pytest.mark.slow
def test_a_closed_group_leaves_no_process_and_no_placement_group(story: SimpleNamespace) -> None:
    assert [group["state"] for group in placement_group_table().values()] == ["REMOVED"] * 3
    for pid in (story.killed, story.stopped, story.last_pid):
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


class Script:
    """Stands in for the processes: each command is answered by the next line of the script."""

    lines: list[WorkerReport | Exception]
    starts: list[int]
    heard: list[Command]

    held_since = None

    def __init__(self, config: GroupConfig, num_workers: int, folder: Path, while_waiting: Callable[[str | None], None]) -> None:
        self.starts.append(num_workers)

    def ask(self, command: Command, after_step: Callable[[int], None] | None = None) -> WorkerReport:
        self.heard.append(command)
        if after_step:
            after_step(17)
        line = self.lines.pop(0)
        if isinstance(line, Exception):
            raise line
        return line

    def kill(self) -> None:
        """Nothing to end."""


def report(epoch: int) -> WorkerReport:
    return WorkerReport(epoch, epoch or None, {"val/acc": 0.5}, {"val/acc": 0.5}, {}, None)


def state(epoch: int) -> WorkerReport:
    return WorkerReport(epoch, epoch or None, {"val/acc": 0.5}, {}, {}, f"state {epoch}".encode())


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> type[Script]:
    monkeypatch.setattr(worker_group, "_RunningGroup", Script)
    Script.starts, Script.heard = [], []
    return Script


def test_others_go_on_from_the_last_saved_state_and_repeat_the_epochs_since(script: type[Script], tmp_path: Path) -> None:
    died = GroupLost("worker 1 (process 7) died")
    script.lines = [report(0), report(1), state(1), report(2), died, report(1), report(2), report(3)]
    group = WorkerGroup(CONFIG, Path())
    group.start(SMALL)
    group.run_epoch()
    group.save(tmp_path)
    assert [group.run_epoch() and group.epoch for _ in range(2)] == [2, 3]
    assert script.starts == [2, 1]
    assert [(command[0], *command[2:]) for command in script.heard] == [
        ("begin", None, ""),
        ("epoch",),
        ("state",),
        ("epoch",),
        ("epoch",),
        ("begin", b"state 1", "the state after epoch 1"),
        ("epoch",),
        ("epoch",),
    ]
    assert [event.get("reason") for event in group.events] == [None, str(died), None]


def test_a_state_is_fetched_when_it_is_saved_once_for_an_epoch_and_again_from_other_workers(
    script: type[Script], tmp_path: Path
) -> None:
    died = GroupLost("worker 1 (process 7) died")
    script.lines = [report(0), report(1), died, report(0), report(1), state(1)]
    group = WorkerGroup(CONFIG, Path())
    group.start(SMALL)
    group.run_epoch()
    digest = group.save(tmp_path)
    assert group.save(tmp_path) == digest  # as after a full disk
    assert read_checkpoint(tmp_path, digest) == b"state 1"
    assert [command[0] for command in script.heard] == ["begin", "epoch", "state", "begin", "epoch", "state"]


def test_a_trial_that_always_breaks_its_workers_fails_and_the_next_one_starts_with_a_clean_count(script: type[Script]) -> None:
    broken = GroupLost("worker 0 (process 7): RuntimeError: an illegal memory access", all_there=True)
    script.lines = [broken, broken, broken, report(0)]
    group = WorkerGroup(CONFIG, Path())
    with pytest.raises(TrialEnded, match=r"lost 2 times in this trial, at last: worker 0 .*illegal memory access"):
        group.start(SMALL)
    group.start(SMALL)  # breaks once more, which is allowed
    assert script.starts == [2] * 4  # fewer workers would have had more images each


def test_what_others_would_refuse_too_is_not_tried_again(script: type[Script]) -> None:
    script.lines = [report(0), GroupLost("worker 1 (process 7): data.root: a.png cannot be read", hopeless=True)]
    group = WorkerGroup(CONFIG, Path())
    group.start(SMALL)
    with pytest.raises(TrialEnded, match=r"^worker 1 .*a.png cannot be read$"):
        group.run_epoch()
    assert script.starts == [2]
    assert [event["event"] for event in group.events] == ["group_start", "group_lost"]


def test_a_trial_that_is_too_large_for_several_workers_fails_at_once_and_the_next_one_has_others(script: type[Script]) -> None:
    too_large = "worker 0 (process 7): out of memory in epoch 1"
    script.lines = [report(0), GroupLost(too_large, all_there=True, hopeless=True), report(0)]
    group = WorkerGroup(CONFIG, Path())
    group.start(SMALL)
    with pytest.raises(TrialEnded, match=r"out of memory in epoch 1$") as caught:
        group.run_epoch()
    assert caught.value.status == "failed"
    group.start(SMALL)
    assert script.starts == [2, 2]


def test_who_watches_is_told_of_the_steps(script: type[Script]) -> None:
    script.lines = [report(0), report(1)]
    group, steps = WorkerGroup(CONFIG, Path()), []
    group.start(SMALL)
    group.run_epoch(steps.append)
    assert steps == [17]


def test_a_fork_has_no_best_epoch_until_it_has_one_of_its_own(script: type[Script], tmp_path: Path) -> None:
    """Also when its workers are lost before: the others fork it off the same state again."""
    write_checkpoint(tmp_path, b"the donor's state")
    begun = report(1)._replace(best_epoch=None)
    script.lines = [begun, GroupLost("worker 1 (process 7) died"), begun, report(2)]
    group = WorkerGroup(CONFIG, Path())
    changed = SMALL.model_copy(update={"method": DifficultyNetConfig(hidden_width=4, driver_weight=2.0)})
    group.load(tmp_path, changed)
    assert group.best is None
    group.run_epoch()
    assert group.best is not None
    assert group.best.epoch == 2
    begins = [command for command in script.heard if command[0] == "begin"]
    assert begins == [("begin", changed.model_dump(), b"the donor's state", str(tmp_path))] * 2


def test_the_end_of_a_trial_is_handed_on_with_its_status(script: type[Script]) -> None:
    script.lines = [report(0), Ended("diverged", "train/loss became nan in step 3")]
    group = WorkerGroup(CONFIG, Path())
    group.start(TrialConfig(method=CrossEntropyConfig()))
    with pytest.raises(TrialEnded, match="train/loss became nan") as caught:
        group.run_epoch()
    assert caught.value.status == "diverged"


def test_a_damaged_checkpoint_is_refused_before_anything_starts(script: type[Script], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no complete checkpoint"):
        WorkerGroup(CONFIG, Path()).load(tmp_path, SMALL)
    assert script.starts == []


def test_a_machine_with_another_program_is_named_and_not_tried_again() -> None:
    ours = Hello(0, 1, "node", "group", platform.node(), {})  # somebody may edit files of this machine meanwhile
    twin = Hello(2, 3, "node", "group", "gpu-3", versions())
    other = Hello(1, 2, "node", "group", "gpu-2", versions() | {"torch": "1.0"})
    group = object.__new__(worker_group._RunningGroup)
    group._workers = SimpleNamespace(hellos=[ours, twin])
    group._check_versions()
    group._workers.hellos.append(other)
    with pytest.raises(GroupLost, match=r"^the machine gpu-2 differs from this one: torch 1.0 there, .* here; allowed: ") as lost:
        group._check_versions()
    assert lost.value.hopeless
