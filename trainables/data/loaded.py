"""The data of a trial on its device, and what of it the next trial can go on using."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trainables.data import ImageSet, LongTailedData, build_data
from trainables.data.loader import LoadedSet, Normalisation
from trainables.data.memory import MemorySet, Pool
from trainables.data.source import EncodedImages
from trainables.data.stream import GREY, IMAGENET, StreamSet
from trainables.data_config import DataConfig, EncodedConfig


@dataclass(frozen=True)
class ImageFormat:
    """What a classifier takes: images of `shape` (C, H, W), normalised."""

    shape: tuple[int, int, int]
    normalisation: Normalisation


@dataclass(frozen=True)
class LoadedData:
    """The sets of a trial; test is not among them. `pool` holds the images of all of them, unless they are streamed."""

    key: tuple[DataConfig, int, torch.device, int]
    data: LongTailedData
    format: ImageFormat
    pool: Pool | None
    train: LoadedSet
    meta: LoadedSet
    val: LoadedSet


def load_data(config: DataConfig, seed: int, device: torch.device, workers: int, kept: LoadedData | None = None) -> LoadedData:
    """Splits the source and brings train, meta and val to the device.

    Args:
        config: of the data.
        seed: of the trial.
        device: where batches go.
        workers: processes that read large images.
        kept: what the trial before has used; it is returned when it fits, and its source and images are used where they fit.

    Raises:
        ValueError: when the source cannot give what `config` asks for, or an image cannot be read.
    """
    key = (config, seed, device, workers)
    if kept is not None and kept.key == key:
        return kept
    same = kept is not None and kept.key[0].origin() == config.origin() and kept.key[2] == device
    data = build_data(config, seed, kept.data.source if kept and same else None)
    pool = kept.pool if kept and same else open_pool(config, data, device)
    if pool:
        pool.hold(np.concatenate([data.train.ids, data.meta.ids, data.val.ids]))
    image_format = format_of(config, data, pool)

    def load(part: ImageSet, **options: Any) -> LoadedSet:
        return load_set(config, data, part, image_format.normalisation, pool, device, workers, **options)

    meta = load(data.meta)
    val = meta if config.val == "meta" else load(data.val)
    return LoadedData(key, data, image_format, pool, load(data.train, augmented=True), meta, val)


def open_pool(config: DataConfig, data: LongTailedData, device: torch.device) -> Pool | None:
    """An empty pool for images that are kept in memory; None for those that are streamed."""
    if config.streamed():
        return None
    if isinstance(config, EncodedConfig):
        return Pool(data.source, device, config.image_size, config.grey)
    return Pool(data.source, device)


def format_of(config: DataConfig, data: LongTailedData, pool: Pool | None) -> ImageFormat:
    """Images in memory are normalised by their own statistics over the training set, streamed ones by ImageNet's."""
    if pool is not None:
        channels, height, width = pool.pixels.shape[1:]
        return ImageFormat((channels, height, width), pool.statistics(data.train.ids))
    assert isinstance(config, EncodedConfig)
    assert config.image_size is not None
    normalisation = GREY if config.grey else IMAGENET
    return ImageFormat((len(normalisation.mean), config.image_size, config.image_size), normalisation)


def load_set(
    config: DataConfig,
    data: LongTailedData,
    part: ImageSet,
    normalisation: Normalisation,
    pool: Pool | None,
    device: torch.device,
    workers: int,
    augmented: bool = False,
) -> LoadedSet:
    """One set, from the pool or as a stream; only `augmented` ones know augmentations."""
    augmentations = config.augment if augmented else ()
    if pool is not None:
        return MemorySet(pool, part, normalisation, augmentations)
    images = data.source.images
    assert isinstance(images, EncodedImages)
    assert isinstance(config, EncodedConfig)
    assert config.image_size is not None
    return StreamSet(images, part, config.image_size, config.grey, device, workers, augmentations)
