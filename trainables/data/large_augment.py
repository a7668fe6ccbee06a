"""Augmentation of large training images: each of its own size up to its crop, then whole batches at once, on any device.

An augmented image depends bit for bit on the image and its random numbers only. So reader processes, which augment images one by
one, and a batch on the trial's device give the same images. The results equal, pixel for pixel, those of
torchvision.transforms.v2.functional with the same parameters, and the parameters have the distributions of torchvision's random
transforms.

Random numbers are drawn, and turned into parameters, on the CPU. A GPU gets the parameters and is never waited for.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.data.autoaugment import KINDS, MAGNITUDES, OPERATIONS, UNSIGNED
from trainables.data.decode import SHORT_SIDE
from trainables.data.framing import Framing, Interpolation
from trainables.data.operations import brightness, color, contrast, move, operate
from trainables.registry import lookup

CROP = "resized_crop"
"""The augmentation that brings images to one size."""
AREA, RATIO, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10
"""Of the box that is cropped: share of the image's area, width divided by height, and how many boxes are tried."""
JITTER = 0.4
"""By how much a factor of `color_jitter` differs from 1 at most."""
NUM_OPERATIONS, MAGNITUDE, NUM_MAGNITUDES = 2, 10, 31
"""Of `rand_augment`: operations for each image, and the magnitude of all, from 0 on."""


class Augmentation(NamedTuple):
    """A row of LARGE_AUGMENTATIONS."""

    num_draws: int
    """Uniform random numbers needed for one image."""
    apply: Callable[..., Tensor]
    """Images (B, C, H, W) uint8, draws (B, num_draws) float32 in [0, 1) on the CPU, side of the images that a trial sees ->
    augmented images on the same device. Images of a single size keep it, except that `resized_crop` makes them square."""


def uniform(seeds: NDArray[np.uint64], number: int) -> Tensor:
    """Random numbers of images from their seeds (B,): (B, number) float32 in [0, 1), multiples of 2^-24.

    The k-th number of an image depends on its seed and k only. Source: SplitMix64 (Steele et al., OOPSLA 2014).
    """
    state = seeds[:, None] + np.uint64(0x9E3779B97F4A7C15) * np.arange(1, number + 1, dtype=np.uint64)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return torch.from_numpy((state >> np.uint64(40)).astype(np.float32) * np.float32(2**-24))


def num_draws(names: Sequence[str]) -> int:
    """Number of uniform random numbers that one image needs."""
    return sum(lookup(LARGE_AUGMENTATIONS, name, "augmentation").num_draws for name in names)


def up_to_crop(names: Sequence[str]) -> tuple[str, ...]:
    """Those of the augmentations `names` that see images of different sizes: up to the crop; none if there is no crop."""
    return tuple(names[: max((place for place, name in enumerate(names, 1) if name == CROP), default=0)])


def augment_image(names: Sequence[str], image: Tensor, draws: Tensor, size: int, framing: Framing | None = None) -> Tensor:
    """Applies the augmentations `names` to one image. Without a crop among them, the image is first cut to its middle.

    Args:
        names: keys of LARGE_AUGMENTATIONS.
        image: (C, H, W) uint8.
        draws: (num_draws(names),) float32 in [0, 1), on the CPU.
        size: side of the result.
        framing: what the classifier expects of images. With one, and without a crop, the image is framed already.

    Returns: (C, size, size) uint8.
    """
    images = image[None] if CROP in names or framing is not None else middle(image[None], size)
    return augment(names, images, draws[None], size, "bilinear" if framing is None else framing.interpolation)[0]


def augment(names: Sequence[str], images: Tensor, draws: Tensor, size: int, interpolation: Interpolation = "bilinear") -> Tensor:
    """Applies the augmentations `names` in order to images (B, C, H, W) uint8; each uses its own columns of `draws` (B, ...).

    A crop is resized with `interpolation`.
    """
    rows = [lookup(LARGE_AUGMENTATIONS, name, "augmentation") for name in names]
    for row, columns in zip(rows, torch.split(draws, [row.num_draws for row in rows], dim=1), strict=True):
        more = {"interpolation": interpolation} if row.apply is resized_crop else {}
        images = row.apply(images, columns, size, **more)
    return images


