"""Between the slots' processes and the conductor: reports become events; disk, budget and hung processes are watched.

Conductor and usage are listeners of the ledger, so their state is exactly what the ledger says. The supervisor only writes
events, and asks the conductor what a process is to do.
"""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from orchestrator.cluster.machines import Machines
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.conductor import Conductor, Stint
from orchestrator.ledger.class_arrays import append_epoch, lines_file, seal
from orchestrator.ledger.epoch_report import write_epoch
from orchestrator.ledger.events import Event, Kind, Status
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.paths import inside
from orchestrator.ledger.trial_states import Checkpoint, State
from orchestrator.ledger.usage import usage_of
from orchestrator.run.disk import disk_use, in_words
from orchestrator.run.machine_watch import MachineWatch
from orchestrator.run.member import EpochReport
from orchestrator.run.signals import Slots
from orchestrator.run.strangers import adopt, is_intact, saved_in
from trainables.files import once, remove_place, wait_for_space

POLL_S = 1.0
"""Seconds from one look at budget, heartbeats and disk to the next."""
PAUSE_S = 10.0
"""If polling itself was suspended for so many seconds, all heartbeat timers restart: the whole machine may have slept."""


class Supervisor:
    """Takes the reports of processes, and answers with the conductor's decisions.

    Args:
        config: of the sweep.
        ledger: of its folder, open for writing; may hold a part of the sweep already.
        slots: the processes.
        note: tells a person.
        clock: seconds since 1970.
        machines: of the cluster that this process has joined, if it has joined one.
        remove: removes a file or folder that the ledger does not need any more, at once or later; and the folder above, if it is
            empty then and the second argument is true.
    """

    def __init__(
        self,
        config: SweepConfig,
        ledger: Ledger,
        slots: Slots,
        note: Callable[[str], None],
        clock: Callable[[], float] = time.time,
        machines: Machines | None = None,
        remove: Callable[[Path, bool], None] = remove_place,
    ) -> None:
        self._config, self._ledger, self._slots, self._note, self._clock = config, ledger, slots, note, clock
        self._remove_place = remove
        self._watched_since: dict[str, float] = {}
        self._hung: dict[str, str] = {}
        self._knows_size = False
        self._polled = 0.0
        self._is_together = False
        self._dropped: list[Checkpoint] = []
        """Nobody needs them, but the disk may not have the lines yet that name newer ones."""
        self._ended: list[str] = []
        """Trials that have ended; the disk may not have that line yet."""
        adopted = adopt(slots.results, ledger.events, ledger.append)
        if epochs := sum(event["event"] == Kind.EPOCH for event in adopted):
            note(f"{epochs} {'epoch was' if epochs == 1 else 'epochs were'} saved but not in the ledger yet: now in the ledger")
        past = ledger.events
        self.usage = usage_of(past)
        self.conductor = Conductor(config, slots.number, self._append, slots.fused)
        ledger.listen(self.conductor.apply, essential=True)
        ledger.listen(self.usage.apply, essential=True)
        self.conductor.restore(past)
        wait_for_space(ledger.sync, once(note))  # before anything is removed that only older lines name
        self._remove_strangers()
        gpus = config.resources.gpus_per_worker * (slots.group.max_workers if slots.group else 1)
        self._watch = MachineWatch(slots, self.conductor, self._append, note, machines)
        self._watch.begin(gpus)

    def next_stints(self) -> list[Stint]:
        """What a free process is to train together; empty when there is nothing to do now."""
        with self._together():
            stints = self.conductor.next_stints()
        if stints:
            self._slots.want(stints[0].trial_id)
        for stint in stints:
            self._slots.is_to_retreat(stint.trial_id)  # what an earlier stint was told too late no longer counts
            # The file of an earlier stint may be old, and may name another process.
            self._slots.heartbeat_file(stint.trial_id).unlink(missing_ok=True)
            self._watched_since[stint.trial_id] = self._clock()
        return stints

    @property
    def over(self) -> bool:
        """Whether there will be nothing more to do."""
        return self.conductor.halted is not None or self.conductor.over

    def on_start(self, trial_ids: Sequence[str]) -> None:
        """A process has begun its stints, of these trials."""
        with self._together():
            for trial_id in trial_ids:
                self._append(Kind.TRIAL_START, trial_id=trial_id, attempt=self.conductor.trials[trial_id].attempt)

    def on_reports(self, bundle: int, reports: Sequence[EpochReport]) -> bool:
        """Takes what a process reports of the trials in it; returns whether it is free. If only some trials are to leave, the
        process is told so.
        """
        with self._together():
            leaving = [report.trial_id for report in reports if self._take_report(report, len(reports))]
        is_free = len(leaving) == len(reports)
        for trial_id in leaving:
            self._watched_since.pop(trial_id, None)
            if not is_free:
                self._slots.let_leave(trial_id, bundle)
        return is_free

    def _take_report(self, report: EpochReport, shared_by: int) -> bool:
        """Takes the report of a trial, one of so many in the process; returns whether the process is to leave it."""
        trial_id = report.trial_id
        self._take_events(trial_id, report.epoch, report.events)
        self._watch.came(trial_id)
        if report.ended:
            self.conductor.after_ending(trial_id, report.ended, report.reason, report.own_fault, shared_by)
            return True
        trial = self.conductor.trials[trial_id]
        wait_for_space(lambda: append_epoch(self._slots.results, trial_id, report.epoch, report.classes), once(self._note))
        # The checkpoint comes first: a decision about the epoch may need it. After a kill between the two events the epoch is
        # repeated.
        if report.checkpoint:
            self._append(Kind.CHECKPOINT, trial_id=trial_id, **report.checkpoint)
            if not self._knows_size:
                self._compare_with_disk(report.checkpoint["path"], len(report.classes["train_count"]))
        write_epoch(self._append, trial, report.epoch, trial.attempt, report.metrics, report.pairing, shared_by)
        self._dropped += self.conductor.drop_checkpoints(trial_id)
        return self.conductor.after_epoch(trial_id)

    def on_error(self, bundle: int, trial_ids: Sequence[str], text: str) -> None:
        """The process of a bundle, of these trials, raised an error or is gone."""
        # A trial that has left the process before comes to no harm.
        lost = [trial_id for trial_id in trial_ids if self.conductor.runs_in(trial_id, bundle)]
        text = next(iter([self._hung.pop(trial_id) for trial_id in lost if trial_id in self._hung]), text)
        with self._together():
            for trial_id in lost:
                self._take_events(trial_id, self.conductor.trials[trial_id].epoch + 1, self._slots.left_behind(trial_id))
            self._watch.lost(lost)
            has_retreated = self._watch.have_retreated(lost)
            for trial_id in lost:
                self._watched_since.pop(trial_id, None)
                if has_retreated:
                    self.conductor.after_retreat(trial_id)
                else:
                    self.conductor.after_failure(trial_id, text, len(lost))

    def poll(self) -> None:
        """Looks after budget, heartbeats and full disks; called several times a second."""
        now = self._clock()
        if 0 <= now - self._polled < POLL_S:
            return
        if now - self._polled > PAUSE_S:
            self._watched_since = dict.fromkeys(self._watched_since, now)
        self._polled = now
        if not self.conductor.halted and (spent := self.usage.exceeds(self._config.budget, now)):
            self._note(f"{spent}: running trials end with their current epoch")
            self.conductor.halt(Status.FINISHED, spent)
        if self.conductor.halted:
            self._slots.halt()
        self._kill_hung(now)
        self._watch.poll(now)

    def close(self) -> None:
        """Asks for no more machines; called when no process is left."""
        self._watch.close(self._clock())

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Lets the events of the block reach the disk together, before anything is removed that only older lines name: a power
        cut must not take both.
        """
        assert not self._is_together
        self._is_together = True
        try:
            with self._ledger.together():
                yield
        finally:
            self._is_together = False
        self._tidy()

    def _append(self, event: Kind, **fields: Any) -> Event:
        """Writes an event; before a trial's end, its arrays by class, whose digest the event holds."""
        if event == Kind.TRIAL_END:
            fields |= self._seal(fields["trial_id"])
        record = self._ledger.append(event, **fields)
        if event == Kind.TRIAL_END and fields["status"] != Status.INTERRUPTED:
            self._ended.append(fields["trial_id"])
            self._dropped += self.conductor.drop_checkpoints(fields["trial_id"])
            if not self._is_together:
                self._tidy()
        return record

    def _seal(self, trial_id: str) -> dict[str, str]:
        epochs = self.conductor.trials[trial_id].values
        return wait_for_space(lambda: seal(self._slots.results, trial_id, epochs), once(self._note))

    def _tidy(self) -> None:
        """Removes what nobody needs any more."""
        dropped, ended = self._dropped, self._ended
        self._dropped, self._ended = [], []
        if dropped:
            wait_for_space(self._ledger.sync, once(self._note))
        for checkpoint in dropped:
            self._remove(checkpoint.path)
        for trial_id in ended:
            self._remove_place(lines_file(self._slots.results, trial_id), False)
            self._remove_strangers(trial_id)

    def _remove_strangers(self, trial_id: str = "*") -> None:
        """Removes the checkpoints that the ledger does not name, of one trial or of all.

        An intact one of a trial that goes on stays, unless it is older than what the ledger names: nobody loses an epoch by it.
        """
        trials = self.conductor.trials
        for saved in saved_in(self._slots.results, trial_id):
            trial = trials.get(saved.trial_id)
            named = [] if trial is None else trial.checkpoints
            if any(checkpoint.path == saved.path for checkpoint in named):
                continue
            newest = max((checkpoint.epoch for checkpoint in named), default=0)
            goes_on = trial is not None and trial.state != State.ENDED and saved.epoch > newest
            if not (goes_on and is_intact(self._slots.results, saved)):
                self._remove(saved.path)

    def _remove(self, path: str) -> None:
        """Removes a checkpoint, and the folder of a trial that has none left and will have none."""
        place = inside(self._slots.results, path)
        trial = self.conductor.trials.get(place.parent.name)
        self._remove_place(place, trial is None or trial.state == State.ENDED)

    def _compare_with_disk(self, path: str, num_classes: int) -> None:
        """Tells early when the disk may be too small for the sweep, now that the size of a state is known."""
        self._knows_size = True
        folder = self._slots.results
        size = sum(file.stat().st_size for file in inside(folder, path).iterdir())
        use, free = disk_use(self._config, self._slots.number, size, num_classes), shutil.disk_usage(folder).free
        if use.total > free:
            self._note(
                f"the sweep may take up to {in_words(use.total)} on the disk of {folder}, where {in_words(free)} are free: "
                f"at most {use.num_states} states of {in_words(size)} (checkpoints.keep is {self._config.checkpoints.keep}); "
                "trials wait when the disk is full"
            )

    def _kill_hung(self, now: float) -> None:
        """Kills processes whose last heartbeat is too old; their trials fail, and are tried again."""
        resources = self._config.resources
        limit = resources.heartbeat_timeout_s + (resources.start_limit_s if self._slots.group else 0)
        for trial_id, since in sorted(self._watched_since.items()):
            heartbeat = self._slots.heartbeat_file(trial_id)
            if not heartbeat.is_file() or now - max(heartbeat.stat().st_mtime, since) < limit:
                continue
            self._hung[trial_id] = f"no heartbeat for {limit:g} s (resources.heartbeat_timeout_s); its process was killed"
            del self._watched_since[trial_id]
            with suppress(ProcessLookupError):  # the process is gone already: Ray will report it
                if process := self._slots.process_of(trial_id):
                    os.kill(process, signal.SIGKILL)

    def _take_events(self, trial_id: str, epoch: int, events: Sequence[Mapping[str, Any]]) -> None:
        """Writes what happened in a process during an epoch."""
        for event in events:
            self._append(**event, trial_id=trial_id, epoch=epoch)
        self._watch.take(trial_id, events)
