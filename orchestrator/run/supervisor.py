"""Between processes and conductor: writes what trials report into the ledger; looks after disk, budget and hanging processes."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.conductor import Conductor, Stint
from orchestrator.ledger.class_arrays import append_epoch, close, seal
from orchestrator.ledger.ledger import Event, Ledger
from orchestrator.ledger.usage import usage_of
from orchestrator.run.trial import EpochReport, Slots
from trainables.files import once, wait_for_space

POLL_S = 1.0
PAUSE_S = 10.0
"""Who has not looked for so long cannot say how long the others have been silent: everybody gets the full time again."""


class Supervisor:
    """Takes reports, and answers for the conductor. Listens to the ledger, so that its state is the ledger's.

    Args:
        config: of the sweep.
        ledger: of its folder, open for writing.
        past: what the ledger holds already.
        slots: the processes.
        note: tells a person.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        config: SweepConfig,
        ledger: Ledger,
        past: list[Event],
        slots: Slots,
        note: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config, self._ledger, self._slots, self._note, self._clock = config, ledger, slots, note, clock
        self._watched_since: dict[str, float] = {}
        self._hung: dict[str, str] = {}
        self._waiting = ""
        self._polled = 0.0
        self.usage = usage_of(past)
        self.conductor = Conductor(config, slots.number, self._append)
        self.conductor.restore(past)
        self._remove_strangers()
        gpus = config.resources.gpus_per_worker * (slots.group.max_workers if slots.group else 1)
        self._append("slots", slots=slots.number, gpus_per_slot=gpus)

    def next_stint(self) -> Stint | None:
        """What a free process is to do."""
        stint = self.conductor.next_stint()
        if stint:
            self._slots.want(stint.trial_id)
            self._slots.heartbeat_file(stint.trial_id).unlink(missing_ok=True)  # of an earlier stint, in another process perhaps
            self._watched_since[stint.trial_id] = self._clock()
        return stint

    @property
    def over(self) -> bool:
        """Whether there will be nothing more to do."""
        return self.conductor.halted is not None or self.conductor.over

    def on_start(self, trial_id: str) -> None:
        """A process has taken a trial up."""
        self._append("trial_start", trial_id=trial_id, attempt=self.conductor.members[trial_id].attempt)

    def on_report(self, trial_id: str, report: EpochReport) -> bool:
        """Takes what an epoch gave; returns whether the process is to leave the trial."""
        for event in report.events:
            self._append(**event, trial_id=trial_id, epoch=report.epoch)
        if report.ended:
            self.conductor.after_ending(trial_id, report.ended, report.reason)
        else:
            attempt = self.conductor.members[trial_id].attempt
            wait_for_space(lambda: append_epoch(self._slots.results, trial_id, report.epoch, report.classes), once(self._note))
            # The state comes first: what the sweep decides by an epoch may need it, and after a kill between the two the epoch is
            # done again.
            if report.checkpoint:
                self._append("checkpoint", trial_id=trial_id, **report.checkpoint)
            self._append("epoch", trial_id=trial_id, epoch=report.epoch, attempt=attempt, metrics=report.metrics)
            self._remove_dispensable(trial_id)
        leaves = bool(report.ended) or self.conductor.after_epoch(trial_id)
        if leaves:
            self._watched_since.pop(trial_id, None)
        return leaves

    def on_error(self, trial_id: str, text: str) -> None:
        """The process of a trial raised an error or is gone."""
        if self.conductor.members[trial_id].state == "running":  # what dies after its stint has done no harm
            self._watched_since.pop(trial_id, None)
            self.conductor.after_failure(trial_id, self._hung.pop(trial_id, text))

    def poll(self) -> None:
        """Looks after things that report nothing by themselves; called often."""
        now = self._clock()
        if 0 <= now - self._polled < POLL_S:
            return
        if now - self._polled > PAUSE_S:
            self._watched_since = dict.fromkeys(self._watched_since, now)
        self._polled = now
        if not self.conductor.halted and (spent := self.usage.exceeds(self._config.budget, now)):
            self._note(f"{spent}: running trials end with their current epoch")
            self.conductor.halt("finished", spent)
        if self.conductor.halted:
            self._slots.halt()
        self._end_hanging(now)
        self._tell_who_waits()

    def _append(self, event: str, **fields: Any) -> Event:
        if event == "trial_end":
            fields |= self._seal(fields["trial_id"])
        record = self._ledger.append(event, **fields)
        self.conductor.apply(record)
        self.usage.apply(record)
        if event == "trial_end" and fields["status"] != "interrupted":
            close(self._slots.results, fields["trial_id"])
            self._remove_dispensable(fields["trial_id"])
        return record

    def _seal(self, trial_id: str) -> dict[str, str]:
        epochs = self.conductor.members[trial_id].values
        return wait_for_space(lambda: seal(self._slots.results, trial_id, epochs), once(self._note))

    def _remove_dispensable(self, trial_id: str) -> None:
        for checkpoint in self.conductor.drop_checkpoints(trial_id):
            shutil.rmtree(self._slots.results / checkpoint.path, ignore_errors=True)

    def _remove_strangers(self) -> None:
        """Removes states that were written and never reported: their epochs are done again."""
        for trial_id in list(self.conductor.members):
            self._remove_dispensable(trial_id)
        known = {checkpoint.path for member in self.conductor.members.values() for checkpoint in member.checkpoints}
        for folder in sorted(self._slots.results.glob("checkpoints/*/*")):
            if folder.relative_to(self._slots.results).as_posix() not in known:
                shutil.rmtree(folder, ignore_errors=True)

    def _end_hanging(self, now: float) -> None:
        """Kills processes that have given no heartbeat for too long; their trials fail, and go on elsewhere."""
        resources = self._config.resources
        limit = resources.heartbeat_timeout_s + (resources.start_limit_s if self._slots.group else 0)
        for trial_id, since in sorted(self._watched_since.items()):
            sign = self._slots.heartbeat_file(trial_id)
            if not sign.is_file() or now - max(sign.stat().st_mtime, since) < limit:
                continue
            self._hung[trial_id] = f"no heartbeat for {limit:g} s (resources.heartbeat_timeout_s); its process was killed"
            del self._watched_since[trial_id]
            with suppress(ProcessLookupError, ValueError):  # gone meanwhile: Ray will say so
                os.kill(int(sign.read_text(encoding="utf-8")), signal.SIGKILL)

    def _tell_who_waits(self) -> None:
        waiting = "; ".join(sorted(self._slots.waiting()))
        if waiting != self._waiting:
            self._note(f"waiting for space: {waiting}" if waiting else "there is space again: trials go on")
            self._waiting = waiting
