"""Copies the files of a store's folder into a cache on this machine, once for all processes that ask.

The cache has a folder for each address and listing (names, sizes and times of change), so that changed files are copied anew. A
copier holds the folder's lock, and the others wait. Files and their manifest appear whole or not at all, the manifest last; so
nothing is lost or mixed up where copiers are killed, or where the file system has no locks and several copy at a time.
"""

import functools
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from trainables.alive import alive
from trainables.data.cache import CACHE, cache_folder, locked, partial_name, remove_partials
from trainables.files import file_sha256, sync
from trainables.settings import without_password
from trainables.stores import PATIENCE_S, open_store, patiently

MANIFEST = "manifest.json"
CHUNK_BYTES, NUM_FILES = 2**23, 4
"""Bytes of a request, and files that are copied at a time. Copying needs some times their product of memory."""
SIGN_S = 1.0
"""Seconds between two signs of life while files are copied."""
ROUNDS = 3
"""How often copying begins again because files change meanwhile."""


class StoredFile(NamedTuple):
    """A file in a store, as its listing shows it."""

    path: str
    size: int
    mtime_ns: int | None

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.path).name


class _Changed(Exception):
    """A file is not as the listing says."""


class _Stopped(Exception):
    """Another file could not be copied."""


def staged_files(address: str, ending: str, patience_s: float = PATIENCE_S) -> dict[str, Path]:
    """The files of a store's folder whose names have this ending: the local copy of each, by its address, in the order of names.

    Args:
        address: the setting `data.root`, as s3://bucket/folder.
        ending: as `.parquet`.
        patience_s: seconds for which the store may fail.

    Raises:
        ValueError: when the folder cannot be read, its files change all the time, or the cache's disk is full; the message
            begins with the setting.
    """
    for _ in range(ROUNDS):
        files, system = _listing(address, ending, patience_s)
        place = cache_folder() / folder_name(address, files)
        try:
            if files and not _is_whole(place, files):
                _stage(address, ending, system, files, place, patience_s)
        except _Changed:
            continue
        return {f"{address.partition('://')[0]}://{file.path}": place / file.name for file in files}
    raise ValueError(f"data.root is {without_password(address)!r}, whose files change while they are copied")


def folder_name(address: str, files: list[StoredFile]) -> str:
    """The name of the folder for these files of an address: a readable part and a digest."""
    plain = without_password(address)
    digest = hashlib.sha256(json.dumps([plain, *files]).encode()).hexdigest()
    readable = re.sub(r"[^A-Za-z0-9]+", "-", plain.partition("?")[0].partition("://")[2]).strip("-")
    return f"{readable[-60:]}-{digest[:16]}"


def _listing(address: str, ending: str, patience_s: float) -> tuple[list[StoredFile], Any]:
    """The files of the folder that have the ending, sorted, and the store.

    Raises:
        ValueError: when the folder cannot be read.
    """
    import pyarrow as pa
    from pyarrow import fs

    try:
        system, folder = open_store(address, patience_s)
        found = patiently(lambda: system.get_file_info(fs.FileSelector(folder)), patience_s=patience_s)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _unreadable(address, error) from error
    named = sorted((info for info in found if info.path.endswith(ending)), key=lambda info: info.path)
    if folders := [info.path for info in named if info.type == fs.FileType.Directory]:
        raise ValueError(f"data.root is {without_password(address)!r}, where {folders[0]} is a folder; allowed: files")
    return [StoredFile(info.path, info.size, info.mtime_ns) for info in named], system


def _unreadable(address: str, error: Exception) -> ValueError:
    return ValueError(f"data.root is {without_password(address)!r}, which cannot be read: {without_password(str(error))}")


def _is_whole(place: Path, files: list[StoredFile]) -> bool:
    """Whether all files have been copied and still have their sizes."""
    return _digests(place).keys() == {file.name for file in files} and not _missing(place, files)


def _missing(place: Path, files: list[StoredFile]) -> list[StoredFile]:
    """The files that are not there, or not with their size."""

    def size(file: StoredFile) -> int:
        try:
            return (place / file.name).stat().st_size
        except FileNotFoundError:
            return -1

    return [file for file in files if size(file) != file.size]


