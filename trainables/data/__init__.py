"""What a trial trains on: a long-tailed training set and three balanced sets, disjoint and sealed by a digest.

`build_data` is all that others call; it needs numpy only, so that a plan can be checked before torch or Ray is there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainables.config import DataConfig
from trainables.data.digits import load_digits_images
from trainables.data.parquet import load_parquet_images
from trainables.data.profiles import exponential
from trainables.data.source import SourceImages
from trainables.data.splits import Split, split_classes
from trainables.registry import lookup

DATASETS: dict[str, Callable[[Any], SourceImages]] = {"digits": load_digits_images, "parquet": load_parquet_images}


@dataclass(frozen=True)
class ImageSet:
    """Images (N, C, H, W) uint8 with labels (N,) int64 and their places in the source, ids (N,) int64."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.labels)


@dataclass(frozen=True)
class LongTailedData:
    """The four disjoint sets of a trial. `class_counts` (num_classes,) are counted from the training labels."""

    train: ImageSet
    meta: ImageSet
    val: ImageSet
    test: ImageSet
    class_counts: NDArray[np.int64]
    split: Split
    class_names: tuple[str, ...]
    mean: float
    std: float
    """Mean and standard deviation of the training pixels, for normalisation: (pixel - mean) / std."""


def build_data(config: DataConfig, seed: int) -> LongTailedData:
    """Loads the source and splits it; the same `config` and `seed` give the same images in the same order.

    Raises:
        ValueError: when the source has too few images of a class for what `config` asks for.
    """
    source = lookup(DATASETS, config.source, "data source")(config)
    num_classes = len(source.class_names)
    split = split_classes(
        source.labels,
        train_counts=exponential(num_classes, config.n_max, config.imbalance_factor),
        meta_per_class=config.meta_per_class,
        val_per_class=config.val_per_class,
        test_per_class=config.test_per_class,
        seed=seed,
    )
    sets = {
        name: ImageSet(source.images[ids], source.labels[ids], ids)
        for name, ids in (("train", split.train), ("meta", split.meta), ("val", split.val), ("test", split.test))
    }
    train = sets["train"]
    return LongTailedData(
        **sets,
        class_counts=np.bincount(train.labels, minlength=num_classes),
        split=split,
        class_names=source.class_names,
        mean=float(train.images.mean()),
        std=float(train.images.std()),
    )
