"""Encoded images as pixels."""

import io
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from trainables.data.source import EncodedImages, Ids

MODES = ("L", "LA", "P", "RGB", "RGBA", "CMYK", "1")


def check_header(images: EncodedImages, image: int) -> None:
    """Looks at the beginning of an encoded image, without decoding it.

    Raises:
        ValueError: naming the place of what is no image.
    """
    _reading(images, image, lambda decoded: decoded)


def open_image(images: EncodedImages, image: int, grey: bool) -> Image.Image:
    """A whole decoded image, in colour or `grey`. Palettes are resolved; transparency and EXIF's orientation are left out.

    Raises:
        ValueError: naming the place of an image that cannot be read.
    """

    def convert(decoded: Image.Image) -> Image.Image:
        # A palette with transparency goes through RGBA, as Pillow asks for.
        opaque = decoded.convert("RGBA") if decoded.mode == "P" and "transparency" in decoded.info else decoded
        return opaque.convert("L" if grey else "RGB")

    return _reading(images, image, convert)


def _reading(images: EncodedImages, image: int, then: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """What `then` makes of an opened image."""
    try:
        opened = Image.open(io.BytesIO(images.read(image)))
        if opened.mode in MODES:
            return then(opened)
    except UnidentifiedImageError as error:
        raise ValueError(f"data.root: {images.place(image)}: not an image that can be read (of no known format)") from error
    except Exception as error:  # damaged files make Pillow's readers raise nearly anything
        raise ValueError(f"data.root: {images.place(image)}: not an image that can be read ({error})") from error
    raise ValueError(
        f"data.root: {images.place(image)}: images of mode {opened.mode} are not read; allowed: 8 bits a channel, grey or colour"
    )


def decode_all(images: EncodedImages, ids: Ids, size: int | None, grey: bool) -> NDArray[np.uint8]:
    """Pixels (len(ids), C, size, size) of different `ids`; where `size` is None the images must have one size of their own.

    Raises:
        ValueError: naming the place of an image that cannot be read or has another size.
    """
    pixels = np.empty((0, 0, 0, 0), np.uint8)
    order = np.argsort(ids)
    for image, found in decode_each(images, ids, size, grey):
        if not len(pixels):
            pixels = np.empty((len(ids), *found.shape), np.uint8)
        pixels[order[np.searchsorted(ids, image, sorter=order)]] = found
    images.release()
    return pixels


def decode_each(images: EncodedImages, ids: Ids, size: int | None, grey: bool) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """The same one by one, (C, size, size), each with its id, in the order in which they lie in the source.

    Raises:
        ValueError: as `decode_all` does.
    """
    shape = None
    for group, held in images.groups(ids):
        for image in group.tolist():
            decoded = open_image(held, image, grey)
            pixels = channels_first(decoded if size is None else middle(decoded, size, size))
            shape = shape or pixels.shape
            if pixels.shape != shape:
                raise ValueError(
                    f"data.root: {images.place(image)}: the image is {pixels.shape}, the first one {shape}; "
                    "set data.image_size to bring all to one size"
                )
            yield image, pixels


def middle(image: Image.Image, resized: int, cropped: int) -> Image.Image:
    """The image with its short side at `resized` pixels, and of that the square of `cropped` pixels in the middle.

    The same as torchvision's Resize and CenterCrop, rounding included.
    """
    width, height = (resized * side // min(image.size) for side in image.size)
    left, top = round((width - cropped) / 2), round((height - cropped) / 2)
    image = image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)
    return image.crop((left, top, left + cropped, top + cropped))


def channels_first(image: Image.Image) -> NDArray[np.uint8]:
    """Pixels (C, H, W) of an image in grey or colour."""
    pixels = np.array(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
