"""The result of every data source: labels, the source's own parts, and images, either decoded or as files or rows to read."""

import bisect
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
"""Ids of images, (N,): positions in the source, from 0."""


class Places(NamedTuple):
    """The file and the line or row of each image, for errors."""

    files: Sequence[str]
    first_ids: Sequence[int]
    """The id of the first image of each file."""
    unit: str
    """`line` or `row`."""
    first_number: int
    """The number of a file's first line or row: 1 or 0."""

    def __call__(self, image: int) -> str:
        """The place of an image, for instance `train.txt, line 7`."""
        file, number = self.of(image)
        return f"{file}, {self.unit} {number}"

    def of(self, image: int) -> tuple[str, int]:
        """The file of an image, and the number of its line or row."""
        file = bisect.bisect_right(self.first_ids, image) - 1
        return self.files[file], image - self.first_ids[file] + self.first_number


class UnreadableImage(ValueError):
    """An image that is missing or cannot be decoded."""


class EncodedImages(ABC):
    """Encoded images (JPEG, PNG, WebP, ...), read by id. Objects may be copied into other processes."""

    @abstractmethod
    def check(self, ids: Ids) -> None:
        """Checks that the images `ids` exist, without reading them.

        Raises:
            UnreadableImage: when an image is missing; the message names the image.
        """

    @abstractmethod
    def groups(self, ids: Ids) -> "Iterator[tuple[Ids, EncodedImages]]":
        """All `ids` in groups that are stored together, each with an object whose `read` is quick for the ids of the group.

        Raises:
            ValueError: when an image is missing; the message names the image.
        """

    @abstractmethod
    def hold(self, ids: Ids) -> "EncodedImages":
        """The same images in an object whose `read` is quick for any of `ids`, in any order.

        Raises:
            ValueError: when an image is missing; the message names the image.
        """

    def shared(self, ids: Ids) -> "EncodedImages":
        """As `hold`, for many images: in a form that takes memory once for all processes of this machine. What the object holds
        already is held, too.
        """
        return self.hold(ids)

    @abstractmethod
    def read(self, image: int) -> bytes:
        """The encoded image.

        Raises:
            OSError: when the image cannot be read.
        """

    @abstractmethod
    def place(self, image: int) -> str:
        """The origin of the image, for errors."""

    def address(self, image: int) -> tuple[str, str | int]:
        """What the image is called wherever the source lies: a folder below the root and a file in it, or a file and a row.

        A source that has no such names gives its places.
        """
        return "", self.place(image)

    @abstractmethod
    def name(self, image: int) -> str:
        """The image's name inside `data.root`, as lists of images have it."""

    def stamp(self, ids: Ids) -> bytes:
        """Bytes that differ when the images may have changed since they were last read."""
        return self.identity(ids)

    @abstractmethod
    def release(self) -> None:
        """Frees memory that reading took and that is no longer needed."""

    @abstractmethod
    def identity(self, ids: Ids) -> bytes:
        """Bytes that distinguish these images from others, found without decoding; they enter the digest of a split."""


class FileImages(EncodedImages):
    """Images with one file each.

    Args:
        root: the folder that `paths` are relative to.
        paths: (N,) bytes, in the file system's encoding. It is an array, because reader processes would copy a list of millions
            of strings: each access changes a string's reference count and so copies its memory page.
        places: the line of the list that names an image; None if there is no list.
    """

    def __init__(self, root: Path, paths: NDArray[np.bytes_], places: Places | None = None) -> None:
        self._root, self._paths, self._places = os.fspath(root), paths, places

    def check(self, ids: Ids) -> None:
        """Checks that no file is missing or empty."""
        for image, state in zip(ids.tolist(), self._states(ids), strict=True):
            if state.size <= 0:
                raise UnreadableImage(f"data.root: {self.place(image)}: {MISSING if state.size < 0 else EMPTY}")

    def _states(self, ids: Ids) -> "Iterator[_FileState]":
        """Size and time of each file. Reads folder by folder, which is quicker than file by file."""
        places = [bytes(self._paths[image]).rpartition(b"/")[::2] for image in ids.tolist()]
        wanted: dict[bytes, set[bytes]] = {}
        for folder, name in places:
            wanted.setdefault(folder, set()).add(name)
        found: dict[bytes, dict[bytes, _FileState]] = {}
        for folder, name in places:
            if folder not in found:
                found[folder] = _file_states(os.path.join(os.fsencode(self._root), folder), wanted[folder])
            yield found[folder].get(name, _FileState(-1, 0))

    def groups(self, ids: Ids) -> "Iterator[tuple[Ids, FileImages]]":
        """One group: files can be read in any order."""
        yield ids, self

    def hold(self, ids: Ids) -> "FileImages":
        """Checks the files; nothing is kept in memory."""
        self.check(ids)
        return self

    def release(self) -> None:
        """Does nothing: no file is kept in memory."""

    def read(self, image: int) -> bytes:
        """The file's bytes."""
        return Path(self._file(image)).read_bytes()

    def place(self, image: int) -> str:
        """The line that names the file, if there is a list, and the file."""
        line = f"{self._places(image)}: " if self._places else ""
        # A file name may be invalid in every encoding; its bytes are then shown with escapes.
        return f"{line}{os.fsencode(self._file(image)).decode(errors='backslashreplace')}"

    def name(self, image: int) -> str:
        """The path below `root`. Bytes that are no text are surrogates, as in all paths of Python."""
        return os.fsdecode(bytes(self._paths[image]))

    def address(self, image: int) -> tuple[str, str | int]:
        """The folder below `root`, and the file's name."""
        folder, _, name = os.fsdecode(bytes(self._paths[image])).rpartition("/")
        return folder, name

    def identity(self, ids: Ids) -> bytes:
        """Paths below `root` and file sizes."""
        return b"".join(
            b"%s %d\n" % (self._paths[image], state.size) for image, state in zip(ids, self._states(ids), strict=True)
        )

    def stamp(self, ids: Ids) -> bytes:
        """The same, with the place of the folder and the time of the last change of each file."""
        states = zip(ids, self._states(ids), strict=True)
        lines = [b"%s %d %d\n" % (self._paths[image], *state) for image, state in states]
        return b"".join([os.fsencode(self._root), b"\n", *lines])

    def _file(self, image: int) -> str:
        return os.path.join(self._root, os.fsdecode(bytes(self._paths[image])))


