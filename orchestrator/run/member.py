"""A trial in a slot's process: its stint, what trains it, and what the process reports of it."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.ledger.events import Kind, Status
from orchestrator.ledger.paths import inside
from orchestrator.run.signals import SPACE, Slots
from trainables.checkpoint import DamagedCheckpoint
from trainables.config import TrialConfig
from trainables.config_file import Origin, check
from trainables.data.loaded import LoadedData
from trainables.engine.health import TrialEnded
from trainables.files import wait_for_space
from trainables.side_by_side import Outcome
from trainables.trial_run import TrialRun
from trainables.workers.worker_group import GroupTrial

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class EpochReport:
    """What a process reports of a trial after an epoch. Not a mapping: Ray Tune would flatten it."""

    trial_id: str
    epoch: int
    metrics: dict[str, float] = field(default_factory=dict)
    classes: dict[str, list[Any]] = field(default_factory=dict)
    """Arrays by class, each (num_classes,)."""
    checkpoint: dict[str, Any] | None = None
    """`epoch`, `path` in the results folder and `sha256`."""
    events: tuple[dict[str, Any], ...] = ()
    """What happened during the epoch, as events for the ledger."""
    ended: Status | None = None
    """Diverged or failed, when the trial has ended by its own rules, without this epoch."""
    own_fault: bool = False
    """Whether the trial's own numbers ended it, not its data or the machine."""
    reason: str = ""
    pairing: dict[str, str] = field(default_factory=dict)
    """Digests of what the trial has in common with others; see trainables/pairing.py."""


class Member:
    """A trial that a process trains, alone or together with others.

    Args:
        stint: what to do, as a mapping.
        run: what trains it.
        slots: the processes of the sweep.
        beat: gives a heartbeat of the process.
    """

    def __init__(self, stint: Mapping[str, Any], run: TrialRun | GroupTrial, slots: Slots, beat: Callable[[], None]) -> None:
        self.trial_id, self.run = str(stint["trial_id"]), run
        self._stint, self._slots, self._beat = stint, slots, beat
        self._epoch = 0
        self._events: list[dict[str, Any]] = []
        self.ended: TrialEnded | ValueError | None = None
        """Why the trial has ended, before its last epoch."""
        slots.heartbeat_file(self.trial_id).write_text(str(os.getpid()), encoding="utf-8")

    def begin(self, loaded: LoadedData | None = None) -> None:
        """Goes on from the newest intact checkpoint, or begins at the beginning.

        Args:
            loaded: the data of a trial that it is to be trained together with.
        """
        try:
            self._go_on_or_start({} if loaded is None else {"loaded": loaded})
        except (TrialEnded, ValueError) as reason:  # only this trial is at fault: the process serves the next one
            self.ended = reason

    def _go_on_or_start(self, shared: dict[str, Any]) -> None:
        # Another process checked these settings; in this one a plug-in may be missing.
        self._config = check(TrialConfig, self._stint["config"], Origin(f"trial {self.trial_id}"))
        for checkpoint in self._stint["checkpoints"]:
            folder = inside(self._slots.results, checkpoint["path"])
            try:
                self.run.load(folder, self._config, checkpoint["sha256"], **shared)
            except DamagedCheckpoint as error:
                self._events.append({"event": Kind.DAMAGED, "path": checkpoint["path"], "reason": str(error)})
                continue
            self._epoch = self.run.epoch
            return
        if self._stint["first_epoch"] > 1:
            raise ValueError(f"the state that the trial goes on from at epoch {self._stint['first_epoch']} is gone")
        self.run.start(self._config, **shared)

    def loaded(self) -> LoadedData | None:
        """The data that the trial trains on; None where workers have them, or the trial has ended."""
        return self.run.loaded if isinstance(self.run, TrialRun) and self.ended is None else None

    def is_to_leave(self) -> bool:
        """Whether the sweep has told the trial to leave this process."""
        return self._slots.is_to_leave(self.trial_id, self._stint["bundle"])

    def may_leave(self) -> bool:
        """Whether the stint may end with the epoch that it has trained."""
        return self.ended is not None or self._epoch >= self._config.epochs or self._epoch in self._stint["may_leave"]

    def end_epoch(self, outcome: Outcome | None) -> EpochReport:
        """Saves the trial, if it is time for that, and reports the epoch, without events.

        Args:
            outcome: of the epoch; None for a trial that could not begin.
        """
        epoch, checkpoint = self._epoch + 1, None
        if isinstance(outcome, dict):
            try:
                self._epoch = self.run.epoch
                checkpoint = self._save()
            except (TrialEnded, ValueError) as reason:
                self.ended = reason
        else:
            self.ended = self.ended or outcome
        if self.ended is not None:
            own_fault = isinstance(self.ended, TrialEnded)
            status = Status(getattr(self.ended, "status", Status.FAILED))
            return EpochReport(self.trial_id, epoch, ended=status, own_fault=own_fault, reason=str(self.ended))
        assert isinstance(outcome, dict)
        classes, pairing = self.run.class_table(), self.run.pairing_digests()
        return EpochReport(self.trial_id, self._epoch, outcome, classes, checkpoint, pairing=pairing)

    def _save(self) -> dict[str, Any] | None:
        """Writes a checkpoint if it is time for one."""
        epoch, stint = self._epoch, self._stint
        is_complete = epoch >= self._config.epochs
        wanted = epoch % self._slots.checkpoint_interval == 0 or is_complete or epoch in stint["due"]
        if not wanted and not self._slots.is_halted():
            return None
        # The attempt is in the name: a repeated epoch must not overwrite the file whose digest the ledger holds.
        place = f"{CHECKPOINTS}/{self.trial_id}/{epoch:04d}-{stint['attempt']}"
        digest = wait_for_space(lambda: self.run.save(self._slots.results / place, is_complete), self._wait)
        self._slots.wait(self.trial_id, None)
        return {"epoch": epoch, "path": place, "sha256": digest}

    def _wait(self, what_for: str) -> None:
        self._beat()
        self._slots.wait(self.trial_id, f"{SPACE}{what_for}")

    def happened(self, events: Iterable[dict[str, Any]]) -> None:
        """Takes what has happened to the trial, as events for the ledger."""
        self._events += events

    def new_events(self) -> tuple[dict[str, Any], ...]:
        """What has happened since the last call."""
        events, self._events = self._events, []
        return tuple(events)
