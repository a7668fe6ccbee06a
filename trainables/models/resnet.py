"""torchvision's ResNets, for images of about 224 pixels, including the ResNet-10 of the long-tail papers.

Sources: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; Liu et al., "Large-Scale Long-Tailed Recognition in
an Open World" (OLTR), CVPR 2019, for depth 10.
"""

from torch import nn

from trainables.classifier_config import ResNetConfig
from trainables.models.classifier import Classifier
from trainables.models.global_average_pool import GlobalAveragePool
from trainables.models.heads import build_head
from trainables.models.pretrained import Architecture

BLOCKS = {
    10: [1, 1, 1, 1],
    18: [2, 2, 2, 2],
    34: [3, 4, 6, 3],
    50: [3, 4, 6, 3],
    101: [3, 4, 23, 3],
    152: [3, 8, 36, 3],
}
"""Number of blocks in each of the four stages, by depth."""


def resnet(config: ResNetConfig, image_shape: tuple[int, int, int], num_classes: int) -> Classifier:
    """A ResNet with 512 features, or 2048 from depth 50 on. Parameter names and initial distributions are torchvision's."""
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet  # here, because the import takes over a second

    backbone = ResNet(Bottleneck if config.depth >= 50 else BasicBlock, BLOCKS[config.depth])
    backbone.conv1 = nn.Conv2d(image_shape[0], 64, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision does for 3 channels
    backbone.avgpool = GlobalAveragePool()
    num_features = backbone.fc.in_features
    backbone.fc = nn.Identity()
    return Classifier(backbone, build_head(config, num_features, num_classes), num_features)


def resnet_architecture(config: ResNetConfig, backbone: nn.Module) -> Architecture:
    """How a file of weights fits: torchvision's head is `fc`, this project's `head`."""
    return Architecture(f"a ResNet-{config.depth}", "depth", config.depth, "conv1", ("fc.", "head."))