class _FileState(NamedTuple):
    size: int
    """In bytes; -1 if the file is missing."""
    mtime_ns: int


def _file_states(folder: bytes, wanted: Container[bytes]) -> dict[bytes, _FileState]:
    """Size and time of the wanted files in a folder, by name; empty if the folder does not exist. Others are not asked for."""
    found = {}
    try:
        for entry in os.scandir(folder):
            if entry.name in wanted and entry.is_file():
                state = entry.stat()
                found[entry.name] = _FileState(state.st_size, state.st_mtime_ns)
    except OSError:
        return {}
    return found


MISSING, EMPTY = "there is no such file", "the file is empty"


@dataclass(frozen=True)
class Vectors:
    """Feature vectors that a frozen backbone has computed, in place of images, in memory.

    Args:
        features: (N, D) float16 or float32.
        views: vectors of augmented copies of each image, (N, V, D); None if there are none.
        names: of the images that the vectors were computed from, (N,) in the file system's encoding; None if they are not known.
        seen: whether the backbone was trained on the image, (N,); None if that is not known.
        backbone: file of the backbone, as trainables/frozen.py writes it; None if it is not known.
    """

    features: NDArray[np.floating[Any]]
    views: NDArray[np.floating[Any]] | None = None
    names: NDArray[np.bytes_] | None = None
    seen: NDArray[np.bool_] | None = None
    backbone: Path | None = None

    def identity(self, ids: Ids) -> bytes:
        """Bytes that distinguish these vectors from others."""
        views = b"" if self.views is None else self.views[ids].tobytes()
        return str(self.features.shape[1:]).encode() + self.features[ids].tobytes() + views


Images = NDArray[np.uint8] | EncodedImages | Vectors
"""Decoded images (N, C, H, W), encoded images that are read by id, or feature vectors."""


def image_name(images: Images, image: int) -> str:
    """What an image is called, for people: `cat/1.jpg`, `train-000.parquet, row 7`, or `id 7` of a source without names."""
    if isinstance(images, Vectors):
        return f"id {image}" if images.names is None else images.names[image].decode(errors="backslashreplace")
    if not isinstance(images, EncodedImages):
        return f"id {image}"
    return os.fsencode(images.name(image)).decode(errors="backslashreplace")


PARTS = ("train", "val", "test", "meta")
"""Names of a source's own parts."""
FOLLOWED_BY = "followed_by"
"""In the metadata of a parquet file that `trainables.to_parquet` has written, the name of the next file; the last file names the
first. So a file that is missing is noticed."""


class Fault(NamedTuple):
    """Something in a source that keeps trials from using it. It is gone when one of its classes or images is left out."""

    text: str
    """What is wrong, and how to change it; begins with the setting that it is about."""
    classes: tuple[str, ...] = ()
    images: tuple[int, ...] = ()
    """Ids of the images."""


@dataclass(frozen=True)
class Source:
    """All labelled images of a source, before any split.

    Args:
        images: decoded, (N, C, H, W) uint8; or encoded and read by id; or feature vectors.
        labels: (N,) in 0 .. number of classes - 1.
        class_names: one name for each class.
        parts: the ids of the source's own parts `train`, `val`, `test`, `meta`; `train` is required. An image in no part is not
            used.
        notes: what a person should know about the source before training, such as files that are not read. A note begins with
            the setting that it is about.
        white: the largest value that a pixel can have. Image files count up to 255.
        faults: what must be mended before the source can be used.
    """

    images: Images
    labels: Ids
    class_names: tuple[str, ...]
    parts: Mapping[str, Ids]
    notes: tuple[str, ...] = ()
    white: int = 255
    faults: tuple[Fault, ...] = ()

    @property
    def training_counts(self) -> Ids:
        """Images of each class in the train part, (num_classes,)."""
        return np.bincount(self.labels[self.parts["train"]], minlength=len(self.class_names))


def check_labels(labels: Ids, limit: int, place: Places | Callable[[int], str], why: str = "") -> None:
    """Checks that all `labels` (N,) are in 0 .. limit - 1.

    Raises:
        ValueError: when a label is out of range. The message names the place of the first one, and `why` explains the limit.
    """
    if wrong := np.flatnonzero((labels < 0) | (labels >= limit)).tolist():
        raise ValueError(f"{place(wrong[0])}: the label is {labels[wrong[0]]}; allowed: 0 to {limit - 1}{why}")


def as_one_pool(images: NDArray[np.uint8], labels: Ids, class_names: tuple[str, ...], white: int = 255) -> Source:
    """A source without parts of its own: all images are in its train part."""
    return Source(images, labels, class_names, {"train": np.arange(len(labels))}, white=white)
