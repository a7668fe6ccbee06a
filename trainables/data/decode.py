"""Decoding of encoded images with Pillow."""

import io
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from trainables.data.source import EMPTY, MISSING, EncodedImages, Ids, UnreadableImage

T = TypeVar("T")
MODES = ("L", "LA", "P", "RGB", "RGBA", "CMYK", "1")
"""Pillow's modes that are read; others, such as 16 bits a channel, are refused."""


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its EXIF orientation."""
BASELINE = 0xC0
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Marks of the frames that a JPEG image may have; the three that are left out are those of tables."""
SHORT_SIDE = 256 / 224
"""Short side of a resized large image without augmentation, divided by the side of the square that is cut out of its middle."""


def check_header(images: EncodedImages, image: int) -> None:
    """Checks the header of an encoded image, without decoding the image.

    Raises:
        ValueError: when it is not an image that can be read; the message names its place.
    """
    placed(images, image, lambda: opened_with(lambda: images.read(image), lambda opened: opened))


def ends_early(encoded: bytes) -> bool:
    """Whether the mark at the end of a JPEG or PNG image is missing. A WebP image gives its length at the beginning. Of other
    formats nothing is known.
    """
    if encoded.startswith(b"\xff\xd8"):
        return not encoded.endswith(b"\xff\xd9")
    if encoded.startswith(b"\x89PNG"):
        return encoded[-8:-4] != b"IEND"
    if encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP":
        return len(encoded) < 8 + int.from_bytes(encoded[4:8], "little")
    return False


def open_image(images: EncodedImages, image: int, grey: bool) -> Image.Image:
    """A decoded image, as `decoded` gives it.

    Raises:
        UnreadableImage: when the image cannot be read; the message names its place.
    """
    return placed(images, image, lambda: decoded(lambda: images.read(image), grey))


def encoded_or_pixels(images: EncodedImages, image: int, grey: bool) -> NDArray[np.uint8]:
    """An image for a device that decodes plain JPEG images: encoded (N,) if it is one, and otherwise its pixels (C, H, W).

    Raises:
        UnreadableImage: when the image cannot be read; the message names its place.
    """
    encoded = b""

    def read() -> bytes:
        nonlocal encoded
        encoded = images.read(image)
        return encoded

    def chosen(opened: Image.Image) -> NDArray[np.uint8]:
        if is_plain_jpeg(opened, encoded):
            return np.frombuffer(encoded, np.uint8).copy()
        return channels_first(upright(opened, grey))

    return placed(images, image, lambda: opened_with(read, chosen))


def is_plain_jpeg(opened: Image.Image, encoded: bytes) -> bool:
    """Whether all JPEG decoders make nearly the same pixels of an image: baseline JPEG, grey or YCbCr, whole, upright."""
    if opened.format != "JPEG" or opened.mode not in ("L", "RGB") or ends_early(encoded) or orientation(opened) != 1:
        return False
    assert isinstance(opened, JpegImageFile)
    stores_rgb = opened.info.get("adobe_transform") == 0 or bytes(layer[0] for layer in opened.layer) == b"RGB"
    return _frame(encoded) == BASELINE and (opened.mode == "L" or not stores_rgb)


def _frame(jpeg: bytes) -> int:
    """The mark of a JPEG image's frame, which says how the image is coded; 0 if there is none."""
    place = 2
    while place + 4 <= len(jpeg) and jpeg[place] == 0xFF:
        mark = jpeg[place + 1]
        if mark in FRAMES:
            return mark
        # A mark may follow several bytes of 0xFF. All others up to the frame have a length.
        place += 1 if mark == 0xFF else 2 + int.from_bytes(jpeg[place + 2 : place + 4])
    return 0


def placed(images: EncodedImages, image: int, read: Callable[[], T]) -> T:
    """What `read` gives of an image; its errors name the image's place.

    Raises:
        UnreadableImage: when the image cannot be read.
    """
    try:
        return read()
    except UnreadableImage as error:
        raise UnreadableImage(f"data.root: {images.place(image)}: {error}") from error


def decoded(read: Callable[[], bytes], grey: bool) -> Image.Image:
    """A decoded image, in colour or `grey`, turned as its EXIF orientation says. Palettes are resolved; transparency is ignored.

    Args:
        read: reads the encoded image.
        grey: one channel instead of three.

    Raises:
        UnreadableImage: when the image cannot be read; the message does not say which one it is.
    """
    return opened_with(read, lambda image: upright(image, grey))


