"""Difficulty-Net: a small network predicts each class's difficulty from all class accuracies; the difficulty weights the loss.

Source: Sinha & Ohashi, "Difficulty-Net: Learning to Predict Difficulty for Long-Tailed Recognition", WACV 2023, Eq. 4-11.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.method_config import DifficultyNetConfig
from trainables.methods.context import Context, Task
from trainables.methods.weighted import Weighted, kl_from_uniform


class State(NamedTuple):
    """The output of theta: of all classes, (num_classes,), or with `difficulty: sample` of the batch's images, (B,)."""

    difficulty: Tensor
    target: Tensor
    """What the driver loss pulls the difficulty towards, of the same shape."""
    weights: Tensor
    """The weight of each image, (B,), or of the labels of mixed images, (B, 2)."""


class DifficultyNet(Weighted):
    """Class weights w = D(A; theta), where A are the class accuracies of the classifier on the meta set; and three variants.

    The variants are the arms of the paper's Table 4. The paper leaves two targets of the driver loss open: for `absolute` it is
    1 - a_c, because the arm is without relative accuracies; for `sample` it is the loss divided by the largest of the batch.
    """

    class_accuracy: Tensor

    def __init__(self, config: DifficultyNetConfig, task: Task) -> None:
        super().__init__(config, task)
        self.kind = config.difficulty
        self.driver_weight = config.driver_weight
        self.weight_scale = config.weight_scale
        self.refresh_interval = None if self.kind == "sample" else config.refresh_interval
        width, inputs = config.hidden_width, {"absolute": 1, "sample": task.batch_size}.get(self.kind, task.num_classes)
        self.num_inputs = inputs
        # With biases, unlike the released CIFAR code. For accuracies that are all 0, a network without biases has the output 0.5
        # for every class, and the gradient of every weight is 0.
        layers = (nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, inputs), nn.Sigmoid())
        self.network = nn.Sequential(*(() if self.kind == "fixed" else layers))
        self.register_buffer("class_accuracy", torch.zeros(task.num_classes))

    def begin_batch(self, context: Context) -> State:
        """Difficulty and weights, on theta's tape. Except for `sample`, they depend on the batch's labels only."""
        if self.kind == "sample":
            difficulty = self._of_samples(context.losses)
            self.outputs.add(difficulty.unsqueeze(1), context)
            target = context.losses / context.losses.max().clamp_min(1e-12)
            return State(difficulty, target, scale_weights(difficulty, self.weight_scale))
        difficulty = self._of_classes()
        return State(difficulty, self._target(), context.of_labels(scale_weights(difficulty, self.weight_scale)))

    def _of_classes(self) -> Tensor:
        """D(A; theta), (num_classes,), on theta's tape."""
        if self.kind == "fixed":
            return self._target()
        difficulty: Tensor
        if self.kind == "absolute":
            difficulty = self.network(self.class_accuracy[:, None])[:, 0]
        else:
            difficulty = self.network(self.class_accuracy)
        return difficulty

    def _target(self) -> Tensor:
        return 1 - self.class_accuracy if self.kind == "absolute" else 1 - relative_accuracy(self.class_accuracy)

    def _of_samples(self, losses: Tensor) -> Tensor:
        """D(losses; theta), (B,). The network has as many inputs as a full batch; a smaller one is repeated."""
        places = torch.arange(self.num_inputs, device=losses.device) % len(losses)
        difficulty: Tensor = self.network(losses[places])[: len(losses)]
        return difficulty

    def meta_regularizer(self, state: State) -> Tensor:
        """lambda * L_dr, (), on the unscaled difficulties (Eq. 7)."""
        return self.driver_weight * F.mse_loss(state.difficulty, state.target)

    def refresh(self, class_accuracy: Tensor) -> None:
        """Replaces A. A is a measurement, so it carries no gradient."""
        self.class_accuracy.copy_(class_accuracy.detach())

    @torch.no_grad()
    def class_weights(self) -> Tensor | None:
        """w, (num_classes,); None for `sample`."""
        return None if self.kind == "sample" else scale_weights(self._of_classes(), self.weight_scale)

    @torch.no_grad()
    def difficulty(self) -> Tensor | None:
        """D(A; theta), (num_classes,); None for `sample`."""
        return None if self.kind == "sample" else self._of_classes()

    def output_extremes(self) -> tuple[float, float | None] | None:
        """Of the difficulties as they are now; of the epoch's for `sample`."""
        difficulty = self.difficulty()
        return self.outputs.extremes() if difficulty is None else (float(torch.minimum(difficulty, 1 - difficulty).max()), None)

    def metrics(self) -> dict[str, float]:
        """The driver loss without lambda, and the KL divergence of the difficulties from uniform."""
        difficulty = self.difficulty()
        if difficulty is None:
            return {}
        return {
            "meta/driver_loss": float(F.mse_loss(difficulty, self._target())),
            "difficulty/kl_uniform": float(kl_from_uniform(difficulty)),
        }


def scale_weights(difficulty: Tensor, weight_scale: str) -> Tensor:
    """Weights from difficulties, of classes or of images: scaled to mean 1, or unscaled for `none` (Eq. 4)."""
    return difficulty / difficulty.mean() if weight_scale == "mean_one" else difficulty


def relative_accuracy(class_accuracy: Tensor) -> Tensor:
    """a_c / sum_k a_k, (num_classes,), from accuracies in [0, 1]; 0 for all classes if all accuracies are 0."""
    return class_accuracy / class_accuracy.sum().clamp_min(1e-12)
