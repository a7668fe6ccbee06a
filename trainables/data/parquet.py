"""Images from the .parquet files of a folder on disk or in a store: a column of encoded images, and a column of labels.

Files are read by row groups, and only the images that a trial uses are kept.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from trainables.data.cache import CACHE
from trainables.data.packed import NoRoom, Pack, packed
from trainables.data.shards import damaged, open_shards, opened
from trainables.data.source import EncodedImages, Ids, Places, Source
from trainables.data_config import ParquetConfig

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
    shards = open_shards(config.root, config.label_column, {"image_column": (config.image_column, _may_hold_images)})
    images = ParquetImages(shards.copies, shards.places, shards.footers, config.image_column)
    return Source(images, shards.labels, shards.class_names, shards.parts)


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
                with opened(copy, buffer_size=READ_BYTES) as parquet:
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
                raise damaged(file, copy, error) from error

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
