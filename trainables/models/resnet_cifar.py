"""ResNets of the CIFAR papers: 3x3 convolutions in three stages of 16, 32 and 64 channels.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2, with option A shortcuts.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from trainables.classifier_config import ResNetCifarConfig
from trainables.models.classifier import Classifier
from trainables.models.global_average_pool import GlobalAveragePool
from trainables.models.heads import build_head


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut without parameters (option A).

    Where the stride is 2 the shortcut takes every second pixel; new channels are filled with 0.
    """

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.new_channels = stride, channels - channels_in

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, H, W) -> (B, channels, H / stride, W / stride), rounded up."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride > 1 or self.new_channels:
            before = self.new_channels // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.new_channels - before))
        return F.relu(y + x)


def resnet_cifar(config: ResNetCifarConfig, image_shape: tuple[int, int, int], num_classes: int) -> Classifier:
    """A ResNet of 6 n + 2 layers with 64 features.

    Convolutions and a linear head have Kaiming initialisation, as in the published code.
    """
    layers: list[nn.Module] = [nn.Conv2d(image_shape[0], 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    channels = 16
    for width in (16, 32, 64):
        for number in range((config.depth - 2) // 6):
            layers.append(BasicBlock(channels, width, stride=2 if width > 16 and number == 0 else 1))
            channels = width
    head = build_head(config, channels, num_classes)
    classifier = Classifier(nn.Sequential(*layers, GlobalAveragePool()), head, channels)
    for module in classifier.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return classifier
