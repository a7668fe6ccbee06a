"""Trials over several workers. The workers are one long Ray Train run: they wait for commands and outlive the trials.

Starting a group takes seconds, starting another trial on it takes milliseconds. When a worker dies or hangs, the group is
restarted and goes on from the last state that was saved: it repeats the epochs since then, with the same results. A trial that
needs more memory than there is ends. A group of several workers ends with it, because some workers may still wait in a
collective. A group of one worker may train several trials together.
"""

import contextlib
import logging
import os
import platform
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

# Ray Train reads these variables when a group starts. Its controller polls the workers once in this interval, so the interval
# decides how soon `fit` returns after the workers have ended. Heartbeats detect lost workers, so Ray Train's watcher is off.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")

import ray
from ray._private.state import state
from ray._raylet import ActorID, PlacementGroupID
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trainables.checkpoint import completed, pack, read_checkpoint, unpack, write_checkpoint
from trainables.config import TrialConfig
from trainables.engine.health import TrialEnded
from trainables.files import replace_text
from trainables.machine import interface_of
from trainables.program import CURE, differences, versions
from trainables.side_by_side import FusedEpochFailed, Outcome
from trainables.workers.commands import Address, Command, Ended, GroupLost, Hello, WorkerReport, Workers, call
from trainables.workers.worker import serve

NO_ACTOR = ActorID.nil().binary()
UNUSED = (PlacementGroupCleanerCallback, DatasetsCallback)
T = TypeVar("T")
CONTROLLER = "controller"
"""A file in a group's folder with the id of Ray Train's controller."""
NO_LIMIT_S = 1e7
STOP_S = 30.0
"""How long Ray Train may take to shut down a group before its processes are killed."""


class GroupConfig(NamedTuple):
    """Size, resources and time limits of a group."""

    min_workers: int
    max_workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    device: str
    """`auto`, `cpu` or `cuda`, as in the trials; decides the backend of the collectives, NCCL or Gloo."""
    heartbeat_timeout_s: float
    """Longest time that a worker may go without a heartbeat."""
    start_s: float
    """Longest time that the start may take, including nodes that have to boot."""
    restarts: int
    """How often the group is restarted in one trial before the trial fails, or before trials that it trains together part."""
    machines_may_come: bool = False
    """Whether a group waits without limit until there are machines for it: `start_s` counts from then on."""

    def in_words(self, workers: int) -> str:
        """What a group of so many workers needs."""
        each = f"{self.cpus_per_worker:g} CPU" + (f" and {self.gpus_per_worker:g} GPU" if self.gpus_per_worker else "")
        return f"{workers} workers with {each} each" if workers > 1 else f"a worker with {each}"


class Best(NamedTuple):
    """The best epoch so far. Its classifier stays in the state of the workers."""

    epoch: int
    metrics: dict[str, float]