def middle(images: Tensor, size: int) -> Tensor:
    """The central square of the resized images, (B, C, size, size): that of `middle_of_streamed`, rounded as v2.Resize does."""
    from torchvision.transforms.v2 import functional  # imported here, because the import takes a second and only streams need it

    resized = functional.resize(images, [round(size * SHORT_SIDE)], antialias=True)
    whole: Tensor = functional.center_crop(resized, [size, size])
    return whole


# Crop and mirror


def resized_crop(images: Tensor, draws: Tensor, size: int, interpolation: Interpolation = "bilinear") -> Tensor:
    """A random box of each image, resized to `size` by `size`. Source: v2.RandomResizedCrop, with antialiasing.

    Args:
        images: (B, C, H, W) uint8.
        draws: (B, 22) in [0, 1), as `crop_box` uses them.
        size: side of the result.
        interpolation: between pixels.
    """
    from torchvision.transforms.v2 import InterpolationMode, functional

    way, boxes = InterpolationMode(interpolation), [crop_box(of_image, *images.shape[2:]) for of_image in draws.tolist()]
    cropped = [
        functional.resized_crop(image, *box, size=[size, size], interpolation=way, antialias=True)
        for image, box in zip(images, boxes, strict=True)
    ]
    return torch.stack(cropped)


