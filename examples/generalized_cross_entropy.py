"""A loss from outside the package, for wrong labels: an image that the classifier contradicts counts less.

    python -m orchestrator.sweep examples/generalized_cross_entropy.yaml

A loss is a method of its own, and every method that weighs images takes the loss as `base_loss`.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from trainables.loss_config import LossSettings
from trainables.methods import Context, Loss, Task
from trainables.plugins import register_loss


class GeneralizedCrossEntropyConfig(LossSettings):
    """Generalized cross-entropy (Zhang & Sabuncu, NeurIPS 2018): between cross-entropy and the absolute error."""

    name: Literal["generalized_cross_entropy"] = "generalized_cross_entropy"
    """Name of the loss."""
    q: float = Field(0.7, gt=0, le=1)
    """How little contradicted images count: the gradient of cross-entropy is multiplied by p^q, where p is the probability of the
    label. Towards 0 it is cross-entropy; 1 is the absolute error, which is robust but learns slowly. 0.7 as in the paper."""


class GeneralizedCrossEntropy(Loss):
    """(1 - p_y^q) / q. Source: Zhang & Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy
    Labels", NeurIPS 2018, Eq. 6.
    """

    def __init__(self, config: GeneralizedCrossEntropyConfig, task: Task) -> None:
        super().__init__(config, task)
        self.q = config.q

    def forward(self, logits: Tensor, labels: Tensor, context: Context) -> Tensor:
        """As Loss."""
        # p^q from log p: exact for small p, and expm1 for p close to 1.
        return -(-self.q * F.cross_entropy(logits, labels, reduction="none")).expm1() / self.q


register_loss(GeneralizedCrossEntropyConfig, GeneralizedCrossEntropy)
