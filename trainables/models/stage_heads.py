"""STAGE_HEADS: the head that each later stage of a trial starts from, made of the head before it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trainables.registry import lookup
from trainables.stage_config import CRTConfig, HeadStageSettings, LASConfig, LWSConfig

NewHead = Callable[[], nn.Module]
"""Makes a head with fresh initial weights, of the kind that the classifier's settings name."""


class ScaledHead(nn.Module):
    """logits_c = s_c * head(features)_c with a learned factor s_c for each class, 1 at the start. A bias is scaled too.

    Sources: Kang et al., ICLR 2020, Eq. 5 (LWS); Zhong et al., CVPR 2021 (MiSLAS).
    """

    def __init__(self, head: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.scales = nn.Parameter(torch.ones(num_classes))
        self.inner = head
        self.scale = getattr(head, "scale", 1.0)
        self.step_factors: dict[str, float] = {}
        """Factors of the step size, by the beginning of a parameter's name."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, num_classes)."""
        logits: Tensor = self.scales * self.inner(features)
        return logits


def build_stage_head(config: HeadStageSettings, head: nn.Module, num_classes: int, new_head: NewHead) -> nn.Module:
    """The head that a stage begins with.

    Args:
        config: settings of the stage.
        head: the head before; it may become a part of the result.
        num_classes: number of logits.
        new_head: makes a new head.

    Raises:
        ValueError: when the stage does nothing for this kind of head.
    """
    return lookup(STAGE_HEADS, config.name, "stage")(config, head, num_classes, new_head)


def retrained(config: CRTConfig, head: nn.Module, num_classes: int, new_head: NewHead) -> nn.Module:
    """A new head."""
    return new_head()


def rescaled(config: LWSConfig, head: nn.Module, num_classes: int, new_head: NewHead) -> nn.Module:
    """The head before, frozen, and the factors."""
    return ScaledHead(head.requires_grad_(False), num_classes)


def smoothed(config: LASConfig, head: nn.Module, num_classes: int, new_head: NewHead) -> nn.Module:
    """The head before, which goes on learning with smaller steps, and the factors."""
    scaled = ScaledHead(head, num_classes)
    scaled.step_factors = {"inner.": config.head_lr_factor}
    return scaled


def normalised(config: Any, head: nn.Module, num_classes: int, new_head: NewHead) -> nn.Module:
    """The head before, without its bias, as in the paper; `normalise` changes its class vectors."""
    if not isinstance(head, nn.Linear):
        raise ValueError("stages: tau_norm does nothing for classifier.head cosine; allowed: classifier.head linear")
    if head.bias is not None:
        head.bias.data.zero_()
    return head


@torch.no_grad()
def normalise(weight: Tensor, tau: float) -> Tensor:
    """Class vectors (num_classes, D) divided by their lengths to the power tau; a vector of zeros stays."""
    lengths = torch.linalg.vector_norm(weight, dim=1, keepdim=True)
    return weight / torch.where(lengths > 0, lengths, 1.0) ** tau


STAGE_HEADS: dict[str, Callable[[Any, nn.Module, int, NewHead], nn.Module]] = {
    "crt": retrained,
    "lws": rescaled,
    "las": smoothed,
    "tau_norm": normalised,
    "balms": retrained,
}
