"""Images from the .parquet files of a folder on disk or in a store: a column of encoded images, and a column of labels.

Files in a store are copied to this machine first.

Files named train*, val* and test* are the source's own parts, in upper or lower case. The schema's metadata may contain
`class_names`, separated by commas. Files are read by row groups, and only the images that a trial uses are kept.
"""

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from trainables.data.cache import CACHE
from trainables.data.packed import NoRoom, Pack, packed
from trainables.data.source import FOLLOWED_BY, PARTS, EncodedImages, Ids, Places, Source, check_labels
from trainables.data.staging import staged_files
from trainables.data_config import ParquetConfig
from trainables.stores import is_store

ENDING = ".parquet"
READ_BYTES, READ_ROWS = 2**20, 1000
"""Size of the read buffer, and rows per batch, when a row group is read."""
IN_MEMORY_BYTES = 2**26
"""Size of the encoded images from which the processes of a machine share them."""


def open_parquet(config: ParquetConfig) -> Source:
    """The source with all rows of all files, in the order of the files' names. Reads labels only.

    Raises:
        ValueError: when there is no file, a file is damaged, a column is missing, a label is out of range, or files differ in
            their class names.
    """
    found = _files(config.root)
    files, copies = list(found), list(found.values())
    labels, names, footers, followers = zip(*(_read_labels(file, copy, config) for file, copy in found.items()), strict=True)
    _refuse_gaps(files, followers)
    first_ids = np.cumsum([0, *map(len, labels)]).tolist()
    places = Places(files, first_ids[:-1], "row", 0)
    parts = _parts(config.root, files, first_ids)
    class_names, every = _agreed(files, names), np.concatenate(labels)
    num_classes = len(class_names) if class_names else len(parts["train"])
    why = f", as there are {num_classes} {'classes' if class_names else 'training images'}"
    check_labels(every, num_classes, lambda image: f"data.root: {places(image)}", why)
    named = class_names or tuple(str(c) for c in range(1 + int(every.max())))
    return Source(ParquetImages(copies, places, b"".join(footers), config.image_column), every, named, parts)


def _agreed(files: list[str], names: Sequence[tuple[str, ...] | None]) -> tuple[str, ...] | None:
    """The class names, which all files that have any must share; None if no file has any."""
    given = [(file, of_file) for file, of_file in zip(files, names, strict=True) if of_file]
    for file, of_file in given:
        if of_file != given[0][1]:
            raise ValueError(
                f"data.root: the class_names of {file} are not those of {given[0][0]}; allowed: the same in all files"
            )
        if repeated := {name for name in of_file if of_file.count(name) > 1}:
            raise ValueError(f"data.root: {file}: class_names has {min(repeated)!r} twice; allowed: a name for each class")
    return given[0][1] if given else None


def _refuse_gaps(files: list[str], followers: Sequence[str]) -> None:
    """Sees that each file that another one names as the next is there."""
    there = {PurePosixPath(file).name for file in files}
    for file, follower in zip(files, followers, strict=True):
        if follower and follower not in there:
            raise ValueError(
                f"data.root: {file} is followed by {follower}, which is missing; allowed: all files that one conversion has "
                "written"
            )


def _files(root: str) -> dict[str, str]:
    """The .parquet files of a folder, sorted: by the name that errors show, the path on this machine."""
    import pyarrow as pa
    from pyarrow import fs

    if is_store(root) and not root.startswith("file://"):
        files = {address: str(copy) for address, copy in staged_files(root, ENDING).items()}
    else:
        try:
            system, folder = fs.FileSystem.from_uri(root) if is_store(root) else (fs.LocalFileSystem(), root)
            found = system.get_file_info(fs.FileSelector(folder))
        except (OSError, pa.ArrowInvalid) as error:
            raise ValueError(f"data.root is {root!r}, which cannot be read: {error}") from error
        files = {path: path for path in sorted(info.path for info in found if info.path.endswith(ENDING))}
    if not files:
        raise ValueError(f"data.root is {root!r}, which holds no {ENDING} file")
    return files


def _opened(copy: str, **options: Any) -> Any:
    """An open parquet file. Pages that have a checksum are compared with it when they are read."""
    import pyarrow.parquet as pq
    from pyarrow import fs

    return pq.ParquetFile(copy, filesystem=fs.LocalFileSystem(), page_checksum_verification=True, **options)


def _damaged(file: str, copy: str, error: Exception) -> ValueError:
    where = "" if copy == file else f"; it was read from {copy}"
    return ValueError(f"data.root: {file} is no whole parquet file ({error}){where}")


