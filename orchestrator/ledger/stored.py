"""The events of a ledger's file, read again whenever they are wanted: the memory does not hold all events of a large sweep."""

import json
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import cast, overload

from orchestrator.ledger.events import Event

BLOCK = 1000
"""Events that are in memory at a time when they are read backwards."""


class StoredEvents(Sequence[Event]):
    """The first events of a ledger, in order. The file may grow meanwhile; these lines of it never change.

    Args:
        path: of the ledger.
        starts: where each line begins, in bytes; may grow.
        count: how many lines.
    """

    def __init__(self, path: Path, starts: "array[int]", count: int) -> None:
        self._path, self._starts, self._count = path, starts, count

    def __len__(self) -> int:
        """The number of events."""
        return self._count

    def __iter__(self) -> Iterator[Event]:
        """Reads the file once, from its beginning."""
        return self._read(0, self._count)

    def __reversed__(self) -> Iterator[Event]:
        """From the last event on."""
        for stop in range(self._count, 0, -BLOCK):
            yield from reversed(list(self._read(max(0, stop - BLOCK), stop)))

    @overload
    def __getitem__(self, index: int) -> Event: ...
    @overload
    def __getitem__(self, index: slice) -> list[Event]: ...
    def __getitem__(self, index: int | slice) -> Event | list[Event]:
        """One event, or some in memory."""
        chosen = range(self._count)[index]
        if isinstance(chosen, int):
            return next(self._read(chosen, chosen + 1))
        return [self[place] for place in chosen] if chosen.step != 1 else list(self._read(chosen.start, chosen.stop))

    def up_to(self, count: int) -> "StoredEvents":
        """The first `count` of these events."""
        return StoredEvents(self._path, self._starts, min(count, self._count))

    def _read(self, start: int, stop: int) -> Iterator[Event]:
        if start >= stop:
            return
        with self._path.open("rb") as file:
            file.seek(self._starts[start])
            for line in islice(file, stop - start):
                yield cast(Event, json.loads(line))
