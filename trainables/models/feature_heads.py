"""Classifiers for feature vectors, whose backbone was computed before: a head alone, and a head behind an adapter."""

import math

from torch import Tensor, nn
from torch.nn import functional as F

from trainables.classifier_config import LinearConfig, MLPAdapterConfig
from trainables.models.classifier import Classifier
from trainables.models.heads import build_head


class Adapter(nn.Module):
    """f + up(ReLU(down(f))), where `up` begins with zeros.

    Source: Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", ICML 2019.

    Args:
        num_features: D.
        width: of the bottleneck.
    """

    def __init__(self, num_features: int, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(num_features, width), nn.Linear(width, num_features)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        adapted: Tensor = features + self.up(F.relu(self.down(features)))
        return adapted


def linear(config: LinearConfig, image_shape: tuple[int, int, int], num_classes: int) -> Classifier:
    """A head on the numbers of an image."""
    num_features = math.prod(image_shape)
    return Classifier(nn.Flatten(), build_head(config, num_features, num_classes), num_features)


def mlp_adapter(config: MLPAdapterConfig, image_shape: tuple[int, int, int], num_classes: int) -> Classifier:
    """An adapter and a head."""
    num_features = math.prod(image_shape)
    backbone = nn.Sequential(nn.Flatten(), Adapter(num_features, config.bottleneck))
    return Classifier(backbone, build_head(config, num_features, num_classes), num_features)