class EndedOnWorkers(TrialEnded):
    """The trial has ended by its own rules, or its workers could not finish it."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class WorkerGroup:
    """Processes that train trials. Several workers train one trial at a time; a single worker may train several together. The
    processes start with the first trial.

    Args:
        config: size, resources and time limits.
        folder: local folder for the files that Ray Train writes.
        while_waiting: called about twice a second while the group waits for machines, with what it waits for, and once with None
            when it has them. May raise, to give the waiting up.
    """

    def __init__(
        self, config: GroupConfig, folder: Path, while_waiting: Callable[[str | None], None] = lambda what_for: None
    ) -> None:
        self._config, self._folder, self._while_waiting = config, folder, while_waiting
        self._num_workers = config.max_workers
        self._running: _RunningGroup | None = None
        self._trials: list[GroupTrial] = []
        """Those that the workers have, or are to have after a restart."""
        self._together, self._losses = 1, 0
        """Trials that are trained together, whether they have begun already or not; and losses of their workers."""
        self._after_step: Callable[[int], None] | None = None
        self.events: list[dict[str, Any]] = []
        """`group_start` and `group_lost` events since the caller last emptied the list."""

    def trials(self, number: int) -> "list[GroupTrial]":
        """What trains the next trials, so many together. Those before are over."""
        self._trials, self._together, self._losses = [], number, 0
        return [GroupTrial(self, place) for place in range(number)]

    def run_epoch(self, trials: "Sequence[GroupTrial]", after_step: Callable[[int], None] | None = None) -> list[Outcome]:
        """Trains one epoch of each trial and measures it, as SideBySide does. Trials that are not named have left.

        Args:
            trials: that have begun.
            after_step: called with the number of steps done in the epoch. It is not called after each step, but about once a
                second, also during evaluation; not while a group starts. It must not raise.

        Returns: what the epoch gave, for each trial.

        Raises:
            FusedEpochFailed: when several trials cannot go on together.
        """
        self._after_step, self._trials, self._together = after_step, list(trials), len(trials)
        if not trials:
            return []
        try:
            reports = self.surviving(lambda: self.ready().ask(("epoch", _places(trials)), after_step))
        except (TrialEnded, ValueError) as reason:
            if len(trials) > 1:
                raise FusedEpochFailed(f"{len(trials)} fused trials cannot go on together: {reason}") from None
            return [reason]
        return [trial.take_epoch(report) for trial, report in zip(trials, reports, strict=True)]

    def begin(self, trial: "GroupTrial") -> None:
        """Lets the workers have a trial.

        Raises:
            ValueError, TrialEnded, FusedEpochFailed: as GroupTrial.start.
        """
        if trial.place == 0:
            self._trials, self._losses = [], 0
        self._trials.append(trial)
        try:
            self.surviving(self.ready)
        except (ValueError, TrialEnded):
            self._trials.remove(trial)
            raise

    def close(self) -> None:
        """Ends the workers and frees their resources."""
        if self._running:
            self._running.stop()
            self._running = None

    def surviving(self, action: Callable[[], T]) -> T:
        """The result of `action`. When the workers are lost, `action` is repeated with new workers, at most `restarts` times.

        Raises:
            TrialEnded: when the trial cannot go on.
            FusedEpochFailed: when several trials cannot go on together.
        """
        while True:
            try:
                return action()
            except GroupLost as loss:
                self._recover(loss)
            except Ended as reason:
                raise EndedOnWorkers(reason.status, str(reason)) from None

    def ready(self) -> "_RunningGroup":
        """A running group whose workers hold the trials after their last epochs; starts the group if there is none."""
        if self._running is None:
            began = time.monotonic()
            self._running = _RunningGroup(self._config, self._num_workers, self._folder, self._while_waiting)
            event = {"event": "group_start", "workers": self._num_workers, "seconds": time.monotonic() - began}
            if self._running.held_since is not None:
                event |= {"held_since": self._running.held_since, "ready_at": time.time()}
            self.events.append(event)
            for trial in self._trials:
                trial.has_begun = False
        for trial in self._trials:
            if not trial.has_begun:
                trial.begin_on(self._running)
        # Epochs that have been reported, but after which no state was saved, are repeated by the same trials together.
        while behind := [trial for trial in self._trials if trial.reached < trial.epoch]:
            first = min(trial.reached for trial in behind)
            together = [trial for trial in behind if trial.reached == first]
            for trial, report in zip(together, self._running.ask(("epoch", _places(together)), self._after_step), strict=True):
                if report.ended:
                    raise Ended(report.ended.status, report.ended.reason)
                trial.take(report)
        return self._running

    def _recover(self, loss: GroupLost) -> None:
        """Kills the old group, so that `ready` starts a new one.

        Raises:
            EndedOnWorkers, FusedEpochFailed: when a restart would not help, or there were more than `restarts` losses since the
                trials began.
        """
        if self._running:
            self._running.kill()
            self._running = None
        self.events.append({"event": "group_lost", "reason": str(loss), "lost_at": time.time()})
        # A process is missing, perhaps with its machine: the resources for the largest group may not come back.
        if not loss.all_there:
            self._num_workers = self._config.min_workers
        self._losses += not loss.hopeless
        if loss.hopeless or self._losses > self._config.restarts:
            reason = str(loss) if loss.hopeless else f"the workers were lost {self._losses} times in this trial, at last: {loss}"
            # Nobody knows which of several trials is at fault.
            raise EndedOnWorkers("failed", reason) if self._together == 1 else FusedEpochFailed(reason)


class GroupTrial:
    """A trial that the workers of a group train; a TrialRun for its caller.

    Args:
        group: the workers.
        place: tells it apart from others that are trained together with it.
    """

    def __init__(self, group: WorkerGroup, place: int = 0) -> None:
        self.group, self.place = group, place
        self.has_begun = False
        self.epoch = self.reached = 0
        """Epochs that have been reported; and those that the workers have reached: fewer, after they were lost."""
        self.best: Best | None = None
        self._packed: bytes | None = None
        self._packed_epoch = 0
        self._classes: dict[str, list[Any]] = {}
        self._pairing: dict[str, str] = {}

    def start(self, config: TrialConfig) -> None:
        """Begins a trial from fresh weights.

        Raises:
            ValueError: when the data cannot give what `config` asks for.
            TrialEnded: when the trial does not fit into memory, or the group broke too often.
            FusedEpochFailed: when the group of several trials broke too often.
        """
        self._begin(config, None, "")

    def load(self, folder: Path, config: TrialConfig, sha256: str | None = None) -> None:
        """Continues a saved trial or forks another trial off it, as TrialRun.resume does. `sha256` is as in TrialRun.load.

        Raises:
            DamagedCheckpoint: when the checkpoint is missing or differs from what was written.
            ValueError: when the checkpoint belongs to another configuration.
            TrialEnded: when the trial does not fit into memory, or the group broke too often.
        """
        self._begin(config, read_checkpoint(folder, sha256), str(folder))

    def run_epoch(self, after_step: Callable[[int], None] | None = None) -> dict[str, float]:
        """Trains one epoch and measures it, as TrialRun does. `after_step` is as in WorkerGroup.run_epoch.

        Raises:
            TrialEnded: when the trial diverged, its meta-gradient is dead, the memory does not suffice, or the group broke too
                often.
        """
        [outcome] = self.group.run_epoch([self], after_step)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def class_table(self) -> dict[str, list[Any]]:
        """Values by class after the last epoch, as TrialRun.class_table."""
        return self._classes

    def pairing_digests(self) -> dict[str, str]:
        """What the trial has in common with others, as TrialRun.pairing_digests."""
        return self._pairing

    def save(self, folder: Path, is_complete: bool = False) -> str:
        """Fetches the state after the last epoch from the workers, and writes it as a checkpoint, as TrialRun.save.

        Returns: the checkpoint's digest.

        Raises:
            TrialEnded: when the group broke too often.
        """
        if self._packed is None or self._packed_epoch != self.epoch:  # a full disk lets this be called again
            [report] = self.group.surviving(lambda: self.group.ready().ask(("state", self.place)))
            self._packed, self._packed_epoch, self._source = report.packed, self.epoch, f"the state after epoch {self.epoch}"
        assert self._packed is not None
        return write_checkpoint(folder, pack(completed(unpack(self._packed))) if is_complete else self._packed)

    def _begin(self, config: TrialConfig, packed: bytes | None, source: str) -> None:
        self._config, self._packed, self._source = config, packed, source
        self.has_begun = False
        self._packed_epoch = self.epoch = 0
        self.group.begin(self)
        self._packed_epoch = self.epoch

    def begin_on(self, running: "_RunningGroup") -> None:
        """Gives the trial to workers, as it was when it was last saved."""
        [report] = running.ask(("begin", self.place, self._config.model_dump(), self._packed, self._source))
        self.take(report)
        self.has_begun = True

    def take(self, report: WorkerReport) -> None:
        """Takes where the workers are."""
        self.reached = report.epoch
        self.epoch = max(self.epoch, report.epoch)
        self.best = None if report.best_epoch is None else Best(report.best_epoch, report.best_metrics)

    def take_epoch(self, report: WorkerReport) -> Outcome:
        """Takes what an epoch gave."""
        if report.ended:
            status, reason = report.ended.status, report.ended.reason
            return EndedOnWorkers(status, reason) if report.ended.kind == "ended" else ValueError(reason)
        self.take(report)
        self._classes, self._pairing = report.classes, report.pairing or {}
        return report.metrics


def _places(trials: Sequence[GroupTrial]) -> tuple[int, ...]:
    return tuple(trial.place for trial in trials)


class _RunningGroup:
    """The processes of one start of the group.

    Raises:
        GroupLost: when not all processes connect within `start_s`, or one of them runs another program.
    """

    def __init__(self, config: GroupConfig, num_workers: int, folder: Path, while_waiting: Callable[[str | None], None]) -> None:
        self._error: BaseException | None = None
        self._complete = False
        self._config, self._num_workers, self._while_waiting = config, num_workers, while_waiting
        self._has_resources = not config.machines_may_come
        self.held_since: float | None = None
        """When the machines came, in seconds since 1970; None where they were there."""
        # A new folder for each start, because all runs have the same name.
        self._storage = Path(tempfile.mkdtemp(dir=folder))
        self._workers = Workers(ray.util.get_node_ip_address(), config.heartbeat_timeout_s, self._check)
        self._fit = threading.Thread(target=self._run, daemon=True)
        self._fit.start()
        try:
            self._workers.wait_for(num_workers, config.start_s, self._can_start)
            self._check_versions()
        except BaseException:
            self.kill()
            raise
        self._complete = True

    def ask(self, command: Command, after_step: Callable[[int], None] | None = None) -> tuple[WorkerReport, ...]:
        """As Workers.ask."""
        return self._workers.ask(command, after_step)

    def stop(self) -> None:
        """Asks the workers to stop. Kills the processes that are still there after STOP_S."""
        self._workers.tell(("stop",))
        self._fit.join(STOP_S)
        self.kill()

    def kill(self) -> None:
        """Kills the processes and frees their resources. Ray Train's own shutdown may still be running afterwards."""
        if self._fit.is_alive():
            for hello in self._workers.hellos:
                kill(hello)
        self._workers.close()
        for hello in self._workers.hellos[:1]:
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(hello.placement_group)))
        if not self._has_resources and (pending := self._reservation()):
            remove_placement_group(PlacementGroup(PlacementGroupID(pending.placement_group_id)))

    def _can_start(self) -> bool:
        """Whether the group has its resources; while it has not, tells what it waits for."""
        if not self._has_resources:
            found = self._reservation()
            self._has_resources = found is not None and found.state == PlacementGroupTableData.CREATED
            self.held_since = time.time() if self._has_resources else None
            self._while_waiting(None if self._has_resources else self._config.in_words(self._num_workers))
        return self._has_resources

    def _reservation(self) -> PlacementGroupTableData | None:
        """What Ray knows of the group's resources; None before they are asked for."""
        file = self._storage / CONTROLLER
        controller = file.read_text(encoding="utf-8") if file.is_file() else ""
        return next((group for group in placement_groups() if controller and group.creator_actor_id.hex() == controller), None)

    def _check_versions(self) -> None:
        """Sees that other machines run this very program: one may have come from an image or a copy of another day."""
        for hello in self._workers.hellos:
            if hello.host != platform.node() and (different := differences(hello.versions)):
                raise GroupLost(f"the machine {hello.host} differs from this one: {different}; allowed: {CURE}", hopeless=True)

    def _run(self) -> None:
        # Ray Train's default of 60 s is too short for nodes that have to boot.
        limit = NO_LIMIT_S if self._config.machines_may_come else self._config.start_s
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(limit)
        try:
            address, token = self._workers.address, self._workers.token
            build_trainer(self._config, self._num_workers, address, token, self._storage).fit()
        except BaseException as error:  # an exception ends only this thread; `_check` raises it where the workers are awaited
            self._error = error

    def _check(self) -> None:
        if not self._fit.is_alive():
            raise GroupLost(f"Ray Train gave up: {self._error}")
        if not self._complete:
            free_orphans()  # they may hold the resources that this group waits for


