"""A method from outside the package: the fewer images a class has, the larger the weight of each of its images.

    python -m orchestrator.sweep examples/inverse_frequency.yaml

A plug-in is a module with three parts: settings, a class with the interface of trainables/methods/base.py, and one call that
registers both. `trial.plugins: [examples.inverse_frequency]` in the sweep's file names the module.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from trainables.method_config import MethodSettings
from trainables.methods.base import Head, Method, Task
from trainables.plugins import register_method


class InverseFrequencyConfig(MethodSettings):
    """Class weights from class counts: w_c is proportional to n_c^-strength, with mean 1 over the classes."""

    name: Literal["inverse_frequency"] = "inverse_frequency"
    """Name of the method."""
    strength: float = Field(1.0, ge=0)
    """Exponent of the class counts. 0 gives plain cross-entropy, 0.5 the inverse square root of the class frequency, 1 the
    inverse class frequency."""


class InverseFrequency(Method):
    """Cross-entropy with one weight per class, and without theta.

    A method does not get n_c, so this method counts the labels of the training batches. `optim.sampler: instance` takes each
    image once per epoch, so the counts are n_c after the first epoch. Later the counts are multiples of n_c, which give the same
    weights.
    """

    counts: Tensor

    def __init__(self, config: InverseFrequencyConfig, task: Task) -> None:
        super().__init__()
        self.strength = config.strength
        # A buffer is saved with the trial, so an interrupted trial continues with the same weights.
        self.register_buffer("counts", torch.zeros(task.num_classes, dtype=torch.int64))

    def begin_batch(self, labels: Tensor, losses: Tensor) -> Tensor:
        """The weight of each image of the batch, (B,)."""
        self.counts.scatter_add_(0, labels, torch.ones_like(labels))
        return self.class_weights().to(losses.dtype)[labels]

    def train_loss(self, head: Head, features: Tensor, labels: Tensor, state: Tensor) -> Tensor:
        """(1/B) sum_i w_i CE_i, ()."""
        return (state * F.cross_entropy(head(features), labels, reduction="none")).mean()

    def class_weights(self) -> Tensor:
        """n_c^-strength divided by its mean, (num_classes,). A class without images so far counts as one image."""
        weights = self.counts.clamp_min(1).double() ** -self.strength
        return weights / weights.mean()


register_method(InverseFrequencyConfig, InverseFrequency)
