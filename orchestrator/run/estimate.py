"""Estimates how long a sweep takes: the expected number of epochs, times the time of one epoch on this machine."""

from typing import NamedTuple

from orchestrator.config.scheduler_config import HyperbandConfig, RungSettings
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.schedulers import Hyperband, rungs
from orchestrator.run.placement import arrange, this_machine
from trainables.machine import choose_device


class Estimate(NamedTuple):
    """What a sweep will need on this machine."""

    epochs: float
    """Expected epochs of all trials together."""
    epoch_s: float | None
    """Seconds of one epoch; None when the sweep's own trial diverges within two epochs."""
    concurrent: int
    """Number of trials at a time."""
    workers: int
    """Number of workers of each trial."""
    device: str
    """`cpu` or `cuda`."""

    @property
    def training_s(self) -> float:
        """Seconds until all epochs are trained; the start of Ray is not included."""
        return (self.epoch_s or 0.0) * self.epochs / self.concurrent


def estimate(config: SweepConfig) -> Estimate:
    """Times some steps of the sweep's own trial in this process. Takes a few seconds and imports torch."""
    plan = arrange(config, [this_machine(config)])
    device = choose_device("cpu" if config.trial.device == "cpu" else "auto").type
    return Estimate(expected_epochs(config), seconds_per_epoch(config), max(plan.slots, 1), plan.workers, device)


def expected_epochs(config: SweepConfig) -> float:
    """Expected epochs of all trials together: each rung keeps exactly its share; references and confirmations run to the end."""
    total, references, confirm = config.trial.epochs, len(config.search.references), config.search.confirm
    searched, confirming = config.search.trials - references, confirm.top * confirm.seeds if confirm else 0
    if not isinstance(config.scheduler, RungSettings):
        return total * (config.search.trials + confirming)
    at = rungs(config.scheduler, total)
    first = [0]
    if isinstance(config.scheduler, HyperbandConfig):
        brackets = Hyperband(config)
        first = [brackets.bracket(number) for number in range(config.search.trials)]
    each = [_epochs_by_halving(at[bracket:], config.scheduler.reduction_factor, total) for bracket in first]
    return total * (references + confirming) + searched * sum(each) / len(each)


def _epochs_by_halving(at: list[int], factor: float, total: int) -> float:
    """Expected epochs of one trial: the epochs up to each rung, times the share of trials that reach the rung."""
    epochs, share, reached = 0.0, 1.0, 0
    for rung in at:
        epochs, share, reached = epochs + share * (rung - reached), share / factor, rung
    return epochs + share * (total - reached)


def seconds_per_epoch(config: SweepConfig) -> float | None:
    """Times some steps of the sweep's own trial in this process; None when the trial diverges."""
    from trainables.engine.health import TrialEnded
    from trainables.trial_run import TrialRun

    run = TrialRun()
    run.start(config.trial)
    try:
        return run.time_epoch()
    except TrialEnded:
        return None