class _OnTheWay(WorkerGroupCallback):  # type: ignore[misc]
    """What is done while a group starts, in Ray Train's controller, which runs on this machine."""

    def __init__(self, storage: Path) -> None:
        self._storage = storage

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        """Before the resources are asked for: writes down which actor asks."""
        replace_text(self._storage / CONTROLLER, ray.get_runtime_context().get_actor_id() or "")

    def after_worker_group_start(self, worker_group: Any) -> None:
        """When the processes are there, before they form a process group: tells Gloo by which network they reach each other."""
        worker_group.execute(_use_own_network)


class _Trainer(TorchTrainer):  # type: ignore[misc]
    """TorchTrainer without two helper processes for each group.

    One helper serves Ray datasets, which this project does not use. The other frees the resources of a dead group, but it works
    only with Ray's dashboard, and without a dashboard it outlives the group; free_orphans does its work.
    """

    def _create_default_callbacks(self) -> list[Any]:
        used = [callback for callback in super()._create_default_callbacks() if not isinstance(callback, UNUSED)]
        return [_OnTheWay(Path(self.run_config.storage_path)), *used]  # before those that form the process group


def build_trainer(config: GroupConfig, num_workers: int, address: Address, token: bytes, storage: Path) -> TorchTrainer:
    """The Ray Train run of a group: starts the workers, sets up their process group, and ends when the workers end."""
    on_gpu = config.device == "cuda" or (config.device == "auto" and config.gpus_per_worker > 0)
    resources = {"CPU": config.cpus_per_worker, "GPU": config.gpus_per_worker}
    return _Trainer(
        _work,
        train_loop_config={"address": address, "token": token},
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=num_workers,
            use_gpu=config.gpus_per_worker > 0,
            resources_per_worker={kind: count for kind, count in resources.items() if count},
        ),
        run_config=RunConfig(
            name="group",
            storage_path=str(storage),
            # WorkerGroup restarts lost groups itself, so Ray Train must not.
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
        ),
    )


