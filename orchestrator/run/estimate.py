"""Estimates how long a sweep takes: a rehearsal in virtual time counts epochs and waiting; an epoch is timed where trials run."""

import json
import platform
import random
import time
from collections.abc import Callable
from statistics import fmean
from typing import Any, NamedTuple

from orchestrator.cluster.cluster_file import Cluster
from orchestrator.cluster.placement import Node, arrange, needs_of_worker, this_machine
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.virtual_sweep import run
from orchestrator.ledger.events import Kind
from orchestrator.run.disk import DiskUse, disk_use
from trainables.config import TrialConfig
from trainables.config_file import ConfigError
from trainables.fusion import why_alone
from trainables.machine import choose_device

MOST_REHEARSED = 300
"""Searched trials of the longest rehearsal, which takes a few seconds. More trials are taken to be like the first ones."""
LEARNING = ("tpe", "gp", "cmaes", "nsga2")
"""Samplers that propose better trials as time goes on."""
TRIALS_A_DRAW = 10
"""After so many trials each, a learning sampler's proposal is the best of one more random draw: about what TPE does."""


TIMED_S = 5.0
"""Seconds for the steps that are timed."""
MOST_S = 20.0
"""Seconds after which no further method of a comparison is timed, and an estimate is called rough. A step begun is finished."""


class Rehearsal(NamedTuple):
    """What a sweep does in virtual time, in which an epoch takes 1 on average."""

    epochs: float
    """Epochs of all trials together."""
    wall: float
    """Time from the first epoch to the last: waves and schedulers let slots wait."""


class Tried(NamedTuple):
    """What some steps of the sweep's own trial showed."""

    epoch_s: float | None
    """Seconds of one epoch, the mean over arms, of all trials that a process trains together; None when the trial diverges within
    two epochs."""
    state_bytes: int
    """Size of the trial's state."""
    num_classes: int
    """Of the data."""
    cut: bool = False
    """Whether steps are so slow that few were timed, or not each method was."""


class Timed(NamedTuple):
    """Where some steps ran, and what they showed."""

    tried: Tried
    device: str
    """`cpu` or `cuda`."""
    machine: str
    """Its name."""


class Estimate(NamedTuple):
    """What a sweep will need."""

    rehearsal: Rehearsal
    epoch_s: float | None
    """Seconds of one epoch, the mean over arms, of all trials that a process trains together; None when the sweep's own trial
    diverges within two epochs."""
    concurrent: int
    """Number of trials at a time."""
    workers: int
    """Number of workers of each trial."""
    device: str
    """`cpu` or `cuda`."""
    disk: DiskUse
    """What it takes of the disk at most."""
    cut: bool = False
    """Whether the timing was cut; see MOST_S."""
    machine: str | None = None
    """Name of the cluster's machine on which the epoch was timed; None means this one."""
    fused: int = 1
    """Number of trials that a process trains together."""

    @property
    def training_s(self) -> float:
        """Seconds from the first epoch to the last, waiting included; the start of Ray is not included."""
        return (self.epoch_s or 0.0) * self.rehearsal.wall

    @property
    def worker_s(self) -> float:
        """The same, times the workers of all processes."""
        return self.training_s * self.concurrent / self.fused * self.workers

    @property
    def waiting(self) -> float:
        """The share of the slots' time in which they wait for other trials."""
        return max(0.0, 1 - self.rehearsal.epochs / (self.rehearsal.wall * self.concurrent))


def estimate(config: SweepConfig, cluster: Cluster | None = None, note: Callable[[str], None] = print) -> Estimate:
    """Rehearses the sweep and times some steps of its own trial. Takes a few seconds and imports torch.

    Args:
        config: of the sweep.
        cluster: where the sweep would run; the steps run on one of its machines, which may have to come first. When the cluster
            does not answer, they run in this process.
        note: tells a person what is waited for, and where the steps run.
    """
    nodes, timed = _on_cluster(config, cluster, note) if cluster else ([this_machine(config)], None)
    here = timed is None
    tried, device, machine = timed or time_here(config.model_dump())
    plan = arrange(config, nodes, more_may_come=cluster is not None)
    slots = (config.resources.slots if cluster else None) or max(plan.slots, 1)
    disk = disk_use(config, slots, tried.state_bytes, tried.num_classes)
    fused, place = config.resources.fused, None if here else machine
    return Estimate(rehearse(config, slots), tried.epoch_s, slots * fused, plan.workers, device, disk, tried.cut, place, fused)


def _on_cluster(config: SweepConfig, cluster: Cluster, note: Callable[[str], None]) -> tuple[list[Node], Timed | None]:
    """The machines of a cluster, and what some steps on one of them took; None when the cluster does not answer."""
    from orchestrator.run.connection import connected, machines_up  # Ray, which takes seconds
    from orchestrator.run.remote_call import CallLost, call_on_worker

    nodes = cluster.file.machines(needs_of_worker(config)) if cluster.file else []
    try:
        with connected(cluster.address):
            nodes = nodes or machines_up()
            return nodes, call_on_worker(config, note, lambda: None, time_here, config.model_dump())
    except (ConfigError, CallLost) as error:
        lost = str(error) if isinstance(error, CallLost) else "no cluster answers, or it does not let this process in"
        note(f"{lost}; the steps are timed on this machine")
        return nodes or [this_machine(config)], None


