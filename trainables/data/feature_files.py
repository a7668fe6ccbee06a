"""Feature vectors from the .parquet or .npy files of a folder, read into memory as a whole.

What `python -m trainables.features` writes is .parquet files, which may have the columns VIEWS, NAME and SEEN beside vectors and
labels, and the backbone in a file beside them.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainables.data.shards import Shards, damaged, open_shards, opened
from trainables.data.source import PARTS, Ids, Source, Vectors, check_labels
from trainables.data.splits import Split
from trainables.data_config import FeaturesConfig
from trainables.stores import is_store

VIEWS, NAME, SEEN = "views", "image", "seen"
"""Columns that files may have beside vectors and labels: further vectors of each image, one after another; what the image is
called; and whether the backbone was trained on it."""
BACKBONE = "backbone.safetensors"
"""The file of the backbone, beside the vectors."""
FLOATS = (np.float16, np.float32, np.float64)


def open_features(config: FeaturesConfig) -> Source:
    """All vectors of the folder.

    Raises:
        ValueError: when there are no vectors, a file is damaged, a column is missing, vectors differ in length, a number is not
            finite, or a label is out of range.
    """
    columns = config.features_column, config.label_column
    if is_store(config.root):
        source = _from_shards(config.root, None, *columns)
    else:
        files = [(file, file.stat()) for file in sorted(Path(config.root).rglob("*")) if file.is_file()]
        state = tuple((str(file), stat.st_size, stat.st_mtime_ns) for file, stat in files)
        source = _from_folder(Path(config.root), *columns, state)
    vectors = source.images
    assert isinstance(vectors, Vectors)
    if "views" in config.augment and vectors.views is None:
        raise ValueError(
            f"data.augment holds 'views', but {config.root} has no views; allowed: [], or vectors that "
            "`python -m trainables.features --views K` has computed"
        )
    return source


@functools.lru_cache(maxsize=1)
def _from_folder(folder: Path, features_column: str, label_column: str, state: tuple[tuple[str, int, int], ...]) -> Source:
    """All vectors of a folder. An export opens the same ones again and again, for each seed: the last ones are kept.

    Args:
        folder: on this machine.
        features_column: of .parquet files.
        label_column: of .parquet files.
        state: the files, each with its size and the time of its last change, so that changed files are read again.
    """
    arrays = sorted(folder.glob("*.npy"))
    if not arrays:
        return _from_shards(str(folder), folder, features_column, label_column)
    if shards := sorted(folder.glob("*.parquet")):
        raise ValueError(f"data.root: {folder} holds {arrays[0].name} and {shards[0].name}; allowed: files of one kind")
    return _from_arrays(folder)


def _from_shards(root: str, folder: Path | None, features_column: str, label_column: str) -> Source:
    shards = open_shards(root, label_column, {"features_column": (features_column, _may_hold_vectors)})
    features = _vectors(shards, features_column)
    if len(wrong := np.flatnonzero(~np.isfinite(features).all(1))):
        raise ValueError(
            f"data.root: {shards.places(int(wrong[0]))}: a number is not finite; remove the row, or compute it again"
        )
    columns = _further_columns(shards)
    views = _vectors(shards, VIEWS) if VIEWS in columns else None
    if views is not None:
        views = views.reshape(len(features), -1, features.shape[1])
    names = np.array([name.encode() for name in _column(shards, NAME).to_pylist()]) if NAME in columns else None
    seen = _column(shards, SEEN).to_numpy().astype(np.bool_) if SEEN in columns else None
    backbone = folder / BACKBONE if folder and (folder / BACKBONE).is_file() else None
    vectors = Vectors(features, views, names, seen, backbone)
    return Source(vectors, shards.labels, shards.class_names, shards.parts)


def _further_columns(shards: Shards) -> set[str]:
    """Which of VIEWS, NAME and SEEN all files have. A column of another type, such as encoded images, only shares the name."""
    import pyarrow as pa

    kinds = {VIEWS: _may_hold_vectors, NAME: pa.types.is_string, SEEN: pa.types.is_boolean}
    found = set(kinds)
    for copy in shards.copies:
        with opened(copy) as parquet:
            schema = parquet.schema_arrow
        found &= {name for name, fits in kinds.items() if name in schema.names and fits(schema.field(name).type)}
    return found


def _column(shards: Shards, name: str) -> Any:
    """A column of all files, as an Arrow array in pieces."""
    import pyarrow as pa

    pieces = []
    for file, copy in zip(shards.places.files, shards.copies, strict=True):
        try:
            with opened(copy) as parquet:
                pieces += parquet.read([name], use_threads=False)[name].chunks
        except (pa.ArrowException, OSError) as error:
            raise damaged(file, copy, error) from error
    return pa.chunked_array(pieces)


def _vectors(shards: Shards, name: str) -> NDArray[np.floating[Any]]:
    """A column of lists as one array (N, length); float16 stays, other numbers become float32.

    Raises:
        ValueError: when two lists differ in length, or one is missing or empty.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    column = _column(shards, name)
    if not _may_hold_vectors(column.type):
        raise ValueError(
            f"data.root: {shards.places.files[0]}: column {name!r} is {column.type}; allowed: lists of floating-point numbers"
        )
    rows, length, first = [], None, 0
    for piece in column.chunks:
        lengths = pc.fill_null(pc.list_value_length(piece), 0).to_numpy(zero_copy_only=False)
        length = int(lengths[0]) if length is None and len(lengths) else length
        if len(wrong := np.flatnonzero((lengths != length) | (lengths == 0))):
            place = shards.places(first + int(wrong[0]))
            raise ValueError(
                f"data.root: {place}: column {name!r} has {lengths[wrong[0]]} numbers, the first row {length}; allowed: vectors "
                "of one length"
            )
        flat = piece.flatten()
        if flat.null_count:
            place = shards.places(first + int(np.flatnonzero(flat.is_null().to_numpy(zero_copy_only=False))[0]) // (length or 1))
            raise ValueError(f"data.root: {place}: a number is missing in column {name!r}; remove the row, or compute it again")
        kind = np.float16 if pa.types.is_float16(flat.type) else np.float32
        rows.append(flat.to_numpy(zero_copy_only=False).astype(kind, copy=False).reshape(-1, length or 1))
        first += len(piece)
    return np.concatenate(rows)


def _may_hold_vectors(kind: Any) -> bool:
    """Whether a column of this Arrow type may hold vectors: lists of floating-point numbers."""
    import pyarrow as pa

    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(listed and pa.types.is_floating(kind.value_type))


def _from_arrays(folder: Path) -> Source:
    """The vectors of a folder of NumPy files."""
    pool = (folder / "features.npy").exists()
    found = [part for part in PARTS if (folder / f"{part}_features.npy").exists()]
    if pool == bool(found) or (found and "train" not in found):
        given = ", ".join(file.name for file in sorted(folder.glob("*.npy")))
        raise ValueError(
            f"data.root: {folder} holds {given}; allowed: features.npy and labels.npy, or train_features.npy and "
            "train_labels.npy and the same for val, test and meta"
        )
    read = {part: _read_arrays(folder, f"{part}_") for part in found} if found else {"train": _read_arrays(folder, "")}
    features, labels = [of[0] for of in read.values()], [of[1] for of in read.values()]
    if len({of.shape[1] for of in features}) > 1:
        given = ", ".join(f"{part} {of.shape[1]}" for part, of in zip(read, features, strict=True))
        raise ValueError(f"data.root: {folder}: vectors differ in length ({given}); allowed: one length in all files")
    starts = np.cumsum([0, *map(len, labels)])
    parts = {part: np.arange(starts[i], starts[i + 1]) for i, part in enumerate(read)}
    names, every = _class_names(folder), np.concatenate(labels)
    limit = len(names) if names else len(parts["train"])
    why = f", as there are {limit} {'lines in class_names.txt' if names else 'training vectors'}"
    check_labels(every, limit, lambda image: f"data.root: {folder}, labels, row {image}", why)
    return Source(Vectors(np.concatenate(features)), every, names or tuple(str(c) for c in range(1 + int(every.max()))), parts)


def _read_arrays(folder: Path, prefix: str) -> tuple[NDArray[np.floating[Any]], Ids]:
    """Vectors and labels of a part.

    Raises:
        ValueError: when a file is missing or damaged, or the two do not fit.
    """
    features, labels = (_read_array(folder / f"{prefix}{name}.npy") for name in ("features", "labels"))
    if features.ndim != 2 or features.dtype not in FLOATS or not features.size:
        raise ValueError(
            f"data.root: {folder / prefix}features.npy is {features.dtype} {features.shape}; allowed: float16 or float32 (N, D)"
        )
    if labels.shape != features.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"data.root: {folder / prefix}labels.npy is {labels.dtype} {labels.shape}; allowed: whole numbers "
            f"({len(features)},), one for each vector"
        )
    if len(wrong := np.flatnonzero(~np.isfinite(features).all(1))):
        raise ValueError(f"data.root: {folder / prefix}features.npy, row {wrong[0]}: a number is not finite; remove the row")
    kind = np.float16 if features.dtype == np.float16 else np.float32
    return features.astype(kind, copy=False), labels.astype(np.int64)


