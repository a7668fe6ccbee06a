"""Looks at the images of a split themselves: whether they can be read, and whether one is in two sets."""

import functools
import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainables.data import ImageSet, LongTailedData
from trainables.data.decode import channels_first, decode_each, open_image
from trainables.data.source import EncodedImages, Ids
from trainables.data_config import DataConfig, EncodedConfig


class Duplicate(NamedTuple):
    """One image in two sets, under two ids."""

    sets: tuple[str, str]
    ids: tuple[int, int]


def check_images(config: DataConfig, data: LongTailedData) -> None:
    """Reads the images that are kept in memory, all of them; of streamed ones, one for each class, after a look whether all files
    are there.

    Raises:
        ValueError: naming the place of an image that is missing or cannot be read.
    """
    images = data.source.images
    if not isinstance(images, EncodedImages):
        return
    assert isinstance(config, EncodedConfig)
    ids = all_ids(data)
    if config.streamed():
        images.check(ids)
        ids = np.concatenate([part.ids[np.unique(part.labels, return_index=True)[1]] for part in sets_of(data).values()])
    for _ in decode_each(images, ids, config.image_size, config.grey):
        pass


def find_duplicates(data: LongTailedData) -> list[Duplicate]:
    """Images with the same pixels in different sets; each is reported once, against the first set that has it. Reads all images.

    Raises:
        ValueError: naming the place of an image that is missing or cannot be read.
    """
    digests = dict(content_digests(data))
    first: dict[bytes, tuple[str, int]] = {}
    found = []
    for name, part in sets_of(data).items():
        for image in part.ids.tolist():
            other, twin = first.setdefault(digests[image], (name, image))
            if other != name:
                found.append(Duplicate((other, name), (twin, image)))
    return found


def content_digests(data: LongTailedData) -> Iterator[tuple[int, bytes]]:
    """The id of each image of the sets, and a digest of its pixels, however they are encoded."""
    images = data.source.images
    with ThreadPoolExecutor() as threads:  # decoding a large image leaves Python's lock to the others
        if isinstance(images, EncodedImages):
            for group, held in images.groups(all_ids(data)):
                yield from threads.map(functools.partial(_encoded_digest, held), group.tolist())
        else:
            yield from ((image, _digest(images[image])) for image in all_ids(data).tolist())


def _encoded_digest(images: EncodedImages, image: int) -> tuple[int, bytes]:
    return image, _digest(channels_first(open_image(images, image, grey=False)))


def _digest(pixels: NDArray[np.uint8]) -> bytes:
    return hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=16).digest()


def all_ids(data: LongTailedData) -> Ids:
    """The ids of all sets, (N,)."""
    return np.concatenate([part.ids for part in sets_of(data).values()])


def sets_of(data: LongTailedData) -> dict[str, ImageSet]:
    """The sets by name, without a val that is the meta set."""
    named = {name: getattr(data, name) for name in ("train", "meta", "val", "test")}
    return {name: part for name, part in named.items() if name != "val" or part is not data.meta}
