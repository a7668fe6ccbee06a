"""Images of one size from the .parquet files of a folder: a column `image` with encoded images and a column `label`.

The names of the classes may stand in the schema's metadata, under `class_names`, with commas between them.
"""

import io
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from trainables.config import ParquetConfig
from trainables.data.source import SourceImages


def load_parquet_images(config: ParquetConfig) -> SourceImages:
    """All rows of all files, in the order of the files' names: (N, C, H, W).

    Raises:
        ValueError: when there is no file, a column is missing, a row is no image, or the images differ in size.
    """
    files = sorted(Path(config.root).glob("*.parquet"))
    if not files:
        raise ValueError(f"data.root is {config.root!r}, which holds no .parquet file")
    return _load(tuple((file, file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=1)
def _load(files: tuple[tuple[Path, int], ...]) -> SourceImages:
    """Decoded once in a process, for all trials and seeds."""
    import pyarrow as pa  # only this source needs it
    import pyarrow.parquet as pq

    images, labels, names = [], [], None
    for file, _ in files:
        try:
            table = pq.read_table(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"data.root: {file} is no parquet file ({error})") from error
        if missing := {"image", "label"} - set(table.column_names):
            raise ValueError(f"data.root: {file}: column {min(missing)!r} is missing; there are {table.column_names}")
        column = table["label"]
        if not pa.types.is_integer(column.type) or column.null_count or not len(column):
            raise ValueError(f"data.root: {file}: column 'label' must hold whole numbers, none missing; it is {column.type}")
        for row, encoded in enumerate(table["image"].to_pylist()):
            images.append(_decode(encoded, f"data.root: {file}, row {row}"))
            if images[-1].shape != images[0].shape:
                raise ValueError(
                    f"data.root: {file}, row {row}: the image is {images[-1].shape}, the first one {images[0].shape}"
                )
        labels.append(column.to_numpy())
        names = names or (table.schema.metadata or {}).get(b"class_names")
    all_labels = np.concatenate(labels).astype(np.int64)
    lowest, highest = int(all_labels.min()), int(all_labels.max())
    found = names.decode().split(",") if names else [str(c) for c in range(highest + 1)]
    if lowest < 0 or highest >= len(found):
        raise ValueError(f"data.root: labels go from {lowest} to {highest}, but there are {len(found)} classes")
    return SourceImages(np.stack(images), all_labels, tuple(found))


def _decode(encoded: Any, place: str) -> np.ndarray:
    """One image as (C, H, W) uint8: one channel if it is grey, otherwise three."""
    from PIL import Image

    try:
        data = encoded["bytes"] if isinstance(encoded, dict) else encoded
        image = Image.open(io.BytesIO(data))
        if image.mode not in ("L", "RGB", "P", "RGBA"):
            raise ValueError(f"{place}: images of mode {image.mode} are not read; allowed: 8 bits a channel, grey or colour")
        pixels = np.asarray(image if image.mode == "L" else image.convert("RGB"))
    except (OSError, TypeError, KeyError, SyntaxError) as error:
        raise ValueError(f"{place}: not an image ({error})") from error
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
