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
from fused_trials import ALONE as FUSABLE
from fused_trials import METHODS, TIMES, members_of, started
from ray.util.placement_group import placement_group_table

from trainables.checkpoint import read_checkpoint, write_checkpoint
from trainables.classifier_config import SmallCNNConfig
from trainables.config import ComputeConfig, OptimConfig, TrialConfig
from trainables.data_config import GeneratedConfig
from trainables.engine.health import TrialEnded
from trainables.method_config import CrossEntropyConfig, DifficultyNetConfig
from trainables.program import versions
from trainables.side_by_side import FusedEpochFailed
from trainables.trial_run import TrialRun
from trainables.workers import worker_group
from trainables.workers.commands import Answer, Command, Ended, GroupLost, Hello, WorkerReport
from trainables.workers.worker_group import GroupConfig, GroupTrial, WorkerGroup

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


def new_trials(number: int = 1, folder: Path = Path(), config: GroupConfig = CONFIG) -> list[GroupTrial]:
    """The trials of a new group."""
    return WorkerGroup(config, folder).trials(number)


def new_events(group: WorkerGroup) -> list[dict[str, Any]]:
    events, group.events = group.events, []
    return events


@pytest.fixture(scope="module")
def story(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """What a group lives through: good and bad trials, a killed worker, a hanging one, and its end."""
    seen, folder = SimpleNamespace(), tmp_path_factory.mktemp("checkpoint")
    [trial] = new_trials(folder=tmp_path_factory.mktemp("group"))
    group = trial.group
    trial.start(SMALL)
    seen.start = new_events(group)
    seen.first = [trial.run_epoch() for _ in range(2)]
    seen.class_table, seen.best = trial.class_table(), trial.best
    trial.save(folder)
    with pytest.raises(ValueError) as seen.refused:  # noqa: PT011
        trial.start(SMALL.model_copy(update={"data": GeneratedConfig(n_max=10_000)}))
    trial.start(SMALL.model_copy(update={"optim": OptimConfig(lr=1e150, batch_size=8)}))
    with pytest.raises(TrialEnded) as seen.diverged:
        trial.run_epoch()
    trial.start(SMALL)
    seen.again = [trial.run_epoch() for _ in range(2)]
    trial.load(folder, SMALL)
    seen.loaded_epoch, seen.quiet = trial.epoch, new_events(group)

    trial.load(folder, SMALL)
    seen.killed = hit(group, 1, signal.SIGKILL)
    seen.after_kill, seen.epoch_after_kill, seen.kill_events = trial.run_epoch(), trial.epoch, new_events(group)
    seen.stopped = hit(group, 0, signal.SIGSTOP)
    assert group._running
    group._running._workers._heartbeat_timeout_s /= 10  # long enough for the work, it would be a long wait for nothing
    with pytest.raises(TrialEnded) as seen.failed:
        trial.run_epoch()
    seen.hang_events = new_events(group)
    trial.start(SMALL)
    seen.next_trial, seen.next_events = trial.run_epoch(), new_events(group)
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

    lines: list[WorkerReport | tuple[WorkerReport, ...] | Exception]
    starts: list[int]
    heard: list[Command]

    held_since = None

    def __init__(self, config: GroupConfig, num_workers: int, folder: Path, while_waiting: Callable[[str | None], None]) -> None:
        self.starts.append(num_workers)

    def ask(self, command: Command, after_step: Callable[[int], None] | None = None) -> tuple[WorkerReport, ...]:
        self.heard.append(command)
        if after_step:
            after_step(17)
        line = self.lines.pop(0)
        if isinstance(line, Exception):
            raise line
        return (line,) if isinstance(line, WorkerReport) else line

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
    [trial] = new_trials()
    trial.start(SMALL)
    trial.run_epoch()
    trial.save(tmp_path)
    assert [trial.run_epoch() and trial.epoch for _ in range(2)] == [2, 3]
    assert script.starts == [2, 1]
    epoch = ("epoch", (0,))
    assert [command[:2] + command[3:] for command in script.heard] == [
        ("begin", 0, None, ""),
        epoch,
        ("state", 0),
        epoch,
        epoch,
        ("begin", 0, b"state 1", "the state after epoch 1"),
        epoch,
        epoch,
    ]
    assert [event.get("reason") for event in trial.group.events] == [None, str(died), None]


def test_a_state_is_fetched_when_it_is_saved_once_for_an_epoch_and_again_from_other_workers(
    script: type[Script], tmp_path: Path
) -> None:
    died = GroupLost("worker 1 (process 7) died")
    script.lines = [report(0), report(1), died, report(0), report(1), state(1)]
    [trial] = new_trials()
    trial.start(SMALL)
    trial.run_epoch()
    digest = trial.save(tmp_path)
    assert trial.save(tmp_path) == digest  # as after a full disk
    assert read_checkpoint(tmp_path, digest) == b"state 1"
    assert [command[0] for command in script.heard] == ["begin", "epoch", "state", "begin", "epoch", "state"]


def test_a_trial_that_always_breaks_its_workers_fails_and_the_next_one_starts_with_a_clean_count(script: type[Script]) -> None:
    broken = GroupLost("worker 0 (process 7): RuntimeError: an illegal memory access", all_there=True)
    script.lines = [broken, broken, broken, report(0)]
    [trial] = new_trials()
    with pytest.raises(TrialEnded, match=r"lost 2 times in this trial, at last: worker 0 .*illegal memory access"):
        trial.start(SMALL)
    trial.start(SMALL)  # breaks once more, which is allowed
    assert script.starts == [2] * 4  # fewer workers would have had more images each


def test_what_others_would_refuse_too_is_not_tried_again(script: type[Script]) -> None:
    script.lines = [report(0), GroupLost("worker 1 (process 7): data.root: a.png cannot be read", hopeless=True)]
    [trial] = new_trials()
    trial.start(SMALL)
    with pytest.raises(TrialEnded, match=r"^worker 1 .*a.png cannot be read$"):
        trial.run_epoch()
    assert script.starts == [2]
    assert [event["event"] for event in trial.group.events] == ["group_start", "group_lost"]


def test_a_trial_that_is_too_large_for_several_workers_fails_at_once_and_the_next_one_has_others(script: type[Script]) -> None:
    too_large = "worker 0 (process 7): out of memory in epoch 1"
    script.lines = [report(0), GroupLost(too_large, all_there=True, hopeless=True), report(0)]
    [trial] = new_trials()
    trial.start(SMALL)
    with pytest.raises(TrialEnded, match=r"out of memory in epoch 1$") as caught:
        trial.run_epoch()
    assert caught.value.status == "failed"
    trial.start(SMALL)
    assert script.starts == [2, 2]


def test_who_watches_is_told_of_the_steps(script: type[Script]) -> None:
    script.lines = [report(0), report(1)]
    [trial], steps = new_trials(), []
    trial.start(SMALL)
    trial.run_epoch(steps.append)
    assert steps == [17]


def test_a_fork_has_no_best_epoch_until_it_has_one_of_its_own(script: type[Script], tmp_path: Path) -> None:
    """Also when its workers are lost before: the others fork it off the same state again."""
    write_checkpoint(tmp_path, b"the donor's state")
    begun = report(1)._replace(best_epoch=None)
    script.lines = [begun, GroupLost("worker 1 (process 7) died"), begun, report(2)]
    [trial] = new_trials()
    changed = SMALL.model_copy(update={"method": DifficultyNetConfig(hidden_width=4, driver_weight=2.0)})
    trial.load(tmp_path, changed)
    assert trial.best is None
    trial.run_epoch()
    assert trial.best is not None
    assert trial.best.epoch == 2
    begins = [command for command in script.heard if command[0] == "begin"]
    assert begins == [("begin", 0, changed.model_dump(), b"the donor's state", str(tmp_path))] * 2


def test_the_end_of_a_trial_is_handed_on_with_its_status(script: type[Script]) -> None:
    script.lines = [report(0), Ended("diverged", "train/loss became nan in step 3")]
    [trial] = new_trials()
    trial.start(TrialConfig(method=CrossEntropyConfig()))
    with pytest.raises(TrialEnded, match="train/loss became nan") as caught:
        trial.run_epoch()
    assert caught.value.status == "diverged"


def test_a_damaged_checkpoint_is_refused_before_anything_starts(script: type[Script], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no complete checkpoint"):
        new_trials()[0].load(tmp_path, SMALL)
    assert script.starts == []


SINGLE = CONFIG._replace(max_workers=1)


def begun(script: type[Script], *lines: WorkerReport | tuple[WorkerReport, ...] | Exception) -> list[GroupTrial]:
    """Two trials of a single worker, which then follows the script."""
    script.lines = [report(0), report(0), *lines]
    trials = new_trials(2, config=SINGLE)
    for trial in trials:
        trial.start(SMALL)
    return trials


def test_trials_that_are_trained_together_go_on_together_from_their_last_states(script: type[Script], tmp_path: Path) -> None:
    """Epochs since then are repeated by the same trials together, because that decides how numbers are rounded."""
    died, both = GroupLost("worker 0 (process 7) died"), (report(1), report(1))
    lines = [(report(2), report(2)), died, report(1), report(1), (report(2), report(2)), (report(3), report(3))]
    one, two = begun(script, both, state(1), state(1), *lines)
    one.group.run_epoch([one, two])
    for trial in (one, two):
        trial.save(tmp_path)
    one.group.run_epoch([one, two])
    assert one.group.run_epoch([one, two]) == [{"val/acc": 0.5}] * 2
    assert (one.epoch, two.epoch) == (3, 3)
    together = ("epoch", (0, 1))
    again = [("begin", place, b"state 1", "the state after epoch 1") for place in (0, 1)]
    assert [command[:2] + command[3:] for command in script.heard[2:]] == [
        *(together, ("state", 0), ("state", 1), together, together),
        *(*again, together, together),
    ]


def test_a_trial_that_has_left_is_not_given_to_other_workers(script: type[Script]) -> None:
    one, two = begun(script, (report(1), report(1)), GroupLost("worker 0 (process 7) died"), report(0), report(1), report(2))
    one.group.run_epoch([one, two])
    assert two.run_epoch() == {"val/acc": 0.5}
    assert [command[:2] for command in script.heard[3:]] == [("epoch", (1,)), ("begin", 1), *[("epoch", (1,))] * 2]


def test_a_trial_ends_alone_among_others(script: type[Script]) -> None:
    diverged = report(0)._replace(metrics={}, ended=Answer("ended", reason="train/loss became nan", status="diverged"))
    one, two = begun(script, (report(1), diverged), report(2))
    [metrics, ending] = one.group.run_epoch([one, two])
    assert metrics == {"val/acc": 0.5}
    assert isinstance(ending, TrialEnded)
    assert (str(ending), ending.status) == ("train/loss became nan", "diverged")
    assert one.run_epoch() == {"val/acc": 0.5}


@pytest.mark.parametrize(
    "losses",
    [
        [GroupLost("worker 0 (process 7) died"), report(0), report(0), GroupLost("worker 0 (process 8) died")],
        [GroupLost("out of memory in epoch 1", all_there=True, hopeless=True)],
        [GroupLost("worker 0 (process 7) died"), report(0), Ended("failed", "out of memory at the start")],
    ],
)
def test_nobody_is_charged_when_several_trials_cannot_go_on(script: type[Script], losses: list[WorkerReport | Exception]) -> None:
    one, two = begun(script, *losses)
    with pytest.raises(FusedEpochFailed):
        one.group.run_epoch([one, two])
    assert script.lines == []


def test_nor_when_their_worker_is_lost_too_often_at_the_start_or_while_a_state_is_fetched(
    script: type[Script], tmp_path: Path
) -> None:
    died = GroupLost("worker 0 (process 7) died")
    one, two = begun(script, (report(1), report(1)), died, report(0), report(0), (report(1), report(1)), died)
    one.group.run_epoch([one, two])
    with pytest.raises(FusedEpochFailed, match="lost 2 times"):
        one.save(tmp_path)
    script.lines = [report(0), died, report(0), died, died, died]
    one, two = new_trials(2, config=SINGLE)
    one.start(SMALL)
    with pytest.raises(FusedEpochFailed, match="lost 2 times"):
        two.start(SMALL)
    one, two = new_trials(2, config=SINGLE)
    with pytest.raises(FusedEpochFailed, match="lost 2 times"):
        one.start(SMALL)


@pytest.mark.slow
def test_a_worker_of_fused_trials_is_killed_and_each_goes_on_as_it_would_alone(cluster: None, tmp_path: Path) -> None:
    configs = [config.model_copy(update={"device": "cpu", "epochs": 3}) for config in members_of(FUSABLE, METHODS[:3])]
    alone, trials = started(configs), new_trials(3, tmp_path, SINGLE)
    group = trials[0].group
    for trial, config in zip(trials, configs, strict=True):
        trial.start(config)
    first = group.run_epoch(trials)
    trials[1].save(tmp_path / "state")  # the others begin anew, and repeat the epoch
    hit(group, 0, signal.SIGKILL)
    second = group.run_epoch(trials)
    assert [event["event"] for event in group.events] == ["group_start", "group_lost", "group_start"]
    group.close()
    for run, *epochs in zip(alone, first, second, strict=True):
        for metrics in epochs:
            expected = {name: value for name, value in run.run_epoch().items() if name not in TIMES}
            assert isinstance(metrics, dict)
            assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-10, nan_ok=True)


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