def _read_array(file: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(file, allow_pickle=False)
    except FileNotFoundError as error:
        raise ValueError(f"data.root: {file} is missing; allowed: a file of labels for each file of vectors") from error
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"data.root: {file} is no NumPy array that can be read ({error})") from error
    return array


def _class_names(folder: Path) -> tuple[str, ...]:
    """The lines of class_names.txt; nothing if there is no such file."""
    file = folder / "class_names.txt"
    if not file.exists():
        return ()
    try:
        names = tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"data.root: {file} cannot be read: {error}") from error
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"data.root: {file} has {min(repeated)!r} twice; allowed: a name for each class")
    return names


def seen_by_backbone(split_seed: int, vectors: Vectors, split: Split) -> list[str]:
    """A note that counts the images of val and meta that the backbone was trained on.

    Raises:
        ValueError: when there are such images in the test set.
    """
    seen = vectors.seen
    if seen is None:
        return []
    if number := int(seen[split.test].sum()):
        raise ValueError(
            f"data.split_seed is {split_seed}: the backbone of these vectors was trained on {number} of the {len(split.test)} "
            "test images, which makes the test accuracy too high; allowed: the split_seed, test_per_class and selection of the "
            "backbone's own trial, which has kept its test images apart"
        )
    if not (seen[split.val].any() or seen[split.meta].any()):
        return []
    counted = [f"{int(seen[ids].sum())} of {len(ids)} {name} images" for name, ids in (("val", split.val), ("meta", split.meta))]
    return [
        f"data.source is features: the backbone was trained on {' and '.join(counted)}, so accuracies there are too high; it was "
        "trained on none of the test images"
    ]
