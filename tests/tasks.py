"""Small tasks, batches and contexts for tests of losses and methods."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainables.config import BilevelConfig
from trainables.engine.bilevel import BilevelStep, Course
from trainables.engine.linearize import Linearizer
from trainables.engine.meta_gradient import Batch, Measured
from trainables.loss_config import CrossEntropyConfig
from trainables.method_config import MethodConfig
from trainables.methods import Context, Method, Task, build_method
from trainables.methods.context import Moment
from trainables.models import Classifier

PLAIN = CrossEntropyConfig()


def task(counts: Sequence[int], **changed: Any) -> Task:
    """A task with these training images of each class, and features of length 4."""
    return Task(
        **{"num_classes": len(counts), "num_features": 4, "class_counts": torch.tensor(counts), "batch_size": 8, **changed}
    )


def built(config: MethodConfig, task: Task, seed: int = 0) -> Method:
    """A method in double precision."""
    return build_method(config, task, seed).double()


def moment(step: int = 0, total: int = 100, steps_per_epoch: int = 10) -> Moment:
    found = Moment.zero()
    found.set(step, steps_per_epoch, total)
    return found


def context(
    method: Method, features: Tensor, labels: Tensor, head: nn.Module | None = None, step: int = 0, total: int = 100, **more: Any
) -> Context:
    """The context of a batch. Without a head, the features are the logits."""
    ids = torch.arange(len(labels))
    return Context(method, head or nn.Identity(), features.detach(), labels, ids, moment(step, total), **more)


def loss_of(method: Method, context: Context) -> Tensor:
    """The training loss in the phase of the context, ()."""
    return method.train_loss(context.head, context.features, context, method.begin_batch(context))


class Linear:
    """A linear classifier, a method and two batches in double precision: problems that a few lines of numpy solve, too."""

    alpha = 0.5

    def __init__(
        self, config: MethodConfig, counts: Sequence[int], labels: Sequence[int], meta_labels: Sequence[int], seed: int = 0
    ) -> None:
        torch.manual_seed(seed)
        self.classifier = Classifier(nn.Flatten(), nn.Linear(4, len(counts)), 4).double()
        self.method = built(config, task(counts, batch_size=len(labels)))
        self.batch = self._batch(labels)
        self.meta_batch = self._batch(meta_labels)
        self.optimizer = torch.optim.SGD(self.classifier.parameters(), lr=self.alpha)
        theta = list(self.method.parameters())
        self.meta_optimizer = torch.optim.SGD(theta, lr=0.1) if theta else None

    def _batch(self, labels: Sequence[int]) -> Batch:
        return Batch(torch.randn(len(labels), 1, 2, 2).double(), torch.tensor(labels))

    def run(self, step: int = 0, total: int = 100, first_meta_step: int = 0, **settings: Any) -> Measured:
        """One iteration at `step` of `total`."""
        bilevel = BilevelStep(
            self.classifier,
            self.method,
            self.optimizer,
            self.meta_optimizer,
            BilevelConfig.model_validate(settings),
            Linearizer(),
            course=Course(moment(step, total), seed=3, first_meta_step=first_meta_step),
        )
        return bilevel(self.batch, self.meta_batch if bilevel.needs_meta_batch(step) else None, step)

    def phi(self) -> np.ndarray:
        """Weights and bias, (num_classes, 5)."""
        head = self.classifier.head
        return torch.cat([head.weight, head.bias[:, None]], 1).detach().numpy().copy()


def with_one(batch: Batch) -> np.ndarray:
    """The images of a batch as rows (x, 1), (B, 5)."""
    flat = batch.images.flatten(1).numpy()
    return np.concatenate([flat, np.ones((len(flat), 1))], 1)


def softmax(z: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def residuals(phi: np.ndarray, batch: Batch) -> np.ndarray:
    """The derivative of each image's cross-entropy by its logits, p - y, (B, num_classes)."""
    return softmax(with_one(batch) @ phi.T) - np.eye(len(phi))[batch.labels.numpy()]


def image_gradients(phi: np.ndarray, batch: Batch) -> np.ndarray:
    """The gradient of each image's cross-entropy by phi, (B, num_classes, 5)."""
    return residuals(phi, batch)[:, :, None] * with_one(batch)[:, None, :]
