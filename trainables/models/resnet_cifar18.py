"""The ResNet-18 for 32-pixel images: torchvision's blocks behind a first layer that keeps all pixels.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, for the blocks. The first layer is that of the usual
CIFAR code, as in Table 3 of the advisor paper.
"""

from torch import nn

from trainables.classifier_config import ResNetCifar18Config
from trainables.models.classifier import Classifier
from trainables.models.global_average_pool import GlobalAveragePool
from trainables.models.heads import build_head


def resnet_cifar18(config: ResNetCifar18Config, image_shape: tuple[int, int, int], num_classes: int) -> Classifier:
    """A ResNet-18 with 512 features. Shortcuts between stages are 1x1 convolutions with BatchNorm. Initial distributions are
    torchvision's.
    """
    from torchvision.models.resnet import BasicBlock, ResNet  # here, because the import takes over a second

    backbone = ResNet(BasicBlock, [2, 2, 2, 2])
    backbone.conv1 = nn.Conv2d(image_shape[0], 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision does
    backbone.maxpool = nn.Identity()
    backbone.avgpool = GlobalAveragePool()
    num_features = backbone.fc.in_features
    backbone.fc = nn.Identity()
    return Classifier(backbone, build_head(config, num_features, num_classes), num_features)
