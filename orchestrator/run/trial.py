"""What a slot's process runs: a Ray Tune trainable that trains one stint after another, an epoch per step."""

import os
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from ray import tune

from orchestrator.ledger.events import Kind, Status
from orchestrator.ledger.paths import inside
from orchestrator.run.signals import AT_WORK, HOLDS, SPACE, Slots
from trainables.checkpoint import DamagedCheckpoint
from trainables.config import TrialConfig
from trainables.config_file import Origin, check
from trainables.engine.health import TrialEnded
from trainables.files import wait_for_space
from trainables.trial_run import TrialRun
from trainables.workers.worker_group import WorkerGroup

CHECKPOINTS = "checkpoints"
HEARTBEAT_INTERVAL_S = 0.5
RELEASE_POLL_S = 1.0
"""Seconds between two looks at whether an idle process is to give its machines back."""


class Retreat(Exception):
    """A trial leaves a process whose machines have not come."""


@dataclass(frozen=True)
class EpochReport:
    """What a process reports after an epoch. Not a mapping: Ray Tune would flatten it."""

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


class Trial(tune.Trainable):
    """Drives a trial run or a group of workers. Its configuration is a stint, as a mapping.

    We do not use Ray Tune's checkpoints: they are pickles, and bound to one Tune trial. The process itself writes the state into
    the results folder, and a stint names the checkpoints to go on from with their digests.
    """

    def setup(self, config: dict[str, Any], slots: Slots) -> None:
        """Takes the process's first stint, when all processes are up."""
        self._slots = slots
        self._epoch = 0
        self._ended: TrialEnded | ValueError | None = None
        self._run = self.build_run(slots)
        self._at_work = threading.Lock()
        self._take(config)
        self._follows_machines = bool(slots.group and slots.group.machines_may_come)
        if self._follows_machines:
            threading.Thread(target=self._give_back, daemon=True).start()
        slots.wait_for_all(beat=self._beat)

    def build_run(self, slots: Slots) -> TrialRun | WorkerGroup:
        """What does the work."""
        return WorkerGroup(slots.group, slots.folder, self._while_waiting) if slots.group else TrialRun()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes the next stint in this process; data that fit are kept."""
        self._take(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One epoch, as an EpochReport."""
        with self._at_work:
            self._slots.give(AT_WORK)
            self._slots.is_to_release()  # too late: there is work again
            return self._step()

    def _step(self) -> dict[str, Any]:
        self._beat()
        self._begin()
        epoch, checkpoint = self._epoch + 1, None
        if self._ended is None:
            try:
                metrics = self._run.run_epoch(self._on_step)
                self._epoch = self._run.epoch
                checkpoint = self._save()
            except (TrialEnded, ValueError) as reason:
                self._ended = reason
        events = self._new_events()
        if self._follows_machines and self._may_come_free() and not self._slots.is_halted():
            self._slots.wait_for_all(AT_WORK, beat=self._beat)  # further slots may be starting
        if self._ended is not None:
            own_fault = isinstance(self._ended, TrialEnded)
            status = Status(getattr(self._ended, "status", Status.FAILED))
            return {"report": EpochReport(epoch, events=events, ended=status, own_fault=own_fault, reason=str(self._ended))}
        classes, pairing = self._run.class_table(), self._run.pairing_digests()
        return {"report": EpochReport(self._epoch, metrics, classes, checkpoint, events, pairing=pairing)}

    def _may_come_free(self) -> bool:
        """Whether the stint may end with this epoch."""
        return self._ended is not None or self._epoch >= self._trial.epochs or self._epoch in self._stint["may_leave"]

    def restore(self, *_: Any, **__: Any) -> None:
        """Refuses: Ray Tune would unpickle what it finds."""
        raise RuntimeError("trials go on from the checkpoints that the ledger names")

    def cleanup(self) -> None:
        """Ends the workers."""
        with self._at_work:
            self._close()

    def _close(self) -> None:
        if isinstance(self._run, WorkerGroup):
            self._run.close()

    def _give_back(self) -> None:
        """Ends the workers, and so gives the machines back, when this process is told to; between two trials."""
        while True:
            time.sleep(RELEASE_POLL_S)
            with self._at_work:
                if self._slots.is_to_release():
                    try:
                        self._close()
                    finally:  # its workers end with this process at the latest
                        self._slots.say_released()

    def _take(self, stint: dict[str, Any]) -> None:
        """Takes a stint. It begins with the first step: Ray Tune gives up on a process whose set-up waits for machines."""
        self._stint, self._has_begun = stint, False
        self._epoch, self._ended = 0, None
        self._events: list[dict[str, Any]] = []
        self._slots.heartbeat_file(stint["trial_id"]).write_text(str(os.getpid()), encoding="utf-8")
        self._beat()

    def _begin(self) -> None:
        if self._has_begun:
            return
        self._has_begun = True
        try:
            self._go_on_or_start()
        except (TrialEnded, ValueError) as reason:  # only this trial is at fault: the process serves the next one
            self._ended = reason

    def _go_on_or_start(self) -> None:
        """Goes on from the newest intact checkpoint, or from the beginning."""
        # Another process checked these settings; in this one a plug-in may be missing.
        self._trial = check(TrialConfig, self._stint["config"], Origin(f"trial {self._stint['trial_id']}"))
        for checkpoint in self._stint["checkpoints"]:
            folder = inside(self._slots.results, checkpoint["path"])
            try:
                self._run.load(folder, self._trial, checkpoint["sha256"])
            except DamagedCheckpoint as error:
                self._events.append({"event": Kind.DAMAGED, "path": checkpoint["path"], "reason": str(error)})
                continue
            self._epoch = self._run.epoch
            return
        if self._stint["first_epoch"] > 1:
            raise ValueError(f"the state that the trial goes on from at epoch {self._stint['first_epoch']} is gone")
        self._run.start(self._trial)

    def _save(self) -> dict[str, Any] | None:
        """Writes a checkpoint if it is time for one."""
        epoch, stint = self._epoch, self._stint
        wanted = epoch % self._slots.checkpoint_interval == 0 or epoch >= self._trial.epochs or epoch in stint["due"]
        if not wanted and not self._slots.is_halted():
            return None
        # The attempt is in the name: a repeated epoch must not overwrite the file whose digest the ledger holds.
        place = f"{CHECKPOINTS}/{stint['trial_id']}/{epoch:04d}-{stint['attempt']}"
        is_complete = epoch >= self._trial.epochs
        digest = wait_for_space(lambda: self._run.save(self._slots.results / place, is_complete), self._wait)
        self._slots.wait(stint["trial_id"], None)
        return {"epoch": epoch, "path": place, "sha256": digest}

    def _wait(self, what_for: str) -> None:
        self._beat()
        self._slots.wait(self._stint["trial_id"], f"{SPACE}{what_for}")

    def _while_waiting(self, what_for: str | None) -> None:
        """Called while the workers wait for machines.

        Raises:
            Retreat: when the trial is to leave this process.
        """
        self._beat()
        trial_id = self._stint["trial_id"]
        self._slots.wait(trial_id, what_for)
        if what_for is None:
            self._slots.give(HOLDS)
        else:
            self._slots.take_back(HOLDS)
        is_to_leave = self._slots.is_to_retreat(trial_id) or self._slots.is_halted()
        if what_for and is_to_leave:
            self._slots.wait(trial_id, None)
            self._slots.leave_behind(trial_id, self._new_events())
            raise Retreat(f"{trial_id} leaves a process that waits for {what_for}")

    def _on_step(self, step: int) -> None:
        if time.monotonic() - self._beaten > HEARTBEAT_INTERVAL_S:
            self._beat()

    def _beat(self) -> None:
        """Gives a heartbeat."""
        self._beaten = time.monotonic()
        self._slots.heartbeat_file(self._stint["trial_id"]).touch()

    def _new_events(self) -> tuple[dict[str, Any], ...]:
        events, self._events = self._events, []
        if isinstance(self._run, WorkerGroup):
            events += [event | {"slot": os.getpid()} for event in self._run.events]
            self._run.events = []
        return tuple(events)
