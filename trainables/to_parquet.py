"""Writes the images of a source of image files as parquet files, which the source `parquet` reads, from a disk or from a store.

The images' bytes stay as they are in the files. A file holds about 256 MiB at most: a few large files are quicker to copy, and
lighter for a shared disk or a store, than a million small ones.

    python -m trainables.to_parquet CONFIG.yaml [key=value ...] --out FOLDER_OR_ADDRESS

Exit codes: 0 done; 2 the input was wrong, nothing written; 130 interrupted, nothing written.
"""

import argparse
import functools
import os
import secrets
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trainables import parsers
from trainables.command_line import ended_like_ctrl_c, steady_output, typed_path
from trainables.config import TrialConfig
from trainables.config_file import ConfigError, Tree, check, merge, read_tree, written
from trainables.data import open_source
from trainables.data.source import FOLLOWED_BY, PARTS, EncodedImages, Source
from trainables.data_config import DATA_SETTINGS, DataConfig, EncodedConfig, ParquetConfig
from trainables.files import sync
from trainables.settings import refuse_secret
from trainables.stores import is_store, open_store, patiently

SHARD_BYTES, GROUP_BYTES = 2**28, 2**24
"""Bytes of images in a file, and in a row group, which is what a trial reads at a time."""
READERS, READ_AT_ONCE = 8, 64
"""Threads that read image files, and images that are read before they are written."""
UPLOAD_BYTES = 2**23


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    with steady_output():
        return run(parsers.to_parquet().parse_intermixed_args(arguments))


def run(given: argparse.Namespace) -> int:
    """Does what the command line asks for. Returns the exit code."""
    try:
        overrides = [change.removeprefix("trial.") for change in given.overrides]  # `trial.` is the prefix in sweeps
        tree, origin = read_tree(TrialConfig, given.config, overrides, section="trial")
        config = check(TrialConfig, tree, origin)
        out = given.out if is_store(given.out) else str(typed_path(given.out).absolute())
        with ended_like_ctrl_c():
            try:
                refuse_secret("--out", out)
                convert(config.data, out, lambda line: print(line, flush=True))
            except ValueError as error:
                raise ConfigError(f"{given.config}: {error}; nothing was written") from error
        print(f"wrote {out}; the same trial reads it with\n{' '.join(map(shlex.quote, settings_for(out, tree, config.data)))}")
        return 0
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; nothing was written", file=sys.stderr)
        return 130


def convert(config: DataConfig, out: str, tell: Callable[[str], None]) -> None:
    """Writes all images of a source's parts to a new folder, or to a store. `tell` gets a line for each file.

    Raises:
        ValueError: when the source is incomplete or has no image files, `out` exists or cannot be written, or a class's name does
            not fit into the files.
    """
    source = open_source(config)
    images = source.images
    if not isinstance(images, EncodedImages):
        encoded = [name for name, settings in DATA_SETTINGS.items() if issubclass(settings, EncodedConfig)]
        raise ValueError(f"data.source is {config.source}, which has no image files; allowed: {', '.join(encoded)}")
    names = _joined(source.class_names)
    for note in source.notes:
        tell(f"note: {note}")
    for ids in source.parts.values():
        images.check(ids)
    with _destination(out) as (folder, finish):
        shards = _Shards(folder, names, finish, tell)
        for part, label, image in _rows(source, images):
            shards.add(part, label, image)
        shards.close()


def settings_for(out: str, tree: Tree, data: DataConfig) -> list[str]:
    """The overrides with which a file's trial reads the parquet files, and is the same in everything else.

    Args:
        out: where the files are.
        tree: the trial's settings, as the file and the command line give them.
        data: the same settings of the data, checked.
    """
    changes: dict[str, Any] = {"source": "parquet", "root": out}
    left_out = ("classes", "min_images", "broken", "skip")  # has been left out by now
    changes |= {name: ParquetConfig.model_fields[name].get_default() for name in left_out if name in tree.get("data", {})}
    kept = merge(TrialConfig, tree, {"data": changes})["data"]
    for name, field in ParquetConfig.model_fields.items():
        if name not in kept and name in type(data).model_fields and getattr(data, name) != field.get_default():
            changes[name] = getattr(data, name)
    return [f"trial.data.{name}={written(value)}" for name, value in changes.items()]


def _joined(names: tuple[str, ...]) -> str:
    """The class names as the files hold them.

    Raises:
        ValueError: when a name has a comma or is no text.
    """
    for name in names:
        shown = os.fsencode(name).decode(errors="backslashreplace")
        if "," in name or shown != name:
            what = "a comma" if "," in name else "letters that are not UTF-8"
            raise ValueError(
                f"data.root: the class {shown!r} has {what} in its name, which parquet files cannot hold here; allowed: another "
                "name of the class's folder"
            )
    return ",".join(names)


def _rows(source: Source, images: EncodedImages) -> Iterator[tuple[str, int, bytes]]:
    """Part, label and bytes of each image that belongs to a part; the part is empty where all images are one pool.

    Raises:
        ValueError: when an image cannot be read; the message names the image.
    """
    with ThreadPoolExecutor(READERS) as pool:
        for part in [part for part in PARTS if part in source.parts]:
            for ids, group in images.groups(source.parts[part]):
                for first in range(0, len(ids), READ_AT_ONCE):
                    some = ids[first : first + READ_AT_ONCE].tolist()
                    for image, content in zip(some, pool.map(functools.partial(_read, group), some), strict=True):
                        yield part if len(source.parts) > 1 else "", int(source.labels[image]), content


