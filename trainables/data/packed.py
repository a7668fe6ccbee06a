"""Packs: a record of bytes for each image, in files of this machine's cache that all its processes share.

A pack is a folder with parts. A part has the records of some images, one after another, and then where each record begins. One
process makes the pack, holding the folder's lock, and the others wait. Parts appear whole or not at all, so that the next maker
goes on where one was killed. Parts are mapped into memory: the system keeps each page once for all processes, and may drop it.
"""

import hashlib
import mmap
import os
import secrets
import shutil
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from trainables.alive import alive
from trainables.data.cache import LOCK, cache_folder, is_file_of, locked, partial_name, remove_partials
from trainables.data.source import Ids
from trainables.files import sync

Kind = Literal["rows", "shrunk"]
"""`rows`: encoded rows of parquet files, which are quick to copy again. `shrunk`: shrunk images, which take long to make."""
PART_IMAGES = 10_000
CHECKED_IMAGES = 100
"""How many records are written between two looks at the room on the disk."""
USED, ENDING = "used", ".part"
Records = Callable[[Ids], Iterable[tuple[int, bytes]]]
"""From ids, ascending, to the id and the record of each, in this order."""


class NoRoom(OSError):
    """A pack cannot be written; says where, why, and how many bytes it takes if that is known."""


def packed(kind: Kind, stamp: bytes, ids: Ids, records: Records) -> "Pack":
    """The pack of these images, which is made if it is not there.

    Args:
        kind: of the records.
        stamp: bytes that differ when the records may differ.
        ids: of the images.
        records: gives the records that are missing.

    Raises:
        NoRoom: when the pack cannot be written.
        ValueError: from `records`.
    """
    ids = np.unique(ids)
    digest = hashlib.sha256(stamp + ids.astype("<i8").tobytes()).hexdigest()
    place = cache_folder() / f"{kind}-{digest[:32]}"
    try:
        with locked(place) as alone:
            missing = [number for number, some in enumerate(_parts(ids)) if not _is_whole(_part(place, number), len(some))]
            if missing:
                remove_partials(place, alone)
                if kind == "rows":
                    _remove_unused(place, kind, lambda: False)  # each seed has rows of its own, and copying them is quick
                _make(place, ids, missing, records)
            return Pack(place, ids)
    except NoRoom:
        raise
    except OSError as error:
        raise NoRoom(f"{place}: {error.strerror or error}") from error


