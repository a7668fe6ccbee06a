"""How much disk space a sweep takes at most: from its settings, and the size of one trial's state."""

from typing import NamedTuple

from orchestrator.config.arms import Arm
from orchestrator.config.scheduler_config import PbtConfig
from orchestrator.config.space import num_points
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.retention import BEST
from orchestrator.ledger.trial_states import RECENT

LEDGER_BYTES, MLFLOW_BYTES, CLASS_BYTES = 1200, 4500, 50
"""Bytes of an epoch in ledger and tables, of an epoch in MLflow's database, and of a class in an epoch. Measured with
search_spaces/digits_lt.yaml: 970, 3600 and 45 with 21 metrics."""


class DiskUse(NamedTuple):
    """The most that a sweep needs at a time."""

    num_states: int
    """States of trials."""
    state_bytes: int
    """Size of one state."""
    record_bytes: int
    """Ledger, tables, arrays by class, and MLflow's database if it is a file of ours."""

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.num_states * self.state_bytes + self.record_bytes


def disk_use(config: SweepConfig, slots: int, state_bytes: int, num_classes: int) -> DiskUse:
    """The most that a sweep needs when all its trials run all their epochs.

    Args:
        config: of the sweep.
        slots: trials at a time.
        state_bytes: size of one checkpoint.
        num_classes: of the data.
    """
    epoch_bytes = LEDGER_BYTES + CLASS_BYTES * num_classes
    if config.tracking.mlflow and not config.tracking.uri:
        epoch_bytes += MLFLOW_BYTES
    return DiskUse(_most_states(config, slots), state_bytes, config.trial.epochs * config.most_trials() * epoch_bytes)


def in_words(number: int) -> str:
    """Bytes in words, as `1.25 GiB`."""
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 / 10 else f"{number / 2**20:.1f} MiB"


def _most_states(config: SweepConfig, slots: int) -> int:
    """Each trial has up to RECENT states while it goes on, and one more while it is written."""
    trials, confirm = config.num_trials(), config.search.confirm
    alive = slots * config.resources.fused
    if config.scheduler.name in ("promotion", "pbt"):  # all may wait for a verdict at a time
        alive = trials
    elif config.search.deterministic:
        alive = max(alive, config.wave_width())
    offspring = 0
    if isinstance(config.scheduler, PbtConfig):
        generations = (config.trial.epochs - 1) // config.scheduler.interval_epochs
        offspring = generations * max(1, int(trials * config.scheduler.quantile))
    repeated = sum(_most_repeated(config, arm) for arm in config.arms())
    confirmed = config.num_confirmations() + (confirm.top if confirm else 0)
    kept = repeated + len(config.search.plain_references()) + confirmed + BEST
    everything = config.most_trials() + offspring
    ended = everything if config.checkpoints.keep == "all" else kept
    return RECENT * min(alive + ended, everything) + slots


def _most_repeated(config: SweepConfig, arm: Arm) -> int:
    """How many configurations of an arm may run on several seeds: those of a space without real numbers."""
    points = num_points(arm.space)
    trials = arm.trials if arm.name else config.num_trials()  # a reference may have a searched configuration
    return 0 if points is None else min(points, trials // 2)
