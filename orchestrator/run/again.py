"""Trains a trial of a sweep again, as its ledger describes it, with all trials from whose states it continued."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.ledger.events import Event, Kind, shared_by
from orchestrator.ledger.trial_states import TrialState, TrialStates
from orchestrator.outcome.repeat import explanations
from orchestrator.run.facts import own_program
from trainables.config import TrialConfig
from trainables.config_file import ConfigError, Origin, check
from trainables.engine.health import TrialEnded
from trainables.machine import num_cores

OnEpoch = Callable[[str, int, int], None]
"""Called before each epoch with the trial, the epoch and the last epoch."""


class Trainer(Protocol):
    """A TrialRun, or a GroupTrial."""

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
    ended: str = ""
    """How its own numbers ended it, where they did."""
    origin_ended: str = ""
    """How a trial from whose state it continued ended before it had that state; then the trial itself was not trained."""


@contextmanager
def trainer_for(config: SweepConfig, scratch: Path) -> Iterator[Trainer]:
    """Trains as the sweep did: in this process, or with as many workers.

    Args:
        config: of the sweep.
        scratch: a folder that is removed afterwards.
    """
    workers = config.resources.worker_range()[1]
    if workers == 1:
        from trainables.trial_run import TrialRun

        yield TrialRun()
        return
    from orchestrator.run.connection import connected
    from orchestrator.run.groups import group_of
    from trainables.workers.worker_group import WorkerGroup

    share = num_cores() / (workers + 1)  # what Ray counts; how many threads compute is a setting of the trial
    group = group_of(config, workers, workers, min(1.0, share))
    with connected(None):
        started = WorkerGroup(group, scratch)
        try:
            yield from started.trials(1)
        finally:
            started.close()


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
            before = train_again(trainer, trials, origin, epoch, scratch, changes, on_epoch)
            if before.ended or before.origin_ended:
                return Again({}, origin_ended=before.origin_ended or f"{origin} in epoch {trainer.epoch + 1}, {before.ended}")
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
    return Again(metrics)


def explain(events: Sequence[Event], config: SweepConfig, trial: TrialState) -> list[str]:
    """What is known that may have changed the numbers."""
    found, most = [], 1
    if config.resources.gpus_per_worker and not config.trial.compute.deterministic:
        found.append("a GPU computes the same numbers in every run only with trial.compute.deterministic")
    here = own_program().facts
    for event in events:
        if event["event"] == Kind.SWEEP_START or event["event"] == Kind.SWEEP_RESUME:
            found += [line for line in explanations(event, here) if line not in found]
        if event["event"] == Kind.SWEEP_RESUME and "note" in event:
            found.append(f"the sweep went on with other settings: {event['note']}")
        if event["event"] == Kind.EPOCH and event["trial_id"] == trial.trial_id:
            most = max(most, shared_by(event))
    if most > 1:
        found.append(f"it was trained together with up to {most - 1} others (resources.fused), which rounds otherwise than alone")
    lowest, highest = config.resources.worker_range()
    if lowest != highest:
        found.append(f"its workers were {lowest} to {highest} in number, and now they are {highest}")
    if trial.parent:
        found.append(f"it continued from {trial.parent['trial_id']}, which was trained again as well")
    return found or ["nothing that the ledger holds: program, packages and machine are the same"]
