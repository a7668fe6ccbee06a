"""A classifier from outside the package: one hidden layer on the pixels. README.md has the command that runs this example."""

import math
from typing import Literal

from pydantic import Field
from torch import nn

from trainables.classifier_config import ClassifierSettings
from trainables.models import Classifier, build_head
from trainables.plugins import register_classifier


class MLPConfig(ClassifierSettings):
    """For small images: a hidden layer with ReLU, and a head on the hidden layer."""

    name: Literal["mlp"] = "mlp"
    """Name of the classifier."""
    hidden_width: int = Field(64, ge=1)
    """Width of the hidden layer."""


def mlp(config: MLPConfig, image_shape: tuple[int, int, int], num_classes: int) -> Classifier:
    """The classifier. Methods act on features, so the backbone ends where the head begins."""
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(image_shape), config.hidden_width), nn.ReLU())
    return Classifier(backbone, build_head(config, config.hidden_width, num_classes), config.hidden_width)


register_classifier(MLPConfig, mlp)
