"""A data source from outside the package: images and labels in a NumPy file. README.md has the command that runs this example."""

from typing import Literal
from zipfile import BadZipFile

import numpy as np
from pydantic import Field, field_validator

from trainables.data.source import Source, as_one_pool
from trainables.data_config import LongTailConfig
from trainables.plugins import register_dataset
from trainables.settings import absolute


class ArrayFileConfig(LongTailConfig):
    """A file with two arrays: `images` (N, C, H, W) uint8, and `labels` (N,), whole numbers from 0 on."""

    source: Literal["array_file"] = "array_file"
    """Name of the data source."""
    file: str
    """The .npz file. The path is stored as an absolute path, because trials run in their own folders."""

    test_per_class: int | None = Field(20, ge=1)
    """Images per class of the balanced test set, which is drawn from the same pool. None is an error, because the file has no
    test part."""

    _absolute = field_validator("file")(absolute)


def open_array_file(config: ArrayFileConfig) -> Source:
    """The source with all images in one pool. The split is drawn from the pool.

    Raises:
        ValueError: when the file cannot be read, or contains other arrays.
    """
    wanted = "allowed: an .npz file with images (N, C, H, W) uint8 and labels (N,), whole numbers from 0 on"
    try:
        with np.load(config.file) as arrays:
            images, labels = arrays["images"], arrays["labels"]
    except (OSError, KeyError, TypeError, ValueError, BadZipFile) as error:
        raise ValueError(f"data.file is {config.file}, which cannot be read: {error}; {wanted}") from error
    whole = labels.dtype.kind in "iu" and labels.shape == images.shape[:1] and labels.size > 0 and labels.min() >= 0
    if images.dtype != np.uint8 or images.ndim != 4 or not whole:
        found = f"images {images.shape} {images.dtype} and labels {labels.shape} {labels.dtype}"
        raise ValueError(f"data.file is {config.file}, which holds {found}; {wanted}")
    return as_one_pool(images, labels.astype(np.int64), tuple(str(c) for c in range(labels.max() + 1)))


register_dataset(ArrayFileConfig, open_array_file)
