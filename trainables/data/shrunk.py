"""Training images that are read from small copies of their pixels instead of large files."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from trainables.data.cache import CACHE
from trainables.data.decode import channels_first, open_image, resized
from trainables.data.packed import NoRoom, Pack, packed
from trainables.data.source import EncodedImages, Ids
from trainables.machine import num_cores

FORMAT = b"1"
"""Changes when the same image becomes another record."""
SIZE_BYTES = 8
"""Bytes of height and width, which precede the pixels of a record."""
IMAGES_AT_ONCE = 256
"""How many images are in memory at a time while they are shrunk."""


class ShrunkImages(NamedTuple):
    """Images whose short side has at most so many pixels as `data.shrink` says."""

    pack: Pack
    grey: bool

    def pixels(self, image: int) -> NDArray[np.uint8]:
        """The pixels (C, H, W) of an image of the pack.

        Raises:
            OSError: when the record is damaged.
        """
        record = self.pack.read(image)
        height, width = np.frombuffer(record, "<u4", 2).tolist()
        return np.frombuffer(record, np.uint8, offset=SIZE_BYTES).reshape(-1, height, width).copy()

    def open(self, image: int) -> Image.Image:
        """The same as an image."""
        pixels = self.pixels(image)
        return Image.fromarray(pixels[0] if self.grey else pixels.transpose(1, 2, 0))


def shrunk_images(images: EncodedImages, ids: Ids, side: int, grey: bool) -> ShrunkImages:
    """The images `ids` (N,), shrunk once on this machine and shared by its processes.

    Args:
        images: encoded.
        ids: of the images.
        side: pixels that the short side has at most; a smaller image stays as it is.
        grey: one channel instead of three.

    Raises:
        ValueError: when an image cannot be read, or the cache has no room.
    """

    def shrink(held: EncodedImages, image: int) -> bytes:
        opened = open_image(held, image, grey)
        small = channels_first(resized(opened, min(side, *opened.size)))
        return np.array(small.shape[1:], "<u4").tobytes() + small.tobytes()

    def records(wanted: Ids) -> Iterator[tuple[int, bytes]]:
        with ThreadPoolExecutor(num_cores()) as threads:  # decoding releases Python's lock
            for group, held in images.groups(wanted):
                for first in range(0, len(group), IMAGES_AT_ONCE):
                    some = group[first : first + IMAGES_AT_ONCE].tolist()
                    yield from zip(some, threads.map(lambda image, held=held: shrink(held, image), some), strict=True)

    what = f"{side} {grey} {PIL.__version__} ".encode()
    try:
        return ShrunkImages(packed("shrunk", FORMAT + what + images.stamp(np.unique(ids)), ids, records), grey)
    except NoRoom as error:
        raise ValueError(
            f"data.shrink is {side}, but the shrunk images of data.root cannot be kept in {error}; allowed: a smaller side, a "
            f"folder with room for them, which the environment variable {CACHE} names, or data.shrink left out"
        ) from error