class Pack:
    """The records of images, by id. While a process has it, or has a child that had it, nobody removes it.

    Args:
        place: the folder.
        ids: of all images, ascending.
    """

    def __init__(self, place: Path, ids: Ids) -> None:
        self._place, self._ids = place, ids
        weakref.finalize(self, os.close, _in_use(place))
        self._files = [_Part(_part(place, number)) for number in range(len(_parts(ids)))]

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy in another process maps the files anew."""
        return Pack, (self._place, self._ids)

    def has(self, ids: Ids) -> NDArray[np.bool_]:
        """Which of `ids` (N,) are in the pack, (N,)."""
        return np.isin(ids, self._ids)

    def __contains__(self, image: int) -> bool:
        """Whether the image is in the pack."""
        position = self._position(image)
        return position < len(self._ids) and int(self._ids[position]) == image

    def read(self, image: int) -> bytes:
        """The record of an image that is in the pack.

        Raises:
            OSError: when the record is not as it was written.
        """
        part, row = divmod(self._position(image), PART_IMAGES)
        return self._files[part].read(row)

    def _position(self, image: int) -> int:
        return int(np.searchsorted(self._ids, image))


class _Part:
    """The file of a part: records, where each begins and the last ends (int64), a CRC-32 of each (uint32), and their number."""

    def __init__(self, file: Path) -> None:
        self._path = file
        with open(file, "rb") as opened:
            self._bytes = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        number = int(np.frombuffer(self._bytes, "<i8", 1, len(self._bytes) - 8)[0])
        first = len(self._bytes) - _index_bytes(number)
        self._begins = np.frombuffer(self._bytes, "<i8", number + 1, first)
        self._sums = np.frombuffer(self._bytes, "<u4", number, first + 8 * (number + 1))

    def read(self, row: int) -> bytes:
        record = self._bytes[self._begins[row] : self._begins[row + 1]]
        if zlib.crc32(record) != self._sums[row]:
            raise OSError(f"the copy in {self._path} is damaged; remove this file, and it is made again")
        return record


def _index_bytes(number: int) -> int:
    return 8 * (number + 1) + 4 * number + 8


def _is_whole(file: Path, number: int) -> bool:
    """Whether a part has so many records, and all of their bytes."""
    try:
        with open(file, "rb") as opened:
            size = opened.seek(-_index_bytes(number), os.SEEK_END)
            begins = np.frombuffer(opened.read(8 * (number + 1)), "<i8")
            opened.seek(-8, os.SEEK_END)
            return opened.read() == np.int64(number).astype("<i8").tobytes() and int(begins[-1]) == size
    except (OSError, ValueError, IndexError):
        return False


def _parts(ids: Ids) -> list[Ids]:
    return [ids[first : first + PART_IMAGES] for first in range(0, len(ids), PART_IMAGES)]


def _part(place: Path, number: int) -> Path:
    return place / f"{number:05}{ENDING}"


def _make(place: Path, ids: Ids, missing: list[int], records: Records) -> None:
    """Writes the missing parts in one pass over their images.

    Raises:
        NoRoom: when the disk has no room.
    """
    parts = {number: _parts(ids)[number] for number in missing}
    wanted = np.concatenate(list(parts.values()))
    found = _while_there_is_room(place, records(wanted), len(wanted))
    for number, of_part in parts.items():
        partial = partial_name(place)
        try:
            with open(partial, "wb") as file:
                begins, sums = [0], []
                for expected in of_part.tolist():
                    image, record = next(found)
                    assert image == expected
                    file.write(record)
                    begins.append(begins[-1] + len(record))
                    sums.append(zlib.crc32(record))
                for index in (np.array(begins, "<i8"), np.array(sums, "<u4"), np.array([len(sums)], "<i8")):
                    file.write(index.tobytes())
            sync(partial)
            os.replace(partial, _part(place, number))
            sync(place)
        finally:
            partial.unlink(missing_ok=True)


def _while_there_is_room(place: Path, records: Iterable[tuple[int, bytes]], number: int) -> Iterator[tuple[int, bytes]]:
    """The records. Now and then it looks whether the disk has room for as many as follow, if these are as large as those before.

    Raises:
        NoRoom: when the disk has no room, although packs that no process uses were removed.
    """
    written = 0
    for done, (image, record) in enumerate(records, 1):
        alive()
        yield image, record
        written += len(record)
        if done % CHECKED_IMAGES == 0:
            needed = written * (number - done) // done

            def fits(needed: int = needed) -> bool:
                return shutil.disk_usage(place).free >= needed

            if not fits():
                _remove_unused(place, "", fits)
            if not fits():
                free = shutil.disk_usage(place).free
                raise NoRoom(f"{place}: about {needed} bytes are still needed, and {free} bytes are free")


def _remove_unused(kept: Path, prefix: str, is_enough: Callable[[], bool]) -> None:
    """Removes packs that no process has, except `kept`, those first whose last use is longest ago, until it is enough."""
    kinds = (prefix,) if prefix else get_args(Kind)
    found = [place for kind in kinds for place in cache_folder().glob(f"{kind}-*") if place != kept]
    for place in sorted(found, key=_last_use):
        if is_enough():
            return
        _remove(place)


def _last_use(place: Path) -> float:
    try:
        return (place / USED).stat().st_mtime
    except OSError:
        return 0.0


def _remove(place: Path) -> None:
    """Removes a pack unless a process makes or has it."""
    import fcntl  # not every system has it

    try:
        with open(place / LOCK, "a") as lock, open(place / USED, "a") as used:
            for file in (lock, used):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_file_of(place / LOCK, lock):
                # Under its own name, another process might make it anew while it is being removed.
                gone = place.with_name(f"{place.name}.{secrets.token_hex(4)}")
                os.rename(place, gone)
                shutil.rmtree(gone, ignore_errors=True)
    except OSError:  # somebody has it, or it is gone
        return


def _in_use(place: Path) -> int:
    """The descriptor of a file that is locked as long as this process, or one that it has started, has the file open."""
    import fcntl  # not every system has it

    used = os.open(place / USED, os.O_RDWR | os.O_CREAT, 0o666)
    os.utime(place / USED)
    with suppress(OSError):  # a file system without locks: then nobody removes the pack either
        fcntl.flock(used, fcntl.LOCK_SH)
    return used
