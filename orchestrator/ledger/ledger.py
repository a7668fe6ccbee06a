"""The append-only record of everything that happened in a sweep, and the only writer of it. All tables are made from the ledger.

Each line is one event (events.py): {"n", "time", "event", ..., "prev"}, where `prev` is the SHA-256 of the line before, so that a
changed or missing line shows; head.py shows lines that are missing at the end. Arrays by class lie in files of their own
(class_arrays.py).
"""

import errno
import fcntl
import hashlib
import json
import math
import os
import time
import warnings
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args, get_type_hints

from orchestrator.ledger.events import SCHEMA, Event, Kind, SweepStartEvent
from orchestrator.ledger.head import HEAD, Head, read_head, write_head
from orchestrator.ledger.paths import fault_of, is_changes, refuse_links
from orchestrator.ledger.stored import StoredEvents
from orchestrator.ledger.whole import whole
from trainables.config_file import ConfigError
from trainables.files import once, wait_for_space

LEDGER, SETTINGS = "ledger.jsonl", "sweep.yaml"
"""Files of a results folder; the second has the settings, complete."""
Listener = Callable[[Event], None]
DURABLE = {
    Kind.SWEEP_START,
    Kind.SWEEP_RESUME,
    Kind.TRIAL_START,
    Kind.RETRY,
    Kind.TRIAL_END,
    Kind.TEST_READ,
    Kind.EXPORT,
    Kind.EXPORT_OTHER,
    Kind.COMPARE,
    Kind.SWEEP_END,
}
"""Kinds of events that are synced to the disk (fsync) before the sweep goes on."""
FIELDS = {get_args(get_type_hints(kind)["event"])[0]: kind for kind in get_args(Event)}
"""The TypedDict of each kind of event."""
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
"""What a file system without locks answers: Lustre without its option flock, some network mounts."""


def may_precede(name: str) -> bool:
    """Whether a file of this name may lie in a results folder whose ledger has no line yet."""
    return name in (SETTINGS, LEDGER, HEAD) or is_changes(name)


class LedgerError(ConfigError):
    """The ledger is not what was written, or another process is writing it."""


class Ledger:
    """Appends events and tells listeners of them; a context manager."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time, note: Callable[[str], None] = warnings.warn) -> None:
        """Opens `folder`/ledger.jsonl, new or to continue; the next event replaces a torn last line. What it holds already is in
        `past`; `note` tells of a lost listener, and of a file system without locks.

        Raises:
            LedgerError: when another process writes the ledger, or it is not what was written.
            UnsafePath: when the folder contains a symbolic link.
        """
        self._folder, self._clock, self._note = folder, clock, note
        self._listeners: list[tuple[Listener, bool]] = []
        refuse_links(folder)
        self._file = (folder / LEDGER).open("ab", buffering=0)
        try:
            self._lock()
            self._starts, self._prev, self._intact = _scan(folder)
        except BaseException:
            self._file.close()
            raise
        self.past = self.events
        self._synced = self._next
        self._is_together = self._owes_sync = False

    @property
    def events(self) -> StoredEvents:
        """All events so far."""
        return StoredEvents(self._folder / LEDGER, self._starts, self._next)

    @property
    def _next(self) -> int:
        """Number of the next event."""
        return len(self._starts)

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
        written = cast(Event, record)
        try:
            wait_for_space(lambda: self._take(written, line), once(self._note))
        finally:
            if self._next > record["n"]:  # also when a signal that had to wait ends the sweep now
                self._tell_others(written)
        return written

    @contextmanager
    def together(self) -> Iterator[None]:
        """Lets the durable events of the block wait for the disk together, at its end; a block inside changes nothing."""
        if self._is_together:
            yield
            return
        self._is_together = True
        try:
            yield
        finally:
            self._is_together = False
            if self._owes_sync:
                wait_for_space(self.sync, once(self._note))

    def sync(self) -> None:
        """Waits until every line is on the disk (fsync). What the ledger names as saved may be removed elsewhere afterwards."""
        if self._synced < self._next:
            os.fsync(self._file.fileno())
            self._note_synced()

    def _note_synced(self) -> None:
        """After the lines are on the disk: a power cut must not leave a head of lines that are gone."""
        self._synced, self._owes_sync = self._next, False
        write_head(self._folder, Head(self._next, self._prev))

    def _lock(self) -> None:
        """Keeps other processes out. The lock goes with the process, however it ends."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LedgerError(f"{self._folder} is in use by another process; nothing was changed") from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise LedgerError(f"{self._folder} cannot be locked ({error.strerror}); nothing was changed") from error
            self._note(
                f"{self._folder} cannot be locked, because its file system has no locks ({error.strerror}): the sweep goes on; "
                "see to it that no second process runs this sweep"
            )

    def _take(self, event: Event, line: bytes) -> None:
        """Writes a line and hands its event to the essential listeners, whole with regard to signals: an event that is written
        but not taken would be decided again, and otherwise.
        """
        durable = event["event"] in DURABLE and not self._is_together
        with whole():
            self._write(line, durable)
            self._owes_sync = self._owes_sync or (event["event"] in DURABLE and self._is_together)
            self._starts.append(self._intact)
            self._prev, self._intact = hashlib.sha256(line).hexdigest(), self._intact + len(line)
            if durable:
                self._note_synced()
            for listener, essential in list(self._listeners):
                if essential:
                    listener(event)

    def _tell_others(self, event: Event) -> None:
        for listener, essential in list(self._listeners):
            if essential:
                continue
            try:
                listener(event)
            except (Exception, SystemExit, GeneratorExit) as error:  # a library's exit does not end the sweep; Ctrl-C does
                self._listeners.remove((listener, essential))
                self._note(f"{type(listener).__name__} failed and is left out from now on: {error!r}")

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


