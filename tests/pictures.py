"""Small images of many kinds, and random numbers, for tests of augmentations."""

import torch
from torch import Tensor

LARGEST_DRAW = 1 - 2**-24


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def pictures(channels: int, height: int, width: int) -> Tensor:
    """Noise, dark noise, few values, a slope, one colour, black and white: (8, C, H, W)."""
    noise = torch.randint(0, 256, (3, channels, height, width), generator=torch.Generator().manual_seed(0))
    slope = (torch.arange(height)[:, None] * 7 + torch.arange(width) * 2 + 10).expand(channels, -1, -1)
    flat = torch.tensor([200, 117, 30])[:channels, None, None].expand(-1, height, width)
    return torch.stack([*noise, noise[0] // 5, noise[0] // 64 * 64, slope, flat, noise[0] // 128 * 255]).to(torch.uint8)
