"""AutoAugment for small images: one of 25 learned pairs of operations for each image, a whole batch at once.

The results equal, pixel for pixel, those of torchvision.transforms.v2.AutoAugment(AutoAugmentPolicy.CIFAR10), which processes one
uint8 image at a time.

Source: Cubuk et al., CVPR 2019 (arXiv 1805.09501), appendix; magnitudes as in torchvision.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from trainables.data.operations import Kind, auto_contrast, color, contrast, equalize, look_up, move, operate, sharpness

NUM_DRAWS = 5
"""Random numbers of one image: one selects the pair; for each of the two operations one decides whether it is applied, and one
decides its sign."""

POLICY = (
    (("invert", 0.1, None), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("auto_contrast", 0.5, None), ("equalize", 0.9, None)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, None), ("equalize", 0.5, None)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, None), ("auto_contrast", 0.4, None)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, None)),
    (("equalize", 0.2, None), ("auto_contrast", 0.6, None)),
    (("equalize", 0.2, None), ("equalize", 0.6, None)),
    (("color", 0.9, 9), ("equalize", 0.6, None)),
    (("auto_contrast", 0.8, None), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("auto_contrast", 0.9, None)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("auto_contrast", 0.9, None), ("solarize", 0.8, 3)),
    (("equalize", 0.8, None), ("invert", 0.1, None)),
    (("translate_y", 0.7, 9), ("auto_contrast", 0.9, None)),
)
"""Pairs of operations: name, probability, and index of one of ten magnitudes (None: no magnitude)."""

MAGNITUDES: dict[str, Callable[[int, int, int], Tensor]] = {
    "shear_x": lambda number, height, width: torch.linspace(0.0, 0.3, number),
    "shear_y": lambda number, height, width: torch.linspace(0.0, 0.3, number),
    "translate_x": lambda number, height, width: torch.linspace(0.0, 150.0 / 331.0 * width, number),
    "translate_y": lambda number, height, width: torch.linspace(0.0, 150.0 / 331.0 * height, number),
    "rotate": lambda number, height, width: torch.linspace(0.0, 30.0, number),
    "brightness": lambda number, height, width: torch.linspace(0.0, 0.9, number),
    "color": lambda number, height, width: torch.linspace(0.0, 0.9, number),
    "contrast": lambda number, height, width: torch.linspace(0.0, 0.9, number),
    "sharpness": lambda number, height, width: torch.linspace(0.0, 0.9, number),
    "posterize": lambda number, height, width: (8 - torch.arange(number) / ((number - 1) / 4)).round(),
    "solarize": lambda number, height, width: torch.linspace(1.0, 0.0, number),
}
"""How many magnitudes there are, height and width -> the magnitudes: slopes, pixels, degrees, changes of a factor, bits kept,
fractions of 255."""
NUM_MAGNITUDES = 10

UNSIGNED = {"posterize", "solarize"}
"""Operations whose magnitude is never negated. All other magnitudes are negated with probability 1/2."""


def autoaugment(images: Tensor, draws: Tensor, _mean_pixel: Tensor) -> Tensor:
    """Applies one pair of POLICY to each image.

    Args:
        images: (B, C, H, W) uint8, grey (C = 1) or RGB (C = 3).
        draws: (B, 5) in [0, 1).
    """
    settings = _settings(images.shape[2], images.shape[3], images.device)
    pair = (draws[:, 0] * len(POLICY)).long()
    for place in (0, 1):
        happens = draws[:, 1 + 2 * place] < settings.probability[pair, place]
        negative = (draws[:, 2 + 2 * place] < 0.5).long()
        kind = settings.kind[pair, place, negative].where(happens, len(KINDS))
        row = settings.row[pair, place, negative]

        def parameters(number: int, those: Tensor, row: Tensor = row) -> Tensor:
            return settings.parameters[number].index_select(0, row[those])

        images = operate(images, kind, KINDS, parameters)
    return images


class Operation(NamedTuple):
    """A row of OPERATIONS."""

    apply: Kind
    """What is done with the pixels."""
    parameter: Callable[[float, int, int], Tensor]
    """Magnitude, height and width -> the parameters of `apply` for one image."""


def _sources(matrix: tuple[float, float, float, float, float, float], height: int, width: int) -> Tensor:
    """The source of each pixel, (H * W,), when (x, y) shows (ax + by + c, dx + ey + f); the origin is the image's centre."""
    a, b, c, d, e, f = matrix
    x = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    y = (torch.arange(height, dtype=torch.float64) - (height - 1) / 2)[:, None]
    column = (a * x + b * y + c + (width - 1) / 2).round().long()
    row = (d * x + e * y + f + (height - 1) / 2).round().long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return (row * width + column).where(inside, height * width).flatten()


