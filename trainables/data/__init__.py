"""What a trial trains on: a long-tailed training set and three clean sets beside it, disjoint and sealed by a digest.

`build_data` is all that others call; it needs no torch and decodes no image, so that a plan can be checked before torch or Ray is
there.
"""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainables.data.cifar import open_cifar
from trainables.data.clothing1m import open_clothing1m
from trainables.data.digits import open_digits
from trainables.data.generated import open_generated
from trainables.data.image_folder import open_image_folder
from trainables.data.image_lists import open_image_lists
from trainables.data.noise import noisy_labels
from trainables.data.parquet import open_parquet
from trainables.data.profiles import PROFILES
from trainables.data.source import EncodedImages, Ids, Source
from trainables.data.splits import PerClass, Split, named, split_classes
from trainables.data_config import DataConfig, EncodedConfig
from trainables.registry import lookup
from trainables.seeds import derive_seed

DATASETS: dict[str, Callable[[Any], Source]] = {
    "digits": open_digits,
    "generated": open_generated,
    "cifar10": open_cifar,
    "cifar100": open_cifar,
    "parquet": open_parquet,
    "image_lists": open_image_lists,
    "clothing1m": open_clothing1m,
    "image_folder": open_image_folder,
}


@dataclass(frozen=True)
class ImageSet:
    """Which images a set has, ids (N,) in the source, and their labels (N,) as the trainer sees them."""

    ids: Ids
    labels: Ids

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.ids)


@dataclass(frozen=True)
class LongTailedData:
    """The sets of a trial; `val` is `meta` itself where the configuration says so, all others are disjoint.

    Args:
        class_counts: (num_classes,), counted from the training labels, wrong ones included.
        num_flipped: training images whose label is wrong on purpose.
    """

    source: Source
    split: Split
    train: ImageSet
    meta: ImageSet
    val: ImageSet
    test: ImageSet
    class_counts: Ids
    num_flipped: int

    @property
    def class_names(self) -> tuple[str, ...]:
        """One for each class."""
        return self.source.class_names

    def num_channels(self, config: DataConfig) -> int:
        """Of its images: 1 or 3."""
        if isinstance(config, EncodedConfig):
            return 1 if config.grey else 3
        assert isinstance(self.source.images, np.ndarray)
        return int(self.source.images.shape[1])

    @functools.cached_property
    def sha256(self) -> str:
        """Digest over the sets' names, sizes, ids, labels, and what tells their images from others: the pixels of decoded
        sources, the footers of parquet files, the names and sizes of image files.
        """
        digest, images = hashlib.sha256(), self.source.images
        for name in ("train", "meta", "val", "test"):
            part: ImageSet = getattr(self, name)
            digest.update(f"{name} {len(part)}\n".encode())
            digest.update(part.ids.astype("<i8").tobytes() + part.labels.astype("<i8").tobytes())
            if isinstance(images, EncodedImages):
                digest.update(images.identity(part.ids))
            else:
                digest.update(repr(images.shape[1:]).encode())
                for ids in np.array_split(part.ids, len(part) // 1000 + 1):
                    digest.update(images[ids].tobytes())
        return digest.hexdigest()


def open_source(config: DataConfig) -> Source:
    """The labels and parts of a source; its images, unless they come decoded, are not read yet.

    Raises:
        ValueError: when it is not there or not whole; the message names file and line or row.
    """
    source = lookup(DATASETS, config.source, "data source")(config)
    train = source.parts["train"]
    present = np.bincount(source.labels[train], minlength=len(source.class_names))
    if (empty := np.flatnonzero(present == 0)).size:
        highest = int(train[np.argmax(source.labels[train])])
        where = f" ({source.images.place(highest)})" if isinstance(source.images, EncodedImages) else ""
        raise ValueError(
            f"data: {named(int(empty[0]), source.class_names)} has no training image in this source; allowed: at least one for "
            f"each of the {len(present)} classes; the highest label is {source.labels[highest]}{where}"
        )
    return source


def build_data(config: DataConfig, seed: int, source: Source | None = None) -> LongTailedData:
    """Splits the source; the same `config` and `seed` give the same images and labels in the same order.

    Args:
        config: which source, long tail, noise and split.
        seed: draws images and wrong labels.
        source: the opened source, where it is at hand.

    Raises:
        ValueError: when the source is not whole, or has too few images of a class for what `config` asks for.
    """
    source = source or open_source(config)
    num_classes = len(source.class_names)
    profile = (
        None
        if config.profile == "natural"
        else PROFILES[config.profile](num_classes, config.n_max, config.imbalance_factor, config.rounding)
    )
    wanted = PerClass(None, config.meta_per_class, 0 if config.val == "meta" else config.val_per_class, config.test_per_class)
    drawn = None if config.selection == "first" else seed
    split = split_classes(source.labels, source.parts, source.class_names, wanted, profile, drawn)
    clean = source.labels[split.train]
    noise_rng = np.random.default_rng(derive_seed(seed, "label_noise"))
    labels = noisy_labels(clean, config.noise, source.class_names, noise_rng)
    meta = ImageSet(split.meta, source.labels[split.meta])
    class_counts = np.bincount(labels, minlength=num_classes)
    if not class_counts.all():
        c = int(np.flatnonzero(class_counts == 0)[0])
        raise ValueError(
            f"data.noise.rate is {config.noise.rate:g}: with seed {seed} it leaves {named(c, source.class_names)} without "
            "a training image; lower it, or lower data.imbalance_factor"
        )
    return LongTailedData(
        source=source,
        split=split,
        train=ImageSet(split.train, labels),
        meta=meta,
        val=meta if config.val == "meta" else ImageSet(split.val, source.labels[split.val]),
        test=ImageSet(split.test, source.labels[split.test]),
        class_counts=class_counts,
        num_flipped=int((labels != clean).sum()),
    )
