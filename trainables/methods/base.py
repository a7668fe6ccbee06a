"""The interface between a method and the trainer. A method's own parameters are theta; a method may have none."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Head = Callable[[Tensor], Tensor]
"""features (B, D) -> logits (B, num_classes)."""


@dataclass(frozen=True)
class Task:
    """The sizes that a method is built for."""

    num_classes: int
    num_features: int
    """D, the length of the classifier's feature vectors."""


class Method(nn.Module):
    """Turns a batch into a training loss. For each batch the trainer calls `begin_batch` and then `train_loss`."""

    meta_lr: float = 0.0
    """Step size of theta; beta in the papers."""
    meta_optimizer: str = "adam"
    """`adam` or `sgd`."""
    refresh_interval: float | None = None
    """Epochs between two calls of `refresh`; None for methods that do not use class accuracies."""

    def begin_batch(self, labels: Tensor, losses: Tensor) -> Any:
        """The output of theta for this batch, differentiable in theta.

        Args:
            labels: (B,) int64.
            losses: per-sample cross-entropy at phi, (B,), detached.

        Returns: any value; the trainer passes it to `train_loss` and `meta_regularizer` as `state`.
        """
        return None

    def train_loss(self, head: Head, features: Tensor, labels: Tensor, state: Any) -> Tensor:
        """Training loss (), differentiable in `head`, `features`, theta and `state`; features (B, D), labels (B,)."""
        raise NotImplementedError

    def meta_regularizer(self, state: Any) -> Tensor:
        """Regulariser of theta that is added to the meta loss, (); 0 for most methods."""
        return torch.zeros(())

    def refresh(self, class_accuracy: Tensor) -> None:
        """Receives new accuracies on the meta set, (num_classes,) in [0, 1]; the first call is before the first step."""

    def class_weights(self) -> Tensor | None:
        """The weight of each class, (num_classes,), or None if the method has no class weights."""
        return None

    def difficulty(self) -> Tensor | None:
        """The predicted difficulty of each class, (num_classes,) in (0, 1), or None if the method predicts none."""
        return None

    def metrics(self) -> dict[str, float]:
        """The method's own metrics, by name; called at the end of each epoch."""
        return {}
