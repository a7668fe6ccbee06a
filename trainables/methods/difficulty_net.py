"""Difficulty-Net: a small network predicts each class's difficulty from all class accuracies; the difficulty weights the loss.

Source: Sinha & Ohashi, "Difficulty-Net: Learning to Predict Difficulty for Long-Tailed Recognition", WACV 2023, Eq. 4-11.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.method_config import DifficultyNetConfig
from trainables.methods.base import Head, Method, Task


class State(NamedTuple):
    """The output of theta: difficulty and weights of all classes, each (num_classes,)."""

    difficulty: Tensor
    class_weights: Tensor


class DifficultyNet(Method):
    """Class weights w = D(A; theta), where A are the class accuracies of the classifier on the meta set."""

    class_accuracy: Tensor

    def __init__(self, config: DifficultyNetConfig, task: Task) -> None:
        super().__init__()
        self.driver_weight = config.driver_weight
        self.weight_scale = config.weight_scale
        self.meta_lr = config.meta_lr
        self.meta_optimizer = config.meta_optimizer
        self.refresh_interval = config.refresh_interval
        width = config.hidden_width
        # With biases, unlike the released CIFAR code. For accuracies that are all 0, a network without biases has the output 0.5
        # for every class, and the gradient of every weight is 0.
        self.network = nn.Sequential(
            nn.Linear(task.num_classes, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, task.num_classes),
            nn.Sigmoid(),
        )
        self.register_buffer("class_accuracy", torch.zeros(task.num_classes))

    def begin_batch(self, labels: Tensor, losses: Tensor) -> State:
        """Difficulty and weights of all classes, on theta's tape. They do not depend on the batch."""
        difficulty = self.network(self.class_accuracy)
        return State(difficulty, scale_weights(difficulty, self.weight_scale))

    def train_loss(self, head: Head, features: Tensor, labels: Tensor, state: State) -> Tensor:
        """(1/B) sum_i w_{y_i} CE_i, (). The divisor is the batch size, not the sum of the weights (Eq. 9 and 11)."""
        losses = F.cross_entropy(head(features), labels, reduction="none")
        return (state.class_weights[labels] * losses).mean()

    def meta_regularizer(self, state: State) -> Tensor:
        """lambda * L_dr, (), on the unscaled difficulties."""
        return self.driver_weight * driver_loss(state.difficulty, self.class_accuracy)

    def refresh(self, class_accuracy: Tensor) -> None:
        """Replaces A. A is a measurement, so it carries no gradient."""
        self.class_accuracy.copy_(class_accuracy.detach())

    @torch.no_grad()
    def class_weights(self) -> Tensor:
        """w, (num_classes,)."""
        return scale_weights(self.difficulty(), self.weight_scale)

    @torch.no_grad()
    def difficulty(self) -> Tensor:
        """D(A; theta), (num_classes,)."""
        difficulty: Tensor = self.network(self.class_accuracy)
        return difficulty

    def metrics(self) -> dict[str, float]:
        """The driver loss without lambda, and the KL divergence of the difficulties from uniform."""
        difficulty = self.difficulty()
        return {
            "meta/driver_loss": float(driver_loss(difficulty, self.class_accuracy)),
            "difficulty/kl_uniform": float(kl_from_uniform(difficulty)),
        }


def scale_weights(difficulty: Tensor, weight_scale: str) -> Tensor:
    """Class weights (num_classes,) from difficulties (num_classes,): scaled to mean 1, or unscaled for `none` (Eq. 4)."""
    return difficulty / difficulty.mean() if weight_scale == "mean_one" else difficulty


def driver_loss(difficulty: Tensor, class_accuracy: Tensor) -> Tensor:
    """Pulls the predicted difficulty towards 1 - relative accuracy.

    Args:
        difficulty: network output, (num_classes,), in (0, 1), not scaled.
        class_accuracy: accuracy on the meta set, (num_classes,), in [0, 1].

    Returns: mean squared error, (). Source: Difficulty-Net, Eq. 7. If all accuracies are 0, the target is 1 for all classes.
    """
    relative_accuracy = class_accuracy / class_accuracy.sum().clamp_min(1e-12)
    return F.mse_loss(difficulty, 1 - relative_accuracy)


def kl_from_uniform(difficulty: Tensor) -> Tensor:
    """KL(uniform || d / sum d), (), of difficulties (num_classes,); 0 only if they are uniform. E in the paper's Fig. 3."""
    return -torch.log(difficulty / difficulty.mean()).mean()