def read_ledger(folder: Path) -> StoredEvents:
    """All events of a results folder, in order, after a check of every line; a torn last line is left out.

    Raises:
        LedgerError: when there is no ledger, a line was changed, lost or reordered, a line names what lies outside the results
            folder, or another version of TailTune wrote it.
    """
    if not (folder / LEDGER).is_file():
        raise LedgerError(f"{folder} holds no sweep: {LEDGER} is missing")
    starts = _scan(folder).starts
    return StoredEvents(folder / LEDGER, starts, len(starts))


def line_digests(folder: Path) -> set[str]:
    """The SHA-256 of each complete line of a ledger, as the next line and exports hold it."""
    with (folder / LEDGER).open("rb") as file:
        return {hashlib.sha256(line).hexdigest() for line in file if line.endswith(b"\n")}


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


class _Scan(NamedTuple):
    """What a ledger's file holds."""

    starts: "array[int]"
    """Where each whole line begins, in bytes."""
    prev: str
    """Digest of the last whole line."""
    intact: int
    """Bytes of all whole lines."""


def _scan(folder: Path) -> _Scan:
    """Checks every line, and finds where each begins."""
    path, head = folder / LEDGER, read_head(folder)  # the head first: a sweep that runs may write both meanwhile
    starts = array("Q")
    prev, intact = "", 0
    if not path.exists():
        return _Scan(starts, prev, intact)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break  # the writer was killed while it wrote this line
            _check_line(line, prev, f"{path}, line {number}", path if number == 1 else None)
            starts.append(intact)
            prev, intact = hashlib.sha256(line).hexdigest(), intact + len(line)
            if head and head.lines == number and head.sha256 != prev:
                raise LedgerError(f"{path}, line {number}: it is not the line that {head.file} names; {head.cure}")
    if head and head.lines > len(starts):
        raise LedgerError(f"{path} holds {len(starts)} whole lines, but it had at least {head.lines} ({head.file}); {head.cure}")
    return _Scan(starts, prev, intact)


def _check_line(line: bytes, prev: str, where: str, first_of: Path | None) -> None:
    """Sees that a line is an event, follows the line before it, and names nothing outside the results folder."""
    try:
        event = json.loads(line)
    except ValueError as error:
        raise LedgerError(f"{where}: not JSON ({error})") from error
    if not isinstance(event, dict) or event.get("prev") != prev:
        raise LedgerError(f"{where}: the line before it was changed or is missing")
    if first_of:
        _check_schema(first_of, event)
    if fault := fault_of(event):
        raise LedgerError(f"{where}: {fault}. Nothing was changed; the ledger was not written by a sweep")


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
    fault = fault_of({"event": event, **fields})
    assert not fault, f"an event {event} that no ledger may hold: {fault}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
