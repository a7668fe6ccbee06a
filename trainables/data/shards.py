"""The .parquet files of a folder, on disk or in a store: which files these are, their labels, class names and parts.

Files named train*, val* and test* are the source's own parts, in upper or lower case. The schema's metadata may contain
`class_names`: separated by commas, or as a list in JSON. Files in a store are copied to this machine first.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from trainables.data.source import FOLLOWED_BY, PARTS, Ids, Places, check_labels
from trainables.data.staging import staged_files
from trainables.stores import is_store

ENDING = ".parquet"


class Shards(NamedTuple):
    """The files of a folder, in the order of their names."""

    copies: list[str]
    """The path of each file on this machine."""
    places: Places
    footers: bytes
    """The digests of the files' footers. A footer contains the sizes of all columns and their lowest and highest values."""
    labels: Ids
    class_names: tuple[str, ...]
    parts: dict[str, Ids]


Fits = Callable[[Any], bool]
"""Whether a column may have an Arrow type."""


def open_shards(root: str, label_column: str, columns: Mapping[str, tuple[str, Fits]]) -> Shards:
    """All rows of all files. Of the columns, labels only are read.

    Args:
        root: folder or address.
        label_column: name of the column of labels.
        columns: by the setting that names it, each other column that is needed, and which types it may have.

    Raises:
        ValueError: when there is no file, a file is damaged, a column is missing, a label is out of range, or files differ in
            their class names.
    """
    found = _files(root)
    files, copies = list(found), list(found.values())
    needed = {**columns, "label_column": (label_column, _is_integer)}
    read = [_read_labels(file, copy, label_column, needed) for file, copy in found.items()]
    labels, names, footers, followers = zip(*read, strict=True)
    _refuse_gaps(files, followers)
    first_ids = np.cumsum([0, *map(len, labels)]).tolist()
    places = Places(files, first_ids[:-1], "row", 0)
    parts = _parts(root, files, first_ids)
    class_names, every = _agreed(files, names), np.concatenate(labels)
    num_classes = len(class_names) if class_names else len(parts["train"])
    why = f", as there are {num_classes} {'classes' if class_names else 'training images'}"
    check_labels(every, num_classes, lambda image: f"data.root: {places(image)}", why)
    named = class_names or tuple(str(c) for c in range(1 + int(every.max())))
    return Shards(copies, places, b"".join(footers), every, named, parts)


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


def opened(copy: str, **options: Any) -> Any:
    """An open parquet file. Pages that have a checksum are compared with it when they are read."""
    import pyarrow.parquet as pq
    from pyarrow import fs

    return pq.ParquetFile(copy, filesystem=fs.LocalFileSystem(), page_checksum_verification=True, **options)


def damaged(file: str, copy: str, error: Exception) -> ValueError:
    where = "" if copy == file else f"; it was read from {copy}"
    return ValueError(f"data.root: {file} is no whole parquet file ({error}){where}")


def _read_labels(
    file: str, copy: str, label: str, needed: Mapping[str, tuple[str, Fits]]
) -> tuple[Ids, tuple[str, ...] | None, bytes, str]:
    """The labels of a file, its class names or None, a digest of its footer, and the name of the file that follows or nothing."""
    import pyarrow as pa

    try:
        with opened(copy) as parquet:
            schema = parquet.schema_arrow
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
        raise damaged(file, copy, error) from error
    if not _is_integer(column.type) or column.null_count or not len(column):
        raise ValueError(
            f"data.root: {file}: column {label!r} must hold whole numbers, at least one and none missing; it is {column.type} "
            f"with {len(column)} rows, {column.null_count} of them missing"
        )
    names = _class_names(file, schema)
    # Unsigned labels above 2^63 would wrap around to negative ones, and the error would show a label that is not in the file.
    labels = column.to_numpy().clip(max=2**62).astype(np.int64)
    return labels, names, footer, follower


def _class_names(file: str, schema: Any) -> tuple[str, ...] | None:
    try:
        text = (schema.metadata or {}).get(b"class_names", b"").decode()
        names = json.loads(text) if text.startswith("[") else text.split(",") if text else []
    except UnicodeDecodeError as error:
        raise ValueError(f"data.root: {file}: the schema's class_names are no text in UTF-8 ({error})") from error
    except json.JSONDecodeError:
        names = text.split(",")  # of classes whose first one begins with a bracket
    return tuple(map(str, names)) or None


def _is_integer(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind))


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
