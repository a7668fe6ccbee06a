"""The append-only record of everything that happened in a sweep, and the only writer of it. All tables are made from the ledger.

Each line is one event (events.py): {"n", "time", "event", ..., "prev"}, where `prev` is the SHA-256 of the line before, so that a
changed or missing line shows. Arrays by class lie in files of their own (class_arrays.py).
"""

import fcntl
import hashlib
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast, get_args, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.ledger.events import SCHEMA, Event, Kind, SweepStartEvent
from trainables.config_file import ConfigError
from trainables.files import once, sync, wait_for_space

LEDGER = "ledger.jsonl"
Listener = Callable[[Event], None]
DURABLE = {
    Kind.SWEEP_START,
    Kind.SWEEP_RESUME,
    Kind.TRIAL_START,
    Kind.RETRY,
    Kind.TRIAL_END,
    Kind.TEST_READ,
    Kind.SWEEP_END,
}
"""Kinds of events that are synced to the disk (fsync) before the sweep goes on."""
FIELDS = {get_args(get_type_hints(kind)["event"])[0]: kind for kind in get_args(Event)}
"""The TypedDict of each kind of event."""


class LedgerError(ConfigError):
    """The ledger is not what was written, or another process is writing it."""


class Ledger:
    """Appends events and tells listeners of them; a context manager."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time, note: Callable[[str], None] = warnings.warn) -> None:
        """Opens `folder`/ledger.jsonl, new or to continue; the next event replaces a torn last line. What it holds already is in
        `past`; `note` tells of a lost listener.
        """
        self._folder, self._clock, self._note = folder, clock, note
        self._listeners: list[tuple[Listener, bool]] = []
        self._file = (folder / LEDGER).open("ab", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes with the process, however it ends
        except OSError as error:
            self._file.close()
            raise LedgerError(f"{folder} is in use by another process; nothing was changed") from error
        try:
            self.past, self._prev, self._intact = _scan(folder / LEDGER)
        except LedgerError:
            self._file.close()
            raise
        self._next = len(self.past)

    def listen(self, listener: Listener, essential: bool = False) -> None:
        """Calls `listener` with every event from now on, essential listeners first.

        Args:
            listener: takes an event.
            essential: whether the sweep's state depends on it. Its errors are raised by `append`. Any other listener that fails,
                a display for instance, is removed with a note, and the sweep goes on.
        """
        self._listeners.append((listener, essential))
        self._listeners.sort(key=lambda entry: not entry[1])

    def append(self, event: Kind, **fields: Any) -> Event:
        """Writes one event. Numbers that are not finite become null, which every JSON reader takes.

        Args:
            event: its kind.
            fields: as the kind's TypedDict in events.py says.
        """
        _check_fields(event, fields)
        version = {} if self._next else {"schema": SCHEMA}
        record = {
            **version,
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
        written = cast(Event, record)
        for listener, essential in list(self._listeners):
            try:
                listener(written)
            except Exception as error:
                if essential:
                    raise
                self._listeners.remove((listener, essential))
                self._note(f"{type(listener).__name__} failed and is left out from now on: {error!r}")
        return written

    def _write(self, line: bytes, durable: bool) -> None:
        """Writes a line after the last complete one; what an error or a signal left of a line is removed first."""
        self._file.truncate(self._intact)
        rest = line
        while rest:  # a disk that is nearly full accepts only a part of a line
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
        """Nothing: Ray Tune pickles the searcher and the callbacks that hold a ledger, but we never restore a sweep from them."""
        return {}

    @property
    def head(self) -> str:
        """SHA-256 of the last line. Through the hash chain it fixes the whole record."""
        return self._prev


def read_ledger(folder: Path) -> list[Event]:
    """All events of a results folder, in order; a torn last line is left out.

    Raises:
        LedgerError: when there is no ledger, a line was changed, lost or reordered, or another version of TailTune wrote it.
    """
    if not (folder / LEDGER).is_file():
        raise LedgerError(f"{folder} holds no sweep: {LEDGER} is missing")
    return _scan(folder / LEDGER)[0]


def start_of(events: Sequence[Event]) -> SweepStartEvent:
    """The first event of a ledger that has begun.

    Raises:
        LedgerError: when it is anything else.
    """
    if events and events[0]["event"] == Kind.SWEEP_START:
        return events[0]
    raise LedgerError("the ledger does not begin with the start of a sweep")


def last(events: Sequence[Event], *kinds: Kind) -> Any:
    """The last event of some kinds, as a mapping; an empty one when there is none."""
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
            break  # the writer was killed while it wrote this line
        try:
            event = json.loads(line)
        except ValueError as error:
            raise LedgerError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(event, dict) or event.get("prev") != prev:
            raise LedgerError(f"{path}, line {number}: the line before it was changed or is missing")
        if not events:
            _check_schema(path, event)
        events.append(cast(Event, event))
        prev = hashlib.sha256(line).hexdigest()
        intact += len(line)
    return events, prev, intact


def _check_schema(path: Path, first: dict[str, Any]) -> None:
    """Refuses a ledger whose events are those of another version of TailTune."""
    if (schema := first.get("schema", 1)) != SCHEMA:
        raise LedgerError(
            f"{path}: the events have schema {schema}; allowed: {SCHEMA}, which this version of TailTune writes. Nothing was "
            "changed. Use the version that wrote them (`versions` in the first line), or begin a new sweep with another --name"
        )


def _check_fields(event: Kind, fields: dict[str, Any]) -> None:
    """Sees that an event has no fields but those of its kind: a slip would otherwise show when the ledger is read again."""
    kind: Any = FIELDS[event]
    unknown = fields.keys() - kind.__required_keys__ - kind.__optional_keys__
    assert not unknown, f"an event {event} has no {sorted(unknown)}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