def _digests(place: Path) -> dict[str, str]:
    """The SHA-256 of each file by name, from the manifest; empty if there is no whole manifest."""
    try:
        manifest = json.loads((place / MANIFEST).read_bytes())
        return {name: str(file["sha256"]) for name, file in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _stage(address: str, ending: str, system: Any, files: list[StoredFile], place: Path, patience_s: float) -> None:
    """Copies the files that are missing, unless another process has done so meanwhile.

    Raises:
        ValueError: when a file cannot be read or written, or there is no room.
        _Changed: when the files are not as they were listed.
    """
    needed = sum(file.size for file in files)
    try:
        with locked(place) as alone:
            if _is_whole(place, files):
                return
            remove_partials(place, alone)
            missing = _missing(place, files)
            needed, free = sum(file.size for file in missing), shutil.disk_usage(place).free
            if needed > free:
                raise _no_room(address, place, needed, f"{free} bytes are free")
            copied = _copy_all(address, system, missing, place, patience_s)
            # A killed copier may have left whole files without a manifest.
            known = _digests(place) | copied
            digests = {file.name: known.get(file.name) or file_sha256(place / file.name) for file in files}
            # A file that has changed between the listing and its copying would be mixed with others from before.
            if _listing(address, ending, patience_s)[0] != files:
                raise _Changed
            _write_manifest(address, place, files, digests)
    except OSError as error:  # of the local disk: errors of the store are ValueErrors by now
        raise _no_room(address, place, needed, error.strerror or str(error)) from error


def _no_room(address: str, place: Path, needed: int, why: str) -> ValueError:
    return ValueError(
        f"data.root is {without_password(address)!r}, whose files cannot be copied to {place}, for which {needed} bytes are "
        f"needed: {why}; allowed: a folder with room for them, which the environment variable {CACHE} names"
    )


def _copy_all(address: str, system: Any, files: list[StoredFile], place: Path, patience_s: float) -> dict[str, str]:
    """Copies files, several at a time. Returns the SHA-256 of each by name. The first error ends all."""
    stop = threading.Event()
    with ThreadPoolExecutor(NUM_FILES, "staging") as pool:
        copies = {pool.submit(_copy, address, system, file, place, patience_s, stop): file.name for file in files}
        try:
            running = set(copies)
            while running:
                done, running = wait(running, timeout=SIGN_S, return_when=FIRST_EXCEPTION)
                alive()  # a transfer that stops ends with an error
                for copy in done:
                    copy.result()
            return {name: copy.result() for copy, name in copies.items()}
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _copy(address: str, system: Any, file: StoredFile, place: Path, patience_s: float, stop: threading.Event) -> str:
    """Copies one file. Returns its SHA-256."""
    digest, partial = hashlib.sha256(), partial_name(place)
    try:
        with open(partial, "wb") as copy:
            for chunk in _chunks(address, system, file, patience_s, stop):
                copy.write(chunk)
                digest.update(chunk)
        sync(partial)
        os.replace(partial, place / file.name)
        sync(place)
    finally:
        partial.unlink(missing_ok=True)
    return digest.hexdigest()


def _chunks(address: str, system: Any, file: StoredFile, patience_s: float, stop: threading.Event) -> Iterator[bytes]:
    """The content of a file, piece by piece. A piece whose transfer breaks is fetched again, from a file that is opened anew.

    Raises:
        ValueError: when the store refuses, or fails for too long.
        _Changed: when the file is gone or has another size.
        _Stopped: when `stop` is set.
    """
    import pyarrow as pa

    opened: list[Any] = []

    def fetch(start: int, size: int) -> bytes:
        if stop.is_set():
            raise _Stopped
        source = opened.pop() if opened else system.open_input_file(file.path)
        if source.size() != file.size:
            raise _Changed
        chunk: bytes = source.read_at(size, start)
        if len(chunk) != size:
            raise OSError(f"{file.path}: {len(chunk)} instead of {size} bytes came at {start}")
        opened.append(source)
        return chunk

    for start in range(0, file.size, CHUNK_BYTES):
        size = min(CHUNK_BYTES, file.size - start)
        try:
            yield patiently(functools.partial(fetch, start, size), patience_s=patience_s, sleep=stop.wait)
        except FileNotFoundError as error:
            raise _Changed from error
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(address, error) from error


def _write_manifest(address: str, place: Path, files: list[StoredFile], digests: dict[str, str]) -> None:
    """Writes the manifest, by which the copy counts as whole."""
    content = {file.name: {"size": file.size, "sha256": digests[file.name]} for file in files}
    partial = partial_name(place)
    try:
        partial.write_text(json.dumps({"address": without_password(address), "files": content}, indent=1), encoding="utf-8")
        sync(partial)
        os.replace(partial, place / MANIFEST)
        sync(place)
    finally:
        partial.unlink(missing_ok=True)
