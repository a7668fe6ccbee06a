"""Between processes and conductor: writes what trials report into the ledger; looks after disk, budget and hanging processes."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from orchestrator.conductor import Conductor, Stint
from orchestrator.config import SweepConfig
from orchestrator.ledger import Event, Ledger
from orchestrator.parts import append_epoch, close, seal
from orchestrator.trial import Report, Slots
from orchestrator.usage import Usage
from trainables.files import once, wait_for_space

POLL_S = 1.0
SHORT_OF_BYTES = 32 * 2**20
"""So little free space is worth a word: processes wait for more where it does not suffice."""


class Recorder:
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
        self._running: set[str] = set()
        self._hung: dict[str, str] = {}
        self._short_of_space = False
        self._polled = 0.0
        self.usage = Usage()
        self.conductor = Conductor(config, slots.number, self._append)
        self.conductor.restore(self._metered(past))
        self._remove_strangers()
        gpus = config.resources.gpus_per_worker * (slots.group.max_workers if slots.group else 1)
        self._append("slots", slots=slots.number, gpus_per_slot=gpus)

    def next_stint(self) -> Stint | None:
        """What a free process is to do."""
        stint = self.conductor.next_stint()
        if stint:
            self._slots.want(stint.trial_id)
        return stint

    @property
    def over(self) -> bool:
        """Whether there will be nothing more to do."""
        return self.conductor.halted is not None or self.conductor.over

    def on_start(self, trial_id: str) -> None:
        """A process has taken a trial up."""
        self._running.add(trial_id)
        self._append("trial_start", trial_id=trial_id, attempt=self.conductor.members[trial_id].attempt)

    def on_report(self, trial_id: str, report: Report) -> bool:
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
            self._running.discard(trial_id)
        return leaves

    def on_error(self, trial_id: str, text: str) -> None:
        """The process of a trial raised an error or is gone."""
        if self.conductor.members[trial_id].state == "running":  # what dies after its stint has done no harm
            self._running.discard(trial_id)
            self.conductor.after_failure(trial_id, self._hung.pop(trial_id, text))

    def poll(self) -> None:
        """Looks after things that report nothing by themselves; called often."""
        if time.monotonic() - self._polled < POLL_S:
            return
        self._polled = time.monotonic()
        if not self.conductor.halted and (spent := self.usage.exceeds(self._config.budget, self._clock())):
            self._note(f"{spent}: running trials end with their current epoch")
            self.conductor.halt("finished", spent)
        self._end_hanging()
        self._look_at_space()

    def interrupt(self, reason: str) -> None:
        """Ends, for the time being, the trials that have not ended."""
        self.conductor.interrupt(reason)

    def _append(self, event: str, **fields: Any) -> Event:
        if event == "trial_end":
            fields |= self._seal(fields["trial_id"])
        record = self._ledger.append(event, **fields)
        if event == "trial_end" and fields["status"] != "interrupted":
            close(self._slots.results, fields["trial_id"])
        self.conductor.apply(record)
        self.usage.apply(record)
        return record

    def _seal(self, trial_id: str) -> dict[str, str]:
        epochs = self.conductor.members[trial_id].values
        return wait_for_space(lambda: seal(self._slots.results, trial_id, epochs), once(self._note))

    def _metered(self, past: list[Event]) -> list[Event]:
        for event in past:
            self.usage.apply(event)
        return past

    def _remove_dispensable(self, trial_id: str) -> None:
        for checkpoint in self.conductor.drop_checkpoints(trial_id):
            shutil.rmtree(self._slots.results / checkpoint.path, ignore_errors=True)

    def _remove_strangers(self) -> None:
        """Removes states that were written and never reported: their epochs are done again."""
        known = {checkpoint.path for member in self.conductor.members.values() for checkpoint in member.checkpoints}
        for folder in sorted(self._slots.results.glob("checkpoints/*/*")):
            if folder.relative_to(self._slots.results).as_posix() not in known:
                shutil.rmtree(folder, ignore_errors=True)

    def _end_hanging(self) -> None:
        """Kills processes that have given no sign of life for too long; their trials fail, and go on elsewhere."""
        resources = self._config.resources
        limit = resources.silence_limit_s + (resources.start_limit_s if self._slots.group else 0)
        for trial_id in sorted(self._running):
            sign = self._slots.signs_of(trial_id)
            if not sign.is_file() or self._clock() - sign.stat().st_mtime < limit:
                continue
            self._hung[trial_id] = f"no sign of life for {limit:g} s (resources.silence_limit_s); its process was killed"
            self._running.discard(trial_id)
            with suppress(ProcessLookupError):  # gone meanwhile: Ray will say so
                os.kill(int(sign.read_text(encoding="utf-8")), signal.SIGKILL)

    def _look_at_space(self) -> None:
        free = shutil.disk_usage(self._slots.results).free
        if (free < SHORT_OF_BYTES) != self._short_of_space:
            self._short_of_space = not self._short_of_space
            if self._short_of_space:
                self._note(f"{free // 2**20} MiB free on the disk of {self._slots.results}: trials wait where that is too little")
            else:
                self._note(f"{free // 2**20} MiB free on the disk again: trials go on")
