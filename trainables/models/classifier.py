"""The interface of every classifier."""

import torch
from torch import Tensor, nn


class Classifier(nn.Module):
    """A backbone and a head; methods may act between them. `num_features` is D, the length of a feature vector."""

    def __init__(self, backbone: nn.Module, head: nn.Module, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.backbone = backbone
        self.head = head
        self.adjustment: nn.Module | None = None
        """Logits (B, num_classes) -> the logits that predictions are made from, in exported models; see Method.predict."""
        self.autocast: torch.dtype | None = None
        """The type of torch.autocast in the backbone when sets are evaluated. `forward` computes in the parameters' type."""

    def train(self, mode: bool = True) -> "Classifier":
        """As nn.Module, except that parts of the backbone whose parameters are all frozen stay in eval mode."""
        super().train(mode)
        _freeze(self.backbone)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, C, H, W)."""
        logits: Tensor = self.head(self.backbone(images))
        return logits if self.adjustment is None else self.adjustment(logits)


def _freeze(module: nn.Module) -> None:
    """Eval mode for the largest parts that have parameters, but none that is trained."""
    parameters = list(module.parameters())
    if any(parameter.requires_grad for parameter in parameters):
        for child in module.children():
            _freeze(child)
    elif parameters:
        module.eval()