def _use_own_network() -> None:
    """Lets Gloo use the network by which Ray reaches this machine. By itself Gloo takes the address of the host's name, which on
    many machines is that of no network (127.0.1.1), so that workers on two machines wait for each other for ever.
    """
    if found := interface_of(ray.util.get_node_ip_address()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", found)


def _work(config: dict[str, Any]) -> None:
    """The training function that Ray Train runs on each worker."""
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    train, here = ray.train.get_context(), ray.get_runtime_context()
    reserved = here.get_placement_group_id()
    assert reserved is not None
    hello = Hello(train.get_world_rank(), os.getpid(), here.get_node_id(), reserved, platform.node(), versions())
    serve(call(config["address"], config["token"], hello), train.get_world_rank(), train.get_world_size())


def free_orphans() -> None:
    """Frees the resources of groups of this job whose Ray Train controller is dead.

    A controller dies with the process that started it. Its placement group would reserve the resources until the whole job ends.
    """
    job = ray.get_runtime_context().get_job_id()
    for group in placement_groups():
        ours = group.creator_job_id.hex() == job and group.creator_actor_id != NO_ACTOR
        if ours and group.creator_actor_dead and group.state != PlacementGroupTableData.REMOVED:
            remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))


def placement_groups() -> Iterator[PlacementGroupTableData]:
    """All placement groups of the cluster. Ray's public table does not name their creators, so this reads the internal one."""
    for raw in state._connect_and_get_accessor().get_placement_group_table():
        yield PlacementGroupTableData.FromString(raw)


def kill(worker: Hello) -> None:
    """Kills a worker's process on its node, with SIGKILL, which also ends a stopped process. Returns at once.

    If the node itself is gone, so is the process.
    """
    if worker.node_id == ray.get_runtime_context().get_node_id():
        _kill(worker.pid)
    else:
        there = NodeAffinitySchedulingStrategy(worker.node_id, soft=False)
        ray.remote(_kill).options(num_cpus=0, scheduling_strategy=there).remote(worker.pid)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
