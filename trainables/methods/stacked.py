"""Losses and weights of several trials at once, for trials that share their batches.

K trials share a batch of B images. A stack has the trials' tensors one after another (stacks.py). A weight never depends on the
logits with a gradient, so a trial's loss (1/B) sum_i w_i L_i has the gradient w_i / B * dL_i/dlogits at image i's logits. That is
all that an engine needs to differentiate it.

A loss or a method needs a row in LOSS_PARTS or WEIGHTINGS. Types are compared exactly, because a subclass may compute something
else.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.methods.base import Method
from trainables.methods.difficulty_net import DifficultyNet, relative_accuracy
from trainables.methods.loss_alone import LossAlone
from trainables.methods.losses import CrossEntropy, Focal, LogitAdjustment, Loss
from trainables.methods.meta_weight_net import MetaWeightNet
from trainables.methods.weighted import CDB, ClassBalanced
from trainables.stacks import stack, stack_parameters


class LossParts(NamedTuple):
    """A loss (1 - p_y)^gamma (-log p_y) with p = softmax(z + shift)."""

    shift: Tensor | None = None
    """(num_classes,); None is 0."""
    gamma: float = 0.0
    detach_modulation: bool = False


LOSS_PARTS: dict[type[Loss], Callable[[Any], LossParts]] = {
    CrossEntropy: lambda _: LossParts(),
    Focal: lambda loss: LossParts(None, loss.gamma, loss.detach_modulation),
    LogitAdjustment: lambda loss: LossParts(loss.shift if loss.in_loss else None),
}


class StackedLoss:
    """The losses of K trials.

    Args:
        losses: one of each trial.
        like: has the type and the device of the logits.
        num_classes: number of classes.
    """

    def __init__(self, losses: Sequence[Loss], like: Tensor, num_classes: int) -> None:
        parts = [LOSS_PARTS[type(loss)](loss) for loss in losses]
        nothing = torch.zeros(num_classes, dtype=like.dtype, device=like.device)
        shifts = stack([nothing if parts_of.shift is None else parts_of.shift.to(nothing) for parts_of in parts])
        self._shift = shifts if any(parts_of.shift is not None for parts_of in parts) else None
        gammas = [parts_of.gamma for parts_of in parts]
        self._gamma = nothing.new_tensor(gammas) if any(gammas) else None
        self._attached = nothing.new_tensor([0.0 if parts_of.detach_modulation else 1.0 for parts_of in parts])

    def __call__(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of each image, (B, K), and its gradient by the image's logits, (B, K, C), from logits (B, K, C)."""
        log_p = torch.log_softmax(logits if self._shift is None else logits + self._shift, 2)
        of_label = labels[:, None, None].expand(-1, logits.shape[1], 1)
        losses = -log_p.gather(2, of_label)[:, :, 0]
        gradients = log_p.exp_()
        gradients.scatter_add_(2, of_label, torch.full_like(losses, -1)[:, :, None])
        if self._gamma is None:
            return losses, gradients
        tiny, p = torch.finfo(losses.dtype).tiny, torch.exp(-losses)
        others = -torch.expm1(-losses)
        clamped = others.clamp_min(tiny)
        modulation = clamped**self._gamma
        slope = self._gamma * clamped ** (self._gamma - 1) * p * losses
        factor = modulation + self._attached * (others >= tiny) * slope
        return modulation * losses, gradients * factor[:, :, None]


class Weighting:
    """The weights of J trials whose methods compute them by the same operations.

    Args:
        methods: one of each trial. Their parameters become views of `theta`.
    """

    weighs = True
    """Whether the methods weigh images; otherwise all weights are 1."""

    def __init__(self, methods: Sequence[Any]) -> None:
        self.methods = methods
        stacks = stack_parameters([list(method.parameters()) for method in methods])
        self.theta = [whole.requires_grad_() for whole in stacks]
        """Stacks (J, ...) of the methods' parameters, leaves of autograd."""
        self.refresh()

    def refresh(self) -> None:
        """Takes what the methods have learned about accuracies; called when an epoch begins and when one was refreshed."""

    def weights(self, labels: Tensor, losses: Tensor, progress: float) -> Tensor:
        """The weights (B, J) of a batch, on theta's tape.

        Args:
            labels: (B,).
            losses: the base loss of each image at phi, (B, J), without a gradient.
            progress: share of all steps that lies behind, in [0, 1).
        """
        return torch.ones_like(losses)

    def regularizer(self) -> Tensor | None:
        """Each trial's regulariser of theta, (J,), on theta's tape; None if all are 0."""
        return None

    def end_step(self) -> None:
        """Counts what the step's last call of `weights` gave for the statistics of the epoch."""

    def end_epoch(self) -> None:
        """Hands the statistics of the epoch to the methods."""


class Unweighted(Weighting):
    """A loss alone."""

    weighs = False


