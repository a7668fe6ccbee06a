"""The data of a trial: a long-tailed training set and three clean sets (meta, val, test), disjoint and sealed by a digest.

Other modules call `build_data` only. `build_data` needs no torch and decodes no image, so that a plan can be checked before torch
or Ray is loaded.
"""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trainables.data.choice import chosen, empty_classes, refuse_faults
from trainables.data.cifar import open_cifar
from trainables.data.clothing1m import open_clothing1m
from trainables.data.decode import decode_all
from trainables.data.digits import open_digits
from trainables.data.feature_files import open_features, seen_by_backbone
from trainables.data.generated import open_generated
from trainables.data.image_folder import open_image_folder
from trainables.data.image_lists import open_image_lists
from trainables.data.noise import noisy_labels
from trainables.data.parquet import open_parquet
from trainables.data.profiles import PROFILES
from trainables.data.source import EncodedImages, Ids, Source, Vectors
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
    "features": open_features,
}


@dataclass(frozen=True)
class ImageSet:
    """The images of a set: their ids (N,) in the source, and their labels (N,) as the trainer sees them."""

    ids: Ids
    labels: Ids

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ids)


@dataclass(frozen=True)
class LongTailedData:
    """The sets of a trial. With `data.val: meta`, `val` is `meta` itself; with `data.meta: from_train`, `meta` is `train` itself.
    All other sets are disjoint.

    Args:
        class_counts: training images of each class, (num_classes,), counted from the labels, including wrong ones.
        clean_counts: the same, without the wrong labels that `data.noise` put in: which classes are many, medium and few.
        num_flipped: number of training images whose label is wrong on purpose.
        notes: what a person should know about the images before training; each begins with the setting that it is about.
    """

    source: Source
    split: Split
    train: ImageSet
    meta: ImageSet
    val: ImageSet
    test: ImageSet
    class_counts: Ids
    clean_counts: Ids
    num_flipped: int
    notes: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name for each class."""
        return self.source.class_names

    def image_shape(self, config: DataConfig) -> tuple[int, int, int]:
        """Shape of what a classifier sees: images (C, H, W), vectors (D, 1, 1). Decodes an image if the settings do not say it.

        Raises:
            ValueError: when the image cannot be read.
        """
        images = self.source.images
        if isinstance(config, EncodedConfig):
            if config.image_size is not None:
                return (1 if config.grey else 3, config.image_size, config.image_size)
            assert isinstance(images, EncodedImages)
            images = decode_all(images, self.train.ids[:1], None, config.grey)
        if isinstance(images, Vectors):
            return (images.features.shape[1], 1, 1)
        assert isinstance(images, np.ndarray)
        channels, height, width = images.shape[1:]
        return (channels, height, width)

    @property
    def selecting_counts(self) -> Ids:
        """`clean_counts` of the classes that val has images of."""
        return self.clean_counts[np.bincount(self.val.labels, minlength=len(self.clean_counts)) > 0]

    @functools.cached_property
    def sha256(self) -> str:
        """Digest of each set's name, size, ids and labels, and of what distinguishes its images from others: the pixels of
        decoded sources, feature vectors, the footers of parquet files, the names and sizes of image files.
        """
        digest, images = hashlib.sha256(), self.source.images
        for name in ("train", "meta", "val", "test"):
            part: ImageSet = getattr(self, name)
            digest.update(f"{name} {len(part)}\n".encode())
            digest.update(part.ids.astype("<i8").tobytes() + part.labels.astype("<i8").tobytes())
            if isinstance(images, EncodedImages | Vectors):
                digest.update(images.identity(part.ids))
            else:
                digest.update(repr(images.shape[1:]).encode())
                for ids in np.array_split(part.ids, len(part) // 1000 + 1):
                    digest.update(images[ids].tobytes())
        return digest.hexdigest()


def open_source(config: DataConfig) -> Source:
    """The labels and parts of a source. Encoded images are not read yet.

    Raises:
        ValueError: when the source is missing or incomplete; the message names the file and the line or row.
    """
    source = survey_source(config)
    refuse_faults(source)
    return source


def survey_source(config: DataConfig) -> Source:
    """The same, with faults in place of an error where others may be found beside it."""
    source = lookup(DATASETS, config.source, "data source")(config)
    if isinstance(config, EncodedConfig):
        source = chosen(source, config)
    return replace(source, faults=(*source.faults, *empty_classes(source)))


def build_data(config: DataConfig, seed: int, source: Source | None = None) -> LongTailedData:
    """Splits the source. The same `config` and `seed` give the same images and labels in the same order.

    Args:
        config: source, long tail, noise and split.
        seed: draws the images and the wrong labels.
        source: the source if it is already open; None opens it.

    Raises:
        ValueError: when the source is incomplete, or a class has fewer images than `config` asks for.
    """
    source = source or open_source(config)
    num_classes = len(source.class_names)
    profile = (
        None
        if config.profile == "natural"
        else PROFILES[config.profile](num_classes, config.n_max, config.imbalance_factor, config.rounding)
    )
    reserved = config.meta_reserve is not None
    meta_per_class = config.meta_reserve if reserved else 0 if config.meta == "from_train" else config.meta_per_class
    val_per_class = 0 if config.val == "meta" and not reserved else config.val_per_class
    wanted = PerClass(None, meta_per_class, val_per_class, config.test_per_class)
    drawn = None if config.selection == "first" else seed
    fixed = ("test", "val", "meta") if config.fixed_sets == "held_out" else ("test",)
    split = split_classes(
        source.labels,
        source.parts,
        source.class_names,
        wanted,
        profile,
        drawn,
        config.split_seed,
        fixed,
        config.at_least_per_class,
        config.long_tailed_sets(),
    )
    notes = (*source.notes, *_same_pool(config, source, split), *_small_classes(config, source, split, wanted))
    if isinstance(source.images, Vectors):
        notes = (*notes, *seen_by_backbone(config.split_seed, source.images, split))
    if reserved:
        split = _without_reserve(split, source.labels, config)
    clean = source.labels[split.train]
    noise_rng = np.random.default_rng(derive_seed(seed, "label_noise"))
    labels = noisy_labels(clean, config.noise, source.class_names, noise_rng)
    train = ImageSet(split.train, labels)
    meta = train if config.meta == "from_train" else ImageSet(split.meta, source.labels[split.meta])
    class_counts = np.bincount(labels, minlength=num_classes)
    if (emptied := np.flatnonzero(class_counts == 0)).size:  # published protocols do this to small classes
        classes = ", ".join(named(int(c), source.class_names) for c in emptied)
        notes = (*notes, f"data.noise.rate is {config.noise.rate:g}: with seed {seed} no training image is labelled {classes}")
    return LongTailedData(
        source=source,
        split=split,
        train=train,
        meta=meta,
        val=meta if config.val == "meta" else ImageSet(split.val, source.labels[split.val]),
        test=ImageSet(split.test, source.labels[split.test]),
        class_counts=class_counts,
        clean_counts=np.bincount(clean, minlength=num_classes),
        num_flipped=int((labels != clean).sum()),
        notes=notes,
    )


def _without_reserve(split: Split, labels: Ids, config: DataConfig) -> Split:
    """The split without the images that are kept out of train and not used."""
    of_meta = [split.meta[labels[split.meta] == c][: config.meta_per_class] for c in np.unique(labels[split.meta])]
    nothing = np.empty(0, np.int64)
    meta = nothing if config.meta == "from_train" else np.concatenate(of_meta)
    return replace(split, meta=meta, val=nothing if config.val == "meta" else split.val)


CLEANER = {
    "image_folder": "data.meta_root, and folders val and test beside train, hold images whose labels somebody has checked",
    "image_lists": "data.meta_list, data.val_list and data.test_list name images whose labels somebody has checked",
    "parquet": "files named meta*, val* and test* beside train* hold images whose labels somebody has checked",
}
"""How a source gets clean sets."""


def _same_pool(config: DataConfig, source: Source, split: Split) -> list[str]:
    """A note that names the sets whose labels are as wrong as those of train, because they come from the same images."""
    if config.source not in CLEANER:
        return []
    sets = [name for name in ("meta", "val", "test") if np.isin(getattr(split, name)[:1], source.parts["train"]).any()]
    if config.meta == "from_train":
        sets.insert(0, "meta")
    if not sets:
        return []
    listed = sets[0] if len(sets) == 1 else f"{', '.join(sets[:-1])} and {sets[-1]}"
    return [
        f"data.source is {config.source}: {listed} come from the same images as train, so labels that are wrong there are wrong "
        f"in these sets, too; {CLEANER[config.source]}"
    ]


NAMED = 20
"""How many classes a note names at most."""


def _small_classes(config: DataConfig, source: Source, split: Split, wanted: PerClass) -> list[str]:
    """A note that lists the classes that gave fewer images than the balanced sets ask for.

    Raises:
        ValueError: when a set has no image at all.
    """
    cures = {"meta": "data.meta=from_train needs none", "val": "raise it", "test": "raise it"}
    short: dict[int, list[str]] = {}
    for name in ("meta", "val", "test"):
        number, ids = getattr(wanted, name), getattr(split, name)
        if number != 0 and not len(ids):
            raise ValueError(
                f"data.{name}_per_class is {number}, but no class is large enough to give an image to {name}; {cures[name]}"
            )
        if number is not None and name not in config.long_tailed_sets():
            counts = np.bincount(source.labels[ids], minlength=len(source.class_names))
            for c in np.flatnonzero(counts < number).tolist():
                short.setdefault(c, []).append(f"{name} {counts[c]}")
    if not short:
        return []
    listed = [f"{named(c, source.class_names)}: {', '.join(gives)}" for c, gives in sorted(short.items())[:NAMED]]
    more = f"; and {len(short) - NAMED} more" if len(short) > NAMED else ""
    return [
        f"data.at_least_per_class is {config.at_least_per_class}: {len(short)} of {len(source.class_names)} classes are too "
        f"small and give fewer images than the other classes ({'; '.join(listed)}{more})"
    ]
