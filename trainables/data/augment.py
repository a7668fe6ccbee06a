"""Augmentation of small training images: whole batches at once, on the device, with separate random numbers for each image.

An augmented image depends bit for bit on the image, its random numbers and the mean pixel only. Batches may therefore be
augmented one by one or several at a time.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.data import autoaugment
from trainables.registry import lookup

PADDING = 4


class Augmentation(NamedTuple):
    """A row of AUGMENTATIONS."""

    num_draws: int
    """Uniform random numbers needed for one image."""
    apply: Callable[[Tensor, Tensor, Tensor], Tensor]
    """Images (B, C, H, W) uint8, draws (B, num_draws) float32 in [0, 1), mean pixel (C,) -> augmented images."""


def augment(names: Sequence[str], images: Tensor, draws: Tensor, mean_pixel: Tensor) -> Tensor:
    """Applies the augmentations `names` in order; each uses its own columns of `draws`.

    Args:
        names: keys of AUGMENTATIONS.
        images: (B, C, H, W) uint8.
        draws: (B, num_draws(names)) float32 in [0, 1), on the device of the images.
        mean_pixel: (C,), whole numbers from 0 to 255; cutout fills with this colour.
    """
    rows = [lookup(AUGMENTATIONS, name, "augmentation") for name in names]
    for row, columns in zip(rows, torch.split(draws, [row.num_draws for row in rows], dim=1), strict=True):
        images = row.apply(images, columns, mean_pixel)
    return images


def num_draws(names: Sequence[str]) -> int:
    """Number of uniform random numbers that one image needs."""
    return sum(lookup(AUGMENTATIONS, name, "augmentation").num_draws for name in names)


def crop_flip(images: Tensor, draws: Tensor, _mean_pixel: Tensor) -> Tensor:
    """Mirrors each image with probability 1/2 and shifts it by -4..4 pixels in both directions; the borders are filled black.

    Args:
        images: (B, C, H, W) uint8.
        draws: (B, 3) in [0, 1): vertical shift, horizontal shift, mirrored if below 1/2.
    """
    top, left = (draws[:, :2] * (2 * PADDING + 1)).long().unbind(1)
    mirrored = (draws[:, 2] < 0.5).long()
    padded = F.pad(torch.cat([images, images.flip(3)]), (PADDING,) * 4)
    # An overlapping view with one entry for each position at which a window can begin, so that one index_select crops all images
    # and copies whole rows of pixels.
    per_image, per_channel, per_row, _ = padded.stride()
    last = (len(padded) - 1) * per_image + 2 * PADDING * (per_row + 1)
    windows = padded.as_strided((last + 1, *images.shape[1:]), (1, per_channel, per_row, 1))
    number = torch.arange(len(images), device=images.device) + mirrored * len(images)
    return windows.index_select(0, number * per_image + top * per_row + left)


def cutout(images: Tensor, draws: Tensor, mean_pixel: Tensor) -> Tensor:
    """Covers a square of half the image's height with the mean pixel, which becomes about 0 by normalisation.

    The centre may be any pixel, so a part of the square may lie outside. Source: DeVries & Taylor, 2017 (arXiv 1708.04552).

    Args:
        images: (B, C, H, W) uint8.
        draws: (B, 2) in [0, 1): row and column of the centre.
        mean_pixel: (C,), whole numbers from 0 to 255.
    """
    side = images.shape[2] // 2
    rows, columns = (_covered(draw, size, side) for draw, size in zip(draws.unbind(1), images.shape[2:], strict=True))
    mask = (rows[:, :, None] & columns[:, None, :])[:, None]
    # Selection by bit operations, because torch.where takes seven times as long for bytes.
    return images ^ ((images ^ mean_pixel.to(torch.uint8)[:, None, None]) & mask)


def _covered(draws: Tensor, size: int, side: int) -> Tensor:
    """255 for rows (or columns) of the image that the square covers, 0 for the others: (B, size) uint8."""
    first = (draws * size).long()[:, None] - side // 2
    place = torch.arange(size, device=draws.device)
    return ((place >= first) & (place < first + side)).to(torch.uint8) * 255


AUGMENTATIONS: dict[str, Augmentation] = {
    "crop_flip": Augmentation(3, crop_flip),
    "autoaugment": Augmentation(autoaugment.NUM_DRAWS, autoaugment.autoaugment),
    "cutout": Augmentation(2, cutout),
}