def upright(image: Image.Image, grey: bool) -> Image.Image:
    """What `decoded` makes of an opened image. Errors are Pillow's own."""
    # Pillow asks for RGBA as an intermediate mode when a palette has transparency.
    opaque = image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image
    flat = opaque.convert("L" if grey else "RGB")
    turn = TURNS.get(orientation(image))
    return flat if turn is None else flat.transpose(turn)


def orientation(image: Image.Image) -> int:
    """How a camera was held, as EXIF numbers it: 1 is upright. Also 1 if the image does not say, or says it in a damaged form.

    The image must be decoded already: of some formats, Pillow would decode it here, and its errors would be lost.
    """
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow's readers raise exceptions of many types; the pixels may be sound all the same
        return 1


def opened_with(read: Callable[[], bytes], then: Callable[[Image.Image], T]) -> T:
    """Opens an image and applies `then` to it; any failure becomes an UnreadableImage."""
    try:
        encoded = read()
        if not encoded:
            raise UnreadableImage(EMPTY)
        opened = Image.open(io.BytesIO(encoded))
        if opened.mode in MODES:
            return then(opened)
    except UnreadableImage:
        raise
    except FileNotFoundError as error:
        raise UnreadableImage(MISSING) from error
    except UnidentifiedImageError as error:
        raise UnreadableImage("not an image that can be read (of no known format)") from error
    except Exception as error:  # with damaged files Pillow's readers raise exceptions of many types
        raise UnreadableImage(f"not an image that can be read ({error})") from error
    raise UnreadableImage(f"images of mode {opened.mode} are not read; allowed: 8 bits a channel, grey or colour")


def decode_all(images: EncodedImages, ids: Ids, size: int | None, grey: bool) -> NDArray[np.uint8]:
    """Pixels (len(ids), C, size, size) of distinct `ids`. If `size` is None, all images must have the same size already.

    Raises:
        ValueError: when an image cannot be read or has another size; the message names its place.
    """
    pixels = np.empty((0, 0, 0, 0), np.uint8)
    # Images arrive in the order of the source; each is written to its own row, so that two copies never exist at a time.
    order = np.argsort(ids)
    for image, found in decode_each(images, ids, size, grey):
        if not len(pixels):
            pixels = np.empty((len(ids), *found.shape), np.uint8)
        pixels[order[np.searchsorted(ids, image, sorter=order)]] = found
    images.release()
    return pixels


def decode_each(images: EncodedImages, ids: Ids, size: int | None, grey: bool) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Ids and pixels (C, size, size) of the images one by one, in the order of the source.

    Raises:
        ValueError: as `decode_all`.
    """
    shape = None
    for group, held in images.groups(ids):
        for image in group.tolist():
            opened = open_image(held, image, grey)
            pixels = channels_first(opened if size is None else middle(opened, size, size))
            shape = shape or pixels.shape
            if pixels.shape != shape:
                raise ValueError(
                    f"data.root: {images.place(image)}: the image is {pixels.shape}, the first one {shape}; "
                    "set data.image_size to bring all to one size"
                )
            yield image, pixels


def middle_of_streamed(image: Image.Image, size: int) -> Image.Image:
    """What is seen of an image that is streamed and not augmented, `size` by `size` pixels."""
    return middle(image, round(size * SHORT_SIDE), size)


def middle(image: Image.Image, resized_to: int, cropped: int) -> Image.Image:
    """Resizes the short side of the image to `resized_to` pixels and cuts out the central square of `cropped` pixels.

    Equal to torchvision's Resize and CenterCrop, including rounding.
    """
    image = resized(image, resized_to)
    left, top = (round((side - cropped) / 2) for side in image.size)
    return image.crop((left, top, left + cropped, top + cropped))


def resized(image: Image.Image, short_side: int, method: Image.Resampling = Image.Resampling.BILINEAR) -> Image.Image:
    """The image with a short side of so many pixels. Equal to torchvision's Resize, including rounding."""
    width, height = (short_side * side // min(image.size) for side in image.size)
    return image if image.size == (width, height) else image.resize((width, height), method)


def channels_first(image: Image.Image) -> NDArray[np.uint8]:
    """Pixels (C, H, W) of a grey or colour image."""
    pixels = np.array(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
