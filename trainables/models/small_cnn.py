"""A small convolutional network for small images."""

from torch import nn

from trainables.classifier_config import SmallCNNConfig
from trainables.models.classifier import Classifier
from trainables.models.heads import build_head


def small_cnn(config: SmallCNNConfig, image_shape: tuple[int, int, int], num_classes: int) -> Classifier:
    """conv - BatchNorm - ReLU, the same again with stride 2, then a head on the flattened positions."""
    channels, height, width = image_shape
    first, second = config.widths
    backbone = nn.Sequential(
        nn.Conv2d(channels, first, 3, padding=1, bias=False),
        nn.BatchNorm2d(first),
        nn.ReLU(),
        nn.Conv2d(first, second, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(second),
        nn.ReLU(),
        nn.Flatten(),
    )
    num_features = second * ((height + 1) // 2) * ((width + 1) // 2)
    return Classifier(backbone, build_head(config, num_features, num_classes), num_features)
