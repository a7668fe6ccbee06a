"""CLASSIFIERS: every classifier phi is `backbone(x)` -> features (B, D), then `head(features)` -> logits (B, num_classes)."""

from collections.abc import Callable
from typing import Any

import torch

from trainables.config import ClassifierConfig
from trainables.models.classifier import Classifier
from trainables.models.resnet_cifar import resnet_cifar
from trainables.models.small_cnn import small_cnn
from trainables.registry import lookup
from trainables.seeds import derive_seed

CLASSIFIERS: dict[str, Callable[[Any, tuple[int, int, int], int], Classifier]] = {
    "small_cnn": small_cnn,
    "resnet_cifar": resnet_cifar,
}


def build_classifier(config: ClassifierConfig, image_shape: tuple[int, int, int], num_classes: int, seed: int) -> Classifier:
    """A classifier for images of `image_shape` (channels, height, width) whose initial weights depend on `seed` only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "phi"))
        return lookup(CLASSIFIERS, config.name, "classifier")(config, image_shape, num_classes)


__all__ = ["CLASSIFIERS", "Classifier", "build_classifier"]