class ClassTables(Weighting):
    """Class weights that are known before the step: class-balanced, CDB-CE, and Difficulty-Net without a network."""

    def refresh(self) -> None:
        """As Weighting."""
        balanced = [isinstance(method, ClassBalanced) for method in self.methods]
        tables = [
            method.weights if fixed else method.class_weights() for method, fixed in zip(self.methods, balanced, strict=True)
        ]
        self._tables = stack(tables)
        deferred = [method.defer_until if fixed else 0.0 for method, fixed in zip(self.methods, balanced, strict=True)]
        # In double precision, as the progress that the methods themselves compare it with.
        self._defer_until = torch.tensor(deferred, dtype=torch.float64, device=self._tables.device)

    def weights(self, labels: Tensor, losses: Tensor, progress: float) -> Tensor:
        """As Weighting."""
        return torch.where(progress >= self._defer_until, self._tables.T[labels], 1.0)


class DifficultyNets(Weighting):
    """Difficulty-Net with a network of relative or of absolute accuracies."""

    def refresh(self) -> None:
        """As Weighting."""
        first: DifficultyNet = self.methods[0]
        self._relative, self._mean_one = first.kind == "relative", first.weight_scale == "mean_one"
        accuracy = [method.class_accuracy for method in self.methods]
        self._inputs = stack(accuracy)[:, None, :] if self._relative else stack(accuracy)[:, :, None]
        self._targets = stack([1 - (relative_accuracy(some) if self._relative else some) for some in accuracy])
        driver = [method.driver_weight for method in self.methods]
        self._driver_weight = self._targets.new_tensor(driver) if any(driver) else None

    def weights(self, labels: Tensor, losses: Tensor, progress: float) -> Tensor:
        """As Weighting."""
        difficulty = networks(self.theta, self._inputs).flatten(1)
        self._difficulty = difficulty
        of_classes = difficulty / difficulty.mean(1, keepdim=True) if self._mean_one else difficulty
        return of_classes.T.index_select(0, labels)

    def regularizer(self) -> Tensor | None:
        """As Weighting, of the difficulties that `weights` has computed last."""
        if self._driver_weight is None:
            return None
        return self._driver_weight * (self._difficulty - self._targets).square().mean(1)


class WeightNets(Weighting):
    """Meta-Weight-Net."""

    def __init__(self, methods: Sequence[MetaWeightNet]) -> None:
        super().__init__(methods)
        self._mean_one = methods[0].weight_scale == "mean_one"
        self._sums = torch.zeros(4, len(methods), dtype=torch.float64, device=self.theta[0].device)
        self._extremes = torch.zeros(2, len(methods), dtype=torch.float64, device=self.theta[0].device)
        self._of_images = False

    def weights(self, labels: Tensor, losses: Tensor, progress: float) -> Tensor:
        """As Weighting."""
        outputs = networks(self.theta, losses.T[:, :, None])[:, :, 0].T
        values = outputs.detach().double()
        liveliest = torch.minimum(values, 1 - values).amax(0)
        self._extremes = torch.maximum(self._extremes, torch.stack([liveliest, values.amax(0) - values.amin(0)]))
        self._of_images |= len(values) > 1
        self._last = torch.stack(
            [values.sum(0), values.square().sum(0), (values < 0.5).sum(0).double(), torch.full_like(liveliest, len(values))]
        )
        return outputs / outputs.mean(0) if self._mean_one else outputs

    def end_step(self) -> None:
        """As Weighting."""
        self._sums += self._last

    def end_epoch(self) -> None:
        """As Weighting."""
        for number, method in enumerate(self.methods):
            method.outputs.take(self._sums[:, number], self._extremes[:, number], self._of_images)
        self._sums, self._extremes, self._of_images = self._sums.mul(0), self._extremes.mul(0), False


def networks(theta: Sequence[Tensor], inputs: Tensor) -> Tensor:
    """The outputs (J, N, O) in (0, 1) of J networks with ReLUs and a sigmoid at the end, from inputs (J, N, I).

    Units of a padded layer give 0, and their parameters have the gradient 0.
    """
    values = inputs
    for number in range(0, len(theta), 2):
        values = torch.baddbmm(theta[number + 1][:, None], F.relu(values) if number else values, theta[number].mT)
    return torch.sigmoid(values)


def _of_difficulty_net(method: DifficultyNet) -> tuple[type[Weighting], Hashable]:
    return (ClassTables, ()) if method.kind == "fixed" else (DifficultyNets, (method.kind, method.weight_scale))


WEIGHTINGS: dict[type[nn.Module], Callable[[Any], tuple[type[Weighting], Hashable]]] = {
    LossAlone: lambda _: (Unweighted, ()),
    ClassBalanced: lambda _: (ClassTables, ()),
    CDB: lambda _: (ClassTables, ()),
    DifficultyNet: _of_difficulty_net,
    MetaWeightNet: lambda method: (WeightNets, (method.weight_scale,)),
}
"""The weighting of a method, and the settings that trials of one weighting share."""


def weighting_of(method: Method) -> tuple[type[Weighting], Hashable]:
    """What computes a method's weights for several trials; trials with equal results share one."""
    kind, settings = WEIGHTINGS[type(method)](method)
    meta = method.meta if any(True for _ in method.parameters()) else None
    return kind, (settings, meta and (meta.meta_optimizer, meta.meta_schedule))
