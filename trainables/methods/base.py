"""The interface between a method and the trainer. A method's own parameters are theta; a method may have none."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainables.loss_config import CrossEntropyConfig, LossSettings, MethodSettings
from trainables.method_config import MetaLossSettings, MetaSettings, WeightingSettings
from trainables.methods.context import Context, Task
from trainables.methods.losses import Loss, build_loss
from trainables.methods.outputs import Outputs

DEAD_AFTER = 20
"""A trial fails after so many consecutive meta-gradients of exactly 0."""

Head = Callable[[Tensor], Tensor]
"""features (B, D) -> logits (B, num_classes)."""


@dataclass(frozen=True)
class TrainingPass:
    """The classifier's output on the whole training set: without augmentation, BatchNorm in eval mode, no gradients."""

    features: Tensor
    """(N, D), in the order of the training set: an image's id is its row."""
    logits: Tensor
    """(N, num_classes)."""
    labels: Tensor
    """(N,), as the trainer sees them."""


class Method(nn.Module):
    """Turns a batch into a training loss. For each batch the trainer calls `begin_batch` and then `train_loss`.

    Args:
        config: the method's settings. Settings of a loss, WeightingSettings or MetaLossSettings choose `base_loss` and
            `meta_loss`; both are cross-entropy otherwise.
        task: what the method is built for.
    """

    meta: MetaSettings | None = None
    """How theta is trained. None for methods without parameters."""
    refresh_interval: float | None = None
    """Epochs between two calls of `refresh`; None for methods that do not use class accuracies."""
    reads_training_set: bool = False
    """Whether each epoch begins with a pass over the training set, which `observe` receives."""
    views: int = 1
    """How many differently augmented copies of each image a batch has. With V views, a batch of B images has V * B rows: all
    images in the first view, then all in the second. `ids` tells which rows show the same image."""
    meta_from: float = 0.0
    """Share of the training that runs without meta steps before the first one, in [0, 1]."""
    dead_after: int | None = DEAD_AFTER
    """After so many consecutive meta-gradients of exactly 0 the trial fails. None: never, because they are 0 by the settings."""

    def __init__(self, config: MethodSettings, task: Task) -> None:
        super().__init__()
        self.num_classes = task.num_classes
        base: LossSettings = CrossEntropyConfig()
        if isinstance(config, WeightingSettings | LossSettings):
            base = config if isinstance(config, LossSettings) else config.base_loss
        self.base_loss: Loss = build_loss(base, task)
        self.meta_loss: Loss = build_loss(
            config.meta_loss if isinstance(config, MetaLossSettings) else CrossEntropyConfig(), task
        )
        if isinstance(config, MetaSettings):
            self.meta = config
        self.outputs = Outputs()
        """What the network of the method gave out for images in this epoch; a method without one leaves it empty."""

    def begin_epoch(self) -> None:
        """Forgets what was collected for reports in the epoch before; called before the first step of each epoch."""
        self.outputs.clear()

    def perturbation_shape(self, batch_size: int) -> tuple[int, ...] | None:
        """The shape of a batch's perturbation: zeros that the method adds to something, such as the weights of the images.

        In the virtual phase, `begin_batch` gets them as `context.perturbation`. The engine differentiates the meta loss by them,
        and in the actual phase `begin_batch` gets the derivative as `context.perturbation_gradient`. None: no perturbation.
        """
        return None

    def begin_batch(self, context: Context) -> Any:
        """The output of theta for this batch, differentiable in theta and in the context's perturbation.

        Returns: any value; the trainer passes it to `train_loss` and `meta_regularizer` as `state`.
        """
        return None

    def train_loss(self, head: Head, features: Tensor, context: Context, state: Any) -> Tensor:
        """Training loss (), differentiable in `head`, `features` (B, D), theta and `state`."""
        raise NotImplementedError

    def label_losses(self, logits: Tensor, context: Context) -> Tensor:
        """The base loss of each image by its label, (B,), from logits (B, num_classes); differentiable in the logits.

        Of images that others are mixed into: by each of their two labels, (B, 2).
        """
        losses: Tensor = self.base_loss(logits, context.labels, context)
        if context.partners is None:
            return losses
        return torch.stack([losses, self.base_loss(logits, context.partners, context)], dim=1)

    def sample_losses(self, logits: Tensor, context: Context) -> Tensor:
        """The base loss of each image of the batch, (B,), from logits (B, num_classes); differentiable in the logits.

        Of an image that another is mixed into, the loss is the mean over both labels, weighted by `context.label_weight`.
        """
        return context.over_labels(self.label_losses(logits, context))

    def sample_weights(self, context: Context, state: Any) -> Tensor | None:
        """The weight of each image of the batch, (B,), for reports; None for a method that does not weigh images."""
        return None

    def meta_regularizer(self, state: Any) -> Tensor:
        """Regulariser of theta that is added to the meta loss, (); 0 for most methods."""
        return torch.zeros(())

    def refresh(self, class_accuracy: Tensor) -> None:
        """Receives new accuracies on the meta set, (num_classes,) in [0, 1]; the first call is before the first step."""

    def observe(self, training_pass: TrainingPass) -> None:
        """Receives the classifier's output on the training set at the start of an epoch, if `reads_training_set`."""

    def predict(self, logits: Tensor) -> Tensor:
        """The logits that predictions are made from, in evaluation and in the exported model, (B, num_classes).

        It may depend on settings and task, but not on theta.
        """
        adjusted: Tensor = self.base_loss.predict(logits)
        return adjusted

    def difficulty(self) -> Tensor | None:
        """The predicted difficulty of each class, (num_classes,) in (0, 1), or None if the method predicts none."""
        return None

    def class_weights(self) -> Tensor | None:
        """The weight of each class, (num_classes,), or None if the weights of a class's images are not all the same."""
        return None

    def output_extremes(self) -> tuple[float, float | None] | None:
        """Of the outputs in (0, 1) of the method's network: the largest distance from the nearer of 0 and 1, and the largest
        difference between two images of a batch, which is None for outputs of classes. None for a method without a network.
        """
        return self.outputs.extremes()

    def metrics(self) -> dict[str, float]:
        """The method's own metrics, by name; called at the end of each epoch."""
        return {}
