"""Looks at every image of a source: which cannot be read, which are the same or nearly the same, which are unusual."""

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainables.data.decode import opened_with, orientation, placed, upright
from trainables.data.source import EncodedImages, Ids, UnreadableImage

HASH_BITS, BAND_BITS = 64, 16
NEAR_BITS = HASH_BITS // BAND_BITS - 1
"""Near duplicates differ in so many bits of their hashes at most. So two of them are equal in one band of bits at least."""
NEAR_LEVELS = 4.0
"""How far the grey levels of near duplicates, reduced to 9x8 pixels, are apart on average."""
FLAT_LEVELS = 4.0
"""Images whose grey levels, reduced to 9x8 pixels, have a smaller standard deviation are like too many others."""
CROWD = 500
"""In a band that is equal in more images than this, no near duplicates are looked for."""
LONG_SIDE, MANY_PIXELS = 8, 50_000_000
"""An image is unusual whose long side is more than so many short sides, or that has more pixels."""


class Look(NamedTuple):
    """What is seen of an image that can be read."""

    digest: bytes
    """Of its size and pixels: equal for equal images, whatever their files are."""
    grey: bytes
    """Its grey levels, reduced to 9x8 pixels, row by row."""
    size: tuple[int, int]
    """Width and height in pixels."""
    turned: bool
    """Whether EXIF says that the camera was not held upright."""
    frames: bool
    """Whether there are more images in the file."""
    transparent: bool


class Survey(NamedTuple):
    """What is seen of all images, by id."""

    faults: dict[int, str]
    """Images that cannot be read, with the reason; it begins with `data.root: ` and the image's place."""
    looks: dict[int, Look]


def survey_images(images: EncodedImages | NDArray[np.uint8], ids: Ids) -> Survey:
    """Decodes the images `ids` and looks at each."""
    survey = Survey({}, {})
    with ThreadPoolExecutor() as threads:  # decoding releases Python's lock
        for image, look in _looks(images, ids, threads):
            if isinstance(look, str):
                survey.faults[image] = look
            else:
                survey.looks[image] = look
    return survey


def _looks(images: EncodedImages | NDArray[np.uint8], ids: Ids, threads: ThreadPoolExecutor) -> Iterator[tuple[int, Look | str]]:
    if isinstance(images, EncodedImages):
        for group, held in images.groups(ids):
            numbers = group.tolist()
            yield from zip(numbers, threads.map(functools.partial(_look, held), numbers), strict=True)
    else:
        for image in ids.tolist():
            pixels = images[image].transpose(1, 2, 0)
            yield image, _seen(Image.fromarray(np.ascontiguousarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])))


def _look(images: EncodedImages, image: int) -> Look | str:
    try:
        return placed(images, image, lambda: opened_with(lambda: images.read(image), _look_at))
    except UnreadableImage as error:
        return str(error)


def _look_at(image: Image.Image) -> Look:
    transparent = image.mode in ("RGBA", "LA") or "transparency" in image.info
    pixels = upright(image, grey=False)
    return _seen(pixels, orientation(image) not in (0, 1), _has_frames(image), transparent)


def _has_frames(image: Image.Image) -> bool:
    try:
        return getattr(image, "n_frames", 1) > 1 and image.format != "MPO"  # a second view in a camera's own format
    except Exception:  # a damaged second frame, in whatever way; the first one could be read
        return True


def _seen(image: Image.Image, turned: bool = False, frames: bool = False, transparent: bool = False) -> Look:
    digest = hashlib.blake2b(repr((image.mode, image.size)).encode() + image.tobytes(), digest_size=16).digest()
    grey = image.convert("L").resize((9, 8), Image.Resampling.BOX)
    return Look(digest, grey.tobytes(), image.size, turned, frames, transparent)


def equal_images(looks: Mapping[int, Look]) -> list[list[int]]:
    """Groups of ids, two or more in each, whose pixels are equal."""
    groups: dict[bytes, list[int]] = {}
    for image, look in looks.items():
        groups.setdefault(look.digest, []).append(image)
    return [group for group in groups.values() if len(group) > 1]


def near_images(looks: Mapping[int, Look]) -> list[tuple[int, int]]:
    """Pairs of ids whose images are nearly the same: resized, compressed again, a little brighter. Of equal ones, one counts.

    Source of the hash: N. Krawetz, "Kind of Like That", 2013 (dHash): whether each grey level is below its right neighbour's.
    """
    first = {look.digest: image for image, look in reversed(list(looks.items()))}
    ids = np.array(sorted(first.values()), np.int64)
    if not len(ids):
        return []
    grey = np.frombuffer(b"".join(looks[image].grey for image in ids.tolist()), np.uint8).reshape(-1, 8, 9).astype(np.int16)
    sound = grey.std((1, 2)) >= FLAT_LEVELS
    ids, grey = ids[sound], grey[sound]
    bits = (grey[:, :, 1:] > grey[:, :, :-1]).reshape(-1, HASH_BITS)
    bands = np.packbits(bits, axis=1).view(np.uint16)
    pairs = {pair for band in bands.T for group in _equal(band) for pair in _close(group, bits, grey)}
    return [(int(ids[a]), int(ids[b])) for a, b in sorted(pairs)]


def _equal(band: NDArray[np.uint16]) -> Iterator[NDArray[np.int64]]:
    """Positions of equal values, two or more in each group."""
    order = np.argsort(band, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(band[order])) + 1):
        if 1 < len(group) <= CROWD:
            yield group


def _close(group: NDArray[np.int64], bits: NDArray[np.bool_], grey: NDArray[np.int16]) -> Iterable[tuple[int, int]]:
    """The pairs in a group that differ in few bits and little in their grey levels."""
    for position, a in enumerate(group[:-1].tolist()):
        others = group[position + 1 :]
        close = (bits[others] != bits[a]).sum(1) <= NEAR_BITS
        close[close] = np.abs(grey[others[close]] - grey[a]).mean((1, 2)) <= NEAR_LEVELS
        yield from ((a, b) for b in others[close].tolist())


def is_extreme(look: Look, image_size: int | None) -> bool:
    """Whether an image is very long, very large, or so small that the classifier sees mostly what resizing has made."""
    short, long = sorted(look.size)
    return long > LONG_SIDE * short or short * long > MANY_PIXELS or (image_size is not None and short * 4 < image_size)
