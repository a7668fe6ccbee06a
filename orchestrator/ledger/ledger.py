"""The append-only record of everything that happened in a sweep, and the only writer of it. All tables are made from here.

Each line is one event: {"n", "time", "event", ..., "prev"}, where `prev` is the SHA-256 of the line before, so that a changed or
missing line shows. Arrays by class go elsewhere (parts.py).
"""

import fcntl
import hashlib
import json
import math
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainables.config_file import ConfigError
from trainables.files import once, sync, wait_for_space

Event = dict[str, Any]
LEDGER = "ledger.jsonl"
DURABLE = {"sweep_start", "sweep_resume", "trial_start", "retry", "trial_end", "test_read", "sweep_end"}
"""Events that reach the disk before the sweep goes on."""


class LedgerError(ConfigError):
    """The ledger is not what was written, or another process is writing it."""


class Ledger:
    """Appends events and tells listeners of them; a context manager. A listener that fails is left out; the sweep goes on."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time, note: Callable[[str], None] = warnings.warn) -> None:
        """Opens `folder`/ledger.jsonl, new or to continue; the next event replaces a torn last line. What it holds already is in
        `past`; `note` tells of a lost listener.
        """
        self._folder, self._clock, self._note = folder, clock, note
        self._listeners: list[Callable[[Event], None]] = []
        self._file = (folder / LEDGER).open("ab", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes with the process, however it ends
        except OSError as error:
            self._file.close()
            raise LedgerError(f"{folder} is in use by another process; nothing was changed") from error
        self.past, self._prev, self._intact = _scan(folder / LEDGER)
        self._next = len(self.past)

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Calls `listener` with every event from now on."""
        self._listeners.append(listener)

    def append(self, event: str, **fields: Any) -> Event:
        """Writes one event. Numbers that are not finite become null, which every JSON reader takes."""
        record = {
            "n": self._next,
            "time": round(self._clock(), 6),
            "event": event,
            **_finite(fields),
            "prev": self._prev,
        }
        line = json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        wait_for_space(lambda: self._write(line, event in DURABLE), once(self._note))
        # At once, so that a signal that comes in between finds either the line before or this one to be the last.
        self._prev, self._next, self._intact = hashlib.sha256(line).hexdigest(), self._next + 1, self._intact + len(line)
        for listener in list(self._listeners):
            try:
                listener(record)
            except Exception as error:
                self._listeners.remove(listener)
                self._note(f"{type(listener).__name__} failed and is left out from now on: {error!r}")
        return record

    def _write(self, line: bytes, durable: bool) -> None:
        """Writes a line after the last one that counts; of one that was broken off by an error or a signal nothing stays."""
        self._file.truncate(self._intact)
        rest = line
        while rest:  # a disk that fills up takes a part first
            rest = rest[os.write(self._file.fileno(), rest) :]
        if durable:
            os.fsync(self._file.fileno())

    def __enter__(self) -> "Ledger":
        """The ledger, closed at the end of the block."""
        return self

    def __exit__(self, *error: object) -> None:
        """Flushes to disk and closes the file."""
        os.fsync(self._file.fileno())
        self._file.close()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles the searcher and the callbacks that hold a ledger, but a sweep is never restored from there."""
        return {}

    @property
    def head(self) -> str:
        """SHA-256 of the last line: it fixes the whole record."""
        return self._prev


def read_ledger(folder: Path) -> list[Event]:
    """All events of a results folder, in order; a torn last line is left out.

    Raises:
        LedgerError: when there is no ledger, or a line was changed, lost or reordered.
    """
    if not (folder / LEDGER).is_file():
        raise LedgerError(f"{folder} holds no sweep: {LEDGER} is missing")
    return _scan(folder / LEDGER)[0]


def last(events: list[Event], *kinds: str) -> Event:
    """The last event of some kinds; an empty one when there is none."""
    return next((event for event in reversed(events) if event["event"] in kinds), {})


def write_table(table: pa.Table, path: Path) -> None:
    """Writes a parquet file that appears whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    pq.write_table(table, partial)
    sync(partial)
    os.replace(partial, path)


def _scan(path: Path) -> tuple[list[Event], str, int]:
    """Events, digest of the last line, and the number of bytes that hold whole lines."""
    events: list[Event] = []
    prev, intact = "", 0
    if not path.exists():
        return events, prev, intact
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break  # the writer was killed in the middle of this line
        try:
            event = json.loads(line)
        except ValueError as error:
            raise LedgerError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(event, dict) or event.get("prev") != prev:
            raise LedgerError(f"{path}, line {number}: the line before it was changed or is missing")
        events.append(event)
        prev = hashlib.sha256(line).hexdigest()
        intact += len(line)
    return events, prev, intact


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
