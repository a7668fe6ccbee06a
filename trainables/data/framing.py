"""What a classifier sees of an image that is streamed and not augmented: how it is resized, and the square that is cut out."""

import math
from typing import Literal, NamedTuple

from PIL import Image

from trainables.data.decode import middle_of_streamed, resized

Interpolation = Literal["bilinear", "bicubic"]


class Framing(NamedTuple):
    """What pre-trained weights expect, in the words of timm (Wightman, PyTorch Image Models).

    For a square of `size` pixels, an image is resized to `size / crop_pct` pixels, rounded down; the square is its middle.
    """

    crop_pct: float
    """The share of the resized image's side that the square has; above 1, the image gets a border."""
    interpolation: Interpolation = "bilinear"
    """How pixels of the resized image come about."""
    crop_mode: Literal["center", "squash", "border"] = "center"
    """Which side is resized so. `center`: the short one. `border`: the long one, so that the rest of the square is border.
    `squash`: both, whatever the image's proportions.
    """
    colour: tuple[int, ...] = (0, 0, 0)
    """Of the border, red, green and blue, 0 to 255."""

    def words(self) -> str:
        """Which part of an image is seen, and how it is resized."""
        of = {"center": "short side", "squash": "width and height, which become equal", "border": "long side"}[self.crop_mode]
        return f"{self.crop_pct:.1%} of the {of}, {self.interpolation}"


def framed(image: Image.Image, size: int, framing: Framing | None) -> Image.Image:
    """What is seen of an image, `size` by `size` pixels. Equal to timm's transform for evaluation, including rounding.

    Args:
        image: decoded, grey or colour.
        size: height and width of the result.
        framing: None stands for a classifier without expectations: 256/224 of the size, bilinear.
    """
    if framing is None:
        return middle_of_streamed(image, size)
    image = _resized(image, math.floor(size / framing.crop_pct), framing)
    colour = framing.colour if image.mode == "RGB" else round(sum(framing.colour) / len(framing.colour))
    square = Image.new(image.mode, (size, size), colour)
    left, top = (_first(side, size) for side in image.size)
    square.paste(image, (-left, -top))
    return square


def _resized(image: Image.Image, side: int, framing: Framing) -> Image.Image:
    method = Image.Resampling[framing.interpolation.upper()]
    if framing.crop_mode == "center":
        return resized(image, side, method)
    wanted = side, side
    if framing.crop_mode == "border":
        ratio = max(image.size) / side
        wanted = max(1, round(image.width / ratio)), max(1, round(image.height / ratio))
    return image if image.size == wanted else image.resize(wanted, method)


def _first(side: int, size: int) -> int:
    """The first of the middle `size` pixels of a side; below 0 if the side has fewer. Rounds as torchvision's CenterCrop."""
    return round((side - size) / 2) if side >= size else -((size - side) // 2)
