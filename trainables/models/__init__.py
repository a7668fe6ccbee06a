"""CLASSIFIERS: the classifiers phi: `backbone(x)` -> features (B, D), then `head(features)` -> logits (B, num_classes)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from trainables.classifier_config import BackboneSettings, ClassifierConfig, ResNetConfig, TimmConfig, TorchvisionConfig
from trainables.data.loader import Expected, Normalisation
from trainables.models.adaptation import adapt, torchvision_blocks
from trainables.models.classifier import Classifier
from trainables.models.feature_heads import linear, mlp_adapter
from trainables.models.heads import build_head
from trainables.models.pretrained import IMAGENET, Architecture, exported_input, load_pretrained, published_input
from trainables.models.resnet import resnet, resnet_architecture
from trainables.models.resnet_cifar import resnet_cifar
from trainables.models.resnet_cifar18 import resnet_cifar18
from trainables.models.small_cnn import small_cnn
from trainables.models.timm_models import create, timm_architecture, timm_blocks, timm_input, timm_model
from trainables.models.torchvision_models import torchvision_architecture, torchvision_model
from trainables.registry import lookup
from trainables.seeds import derive_seed

CLASSIFIERS: dict[str, Callable[[Any, tuple[int, int, int], int], Classifier]] = {
    "small_cnn": small_cnn,
    "resnet_cifar": resnet_cifar,
    "resnet_cifar18": resnet_cifar18,
    "resnet": resnet,
    "torchvision": torchvision_model,
    "timm": timm_model,
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
        pretrained: whether the backbone starts from pre-trained weights, if `config` names some. Code that loads a trained state
            does not need them.

    Raises:
        ValueError: when the weights cannot be read or do not fit the backbone, or the backbone does not fit the images.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "phi"))
        classifier = lookup(CLASSIFIERS, config.name, "classifier")(config, image_shape, num_classes)
    if isinstance(config, BackboneSettings):
        if pretrained and config.weights is not None:
            load_pretrained(classifier.backbone, config.weights, ARCHITECTURES[config.name](config, classifier.backbone))
        elif pretrained and isinstance(config, TimmConfig) and config.pretrained:
            classifier.backbone.load_state_dict(create(config, image_shape, pretrained=True).state_dict())
        blocks = timm_blocks if isinstance(config, TimmConfig) else torchvision_blocks
        adapt(classifier, config, blocks(classifier.backbone), seed)
    return classifier


ARCHITECTURES: dict[str, Callable[[Any, nn.Module], Architecture]] = {
    "resnet": resnet_architecture,
    "torchvision": torchvision_architecture,
    "timm": timm_architecture,
}
"""How files of weights fit the classifiers that can have some."""


def expected_input(config: ClassifierConfig) -> Expected | None:
    """What the pre-trained weights expect of images; None if there are no such weights, or `normalisation` leaves it to the data.

    Raises:
        ValueError: when timm is missing or has no such model.
    """
    if not isinstance(config, BackboneSettings):
        pixels = config.expected_pixels()
        return None if pixels is None else Expected(Normalisation(*pixels))
    if not config.has_weights() or config.normalisation == "data":
        return None
    if config.weights is not None and (exported := exported_input(config.weights)) is not None:
        return exported
    if isinstance(config, TimmConfig):
        return timm_input(config)
    assert config.weights is not None
    if isinstance(config, TorchvisionConfig):
        return published_input(config.model, config.weights)
    if isinstance(config, ResNetConfig) and config.depth != 10:  # the ResNet-10 is OLTR's
        return published_input(f"resnet{config.depth}", config.weights)
    return Expected(IMAGENET)


__all__ = ["CLASSIFIERS", "Classifier", "build_classifier", "build_head", "expected_input"]
