"""Checkpoints that a ledger does not name, or whose epoch it does not hold: after a power cut or a kill, the disk may hold more
than the ledger says.

A process saves a checkpoint before the sweep writes that down, and the checkpoint is on the disk (fsync) at once, the ledger's
lines only now and then. `adopt` writes down what is missing, from the report that a state carries, as if it had come in time.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.ledger.class_arrays import append_epoch
from orchestrator.ledger.epoch_report import write_epoch
from orchestrator.ledger.events import Event, Kind
from orchestrator.ledger.paths import TRIAL_ID, inside
from orchestrator.ledger.trial_states import State, TrialState, trial_states_of
from orchestrator.run.member import CHECKPOINTS
from trainables.checkpoint import read_checkpoint, unpack
from trainables.config import deciding_differences

NAME = re.compile(rf"{CHECKPOINTS}/({TRIAL_ID})/(\d+)-(\d+)", re.ASCII)


class Saved(NamedTuple):
    """A checkpoint's folder, as its name says."""

    trial_id: str
    epoch: int
    attempt: int
    path: str
    """In the results folder."""


class Adoptable(NamedTuple):
    """A checkpoint that continues what the ledger holds."""

    saved: Saved
    sha256: str
    metrics: dict[str, Any]
    classes: dict[str, list[Any]]
    pairing: dict[str, str]


def saved_in(folder: Path, trial_id: str = "*") -> Iterator[Saved]:
    """The checkpoints in a results folder, of one trial or of all, in the order of their names."""
    for place in sorted(folder.glob(f"{CHECKPOINTS}/{trial_id}/*")):
        path = place.relative_to(folder).as_posix()
        name = NAME.fullmatch(path)
        yield Saved(name[1], int(name[2]), int(name[3]), path) if name else Saved("", 0, 0, path)


def adopt(folder: Path, past: Sequence[Event], append: Callable[..., Event]) -> list[Event]:
    """Writes down the epochs that the disk holds and the ledger does not: of each running trial the next one, and so on.

    Args:
        folder: results folder.
        past: what the ledger holds.
        append: writes an event.

    Returns: the new events.
    """
    new: list[Event] = []
    for trial in trial_states_of(past).in_state(State.RUNNING):
        epoch = trial.epoch or (trial.parent["epoch"] if trial.parent else 0)
        named = {checkpoint.path: checkpoint.sha256 for checkpoint in trial.checkpoints}
        while epoch < trial.config["epochs"] and (found := _adoptable(folder, trial, epoch + 1, named)):
            epoch, (saved, digest, metrics, classes, pairing) = epoch + 1, found
            append_epoch(folder, trial.trial_id, epoch, classes)
            if saved.path not in named:
                new.append(append(Kind.CHECKPOINT, trial_id=trial.trial_id, epoch=epoch, path=saved.path, sha256=digest))
            new += write_epoch(append, trial, epoch, saved.attempt, metrics, pairing)
    return new


def is_intact(folder: Path, saved: Saved) -> bool:
    """Whether a checkpoint is what was written, as its own digest says."""
    try:
        read_checkpoint(inside(folder, saved.path))
    except ValueError:
        return False
    return True


def _adoptable(folder: Path, trial: TrialState, epoch: int, named: dict[str, str]) -> Adoptable | None:
    """The state of a trial after an epoch, of the last attempt that left an intact one with a report."""
    states = [saved for saved in saved_in(folder, trial.trial_id) if saved.trial_id and saved.epoch == epoch]
    for saved in sorted(states, key=lambda saved: saved.attempt, reverse=True):
        try:
            packed = read_checkpoint(inside(folder, saved.path), named.get(saved.path))
            state = unpack(packed, saved.path)
        except ValueError:
            continue
        if (report := _report_of(state, trial, epoch)) is not None:
            digest = hashlib.sha256(packed).hexdigest()
            return Adoptable(saved, digest, report["metrics"], report["classes"], report.get("pairing", {}))
    return None


def _report_of(state: dict[str, Any], trial: TrialState, epoch: int) -> dict[str, Any] | None:
    """What the state says about its epoch; None when it is another trial's state, or of a version that kept no report."""
    try:
        report: dict[str, Any] = state["report"]
        as_in_the_ledger = json.loads(json.dumps(state["config"]))
        fits = state["epoch"] == epoch and not deciding_differences(as_in_the_ledger, trial.config)
        whole = trial.config["select_by"] in report["metrics"] and "train_count" in report["classes"]
    except (KeyError, TypeError, ValueError):
        return None
    return report if fits and whole else None
