"""HEADS: modules from features (B, D) to logits (B, num_classes). The exact meta-gradient differentiates a head twice."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.classifier_config import ClassifierSettings
from trainables.registry import lookup

MIN_LENGTH = 1e-4
"""Shorter vectors are divided by this length instead of their own. Features after a ReLU can all be 0, and there a direction has
no derivative; with this minimum the derivative is at most 1 / MIN_LENGTH. Useful feature vectors are far longer."""


def build_head(config: ClassifierSettings, num_features: int, num_classes: int) -> nn.Module:
    """The head that `config` names."""
    return lookup(HEADS, config.head, "head")(config, num_features, num_classes)


def linear_head(config: ClassifierSettings, num_features: int, num_classes: int) -> nn.Module:
    """A linear head: a weight vector and a bias for each class."""
    return nn.Linear(num_features, num_classes)


class CosineHead(nn.Module):
    """logits = scale * cos(feature, class vector), without a bias. Source: the head of LDAM's code (Cao et al., NeurIPS 2019)."""

    def __init__(self, config: ClassifierSettings, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.scale = config.scale
        # As in LDAM's code: random directions of length 1. The length does not change the logits, but it divides the gradient.
        self.weight = nn.Parameter(F.normalize(torch.empty(num_classes, num_features).uniform_(-1, 1)))

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, num_classes), in [-scale, scale]; 0 for a feature vector of zeros."""
        return self.scale * F.linear(directions(features), directions(self.weight))


def directions(vectors: Tensor) -> Tensor:
    """Rows (N, D) divided by their lengths. At 0 the first and second derivatives are finite; those of F.normalize are not."""
    squared_length = vectors.square().sum(1, keepdim=True)
    return vectors * squared_length.clamp_min(MIN_LENGTH**2).rsqrt()


HEADS: dict[str, Callable[[ClassifierSettings, int, int], nn.Module]] = {"linear": linear_head, "cosine": CosineHead}
