"""Methods that multiply the base loss of each image by a weight, and the two whose class weights are computed, not learned."""

import math
from typing import Any

import torch
from torch import Tensor

from trainables.method_config import CDBConfig, ClassBalancedConfig
from trainables.methods.base import Head, Method, TrainingPass
from trainables.methods.context import Context, Task


class Weighted(Method):
    """(1/B) sum_i w_i L_i. The divisor is the batch size, not the sum of the weights. `begin_batch` returns w, or a tuple that
    ends with w: weights of the images, (B,), or of their labels, as `Context.of_labels`. A mixed image's loss is then the sum
    of share, weight and loss over both labels.
    """

    def train_loss(self, head: Head, features: Tensor, context: Context, state: Any) -> Tensor:
        """The mean of weight times base loss, ()."""
        weights, losses = weights_in(state), self.label_losses(head(features), context)
        if weights.dim() < losses.dim():
            weights = weights[:, None]
        return context.over_labels(weights * losses).mean()

    def sample_weights(self, context: Context, state: Any) -> Tensor:
        """w, (B,)."""
        return context.over_labels(weights_in(state))


def weights_in(state: Any) -> Tensor:
    """The weights in a state of Weighted: of the images, (B,), or of the labels of mixed images, (B, 2)."""
    weights: Tensor = state[-1] if isinstance(state, tuple) else state
    return weights


class ClassBalanced(Weighted):
    """w_c proportional to (1 - beta) / (1 - beta^n_c), with mean 1 over the classes; 1 for all before `defer_until`.

    Sources: Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019, Eq. 12; deferred re-weighting
    (DRW): Cao et al., NeurIPS 2019, Algorithm 1. The counts are those of the labels that the trainer sees; the released code of
    Difficulty-Net passes shares instead, which makes the weights meaningless.
    """

    weights: Tensor

    def __init__(self, config: ClassBalancedConfig, task: Task) -> None:
        super().__init__(config, task)
        self.defer_until = config.defer_until
        self.register_buffer("weights", effective_number_weights(task.class_counts, config.beta), persistent=False)

    def begin_batch(self, context: Context) -> Tensor:
        """The weight of each image by its label, (B,) or (B, 2)."""
        weights = context.of_labels(self.weights)
        return torch.where(context.moment.progress >= self.defer_until, weights, torch.ones_like(weights))


def effective_number_weights(class_counts: Tensor, beta: float) -> Tensor:
    """(1 - beta) / (1 - beta^n_c) with mean 1 over the classes, float64. A class without an image counts as one with an image."""
    counts = class_counts.clamp_min(1).double()
    weights = (1 - beta) / (1 - beta**counts)
    return weights / weights.mean()


class CDB(Weighted):
    """CDB-CE: w_c = d_c^tau, with mean 1 over the classes, where d_c is a decreasing function of the accuracy a_c.

    Source: Sinha et al., "Class-Wise Difficulty-Balanced Loss for Solving Class-Imbalance", ACCV 2020, Eq. 2 to 5. The dynamic
    exponent is that of the authors' code for ImageNet-LT, tau = 2 sigmoid(max a / (min a + 0.01) - 1): 1 for equal classes, at
    most 2. Their code for CIFAR leaves out the factor and the -1. Accuracies start at 0, with equal weights.
    """

    class_accuracy: Tensor

    def __init__(self, config: CDBConfig, task: Task) -> None:
        super().__init__(config, task)
        self.config = config
        self.reads_training_set = config.accuracy_from == "train"
        self.refresh_interval = None if self.reads_training_set else config.refresh_interval
        self.register_buffer("class_accuracy", torch.zeros(task.num_classes))

    def begin_batch(self, context: Context) -> Tensor:
        """The weight of each image by its label, (B,) or (B, 2)."""
        return context.of_labels(self.class_weights())

    def class_weights(self) -> Tensor:
        """w, (num_classes,)."""
        powers = self.difficulty() ** self._exponent()
        # If no class is difficult, all are equal: 0 / 0 has no meaning.
        return torch.where(powers.sum() > 0, powers / powers.mean().clamp_min(1e-30), torch.ones_like(powers))

    def _exponent(self) -> Tensor:
        accuracy = self.class_accuracy
        if self.config.exponent == "fixed":
            return torch.full_like(accuracy, self.config.tau)
        return 2 * torch.sigmoid(accuracy.max() / (accuracy.min() + 0.01) - 1)

    def difficulty(self) -> Tensor:
        """d, (num_classes,). The functions without a value at accuracy 0 take accuracies of at least 0.01."""
        a = self.class_accuracy
        match self.config.difficulty:
            case "linear":
                return 1 - a
            case "logarithm":
                return -torch.log(a.clamp_min(0.01))
            case "inverse":
                return 1 / a.clamp_min(0.01) - 1
            case "exponential":
                return torch.exp(-a)

    def metrics(self) -> dict[str, float]:
        """The KL divergence of the difficulties from uniform; absent when it is infinite, because a class has difficulty 0."""
        divergence = float(kl_from_uniform(self.difficulty()))
        return {"difficulty/kl_uniform": divergence} if math.isfinite(divergence) else {}

    def refresh(self, class_accuracy: Tensor) -> None:
        """As Method."""
        self.class_accuracy.copy_(class_accuracy)

    def observe(self, training_pass: TrainingPass) -> None:
        """Measures the accuracies on the training set; a class without an image has the mean of the others."""
        right = (self.predict(training_pass.logits).argmax(1) == training_pass.labels).double()
        counts = torch.bincount(training_pass.labels, minlength=self.num_classes)
        accuracy = torch.zeros_like(counts, dtype=right.dtype).index_add_(0, training_pass.labels, right) / counts.clamp_min(1)
        self.class_accuracy.copy_(torch.where(counts > 0, accuracy, accuracy[counts > 0].mean()))


def kl_from_uniform(difficulty: Tensor) -> Tensor:
    """KL(uniform || d / sum d), (), of difficulties (num_classes,); 0 only if they are uniform, infinite if one of them is 0.

    E in Fig. 3 of the Difficulty-Net paper.
    """
    return -torch.log(difficulty / difficulty.mean()).mean()