def _read_labels(file: str, copy: str, config: ParquetConfig) -> tuple[Ids, tuple[str, ...] | None, bytes, str]:
    """The labels of a file, its class names or None, a digest of its footer, and the name of the file that follows or nothing."""
    import pyarrow as pa

    is_integer, label = pa.types.is_integer, config.label_column
    try:
        with _opened(copy) as parquet:
            schema = parquet.schema_arrow
            needed = {"image_column": (config.image_column, _may_hold_images), "label_column": (label, is_integer)}
            for setting, (name, fits) in needed.items():
                if schema.names.count(name) != 1:
                    how = "is missing" if name not in schema.names else "is there twice"
                    fitting = " or ".join(field.name for field in schema if fits(field.type))
                    raise ValueError(
                        f"data.{setting} is {name!r}, but that column {how} in {file}; there are {', '.join(schema.names)}; "
                        f"allowed: {fitting or 'none of these, by their types'}"
                    )
            column = parquet.read([label])[label]
            follower = (parquet.metadata.metadata or {}).get(FOLLOWED_BY.encode(), b"").decode(errors="replace")
            footer = hashlib.sha256(repr(parquet.metadata.to_dict()).encode()).digest()
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file, copy, error) from error
    if not is_integer(column.type) or column.null_count or not len(column):
        raise ValueError(
            f"data.root: {file}: column {label!r} must hold whole numbers, at least one and none missing; it is {column.type} "
            f"with {len(column)} rows, {column.null_count} of them missing"
        )
    try:
        names = (schema.metadata or {}).get(b"class_names", b"").decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"data.root: {file}: the schema's class_names are no text in UTF-8 ({error})") from error
    # Unsigned labels above 2^63 would wrap around to negative ones, and the error would show a label that is not in the file.
    labels = column.to_numpy().clip(max=2**62).astype(np.int64)
    return labels, tuple(names.split(",")) if names else None, footer, follower


def _parts(root: str, files: list[str], first_ids: list[int]) -> dict[str, Ids]:
    """The ids of each part, from the names of the files. If no file is named after a part, all rows are the train part."""
    file_names = [PurePosixPath(file).name.lower() for file in files]
    named = [
        next((part for part in PARTS if name.startswith(part) and not name.startswith("metadata")), None) for name in file_names
    ]
    if not any(named):
        holding = {part: file for part in PARTS for file, name in zip(files, file_names, strict=True) if part in name}
        if len(alike := sorted(set(holding.values()))) > 1:
            raise ValueError(
                f"data.root: {' and '.join(alike)} look like parts; allowed: names that begin with train, val or test, or names "
                "without these words for one pool"
            )
        return {"train": np.arange(first_ids[-1])}
    if wrong := [file for file, part in zip(files, named, strict=True) if part is None]:
        raise ValueError(
            f"data.root: {wrong[0]} is for no part, others are; allowed: names that begin with train, val, test or meta"
        )
    if "train" not in named:
        raise ValueError(f"data.root is {root!r}, which holds no file whose name begins with train; there are {', '.join(files)}")
    ids = [np.arange(first, after) for first, after in pairwise(first_ids)]
    return {
        part: np.concatenate([of for of, name in zip(ids, named, strict=True) if name == part]) for part in PARTS if part in named
    }


