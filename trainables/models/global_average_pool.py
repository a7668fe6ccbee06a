"""The end of a ResNet's backbone."""

from torch import Tensor, nn


class GlobalAveragePool(nn.Module):
    """The mean over all positions.

    nn.AdaptiveAvgPool2d(1) computes the same, but changes strides in place where channels lie last, which linearize.py refuses.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C)."""
        return x.mean((2, 3))
