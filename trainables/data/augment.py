"""Random changes to small training images: a whole batch at once, on the device, each image with its own draw."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Augmentation = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) uint8 -> the same, changed."""

PADDING = 4


def crop_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shifts each image by -4..4 pixels both ways, black coming in at the edges, and mirrors it with probability 1/2.

    Args:
        images: (B, C, H, W) uint8.
        generator: on the CPU, so that the draws are the same on every device.
    """
    size, _, height, width = images.shape
    draws = torch.randint(0, 2 * PADDING + 1, (2, size), generator=generator)
    mirrored = torch.rand(size, generator=generator) < 0.5
    top, left = draws.to(images.device)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    columns = torch.where(mirrored.to(images.device)[:, None], columns.flip(1), columns)
    padded = F.pad(images, (PADDING,) * 4)
    samples = torch.arange(size, device=images.device)
    # Indices on both sides of the channels put those last.
    return padded[samples[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


AUGMENTATIONS: dict[str, Callable[..., Tensor]] = {"crop_flip": crop_flip}
