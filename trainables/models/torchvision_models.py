"""torchvision's vision transformers, ConvNeXts, EfficientNets and MobileNets.

Sources: Dosovitskiy et al., ICLR 2021 (ViT); Liu et al., CVPR 2022 (ConvNeXt); Tan & Le, ICML 2019 and ICML 2021 (EfficientNet);
Sandler et al., CVPR 2018 and Howard et al., ICCV 2019 (MobileNet).
"""

from typing import Any, cast

from torch import nn

from trainables.classifier_config import TorchvisionConfig
from trainables.models.classifier import Classifier
from trainables.models.heads import build_head
from trainables.models.pretrained import Architecture


def torchvision_model(config: TorchvisionConfig, image_shape: tuple[int, int, int], num_classes: int) -> Classifier:
    """A model of torchvision without its last linear layer, and a head.

    Raises:
        ValueError: when a vision transformer cannot cut the images into patches.
    """
    from torchvision.models import get_model  # here, because the import takes over a second

    channels, height, width = image_shape
    size = {}
    if (patch := patch_size(config.model)) is not None:
        if height != width or height % patch:
            sides = max(patch, round(height / patch) * patch)
            raise ValueError(
                f"classifier.model is {config.model}, which cuts images into patches of {patch}x{patch} pixels, but the images "
                f"have {height}x{width}; allowed: trial.data.image_size={sides} or another multiple of {patch}"
            )
        size = {"image_size": height}
    backbone = get_model(config.model, weights=None, **size)
    name, last = [(name, module) for name, module in backbone.named_modules() if isinstance(module, nn.Linear)][-1]
    backbone.set_submodule(name, nn.Identity())
    if channels != 3:
        _take_channels(backbone, channels)
    return Classifier(backbone, build_head(config, last.in_features, num_classes), last.in_features)


def patch_size(model: str) -> int | None:
    """The side of a vision transformer's patches, in pixels; None for models that take images of any size."""
    return int(model.rpartition("_")[2]) if model.startswith("vit_") else None


def _take_channels(backbone: nn.Module, channels: int) -> None:
    """Gives the backbone a first convolution for images of another number of channels, as widely drawn as the one before."""
    name = first_convolution(backbone)
    old = cast(nn.Conv2d, backbone.get_submodule(name))
    where: dict[str, Any] = {"stride": old.stride, "padding": old.padding, "bias": old.bias is not None}
    new = nn.Conv2d(channels, old.out_channels, old.kernel_size, **where)  # type: ignore[arg-type]
    nn.init.normal_(new.weight, std=old.weight.std().item())
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    backbone.set_submodule(name, new)


def first_convolution(backbone: nn.Module) -> str:
    """The name of the first convolution."""
    names: list[str] = [name for name, module in backbone.named_modules() if isinstance(module, nn.Conv2d)]
    return names[0]


def torchvision_architecture(config: TorchvisionConfig, backbone: nn.Module) -> Architecture:
    """How a file of weights fits. The place of the head is an identity in the backbone."""
    head = [name for name, module in backbone.named_modules() if isinstance(module, nn.Identity)][-1]

    def adapt(state: dict[str, Any], backbone: nn.Module) -> dict[str, Any]:
        """Position embeddings for this size of images."""
        from torchvision.models.vision_transformer import interpolate_embeddings

        positions, own = state.get(POSITIONS), backbone.get_parameter(POSITIONS)
        if positions is None or positions.shape == own.shape:
            return state
        patch = patch_size(config.model)
        assert patch is not None
        side = round((own.shape[1] - 1) ** 0.5) * patch
        return dict(interpolate_embeddings(side, patch, dict(state)))

    adapts = adapt if patch_size(config.model) else (lambda state, backbone: state)
    return Architecture(config.model, "model", config.model, first_convolution(backbone), (f"{head}.",), adapts)


POSITIONS = "encoder.pos_embedding"
"""Name of a vision transformer's position embeddings, (1, positions + 1, D)."""