def crop_box(draws: Sequence[float], height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random box in an image.

    Args:
        draws: area and ratio of each of 10 boxes, of which the first that fits is taken; top; left. If none fits, the box is in
            the middle, as large as the ratio allows.
        height: of the image.
        width: of the image.
    """
    least, most = (math.log(ratio) for ratio in RATIO)
    for area_draw, ratio_draw in zip(draws[: 2 * TRIES : 2], draws[1 : 2 * TRIES : 2], strict=True):
        area = height * width * (AREA[0] + area_draw * (AREA[1] - AREA[0]))
        ratio = math.exp(least + ratio_draw * (most - least))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            top, left = draws[2 * TRIES :]
            return int(top * (height - high + 1)), int(left * (width - wide + 1)), high, wide
    wide, high = width, height
    if width / height < RATIO[0]:
        high = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        wide = round(height * RATIO[1])
    return (height - high) // 2, (width - wide) // 2, high, wide


def flip(images: Tensor, draws: Tensor, _size: int) -> Tensor:
    """Mirrors each image with probability 1/2: if its draw, of (B, 1), is below 1/2."""
    return operate(images, (draws[:, 0] >= 0.5).long(), [_mirror], lambda _, those: those)


def _mirror(images: Tensor, _: Tensor) -> Tensor:
    return images.flip(3)


# Colours

JITTERS = (brightness, contrast, color)
ORDERS = torch.tensor(list(itertools.permutations(range(len(JITTERS)))))


def color_jitter(images: Tensor, draws: Tensor, _size: int) -> Tensor:
    """Changes brightness, contrast and saturation of each image by factors of 0.6 to 1.4, in a random order.

    Source: v2.ColorJitter.

    Args:
        images: (B, C, H, W) uint8.
        draws: (B, 4) in [0, 1): one of six orders; the factors of brightness, contrast and saturation.
    """
    factors = (1 - JITTER) + 2 * JITTER * draws[:, 1:]
    weights, each = torch.stack([factors, 1 - factors], dim=2), torch.arange(len(images))
    for kind in ORDERS[(draws[:, 0] * len(ORDERS)).long()].unbind(1):
        images = _jitter(images, kind, weights[each, kind])
    return images


def _jitter(images: Tensor, kind: Tensor, weights: Tensor) -> Tensor:
    """Images (B, C, H, W), each changed by the function `kind` (B,) of JITTERS with its `weights` (B, 2)."""
    return operate(images, kind, JITTERS, lambda _, those: weights[those].to(images.device, non_blocking=True))


# RandAugment

MOVES: dict[str, Callable[[float], dict[str, list[float]]]] = {
    "shear_x": lambda slope: {"shear": [math.degrees(math.atan(slope)), 0.0], "center": [0, 0]},
    "shear_y": lambda slope: {"shear": [0.0, math.degrees(math.atan(slope))], "center": [0, 0]},
    "translate_x": lambda pixels: {"translate": [int(pixels), 0]},
    "translate_y": lambda pixels: {"translate": [0, int(pixels)]},
}
"""Operations that move pixels, but for rotations: magnitude -> arguments of torchvision's `affine`."""
RAND_OPERATIONS = (
    *("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast", "sharpness"),
    *("posterize", "solarize", "auto_contrast", "equalize"),
)
UNCHANGED = len(KINDS)
RAND_KINDS = torch.tensor(
    [
        UNCHANGED if name == "identity" else KINDS.index(move if name in MOVES else OPERATIONS[name].apply)
        for name in RAND_OPERATIONS
    ]
)


def rand_augment(images: Tensor, draws: Tensor, _size: int) -> Tensor:
    """Applies two of 14 operations to each image, of magnitude 10 of 0 to 30, and of either sign.

    Source: Cubuk et al., 2019 (arXiv 1909.13719); operations and magnitudes as in v2.RandAugment.

    Args:
        images: (B, C, H, W) uint8.
        draws: (B, 4) in [0, 1): twice the operation, and its sign, which is negative below 1/2.
    """
    for place in range(NUM_OPERATIONS):
        images = _rand_operation(images, (draws[:, 2 * place] * len(RAND_OPERATIONS)).long(), draws[:, 2 * place + 1] < 0.5)
    return images


def _rand_operation(images: Tensor, which: Tensor, negative: Tensor) -> Tensor:
    """Images (B, C, H, W), each after the operation `which` (B,) with a magnitude that is `negative` (B,) or not."""
    height, width = images.shape[2:]
    chosen = list(zip(which.tolist(), negative.tolist(), strict=True))

    def parameters(_: int, those: Tensor) -> Tensor:
        signed = (chosen[image] for image in those.tolist())
        return torch.stack([rand_parameter(RAND_OPERATIONS[one], sign, height, width, images.device) for one, sign in signed])

    return operate(images, RAND_KINDS[which], KINDS, parameters)


# Those of one size: 13 operations of either sign. Tables of the moves have 8 bytes for each pixel.
@functools.lru_cache(maxsize=2 * len(RAND_OPERATIONS))
def rand_parameter(name: str, negative: bool, height: int, width: int, device: torch.device) -> Tensor:
    """The parameters of an operation of RandAugment for images of this size, on the device."""
    magnitude = float(MAGNITUDES[name](NUM_MAGNITUDES, height, width)[MAGNITUDE]) if name in MAGNITUDES else 0.0
    if negative and name not in UNSIGNED:
        magnitude = -magnitude
    if name in MOVES or name == "rotate":
        return _sources(name, magnitude, height, width).to(device)
    return OPERATIONS[name].parameter(magnitude, height, width).to(device)


def _sources(name: str, magnitude: float, height: int, width: int) -> Tensor:
    """The source of each pixel, (H * W,), as `move` takes it.

    torchvision moves an image of positions, because it decides by rounding errors which of two neighbours a pixel that comes from
    half-way between them equals.
    """
    from torchvision.transforms.v2 import functional

    # Rows and columns apart, because float32 has whole numbers up to 2^24 only. Rows from 1 on: what comes from outside is 0.
    positions = torch.stack(torch.meshgrid(torch.arange(1.0, height + 1), torch.arange(1.0 * width), indexing="ij"))
    if name == "rotate":
        moved = functional.rotate(positions, magnitude)
    else:
        unmoved: dict[str, list[float]] = {"translate": [0, 0], "shear": [0.0, 0.0]}
        moved = functional.affine(positions, angle=0.0, scale=1.0, **(unmoved | MOVES[name](magnitude)))
    row, column = moved.flatten(1).long().unbind()
    found: Tensor = (row - 1) * width + column
    return found.where(row > 0, height * width)


LARGE_AUGMENTATIONS: dict[str, Augmentation] = {
    CROP: Augmentation(2 * TRIES + 2, resized_crop),
    "flip": Augmentation(1, flip),
    "color_jitter": Augmentation(1 + len(JITTERS), color_jitter),
    "rand_augment": Augmentation(2 * NUM_OPERATIONS, rand_augment),
}
