"""The data of a trial on its device, and what of it the next trial can go on using."""

from dataclasses import dataclass

import numpy as np
import torch

from trainables.data import LongTailedData, build_data
from trainables.data.loader import ImageFormat, ImageStore, LoadedSet
from trainables.data.memory import Pool
from trainables.data.source import EncodedImages, Source
from trainables.data.stream import Streams
from trainables.data_config import DataConfig, EncodedConfig


@dataclass(frozen=True)
class LoadedData:
    """The sets of a trial; test is not among them. `store` has the images of all of them."""

    key: tuple[DataConfig, int, torch.device, int]
    data: LongTailedData
    format: ImageFormat
    store: ImageStore
    train: LoadedSet
    meta: LoadedSet
    val: LoadedSet


def load_data(config: DataConfig, seed: int, device: torch.device, readers: int, kept: LoadedData | None = None) -> LoadedData:
    """Splits the source and brings train, meta and val to the device.

    Args:
        config: of the data.
        seed: of the trial.
        device: where batches go.
        readers: processes that read large images.
        kept: what the trial before has used; it is returned when it fits, and its source and images are used where they fit.

    Raises:
        ValueError: when the source cannot give what `config` asks for, or an image cannot be read.
    """
    key = (config, seed, device, readers)
    if kept is not None and kept.key == key:
        return kept
    if kept is not None and kept.key[0].origin() == config.origin() and kept.key[2:] == (device, readers):
        data, store = build_data(config, seed, kept.data.source), kept.store
    else:
        data = build_data(config, seed)
        store = open_store(config, data.source, device, readers)
    store.hold(np.concatenate([data.train.ids, data.meta.ids, data.val.ids]))
    form = store.format(data.train.ids)
    meta = store.load(data.meta, form)
    val = meta if config.val == "meta" else store.load(data.val, form)
    return LoadedData(key, data, form, store, store.load(data.train, form, config.augment), meta, val)


def open_store(config: DataConfig, source: Source, device: torch.device, readers: int) -> ImageStore:
    """Images in memory or in streams, none of them held yet."""
    if not isinstance(config, EncodedConfig):
        return Pool(source, device)
    if not config.streamed():
        return Pool(source, device, config.image_size, config.grey)
    assert isinstance(source.images, EncodedImages)
    assert config.image_size is not None
    return Streams(source.images, config.image_size, config.grey, device, readers)
