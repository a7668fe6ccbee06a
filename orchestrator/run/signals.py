"""Signals between the sweep's process and the processes of its slots: files in a shared folder.

Heartbeats are file modification times: a hung process cannot answer.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from trainables.files import replace_text
from trainables.workers.worker_group import GroupConfig

SPACE = "space: "
"""How the text begins of what a trial waits for if that is space on a disk; otherwise a trial waits for machines."""


UP, AT_WORK, HOLDS = "up", "at_work", "holds"
"""Signs of a process: it is there; Ray Tune has given it work, and will drop it no more; its machines are there."""


class Slots(NamedTuple):
    """The processes that serve trials side by side, and their signals."""

    number: int
    """The most that there may be at a time."""
    folder: Path
    """Holds the signals."""
    results: Path
    """The results folder of the sweep."""
    checkpoint_interval: int
    """Epochs between two checkpoints of a trial."""
    group: GroupConfig | None = None
    """The workers of each slot; None where a slot trains in its own process."""
    fused: int = 1
    """The most trials that a process trains together."""

    def wait_for_all(self, sign: str = UP, timeout_s: float = 60, beat: Callable[[], None] = lambda: None) -> bool:
        """Gives a sign of this process and waits for those of the processes that other trials want, at most `timeout_s`.

        Ray Tune gives a waiting trial the first process that comes free and drops the one that was starting for it. Where a trial
        ends more often than a process takes to start, a further slot would never come up.

        Args:
            sign: UP, or AT_WORK.
            timeout_s: seconds.
            beat: called while waiting, to give a heartbeat.

        Returns: whether all have given it.
        """
        self.give(sign)
        deadline = time.monotonic() + timeout_s
        while not (all_there := self._count(sign) >= self._wanted()) and time.monotonic() < deadline:
            time.sleep(0.05)
            beat()
        return all_there

    def give(self, sign: str) -> None:
        """Gives a sign of this process."""
        (self.folder / f"{os.getpid()}.{sign}").touch()

    def take_back(self, sign: str, process: int | None = None) -> None:
        """Takes a sign back, of this process or of another one."""
        (self.folder / f"{os.getpid() if process is None else process}.{sign}").unlink(missing_ok=True)

    def with_sign(self, sign: str) -> set[int]:
        """The processes that give a sign."""
        return {int(file.stem) for file in self.folder.glob(f"*.{sign}")}

    def set_wanted(self, number: int) -> None:
        """Says how many processes are wanted now; without a word, all are."""
        with suppress(OSError):  # the disk may be full
            replace_text(self.folder / "number", str(number))

    def _wanted(self) -> int:
        file = self.folder / "number"
        number = int(file.read_text(encoding="utf-8")) if file.exists() else self.number
        return min(number, self._count("wanted"))

    def want(self, trial_id: str) -> None:
        """Says that a process is wanted for a trial: after a kill, fewer trials than slots may be able to go on."""
        (self.folder / f"{trial_id}.wanted").touch()

    def _count(self, kind: str) -> int:
        return len(list(self.folder.glob(f"*.{kind}")))

    def halt(self) -> None:
        """Tells all trials to leave their processes after the current epoch and to save its state."""
        (self.folder / "halted").touch()

    def is_halted(self) -> bool:
        """Whether `halt` was called."""
        return (self.folder / "halted").exists()

    def wait(self, trial_id: str, what_for: str | None) -> None:
        """Says what a trial waits for; None says that it waits no longer."""
        file = self.folder / f"{trial_id}.waiting"
        if what_for is None:
            file.unlink(missing_ok=True)
        else:
            with suppress(OSError):  # this may be the disk that is full
                replace_text(file, what_for)

    def waiting(self) -> dict[str, str]:
        """What trials wait for, by trial."""
        found = {}
        for file in self.folder.glob("*.waiting"):
            with suppress(FileNotFoundError):  # it has just got what it waited for
                found[file.stem] = file.read_text(encoding="utf-8")
        return dict(sorted(found.items()))

    def retreat(self, trial_id: str) -> None:
        """Tells a trial whose machines have not come to leave its process: another process is free."""
        (self.folder / f"{trial_id}.retreat").touch()

    def is_to_retreat(self, trial_id: str) -> bool:
        """Whether `retreat` was called; each call counts once."""
        return self._once(f"{trial_id}.retreat")

    def let_leave(self, trial_id: str, bundle: int) -> None:
        """Tells a trial to leave its process, in which other trials of the bundle go on."""
        (self.folder / f"{trial_id}-{bundle}.leave").touch()

    def is_to_leave(self, trial_id: str, bundle: int) -> bool:
        """Whether `let_leave` was called; each call counts once."""
        return self._once(f"{trial_id}-{bundle}.leave")

    def release(self, process: int) -> None:
        """Tells a process that has no trial to give its machines back."""
        (self.folder / f"{process}.release").touch()

    def is_to_release(self) -> bool:
        """Whether `release` was called for this process; each call counts once."""
        return self._once(f"{os.getpid()}.release")

    def say_released(self) -> None:
        """Says that this process has given its machines back."""
        self.take_back(HOLDS)
        (self.folder / f"{os.getpid()}.released").touch()

    def is_released(self, process: int) -> bool:
        """Whether a process has given its machines back; each time counts once."""
        return self._once(f"{process}.released")

    def _once(self, name: str) -> bool:
        try:
            (self.folder / name).unlink()
        except FileNotFoundError:
            return False
        return True

    def heartbeat_file(self, trial_id: str) -> Path:
        """The file whose modification time is a trial's last heartbeat; it contains the id of the trial's process."""
        return self.folder / f"{trial_id}.heartbeat"

    def process_of(self, trial_id: str) -> int:
        """The number of the process that a trial is in, or was in last; 0 when it is not known."""
        try:
            return int(self.heartbeat_file(trial_id).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return 0

    def leave_behind(self, trial_id: str, events: Sequence[Mapping[str, Any]]) -> None:
        """Keeps what happened in a process that a trial leaves without a report."""
        replace_text(self.folder / f"{trial_id}.left", json.dumps(list(events)))

    def left_behind(self, trial_id: str) -> list[dict[str, Any]]:
        """What a process has left behind, once."""
        file = self.folder / f"{trial_id}.left"
        if not file.exists():
            return []
        found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
        file.unlink()
        return found