def time_here(config: dict[str, Any]) -> Timed:
    """Times some steps in this process."""
    sweep = SweepConfig.model_validate(config)
    device = choose_device("cpu" if sweep.trial.device == "cpu" else "auto").type
    return Timed(try_out(sweep, device), device, platform.node())


def rehearse(config: SweepConfig, slots: int) -> Rehearsal:
    """Epochs and time of the whole sweep, from a virtual run of its first trials."""
    number = "trials" if config.search.per_method is None else "per_method"
    wanted, arms = config.search.num_proposed(), len(config.arms())
    trials = min(wanted, max(1, MOST_REHEARSED // arms))
    first = _rehearse(config, slots, {number: trials})
    if trials == wanted:
        return first
    tuned = {name: config.search.references[name] for name in config.search.tuned_references()}
    searched = _rehearse(config, slots, {number: trials, "references": tuned, "confirm": None})
    times = wanted / trials - 1
    return Rehearsal(first.epochs + times * searched.epochs, first.wall + times * searched.wall)


def _rehearse(config: SweepConfig, slots: int, changes: dict[str, Any]) -> Rehearsal:
    # Random proposals, because models take seconds. `RisingCurves` stands for what a sampler learns.
    search = config.search.model_copy(update=changes | {"sampler": "random"})
    curves = RisingCurves(config.search.sampler in LEARNING)
    done = run(config.model_copy(update={"search": search}), curves, slots)
    return Rehearsal(sum(event["event"] == Kind.EPOCH for event in done.events), done.wall)


class RisingCurves:
    """Learning curves that rise to a limit between 0 and 1, drawn for each trial: no trial overtakes another one.

    A sampler that learns proposes better trials as time goes on, of which schedulers stop fewer: a trial's limit is the best of
    the more draws, the more trials there were before.
    """

    def __init__(self, learning: bool) -> None:
        self._learning = learning
        self._random = random.Random(0)
        self._limits: dict[str, float] = {}

    def __call__(self, settings: dict[str, Any], epoch: int) -> float:
        """The accuracy of a trial with these settings in an epoch."""
        trial = json.dumps(settings, sort_keys=True)
        if trial not in self._limits:
            draws = 1 + len(self._limits) // TRIALS_A_DRAW if self._learning else 1
            self._limits[trial] = max(self._random.random() for _ in range(draws))
        return self._limits[trial] * (1 - 0.9**epoch)


def try_out(config: SweepConfig, device: str = "cpu") -> Tried:
    """Times some steps of the sweep's own trial in this process; of one trial of each method, where methods are compared, until
    MOST_S are over. Where trials want a GPU and `device` is none, one step shows the size of the state, and no more are timed.
    """
    wanted_s = 0.0 if config.resources.gpus_per_worker > 0 and device == "cpu" else TIMED_S
    if not config.compares_arms:
        return _try_out(config.trial, wanted_s, config.resources.fused)
    methods = [arm.trial.method.name for arm in config.arms()]
    trials = {arm.trial.method.name: arm.trial for arm in reversed(config.arms())}
    tried: dict[str, Tried] = {}
    began = time.monotonic()
    for method, trial in trials.items():
        if not tried or time.monotonic() - began < MOST_S:
            tried[method] = _try_out(trial, wanted_s / len(trials), config.resources.fused)
    known = [tried[method] for method in methods if method in tried]
    times = [one.epoch_s for one in known if one.epoch_s is not None]
    cut = len(tried) < len(trials) or any(one.cut for one in known)
    return Tried(fmean(times) if times else None, max(one.state_bytes for one in known), known[0].num_classes, cut)


def _try_out(trial: TrialConfig, limit_s: float, fused: int) -> Tried:
    from trainables.checkpoint import pack
    from trainables.engine.health import TrialEnded
    from trainables.fused_run import FusedRun
    from trainables.trial_run import TrialRun

    run = TrialRun()
    run.start(trial)
    began = time.monotonic()
    is_fused = fused > 1 and not why_alone(trial)
    try:
        epoch_s = run.time_epoch(0.0 if is_fused else limit_s)  # a step gives the state its size
        if is_fused:
            members = [TrialRun() for _ in range(fused)]
            for member in members:
                member.start(trial, run.loaded)
            epoch_s = FusedRun(members).time_epoch(limit_s)
    except TrialEnded:
        epoch_s = None
    cut = time.monotonic() - began > MOST_S
    state = run.state()
    return Tried(epoch_s, len(pack(state)) + len(pack(state["phi"])), run.num_classes, cut)  # later states hold the best phi, too
