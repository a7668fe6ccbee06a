"""The data sets of a trial on its device, and their reuse by the next trial."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from trainables.config import ComputeConfig
from trainables.data import LongTailedData, build_data
from trainables.data.features import FeaturePool
from trainables.data.loader import IN_READERS, Expected, ImageFormat, ImageStore, LoadedSet, Normalisation, OnDevice, Uses
from trainables.data.memory import Pool
from trainables.data.source import EncodedImages, Source, Vectors
from trainables.data.stream import Streams
from trainables.data_config import DataConfig, EncodedConfig, FeaturesConfig


@dataclass(frozen=True)
class LoadedData:
    """The train, meta and val sets of a trial, without test. `store` has the images of all three."""

    key: tuple[DataConfig, int, torch.device, int, int, OnDevice, Expected | None]
    data: LongTailedData
    format: ImageFormat
    store: ImageStore
    train: LoadedSet
    meta: LoadedSet
    val: LoadedSet


def load_data(
    config: DataConfig,
    seed: int,
    device: torch.device,
    readers: int,
    kept: LoadedData | None = None,
    room: int = 0,
    expected: Expected | None = None,
    moved: OnDevice = IN_READERS,
) -> LoadedData:
    """Splits the source and brings train, meta and val to the device.

    Args:
        config: settings of the data.
        seed: the trial's seed.
        device: device of the batches.
        readers: number of processes that read large images.
        kept: the previous trial's data. It is returned if all other arguments are equal. If only the origin of the images, the
            device, the readers, the room and `moved` are equal, its source and images are reused.
        room: bytes on the device for images of a stream that are decoded once and kept.
        expected: what the classifier's weights expect of images; None leaves it to the data.
        moved: what is done with training images of a stream on the device.

    Raises:
        ValueError: when the source cannot provide what `config` asks for, or an image cannot be read.
    """
    key = (config, seed, device, readers, room, moved, expected)
    if kept is not None and kept.key == key:
        return kept
    if kept is not None and kept.key[0].origin() == config.origin() and kept.key[2:6] == key[2:6]:
        data, store = build_data(config, seed, kept.data.source), kept.store
    else:
        data = build_data(config, seed)
        store = open_store(config, data.source, device, readers, room, moved)
    store.hold(np.concatenate([data.train.ids, data.meta.ids, data.val.ids]), uses_of(config, data))
    if isinstance(store, Streams) and store.num_not_kept:
        data = replace(data, notes=(*data.notes, store.note()))
    form = format_of(store, data, expected)
    meta = store.load(data.meta, form)
    val = meta if config.val == "meta" else store.load(data.val, form)
    return LoadedData(key, data, form, store, store.load(data.train, form, config.augment), meta, val)


def on_device(compute: ComputeConfig) -> OnDevice:
    """What is done with training images on the device, as the settings say."""
    return OnDevice(augment=compute.augment_on == "device", decode=compute.decode_on == "device")


def format_of(store: ImageStore, data: LongTailedData, expected: Expected | None) -> ImageFormat:
    """The format of the images of a trial whose store holds them: as expected, or as the data says."""
    form = store.format(data.train.ids)
    return form if expected is None else as_expected(expected, form.shape, data.source.white, isinstance(store, Streams))


def as_expected(expected: Expected, shape: tuple[int, int, int], white: int, streamed: bool) -> ImageFormat:
    """The format of images (C, H, W) whose pixels count up to `white`, as a classifier expects it.

    Images that are not streamed are not framed: they have their size, or get it when they are decoded.
    """
    mean, std = (tuple(white * value for value in values) for values in expected.normalisation)
    if len(mean) != shape[0]:  # grey images of a model for colours
        mean, std = ((sum(values) / len(values),) * shape[0] for values in (mean, std))
    return ImageFormat(shape, Normalisation(mean, std), expected.framing if streamed else None)


def uses_of(config: DataConfig, data: LongTailedData) -> Uses:
    """What a trial uses its images for."""
    again = [data.meta.ids, data.val.ids]
    if data.meta is data.train:
        # Meta batches have all classes equally often, so the images of small classes come up most often.
        again = [data.val.ids, data.train.ids[np.argsort(data.class_counts[data.train.labels], kind="stable")]]
    return Uses(again if config.augment else [*again, data.train.ids], data.train.ids)


def open_store(
    config: DataConfig,
    source: Source,
    device: torch.device,
    readers: int,
    room: int = 0,
    moved: OnDevice = IN_READERS,
) -> ImageStore:
    """The store for a source: in memory for vectors and small images, streams for large ones. It holds no encoded image yet.

    Streams have `room` bytes on the device for images that are decoded once and kept. There they do with training images what
    `moved` says.

    Raises:
        ValueError: when the device cannot decode images, but is to do so.
    """
    if isinstance(config, FeaturesConfig):
        assert isinstance(source.images, Vectors)
        return FeaturePool(source.images, device, config.standardise)
    if not isinstance(config, EncodedConfig):
        return Pool(source, device)
    if not config.streamed():
        return Pool(source, device, config.image_size, config.grey)
    assert isinstance(source.images, EncodedImages)
    assert config.image_size is not None
    return Streams(source.images, config.image_size, config.grey, device, readers, room, config.shrink, moved)
