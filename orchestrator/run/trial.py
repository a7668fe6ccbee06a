"""One Tune trial: hands an epoch at a time to a trial run, in a process that does one stint after another."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ray import tune

from trainables.checkpoint import DamagedCheckpoint
from trainables.config import TrialConfig
from trainables.engine.health import TrialEnded
from trainables.files import replace_text, wait_for_space
from trainables.trial_run import TrialRun
from trainables.workers.worker_group import GroupConfig, WorkerGroup

CHECKPOINTS = "checkpoints"
HEARTBEAT_INTERVAL_S = 0.5


class Slots(NamedTuple):
    """The processes that serve trials side by side."""

    number: int
    folder: Path
    """Where they tell that they are there."""
    results: Path
    """The results folder of the sweep."""
    checkpoint_interval: int
    """Epochs between two checkpoints of a trial."""
    group: GroupConfig | None = None
    """Their workers, if they have any."""

    def wait_for_all(self, timeout_s: float = 60, sign: Callable[[], None] = lambda: None) -> bool:
        """Reports this process and waits for those that other trials want, at most `timeout_s`; returns whether all are up.
        Meanwhile it gives signs of life.

        Tune gives a waiting trial the first process that comes free and drops the one that was starting for it. Where trials are
        shorter than the start of a process, the second slot would never come up.
        """
        (self.folder / f"{os.getpid()}.up").touch()
        deadline = time.monotonic() + timeout_s
        while not (all_up := self._count("up") >= min(self.number, self._count("wanted"))) and time.monotonic() < deadline:
            time.sleep(0.05)
            sign()
        return all_up

    def want(self, trial_id: str) -> None:
        """Says that a process is wanted for a trial: after a kill there may be fewer that can go on than slots."""
        (self.folder / f"{trial_id}.wanted").touch()

    def _count(self, kind: str) -> int:
        return len(list(self.folder.glob(f"*.{kind}")))

    def halt(self) -> None:
        """Says that trials are to leave their processes with the current epoch, whose state will be needed."""
        (self.folder / "halted").touch()

    def is_halted(self) -> bool:
        """Whether somebody has said so."""
        return (self.folder / "halted").exists()

    def wait(self, trial_id: str, what_for: str | None) -> None:
        """Says what a trial waits for; None takes it back."""
        file = self.folder / f"{trial_id}.waiting"
        if what_for is None:
            file.unlink(missing_ok=True)
        else:
            with suppress(OSError):  # it may be this very disk
                replace_text(file, f"{trial_id}: {what_for}")

    def waiting(self) -> list[str]:
        """What trials wait for."""
        return [file.read_text(encoding="utf-8") for file in self.folder.glob("*.waiting")]

    def heartbeat_file(self, trial_id: str) -> Path:
        """The file whose age tells how long a trial has given no heartbeat, and whose content is its process."""
        return self.folder / f"{trial_id}.heartbeat"


@dataclass(frozen=True)
class EpochReport:
    """What a process tells of an epoch. Not a mapping: Tune would flatten it."""

    epoch: int
    metrics: dict[str, float] = field(default_factory=dict)
    classes: dict[str, list[float | None]] = field(default_factory=dict)
    """Arrays by class, each (num_classes,)."""
    checkpoint: dict[str, Any] | None = None
    """`epoch`, `path` in the results folder and `sha256`."""
    events: tuple[dict[str, Any], ...] = ()
    """What happened on the way, as events for the ledger."""
    ended: str | None = None
    """`diverged` or `failed`, when the trial has ended by itself, without this epoch."""
    reason: str = ""


class Trial(tune.Trainable):
    """Drives a trial run or a group of workers. The configuration is a stint, as a mapping.

    Tune's own checkpoints are not used: they are pickles, and bound to a Tune trial. The state is written into the results folder
    by the process itself, and a stint names the files to go on from with their digests.
    """

    def setup(self, config: dict[str, Any], slots: Slots) -> None:
        """Begins the process's first stint, when all processes are up."""
        self._slots = slots
        self._epoch = 0
        self._ended: TrialEnded | ValueError | None = None
        self._run = self.build_run(slots)
        self._begin(config)
        slots.wait_for_all(slots.group.start_s if slots.group else 60, self._beat)

    def build_run(self, slots: Slots) -> TrialRun | WorkerGroup:
        """What does the work."""
        return WorkerGroup(slots.group, slots.folder) if slots.group else TrialRun()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begins the next stint in this process; data that fit are kept."""
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One epoch, as a EpochReport."""
        self._beat()
        epoch, checkpoint = self._epoch + 1, None
        if self._ended is None:
            try:
                metrics = self._run.run_epoch(self._on_step)
                self._epoch = self._run.epoch
                checkpoint = self._save()
            except (TrialEnded, ValueError) as reason:
                self._ended = reason
        events = self._new_events()
        if self._ended is not None:
            status = getattr(self._ended, "status", "failed")
            return {"report": EpochReport(epoch, events=events, ended=status, reason=str(self._ended))}
        return {"report": EpochReport(self._epoch, metrics, self._run.class_table(), checkpoint, events)}

    def restore(self, *_: Any, **__: Any) -> None:
        """Refuses: Tune would unpickle what it finds."""
        raise RuntimeError("trials go on from the checkpoints that the ledger names")

    def cleanup(self) -> None:
        """Ends the workers."""
        if isinstance(self._run, WorkerGroup):
            self._run.close()

    def _begin(self, stint: dict[str, Any]) -> None:
        self._stint, self._trial = stint, TrialConfig.model_validate(stint["config"])
        self._epoch, self._ended = 0, None
        self._events: list[dict[str, Any]] = []
        self._slots.heartbeat_file(stint["trial_id"]).write_text(str(os.getpid()), encoding="utf-8")
        self._beat()
        try:
            self._go_on_or_start()
        except (TrialEnded, ValueError) as reason:  # the process is as good as before: its next trial may fare better
            self._ended = reason

    def _go_on_or_start(self) -> None:
        """Goes on from the newest intact checkpoint, or from the beginning."""
        for checkpoint in self._stint["checkpoints"]:
            folder = self._slots.results / checkpoint["path"]
            try:
                self._run.load(folder, self._trial, checkpoint["sha256"])
            except DamagedCheckpoint as error:
                self._events.append({"event": "damaged", "path": checkpoint["path"], "reason": str(error)})
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
        # The attempt is in the name: a repeated epoch must not touch what the ledger holds the digest of.
        place = f"{CHECKPOINTS}/{stint['trial_id']}/{epoch:04d}-{stint['attempt']}"
        digest = wait_for_space(lambda: self._run.save(self._slots.results / place), self._wait)
        self._slots.wait(stint["trial_id"], None)
        return {"epoch": epoch, "path": place, "sha256": digest}

    def _wait(self, what_for: str) -> None:
        self._beat()
        self._slots.wait(self._stint["trial_id"], what_for)

    def _on_step(self, step: int) -> None:
        if time.monotonic() - self._beaten > HEARTBEAT_INTERVAL_S:
            self._beat()

    def _beat(self) -> None:
        """Gives a sign of life."""
        self._beaten = time.monotonic()
        self._slots.heartbeat_file(self._stint["trial_id"]).touch()

    def _new_events(self) -> tuple[dict[str, Any], ...]:
        events, self._events = self._events, []
        if isinstance(self._run, WorkerGroup):
            events += [event | {"slot": os.getpid()} for event in self._run.events]
            self._run.events = []
        return tuple(events)
