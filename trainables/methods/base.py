"""The contract between a method and the trainer. A method's own parameters are theta; it may have none."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Head = Callable[[Tensor], Tensor]
"""features (B, D) -> logits (B, num_classes)."""


@dataclass(frozen=True)
class Task:
    """What a method is built for."""

    num_classes: int
    num_features: int
    """D, the length of the classifier's feature vectors."""


class Method(nn.Module):
    """How a batch becomes a loss. The trainer calls, for each batch, `begin_batch` and then `train_loss`."""

    meta_lr: float = 0.0
    """Step size of theta; beta in the papers."""
    meta_optimizer: str = "adam"
    """`adam` or `sgd`."""
    refresh_interval: float | None = None
    """Epochs between two calls of `refresh`; None for methods that do not look at class accuracies."""

    def begin_batch(self, labels: Tensor, losses: Tensor) -> Any:
        """What theta says about this batch, differentiable in theta; handed back to the other functions as `state`.

        Args:
            labels: (B,) int64.
            losses: per-sample cross-entropy at phi, (B,), detached.
        """
        return None

    def train_loss(self, head: Head, features: Tensor, labels: Tensor, state: Any) -> Tensor:
        """Training loss (), differentiable in `head`, `features`, theta and `state`; features (B, D), labels (B,)."""
        raise NotImplementedError

    def meta_regularizer(self, state: Any) -> Tensor:
        """What is added to the meta loss for theta alone, (); 0 for most methods."""
        return torch.zeros(())

    def refresh(self, class_accuracy: Tensor) -> None:
        """Takes new accuracies on the meta set, (num_classes,) in [0, 1]; called before the first step too."""

    def class_weights(self) -> Tensor | None:
        """The weight of each class, (num_classes,), or None when classes have none."""
        return None

    def difficulty(self) -> Tensor | None:
        """The predicted difficulty of each class, (num_classes,) in (0, 1), or None."""
        return None

    def metrics(self) -> dict[str, float]:
        """What is worth a curve, by metric name; asked at the end of each epoch."""
        return {}
