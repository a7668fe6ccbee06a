"""AutoAugment for small images: one of 25 learned pairs of operations for each image, a whole batch at once.

The results equal, pixel for pixel, those of torchvision.transforms.v2.AutoAugment(AutoAugmentPolicy.CIFAR10), which processes one
uint8 image at a time. The operations fall into few kinds of work: moving pixels, looking each pixel up in a table of 256 bytes,
and blending an image with a grey or a blurred version. The images are sorted by kind, so that each kind takes a few kernels for
all of its images, whatever their magnitudes.

Source: Cubuk et al., CVPR 2019 (arXiv 1805.09501), appendix; magnitudes as in torchvision.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

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

MAGNITUDES: dict[str, Callable[[int, int], Tensor]] = {
    "shear_y": lambda height, width: torch.linspace(0.0, 0.3, 10),
    "translate_x": lambda height, width: torch.linspace(0.0, 150.0 / 331.0 * width, 10),
    "translate_y": lambda height, width: torch.linspace(0.0, 150.0 / 331.0 * height, 10),
    "rotate": lambda height, width: torch.linspace(0.0, 30.0, 10),
    "brightness": lambda height, width: torch.linspace(0.0, 0.9, 10),
    "color": lambda height, width: torch.linspace(0.0, 0.9, 10),
    "contrast": lambda height, width: torch.linspace(0.0, 0.9, 10),
    "sharpness": lambda height, width: torch.linspace(0.0, 0.9, 10),
    "posterize": lambda height, width: (8 - torch.arange(10) / (9 / 4)).round(),
    "solarize": lambda height, width: torch.linspace(1.0, 0.0, 10),
}
"""Height and width -> the ten magnitudes (10,): slopes, pixels, degrees, changes of a factor, bits kept, fractions of 255."""

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
        # Operations that are not applied get one kind more than there is, which sorts them to the end.
        kind = settings.kind[pair, place, negative].where(happens, len(KINDS))
        images = _operate(images, kind, settings.row[pair, place, negative], settings.parameters)
    return images


def _operate(images: Tensor, kind: Tensor, row: Tensor, parameters: list[Tensor]) -> Tensor:
    """Applies to each image of (B, C, H, W) the operation `kind` (B,), with the parameters in `row` (B,) of that kind's table."""
    kind, order = kind.sort()
    counts = torch.bincount(kind, minlength=len(KINDS) + 1).tolist()
    images = images.index_select(0, order)
    parts, rows = torch.split(images, counts), torch.split(row[order], counts)
    for apply, table, part, part_rows in zip(KINDS, parameters, parts, rows, strict=False):  # the last part is left unchanged
        if len(part):
            part.copy_(apply(part, table.index_select(0, part_rows)))
    return images.index_select(0, order.argsort())


def move(images: Tensor, sources: Tensor) -> Tensor:
    """Images (n, C, H, W) with pixels taken from `sources` (n, H * W), positions in a flat image; H * W is a black pixel."""
    pixels = F.pad(images.flatten(2), (0, 1))
    return pixels.gather(2, sources[:, None].expand(-1, images.shape[1], -1)).view_as(images)


def look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Images (n, C, H, W) with each value replaced by its entry in the image's table (n, C or 1, 256)."""
    return tables.expand(-1, images.shape[1], -1).gather(2, images.flatten(2).long()).view_as(images)


def auto_contrast(images: Tensor, _: Tensor) -> Tensor:
    """Stretches each channel to 0..255. A channel with a single value stays unchanged."""
    pixels = images.flatten(2)
    low, high = pixels.amin(2, keepdim=True).float(), pixels.amax(2, keepdim=True).float()
    varied = high > low
    tables = (_levels(images) - low.where(varied, 0.0)) / ((high - low) * (1 / 255)).where(varied, 1.0)
    return look_up(images, tables.clamp_(0, 255).to(torch.uint8))


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """Equalises the histogram of each channel, in PIL's integer arithmetic. A channel stays unchanged if its step would be 0."""
    pixels = images.flatten(2).long()
    one = torch.ones(1, dtype=torch.int32, device=images.device)
    histogram = one.new_zeros(*pixels.shape[:2], 256).scatter_add_(2, pixels, one.expand_as(pixels))
    below = histogram.cumsum(2, dtype=torch.int32) - histogram
    # As in PIL, the pixels of the largest value do not count when the others are divided among 255 steps.
    step = (pixels.shape[2] - histogram.gather(2, pixels.amax(2, keepdim=True))) // 255
    tables = ((below + step // 2) // step.clamp(min=1)).clamp_(0, 255).where(step > 0, _levels(images).int())
    return look_up(images, tables.to(torch.uint8))


def contrast(images: Tensor, weights: Tensor) -> Tensor:
    """Blends each image with the mean of its grey version; weights (n, 2)."""
    # Grey values are whole numbers, so their float32 sum is exact in any order for images of fewer than 2^16 pixels.
    mean = _grey(images).mean((1, 2))[:, None]
    return look_up(images, _blend(_levels(images)[None], mean, weights)[:, None])


def color(images: Tensor, weights: Tensor) -> Tensor:
    """Blends each image with its grey version; weights (n, 2). A grey image stays unchanged."""
    if images.shape[1] == 1:
        return images
    return _blend(images.float(), _grey(images)[:, None], weights)


def sharpness(images: Tensor, weights: Tensor) -> Tensor:
    """Blends each image with its version after PIL's 3x3 smoothing; weights (n, 2). The outermost pixels stay unchanged."""
    whole = images.to(torch.int16)
    across = whole[..., :-2] + whole[..., 1:-1] + whole[..., 2:]
    total = across[..., :-2, :] + across[..., 1:-1, :] + across[..., 2:, :] + 4 * whole[..., 1:-1, 1:-1]
    smooth = (total.float() / 13).round_()
    sharpened = images.float()
    inner = sharpened[..., 1:-1, 1:-1]
    # The same blend as _blend in another form, which rounds differently. torchvision uses this form for sharpness.
    inner.addcmul_(smooth.sub_(inner), weights[:, 1, None, None, None])
    return sharpened.clamp_(0, 255).to(torch.uint8)


def _blend(values: Tensor, other: Tensor, weights: Tensor) -> Tensor:
    """The sum of values (n or 1, ...) and other (n, ...), weighted by weights (n, 2), as uint8."""
    of_values, of_other = (weight.view(-1, *[1] * (other.dim() - 1)) for weight in weights.unbind(1))
    # addcmul rounds once, after the sum, as torchvision's add with alpha does. With a rounded product 1 pixel in 200 differs.
    return torch.addcmul(values * of_values, other, of_other).clamp_(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """Luma (n, H, W) as whole numbers in float32; adds and rounds in torchvision's order."""
    if images.shape[1] == 1:
        return images[:, 0].float()
    red, green, blue = images.float().unbind(1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()


def _levels(images: Tensor) -> Tensor:
    return torch.arange(256, dtype=torch.float32, device=images.device)


class Operation(NamedTuple):
    """A row of OPERATIONS."""

    apply: Callable[[Tensor, Tensor], Tensor]
    """Images (n, C, H, W) uint8 and their parameters (n, ...) -> images."""
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
            magnitude = 0.0 if level is None else MAGNITUDES[name](height, width)[level].item()
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
