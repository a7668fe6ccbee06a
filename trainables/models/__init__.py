"""CLASSIFIERS: the classifiers phi: `backbone(x)` -> features (B, D), then `head(features)` -> logits (B, num_classes)."""

from collections.abc import Callable
from typing import Any

import torch

from trainables.classifier_config import ClassifierConfig, ResNetConfig
from trainables.models.classifier import Classifier
from trainables.models.feature_heads import linear, mlp_adapter
from trainables.models.heads import build_head
from trainables.models.pretrained import load_pretrained
from trainables.models.resnet import resnet
from trainables.models.resnet_cifar import resnet_cifar
from trainables.models.resnet_cifar18 import resnet_cifar18
from trainables.models.small_cnn import small_cnn
from trainables.registry import lookup
from trainables.seeds import derive_seed

CLASSIFIERS: dict[str, Callable[[Any, tuple[int, int, int], int], Classifier]] = {
    "small_cnn": small_cnn,
    "resnet_cifar": resnet_cifar,
    "resnet_cifar18": resnet_cifar18,
    "resnet": resnet,
    "linear": linear,
    "mlp_adapter": mlp_adapter,
}


def build_classifier(
    config: ClassifierConfig, image_shape: tuple[int, int, int], num_classes: int, seed: int, pretrained: bool = True
) -> Classifier:
    """A classifier for images of `image_shape` (channels, height, width). Its random initial weights depend on `seed` only.

    Args:
        config: settings of the classifier.
        image_shape: shape of all images.
        num_classes: number of logits.
        seed: the trial's seed.
        pretrained: whether the backbone's weights are read from the file `config.weights`, if the setting is set. Code that loads
            a trained state does not need the file.

    Raises:
        ValueError: when the file cannot be read or does not fit the backbone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "phi"))
        classifier = lookup(CLASSIFIERS, config.name, "classifier")(config, image_shape, num_classes)
    if pretrained and isinstance(config, ResNetConfig) and config.weights is not None:
        load_pretrained(classifier.backbone, config.weights, config.depth)
    return classifier


__all__ = ["CLASSIFIERS", "Classifier", "build_classifier", "build_head"]
