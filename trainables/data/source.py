"""What every data source returns: labels, the source's own parts, and images, either decoded or as files and rows to read."""

import bisect
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
"""Places of images in their source, (N,): 0 is its first image."""


class Places(NamedTuple):
    """Which line or row of which file an image comes from, for errors."""

    files: Sequence[str]
    first_ids: Sequence[int]
    """The id of the first image of each file."""
    unit: str
    first_number: int
    """What the file's first line or row is called: 1 or 0."""

    def __call__(self, image: int) -> str:
        """For instance `train.txt, line 7`."""
        file = bisect.bisect_right(self.first_ids, image) - 1
        return f"{self.files[file]}, {self.unit} {image - self.first_ids[file] + self.first_number}"


class EncodedImages(ABC):
    """Encoded images (JPEG, PNG, WebP, ...), read by id. May be copied into other processes."""

    @abstractmethod
    def check(self, ids: Ids) -> None:
        """Looks whether `ids` are there, without reading them.

        Raises:
            ValueError: when one is not; the message names it.
        """

    @abstractmethod
    def groups(self, ids: Ids) -> "Iterator[tuple[Ids, EncodedImages]]":
        """All of `ids` in groups that lie together, each with images of which `read` of the group is quick.

        Raises:
            ValueError: when one of them is not there; the message names it.
        """

    @abstractmethod
    def hold(self, ids: Ids) -> "EncodedImages":
        """The same images, such that `read` of any of `ids`, in any order, is quick.

        Raises:
            ValueError: when one of them is not there; the message names it.
        """

    @abstractmethod
    def read(self, image: int) -> bytes:
        """The encoded image.

        Raises:
            OSError: when it cannot be read.
        """

    @abstractmethod
    def place(self, image: int) -> str:
        """Where the image comes from, for errors."""

    @abstractmethod
    def release(self) -> None:
        """Gives back the memory that reading took and nobody needs any more."""

    @abstractmethod
    def identity(self, ids: Ids) -> bytes:
        """What tells these images from others without decoding them, for the digest of a split."""


class FileImages(EncodedImages):
    """A file for each image.

    Args:
        root: the folder that `paths` start from.
        paths: (N,) bytes, as the operating system has them. An array, because reader processes would copy a list of millions of
            strings, one by one, by counting references.
        places: which line of which list names an image; None when no list does.
    """

    def __init__(self, root: Path, paths: NDArray[np.bytes_], places: Places | None = None) -> None:
        self._root, self._paths, self._places = os.fspath(root), paths, places

    def check(self, ids: Ids) -> None:
        """Looks for files that are missing or empty."""
        for image, size in zip(ids.tolist(), self._sizes(ids), strict=True):
            if size <= 0:
                what = "there is no such file" if size < 0 else "the file is empty"
                raise ValueError(f"data.root: {self.place(image)}: {what}")

    def _sizes(self, ids: Ids) -> Iterator[int]:
        """The size of each file in bytes, -1 where there is none; looks folder by folder, which is quicker than file by file."""
        found: dict[bytes, dict[bytes, int]] = {}
        for image in ids.tolist():
            folder, _, name = bytes(self._paths[image]).rpartition(b"/")
            if folder not in found:
                found[folder] = _file_sizes(os.path.join(os.fsencode(self._root), folder))
            yield found[folder].get(name, -1)

    def groups(self, ids: Ids) -> "Iterator[tuple[Ids, FileImages]]":
        """One group: files can be read in any order."""
        yield ids, self.hold(ids)

    def hold(self, ids: Ids) -> "FileImages":
        """Looks whether all are there."""
        self.check(ids)
        return self

    def release(self) -> None:
        """Nothing is kept of files."""

    def read(self, image: int) -> bytes:
        """The file's bytes."""
        return Path(self._file(image)).read_bytes()

    def place(self, image: int) -> str:
        """The file, after the line that names it."""
        line = f"{self._places(image)}: " if self._places else ""
        # Names that are no text in any encoding can be shown all the same.
        return f"{line}{os.fsencode(self._file(image)).decode(errors='backslashreplace')}"

    def identity(self, ids: Ids) -> bytes:
        """Paths below `root`, and sizes."""
        return b"".join(b"%s %d\n" % (self._paths[image], size) for image, size in zip(ids, self._sizes(ids), strict=True))

    def _file(self, image: int) -> str:
        return os.path.join(self._root, os.fsdecode(bytes(self._paths[image])))


def _file_sizes(folder: bytes) -> dict[bytes, int]:
    """The sizes of the files in a folder by name; none when there is no such folder."""
    try:
        return {entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.is_file()}
    except OSError:
        return {}


PARTS = ("train", "val", "test")
"""What a source's own parts are called."""


@dataclass(frozen=True)
class Source:
    """All labelled images of a source, before any split.

    Args:
        images: decoded, (N, C, H, W) uint8, or to be read.
        labels: (N,) in 0 .. number of classes - 1.
        class_names: one for each class.
        parts: the ids of the source's own division into `train`, `val` and `test`; only the first must be there.
    """

    images: NDArray[np.uint8] | EncodedImages
    labels: Ids
    class_names: tuple[str, ...]
    parts: Mapping[str, Ids]


def check_labels(labels: Ids, limit: int, place: Places | Callable[[int], str], why: str = "") -> None:
    """Sees that `labels` (N,) are below `limit` and not negative.

    Raises:
        ValueError: naming the place of the first one that is not, and `why` the limit is what it is.
    """
    if wrong := np.flatnonzero((labels < 0) | (labels >= limit)).tolist():
        raise ValueError(f"{place(wrong[0])}: the label is {labels[wrong[0]]}; allowed: 0 to {limit - 1}{why}")


def as_one_pool(images: NDArray[np.uint8], labels: Ids, class_names: tuple[str, ...]) -> Source:
    """A source without parts of its own."""
    return Source(images, labels, class_names, {"train": np.arange(len(labels))})
