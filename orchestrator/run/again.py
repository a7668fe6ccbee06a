"""Trains a trial of a sweep again, as its ledger describes it, with all trials from whose states it continued."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from orchestrator.ledger.trial_states import TrialStates
from trainables.config import TrialConfig
from trainables.config_file import ConfigError, Origin, check
from trainables.engine.health import TrialEnded

OnEpoch = Callable[[str, int, int], None]
"""Called before each epoch with the trial, the epoch and the last epoch."""


class Trainer(Protocol):
    """A TrialRun, or a WorkerGroup."""

    epoch: int

    def start(self, config: TrialConfig) -> None:
        """Begins a trial."""

    def load(self, folder: Path, config: TrialConfig, sha256: str | None = None) -> None:
        """Continues a saved trial, or forks another one off it."""

    def run_epoch(self) -> dict[str, float]:
        """Trains an epoch; returns its metrics."""

    def save(self, folder: Path) -> str:
        """Writes the state; returns its digest."""


class Again(NamedTuple):
    """A trial that was trained again."""

    metrics: dict[int, dict[str, float]]
    """Of each epoch. Those before the first one belong to the trial that it continued from."""
    ended: str
    """How its own numbers ended it, where they did."""


def train_again(
    trainer: Trainer,
    trials: TrialStates,
    trial_id: str,
    until: int,
    scratch: Path,
    changes: Mapping[str, Any],
    on_epoch: OnEpoch,
) -> Again:
    """Trains a trial up to an epoch. The sealed test set is not read.

    Args:
        trainer: does the work; afterwards it holds the trial.
        trials: of the sweep.
        trial_id: the trial.
        until: its last epoch.
        scratch: a folder for the states from which trials continue.
        changes: settings that decide no result, by name, and their values here.
        on_epoch: is told of each epoch.

    Raises:
        ConfigError: when the data cannot give what the trial asks for.
    """
    trial, metrics = trials[trial_id], dict[int, dict[str, float]]()
    config = check(TrialConfig, trial.config | {"read_test": False, **changes}, Origin(f"trial {trial_id}"))
    try:
        if trial.parent:
            origin, epoch = trial.parent["trial_id"], trial.parent["epoch"]
            train_again(trainer, trials, origin, epoch, scratch, changes, on_epoch)
            place = scratch / f"state-of-{origin}"
            trainer.load(place, config, trainer.save(place))
        else:
            trainer.start(config)
        while trainer.epoch < until:
            on_epoch(trial_id, trainer.epoch + 1, until)
            found = trainer.run_epoch()
            metrics[trainer.epoch] = found
    except TrialEnded as reason:
        return Again(metrics, f"{getattr(reason, 'status', 'failed')}: {reason}")
    except ValueError as error:
        raise ConfigError(f"trial {trial_id}: {error}") from error
    return Again(metrics, "")


def recorded_metrics(events: Any, trial_id: str) -> dict[int, dict[str, float | None]]:
    """The metrics of each epoch of a trial as its ledger holds them; the last attempt counts.

    Args:
        events: of the ledger.
        trial_id: the trial.
    """
    return {event["epoch"]: event["metrics"] for event in events if event["event"] == "epoch" and event["trial_id"] == trial_id}