def _read(images: EncodedImages, image: int) -> bytes:
    try:
        return images.read(image)
    except OSError as error:
        raise ValueError(f"data.root: {images.place(image)}: {error.strerror or error}") from error


class _Shards:
    """Writes rows to files, row group by row group, and begins a new file where a part ends or a file is large enough.

    Args:
        folder: for the files.
        class_names: joined by commas.
        finish: called with each file when it is complete.
        tell: gets a line for each file.
    """

    def __init__(self, folder: Path, class_names: str, finish: Callable[[Path], None], tell: Callable[[str], None]) -> None:
        import pyarrow as pa

        self._folder, self._finish, self._tell = folder, finish, tell
        fields = [pa.field("image", pa.binary()), pa.field("label", pa.int64())]
        self._schema = pa.schema(fields, metadata={"class_names": class_names})
        self._writer: Any = None
        self._part, self._name, self._first = "", "", ""
        self._number = self._bytes = self._group_bytes = self._num_images = 0
        self._images: list[bytes] = []
        self._labels: list[int] = []

    def add(self, part: str, label: int, image: bytes) -> None:
        """Adds a row. Rows come part by part."""
        if self._writer is None:
            self._open(part, 0)
        elif part != self._part:
            self._close(_name(part, 0))
            self._open(part, 0)
        elif self._bytes + len(image) > SHARD_BYTES:
            self._close(_name(part, self._number + 1))
            self._open(part, self._number + 1)
        self._images.append(image)
        self._labels.append(label)
        self._bytes += len(image)
        self._group_bytes += len(image)
        if self._group_bytes >= GROUP_BYTES:
            self._write_group()

    def close(self) -> None:
        """Completes the last file."""
        self._close(self._first)

    def _open(self, part: str, number: int) -> None:
        import pyarrow.parquet as pq

        self._part, self._number, self._name = part, number, _name(part, number)
        self._first = self._first or self._name
        self._bytes = self._num_images = 0
        # Images are compressed already.
        self._writer = pq.ParquetWriter(
            self._folder / self._name, self._schema, compression="none", use_dictionary=["label"], write_page_checksum=True
        )

    def _write_group(self) -> None:
        import pyarrow as pa

        self._num_images += len(self._labels)
        self._writer.write_table(pa.table([self._images, self._labels], schema=self._schema))
        self._images, self._labels, self._group_bytes = [], [], 0

    def _close(self, followed_by: str) -> None:
        if self._labels:
            self._write_group()
        self._writer.add_key_value_metadata({FOLLOWED_BY: followed_by})
        self._writer.close()
        self._finish(self._folder / self._name)
        self._tell(f"{self._name}: {self._num_images} images, {self._bytes / 2**20:.1f} MiB")


def _name(part: str, number: int) -> str:
    """The name of a file; without parts, it must not hold the name of one."""
    return f"{part or 'images'}-{number:05}.parquet"


@contextmanager
def _destination(out: str) -> Iterator[tuple[Path, Callable[[Path], None]]]:
    """A folder to write files into, and what is called with each complete file. Afterwards the files are at `out`; after an error
    nothing is.

    Raises:
        ValueError: when `out` exists or cannot be written.
    """
    try:
        if is_store(out) and not out.startswith("file://"):
            with tempfile.TemporaryDirectory(prefix="tailtune-") as folder, _uploads(out) as upload:
                yield Path(folder), upload
        else:
            with _appearing(Path(out.removeprefix("file://"))) as new:
                yield new, sync
    except OSError as error:
        raise ValueError(f"--out is {out!r}, which cannot be written: {error}") from error


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A folder that has its name when all is written."""
    if out.exists() or out.is_symlink():
        raise ValueError(f"--out is '{out}', which exists; allowed: a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.mkdir()
        yield partial
        sync(partial)
        partial.rename(out)
        sync(out.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def _uploads(out: str) -> Iterator[Callable[[Path], None]]:
    """What moves a file into the store. After an error, it takes back what is there already."""
    from pyarrow import fs

    system, folder = open_store(out)
    if patiently(lambda: system.get_file_info(fs.FileSelector(folder, allow_not_found=True))):
        raise ValueError(f"--out is {out!r}, where there are files; allowed: a new folder")
    begun: list[str] = []

    def upload(file: Path) -> None:
        place = f"{folder}/{file.name}"
        begun.append(place)
        patiently(lambda: _upload(system, file, place))
        file.unlink()

    try:
        if not isinstance(system, fs.S3FileSystem):  # in S3 there are no folders
            system.create_dir(folder)
        yield upload
    except BaseException:
        for place in begun:
            with suppress(OSError):
                system.delete_file(place)
        raise


def _upload(system: Any, file: Path, place: str) -> None:
    """Writes a file into the store, piece by piece, and sees that it is there as a whole."""
    with open(file, "rb") as source, system.open_output_stream(place) as target:
        while piece := source.read(UPLOAD_BYTES):
            target.write(piece)
    if (size := system.get_file_info(place).size) != file.stat().st_size:
        raise OSError(f"{place} has {size} bytes instead of {file.stat().st_size} after it was written")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
