"""Training images that are read from small copies of their pixels instead of large files."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import PIL
from PIL import Image

from trainables.data.cache import CACHE
from trainables.data.decode import open_image, resized
from trainables.data.packed import NoRoom, Pack, packed
from trainables.data.source import EncodedImages, Ids
from trainables.machine import num_cores

FORMAT = b"1"
"""Changes when the same image becomes another record."""
SIZE_BYTES = 8
IMAGES_AT_ONCE = 256
"""How many images are in memory at a time while they are shrunk."""


class ShrunkImages(NamedTuple):
    """Images whose short side has at most so many pixels as `data.shrink` says."""

    pack: Pack
    grey: bool

    def open(self, image: int) -> Image.Image:
        """An image of the pack.

        Raises:
            OSError: when the record is damaged.
        """
        record = self.pack.read(image)
        width, height = np.frombuffer(record, "<u4", 2).tolist()
        return Image.frombytes("L" if self.grey else "RGB", (width, height), record[SIZE_BYTES:])


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
        small = resized(opened, min(side, *opened.size))
        return np.array(small.size, "<u4").tobytes() + small.tobytes()

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
