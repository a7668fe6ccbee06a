"""The folder of one sweep in a store: files by their path in the results folder, and the ledger in segments.

A store cannot append to a file. The ledger's copy is therefore cut into segments, ledger/<first byte>.jsonl; only the last one is
written again and again, until it is SEGMENT_BYTES long. Every other file has the path that it has in the results folder.
"""

import hashlib
import io
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from trainables.config_file import ConfigError
from trainables.stores import open_store

SEGMENT_BYTES = 2**22
CHUNK_BYTES = 2**22
SEGMENT = re.compile(r"ledger/(\d{15})\.jsonl", re.ASCII)
STATE_FILE = re.compile(r"checkpoints/t\d+/\d+-\d+/[^/]+", re.ASCII)
"""The path of a file of a trial's state."""
OWNER = "owner"
"""A file that says which process writes the copy."""
PARTIAL = ".partial"
"""How the name of a file or folder ends that is not whole yet."""
LOCAL = "local"
"""What pyarrow calls a file system whose files appear before they are whole."""


class CopyFailed(OSError):
    """What was read back from a store is not what was written."""


class ResultsStore:
    """The folder of one sweep in a store.

    Args:
        address: of the folder, as s3://bucket/results/digits_lt.

    Raises:
        ConfigError: when it is no address of a store.
    """

    def __init__(self, address: str) -> None:
        try:
            self._system, self._folder = open_store(address)
        except ValueError as error:
            raise ConfigError(f"command line: --results: {error}") from error
        self.address = address

    @property
    def above(self) -> str:
        """The address of the folder around this one."""
        place, mark, connection = self.address.partition("?")
        return f"{place.rstrip('/').rpartition('/')[0]}{mark}{connection}"

    @property
    def place(self) -> Path | None:
        """The folder, if it lies on a disk of this machine."""
        return Path(self._folder) if self._system.type_name == LOCAL else None

    def __str__(self) -> str:
        """The address, without what belongs to the connection: endpoint and credentials."""
        scheme, mark, place = self.address.partition("?")[0].partition("://")
        return f"{scheme}{mark}{place.rpartition('@')[2]}"

    def inside(self, name: str) -> "ResultsStore":
        """The store's folder `name` inside this one."""
        place, mark, connection = self.address.partition("?")
        return ResultsStore(f"{place.rstrip('/')}/{name}{mark}{connection}")

    def files(self) -> dict[str, int]:
        """The size of each whole file, by its path in the folder; empty where there is no folder.

        Raises:
            ConfigError: when a path would lead out of a results folder.
        """
        from pyarrow import fs

        found = {}
        for info in self._system.get_file_info(fs.FileSelector(self._folder, allow_not_found=True, recursive=True)):
            if info.type == fs.FileType.File and not info.path.endswith(PARTIAL):
                path = info.path.removeprefix(self._folder).lstrip("/")
                if ".." in path.split("/"):
                    raise ConfigError(f"{self}/{path} leads out of the results; nothing was changed")
                found[path] = int(info.size)
        return found

    def put(self, path: str, content: bytes | Path) -> None:
        """Writes a file and reads it back.

        Args:
            path: in the folder.
            content: its bytes, or the file that has them; read in chunks.

        Raises:
            CopyFailed: when size or SHA-256 of what was read back differ.
            OSError: when the store fails.
        """
        place = f"{self._folder}/{path}"
        is_local = self._system.type_name == LOCAL
        if is_local:
            self._system.create_dir(place.rpartition("/")[0], recursive=True)
        written = f"{place}{PARTIAL}" if is_local else place
        with _opened(content) as source, self._system.open_output_stream(written) as target:
            sent = _digest_of(source, target)
        if (found := self._digest(written)) != sent:
            raise CopyFailed(f"{self}/{path}: sha256 and size are {found} after the upload, {sent} here")
        if is_local:
            self._system.move(written, place)

    def get(self, path: str) -> bytes:
        """The content of a file.

        Raises:
            FileNotFoundError: when there is none.
            OSError: when the store fails.
        """
        with self._system.open_input_stream(f"{self._folder}/{path}") as source:
            return bytes(source.read())

    def fetch(self, path: str, into: Path) -> None:
        """Copies a file to the disk, in chunks.

        Raises:
            OSError: when the store or the disk fails.
        """
        into.parent.mkdir(parents=True, exist_ok=True)
        with self._system.open_input_stream(f"{self._folder}/{path}") as source, into.open("wb") as target:
            for chunk in _chunks(source):
                target.write(chunk)

    def remove(self, path: str) -> None:
        """Removes a file, or a folder with all that is in it, if it is there."""
        from pyarrow import fs

        place = f"{self._folder}/{path}"
        with suppress(FileNotFoundError):
            if self._system.get_file_info(place).type == fs.FileType.Directory:
                self._system.delete_dir(place)
            else:
                self._system.delete_file(place)

    def _digest(self, place: str) -> tuple[str, int]:
        with self._system.open_input_stream(place) as source:
            return _digest_of(source)


def segments(files: dict[str, int]) -> dict[str, int]:
    """The ledger's segments among the files of a store, in order: the first byte of each, by path."""
    found = {path: int(match[1]) for path in files if (match := SEGMENT.fullmatch(path))}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def segment_name(first: int) -> str:
    """The path of the segment that begins with the ledger's byte `first`."""
    return f"ledger/{first:015d}.jsonl"


def _opened(content: bytes | Path) -> AbstractContextManager[BinaryIO]:
    return io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")


def _chunks(source: Any) -> Iterator[bytes]:
    while chunk := source.read(CHUNK_BYTES):
        yield chunk


def _digest_of(source: Any, target: Any = None) -> tuple[str, int]:
    """SHA-256 and number of the bytes that are left in `source`, which are written to `target`."""
    digest, size = hashlib.sha256(), 0
    for chunk in _chunks(source):
        digest.update(chunk)
        size += len(chunk)
        if target is not None:
            target.write(chunk)
    return digest.hexdigest(), size
