"""Global average pooling, the last layer of a ResNet's backbone."""

from torch import Tensor, nn


class GlobalAveragePool(nn.Module):
    """The mean over all positions.

    nn.AdaptiveAvgPool2d(1) computes the same, but with channels-last inputs its derivative changes strides in place, and
    linearize.py refuses such operators.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C)."""
        return x.mean((2, 3))