class ParquetImages(EncodedImages):
    """Rows of parquet files. Held rows are kept encoded in memory as one Arrow array, which reader processes share. Many rows are
    in packs instead, which all processes of a machine share.
    """

    def __init__(
        self,
        copies: list[str],
        places: Places,
        footers: bytes,
        column: str,
        held: Any = None,
        held_ids: Ids | None = None,
        packs: Sequence[Pack] = (),
    ) -> None:
        self._copies, self._places, self._footers, self._column = copies, places, footers, column
        self._held, self._held_ids, self._packs = held, held_ids, packs

    def check(self, ids: Ids) -> None:
        """Does nothing: opening a file has already shown how many rows it has."""

    def groups(self, ids: Ids) -> Iterator[tuple[Ids, "ParquetImages"]]:
        """The ids by batches of rows; row groups without any of `ids` are not read."""
        for rows, encoded in self._columns(ids):
            yield rows, self._holding(rows, [encoded])

    def hold(self, ids: Ids) -> "ParquetImages":
        """The same images with the encoded rows of `ids` in memory; reads one row group at a time."""
        rows, columns = zip(*self._columns(ids), strict=True)
        return self._holding(np.concatenate(rows), list(columns))

    def shared(self, ids: Ids) -> "ParquetImages":
        """The same images with the encoded rows of `ids`, in addition to those that this object has. Rows of IN_MEMORY_BYTES or
        more are in a pack.
        """
        missing = np.unique(ids if self._held_ids is None else np.concatenate([ids, self._held_ids]))
        for pack in self._packs:
            missing = missing[~pack.has(missing)]
        if not len(missing):
            return self
        if self._bytes_from(missing, IN_MEMORY_BYTES):
            try:
                new = packed("rows", self.stamp(missing), missing, self._records)
                return self._with(None, None, [*self._packs, new])
            except NoRoom as error:
                warnings.warn(
                    f"data.root: encoded images cannot be shared by the processes of this machine, so that each has its own in "
                    f"memory: {error}; the environment variable {CACHE} names the folder for them",
                    stacklevel=2,
                )
        held = self.hold(missing)
        return self._with(held._held, held._held_ids, self._packs)

    def _bytes_from(self, ids: Ids, least: int) -> bool:
        """Whether the encoded rows of `ids` have at least so many bytes; reads no more of them."""
        size = 0
        for _, encoded in self._columns(ids):
            size += encoded.nbytes
            if size >= least:
                return True
        return False

    def _records(self, ids: Ids) -> Iterator[tuple[int, bytes]]:
        for rows, encoded in self._columns(ids):
            for image, value in zip(rows.tolist(), encoded.to_pylist(), strict=True):
                yield image, value or b""

    def stamp(self, ids: Ids) -> bytes:
        """As `identity`, with place, size and time of the last change of each file."""
        states = [(os.fsencode(file), os.stat(file)) for file in self._copies]
        return self.identity(ids) + b"".join(b"%s %d %d\n" % (file, state.st_size, state.st_mtime_ns) for file, state in states)

    def _columns(self, ids: Ids) -> Iterator[tuple[Ids, Any]]:
        """The sorted ids in each batch of rows, with their encoded images as an Arrow column."""
        import pyarrow as pa

        wanted, starts = np.unique(ids), self._places.first_ids
        for file, copy, start, following in zip(
            self._places.files, self._copies, starts, [*starts[1:], wanted.max(initial=0) + 1], strict=True
        ):
            if not _between(wanted, start, following).size:
                continue
            first = start
            try:
                # Without threads, because Arrow never returns the memory that its reading threads have freed.
                with _opened(copy, buffer_size=READ_BYTES) as parquet:
                    for group in range(parquet.num_row_groups):
                        after = first + parquet.metadata.row_group(group).num_rows
                        if not _between(wanted, first, after).size:
                            first = after
                            continue
                        for rows in parquet.iter_batches(READ_ROWS, [group], [self._column], use_threads=False):
                            here = _between(wanted, first, first + len(rows))
                            if here.size:
                                yield here, self._encoded(rows[self._column].take(pa.array(here - first)), here, file)
                            first += len(rows)
            except (pa.ArrowException, OSError) as error:
                raise _damaged(file, copy, error) from error

    def _holding(self, ids: Ids, columns: list[Any]) -> "ParquetImages":
        import pyarrow as pa

        return self._with(pa.chunked_array(columns), ids, ())

    def _with(self, held: Any, held_ids: Ids | None, packs: Sequence[Pack]) -> "ParquetImages":
        return ParquetImages(self._copies, self._places, self._footers, self._column, held, held_ids, packs)

    def _encoded(self, column: Any, ids: Ids, file: str) -> Any:
        """The encoded images `ids` as a binary column: of a struct of bytes and path, as Hugging Face's datasets write it, the
        bytes.

        Raises:
            ValueError: when the column does not hold images, or a row has only a path.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        kind = column.type
        if not _may_hold_images(kind):
            raise ValueError(f"data.root: {file}: column {self._column!r} must hold encoded images; it is {kind}")
        if pa.types.is_struct(kind):
            struct, column = column, pc.struct_field(column, "bytes")
            if column.null_count and kind.get_field_index("path") >= 0:
                paths = pc.struct_field(struct, "path")
                if outside := np.flatnonzero(pc.and_(pc.is_null(column), pc.is_valid(paths)).to_numpy(False)).tolist():
                    raise ValueError(
                        f"data.root: {self.place(int(ids[outside[0]]))}: the row has no bytes of an image, only the path "
                        f"{paths[outside[0]].as_py()!r}; write the bytes into column {self._column!r}, or name the image files "
                        "in a list and read them with the source image_lists"
                    )
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        return column.cast(pa.large_binary())

    def release(self) -> None:
        """Returns freed memory to the operating system, which Arrow otherwise keeps for the next read."""
        import pyarrow as pa

        pa.default_memory_pool().release_unused()

    def read(self, image: int) -> bytes:
        """The encoded image of a held row."""
        encoded = self._found(image)
        if encoded is None:
            raise OSError("the row is empty")
        return encoded

    def _found(self, image: int) -> bytes | None:
        for pack in self._packs:
            if image in pack:
                return pack.read(image) or None
        assert self._held_ids is not None  # `read` is for objects that `hold`, `shared` or `groups` has returned
        found: bytes | None = self._held[int(np.searchsorted(self._held_ids, image))].as_py()
        return found

    def identity(self, ids: Ids) -> bytes:
        """The digests of the files' footers, and the column. A footer contains the sizes of all columns and their lowest and
        highest values.
        """
        return self._footers if self._column == "image" else self._footers + self._column.encode()

    def place(self, image: int) -> str:
        """The file and the row of the image, for errors."""
        return self._places(image)

    def name(self, image: int) -> str:
        """The file's name and the row."""
        return PurePosixPath(self._places(image)).name

    def address(self, image: int) -> tuple[str, str | int]:
        """The file's name, without the folder or store that all files lie in, and the row."""
        file, row = self._places.of(image)
        return PurePosixPath(file).name, row


def _between(ids: Ids, first: int, after: int) -> Ids:
    """The entries of the sorted `ids` in first .. after - 1."""
    return ids[np.searchsorted(ids, first) : np.searchsorted(ids, after)]


def _may_hold_images(kind: Any) -> bool:
    """Whether a column of this Arrow type may hold encoded images: bytes, or a struct that has `bytes`."""
    import pyarrow as pa

    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(of(kind) for of in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary))
