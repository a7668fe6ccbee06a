"""What a slot's process runs: a Ray Tune trainable that trains one bundle of stints after another, an epoch per step."""

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ray import tune

from orchestrator.ledger.events import shared_fields
from orchestrator.run.member import EpochReport, Member
from orchestrator.run.signals import AT_WORK, HOLDS, Slots
from trainables.alive import heard_by
from trainables.side_by_side import FusedEpochFailed, SideBySide
from trainables.trial_run import TrialRun
from trainables.workers.worker_group import GroupTrial, WorkerGroup

HEARTBEAT_INTERVAL_S = 0.5
RELEASE_POLL_S = 1.0
"""Seconds between two looks at whether an idle process is to give its machines back."""


class Retreat(Exception):
    """The trials leave a process whose machines have not come."""


class Trial(tune.Trainable):
    """Drives trial runs, in this process or on a group of workers. Its configuration is a bundle: `stints`, a mapping each.

    We do not use Ray Tune's checkpoints: they are pickles, and bound to one Tune trial. The process itself writes the states into
    the results folder, and a stint names the checkpoints to go on from with their digests.
    """

    def setup(self, config: dict[str, Any], slots: Slots) -> None:
        """Takes the process's first bundle, when all processes are up."""
        self._slots = slots
        self._members: list[Member] = []
        self._runs: list[TrialRun] = []
        """They are kept from one bundle to the next, because a run keeps data that fit."""
        self._group = WorkerGroup(slots.group, slots.folder, self._while_waiting) if slots.group else None
        self._at_work = threading.Lock()
        self._take(config)
        self._follows_machines = bool(slots.group and slots.group.machines_may_come)
        if self._follows_machines:
            threading.Thread(target=self._give_back, daemon=True).start()
        slots.wait_for_all(beat=self._beat)

    def build_run(self) -> TrialRun:
        """What does the work of a trial in this process."""
        return TrialRun()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes the next bundle in this process; data that fit are kept."""
        self._take(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One epoch of each trial that is in the process, as EpochReports."""
        with self._at_work:
            self._slots.give(AT_WORK)
            self._slots.is_to_release()  # too late: there is work again
            with heard_by(lambda: self._on_step(0)):
                try:
                    return {"reports": self._step()}
                except FusedEpochFailed:
                    self._leave_behind()
                    raise

    def _step(self) -> tuple[EpochReport, ...]:
        self._beat()
        self._begin()
        self._members = [member for member in self._members if not member.is_to_leave()]
        training = [member for member in self._members if member.ended is None]
        runs: list[Any] = [member.run for member in training]
        found = self._trainer.run_epoch(runs, self._on_step)
        outcomes = dict(zip(training, found, strict=True))
        reports = []
        for member in self._members:
            self._beat()
            reports.append(member.end_epoch(outcomes.get(member)))
        if self._follows_machines and all(member.may_leave() for member in self._members) and not self._slots.is_halted():
            self._slots.wait_for_all(AT_WORK, beat=self._beat)  # further slots may be starting
        self._tell_members()
        return tuple(replace(report, events=member.new_events()) for member, report in zip(self._members, reports, strict=True))

    def _tell_members(self) -> None:
        """Tells all members what has happened to their workers."""
        if self._group:
            events, self._group.events = self._group.events, []
            shared = {"slot": os.getpid()} | shared_fields(len(self._members))
            for member in self._members:
                member.happened(event | shared for event in events)

    def _leave_behind(self) -> None:
        """Keeps what has happened, for a process that its trials leave without reports."""
        self._tell_members()
        for member in self._members:
            self._slots.leave_behind(member.trial_id, member.new_events())

    def restore(self, *_: Any, **__: Any) -> None:
        """Refuses: Ray Tune would unpickle what it finds."""
        raise RuntimeError("trials go on from the checkpoints that the ledger names")

    def cleanup(self) -> None:
        """Ends the workers."""
        with self._at_work:
            self._close()

    def _close(self) -> None:
        if self._group:
            self._group.close()

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

    def _take(self, bundle: Mapping[str, Any]) -> None:
        """Takes a bundle. It begins with the first step: Ray Tune gives up on a process whose set-up waits for machines."""
        stints, self._has_begun = bundle["stints"], False
        self._trainer, runs = self._trained_by(len(stints))
        self._members = [Member(stint, run, self._slots, self._beat) for stint, run in zip(stints, runs, strict=True)]
        self._beat()

    def _trained_by(self, number: int) -> tuple[SideBySide | WorkerGroup, Sequence[TrialRun | GroupTrial]]:
        """What trains a bundle of so many trials, and each of them."""
        if self._group:
            return self._group, self._group.trials(number)
        self._runs += [self.build_run() for _ in range(len(self._runs), number)]
        return SideBySide(), self._runs[:number]

    def _begin(self) -> None:
        if self._has_begun:
            return
        self._has_begun = True
        loaded = None
        for member in self._members:
            self._beat()
            member.begin(loaded)
            loaded = loaded or member.loaded()

    def _while_waiting(self, what_for: str | None) -> None:
        """Called while the workers wait for machines.

        Raises:
            Retreat: when the trials are to leave this process.
        """
        self._beat()
        trial_id = self._members[0].trial_id  # speaks for all: they wait, and leave, together
        self._slots.wait(trial_id, what_for)
        if what_for is None:
            self._slots.give(HOLDS)
        else:
            self._slots.take_back(HOLDS)
        is_to_leave = self._slots.is_to_retreat(trial_id) or self._slots.is_halted()
        if what_for and is_to_leave:
            self._slots.wait(trial_id, None)
            self._leave_behind()
            raise Retreat(f"{trial_id} leaves a process that waits for {what_for}")

    def _on_step(self, step: int) -> None:
        if time.monotonic() - self._beaten > HEARTBEAT_INTERVAL_S:
            self._beat()

    def _beat(self) -> None:
        """Gives a heartbeat of every trial in the process."""
        self._beaten = time.monotonic()
        for member in self._members:
            self._slots.heartbeat_file(member.trial_id).touch()