def _shear_y(magnitude: float, height: int, width: int) -> Tensor:
    return _sources((1, 0, 0, magnitude, 1, magnitude * width / 2), height, width)  # the left edge does not move


def _translate_x(magnitude: float, height: int, width: int) -> Tensor:
    return _sources((1, 0, -int(magnitude), 0, 1, 0), height, width)


def _translate_y(magnitude: float, height: int, width: int) -> Tensor:
    return _sources((1, 0, 0, 0, 1, -int(magnitude)), height, width)


def _rotate(magnitude: float, height: int, width: int) -> Tensor:
    cos, sin = math.cos(math.radians(magnitude)), math.sin(math.radians(magnitude))
    return _sources((cos, -sin, 0, sin, cos, 0), height, width)


def _brightness(magnitude: float, height: int, width: int) -> Tensor:
    return (torch.arange(256) * (1 + magnitude)).clamp_(0, 255).to(torch.uint8)[None]


def _solarize(magnitude: float, height: int, width: int) -> Tensor:
    levels = torch.arange(256)
    return levels.where(levels < 255 * magnitude, 255 - levels).to(torch.uint8)[None]


def _posterize(magnitude: float, height: int, width: int) -> Tensor:
    return (torch.arange(256) & (256 - (1 << (8 - int(magnitude))))).to(torch.uint8)[None]


def _invert(magnitude: float, height: int, width: int) -> Tensor:
    return (255 - torch.arange(256)).to(torch.uint8)[None]


def _weights(magnitude: float, height: int, width: int) -> Tensor:
    return torch.tensor([1 + magnitude, 1 - (1 + magnitude)])


def _nothing(magnitude: float, height: int, width: int) -> Tensor:
    return torch.empty(0)


OPERATIONS = {
    "shear_y": Operation(move, _shear_y),
    "translate_x": Operation(move, _translate_x),
    "translate_y": Operation(move, _translate_y),
    "rotate": Operation(move, _rotate),
    "brightness": Operation(look_up, _brightness),
    "solarize": Operation(look_up, _solarize),
    "posterize": Operation(look_up, _posterize),
    "invert": Operation(look_up, _invert),
    "contrast": Operation(contrast, _weights),
    "auto_contrast": Operation(auto_contrast, _nothing),
    "equalize": Operation(equalize, _nothing),
    "color": Operation(color, _weights),
    "sharpness": Operation(sharpness, _weights),
}
KINDS = list(dict.fromkeys(operation.apply for operation in OPERATIONS.values()))


class Settings(NamedTuple):
    """POLICY for one size of images, on one device."""

    probability: Tensor
    """Probability of each operation, (25, 2)."""
    kind: Tensor
    """Index in KINDS of each operation, with positive and with negative magnitude, (25, 2, 2)."""
    row: Tensor
    """Row of each operation in the parameters of its kind, (25, 2, 2)."""
    parameters: list[Tensor]
    """Parameters of each kind, (rows, ...)."""


@functools.cache
def _settings(height: int, width: int, device: torch.device) -> Settings:
    parameters: list[list[Tensor]] = [[] for _ in KINDS]
    kinds, rows = [], []
    for pair in POLICY:
        for name, _, level in pair:
            apply, parameter = OPERATIONS[name]
            kind = KINDS.index(apply)
            magnitude = 0.0 if level is None else MAGNITUDES[name](NUM_MAGNITUDES, height, width)[level].item()
            for sign in (1, 1 if name in UNSIGNED else -1):
                kinds.append(kind)
                rows.append(len(parameters[kind]))
                parameters[kind].append(parameter(sign * magnitude, height, width))
    shape = (len(POLICY), 2, 2)
    return Settings(
        probability=torch.tensor([[probability for _, probability, _ in pair] for pair in POLICY], device=device),
        kind=torch.tensor(kinds, device=device).view(shape),
        row=torch.tensor(rows, device=device).view(shape),
        parameters=[torch.stack(table).to(device) for table in parameters],
    )
