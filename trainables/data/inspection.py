"""Checks before a sweep starts whether the images of a split can be read."""

import time

import numpy as np

from trainables.data import ImageSet, LongTailedData
from trainables.data.decode import check_header, decode_each, ends_early, open_image
from trainables.data.source import EncodedImages, Ids, UnreadableImage
from trainables.data_config import DataConfig, EncodedConfig
from trainables.shown_commands import shown_command

HEADERS = 5000
"""About how many headers and ends of streamed images are checked before a sweep starts; at most twice as many."""
DECODING_S = 3.0
"""About how long streamed images are decoded before a sweep starts, beside one image of each class in each set, in seconds."""


def check_images(config: DataConfig, data: LongTailedData) -> None:
    """Checks that the images can be read.

    Images that are kept in memory are all decoded. Of streamed images all files must exist, headers and ends of at least
    HEADERS images are checked (of all, if there are fewer), and one image of each class in each set is decoded, and then as many
    others as DECODING_S allows, evenly spread. A header does not show that the rest of the file is missing, the end does; faults
    in the middle of a file are found by decoding only.

    Raises:
        ValueError: when an image is missing or cannot be read; the message names its place.
    """
    images = data.source.images
    if not isinstance(images, EncodedImages):
        return
    assert isinstance(config, EncodedConfig)
    try:
        _check(images, config, data)
    except UnreadableImage as error:  # there may be more
        way_out = f"they are found by: {shown_command('orchestrator.doctor', 'SWEEP.yaml')}"
        raise ValueError(f"{error}; data.broken=skip leaves out all images that cannot be read; {way_out}") from error


def _check(images: EncodedImages, config: EncodedConfig, data: LongTailedData) -> None:
    ids = all_ids(data)
    images.check(ids)
    if not config.streamed():
        _decode(images, ids, config)
        return
    for group, held in images.groups(ids[:: max(1, len(ids) // HEADERS)]):
        for image in group.tolist():
            check_header(held, image)
            if ends_early(held.read(image)):  # a file with something else behind the image may end so too: decoding tells
                open_image(held, image, config.grey)
    some = np.concatenate([part.ids[np.unique(part.labels, return_index=True)[1]] for part in sets_of(data).values()])
    began = time.perf_counter()
    _decode(images, some, config)
    affordable = int(DECODING_S * len(some) / (time.perf_counter() - began))
    _decode(images, ids[:: -(-len(ids) // max(1, affordable))], config)


def _decode(images: EncodedImages, ids: Ids, config: EncodedConfig) -> None:
    """Decodes images and forgets them.

    Raises:
        ValueError: when an image cannot be read; the message names its place.
    """
    for _ in decode_each(images, ids, config.image_size, config.grey):
        pass


def all_ids(data: LongTailedData) -> Ids:
    """The ids of all sets, (N,)."""
    return np.concatenate([part.ids for part in sets_of(data).values()])


def sets_of(data: LongTailedData) -> dict[str, ImageSet]:
    """The sets by name, without val if val is the meta set, and without meta if its images are those of train."""
    named = {name: getattr(data, name) for name in ("train", "meta", "val", "test")}
    twins = {"val": data.meta, "meta": data.train}
    return {name: part for name, part in named.items() if part is not twins.get(name)}
