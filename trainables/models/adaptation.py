"""What of a pre-trained backbone is trained: all, nothing, the last blocks, norms and biases, or updates of low rank."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from trainables.classifier_config import BackboneSettings
from trainables.models.classifier import Classifier
from trainables.models.lora import add_updates
from trainables.registry import lookup
from trainables.seeds import derive_seed

BLOCKS = {
    *("BasicBlock", "Bottleneck"),
    *("EncoderBlock", "CNBlock"),
    *("MBConv", "FusedMBConv", "InvertedResidual"),
}
"""torchvision's classes of blocks."""


def adapt(classifier: Classifier, config: BackboneSettings, blocks: Sequence[str], seed: int) -> None:
    """Freezes what is not trained of the backbone, in place, and adds the updates of `train: lora`.

    Args:
        classifier: with its initial or pre-trained weights.
        config: of the classifier.
        blocks: names of the backbone's blocks, from the first to the last; empty if they are not known.
        seed: the trial's seed; the updates' initial weights depend on it.

    Raises:
        ValueError: when the backbone has not enough blocks, or no linear layers.
    """
    if config.train != "all":
        lookup(ADAPTATIONS, config.train, "classifier.train")(classifier.backbone, config, blocks, seed)
        classifier.train()  # frozen parts go into eval mode


def torchvision_blocks(backbone: nn.Module) -> list[str]:
    """Names of the blocks of a model of torchvision, in their order."""
    return [name for name, module in backbone.named_modules() if type(module).__name__ in BLOCKS]


def _head(backbone: nn.Module, config: BackboneSettings, blocks: Sequence[str], seed: int) -> None:
    backbone.requires_grad_(False)


def _last_blocks(backbone: nn.Module, config: BackboneSettings, blocks: Sequence[str], seed: int) -> None:
    if config.num_blocks > len(blocks):
        allowed = (
            f"1 to {len(blocks)}" if blocks else "train all, head, norm_bias or lora: the blocks of this model are not known"
        )
        raise ValueError(f"classifier.num_blocks is {config.num_blocks}, but the backbone has {len(blocks)}; allowed: {allowed}")
    start = f"{blocks[-config.num_blocks]}."
    trains = False
    for name, parameter in backbone.named_parameters():  # registered in the order of the forward pass
        trains = trains or name.startswith(start)
        parameter.requires_grad_(trains)


def _norm_bias(backbone: nn.Module, config: BackboneSettings, blocks: Sequence[str], seed: int) -> None:
    backbone.requires_grad_(False)
    for module in backbone.modules():
        for name, parameter in module.named_parameters(recurse=False):
            # Norms of all libraries have "Norm" in their name; their weights are vectors.
            if name.endswith("bias") or ("Norm" in type(module).__name__ and parameter.ndim == 1):
                parameter.requires_grad_(True)


def _lora(backbone: nn.Module, config: BackboneSettings, blocks: Sequence[str], seed: int) -> None:
    backbone.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "lora"))
        if not add_updates(backbone, config.lora_rank, config.lora_alpha):
            raise ValueError(
                "classifier.train is lora, but the backbone has no linear layers; allowed: all, head, last_blocks, norm_bias"
            )


ADAPTATIONS: dict[str, Callable[[nn.Module, BackboneSettings, Sequence[str], int], None]] = {
    "head": _head,
    "last_blocks": _last_blocks,
    "norm_bias": _norm_bias,
    "lora": _lora,
}
"""What is done to the backbone for each value of `train` but `all`."""
