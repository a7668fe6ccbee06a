"""What a method may know: the task that it is built for, and the context of each batch."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
from torch import Tensor, nn

from trainables.data import LongTailedData

if TYPE_CHECKING:
    from trainables.methods.base import Method

LOSS_DRAWS = 1
"""The stream of a loss's random numbers. Methods have stream 0, and their base losses must not repeat their draws."""
WORD = 0xFFFFFFFF
"""The largest 32-bit word."""
Words = TypeVar("Words", int, Tensor)


@dataclass(frozen=True)
class Task:
    """What a method is built for."""

    num_classes: int
    num_features: int
    """D, the length of the classifier's feature vectors."""
    class_counts: Tensor
    """Training images of each class, by the labels that the trainer sees, (num_classes,) int64 on the CPU."""
    clean_counts: Tensor | None = None
    """The same by the labels before `data.noise`, or None if nobody knows them. For reports: a fair method does not use them."""
    batch_size: int = 1
    """Images per training batch; the last batch of an epoch may have fewer."""
    head_scale: float = 1.0
    """The factor that turns the head's cosines into logits; 1 for a head without one."""

    @property
    def num_images(self) -> int:
        """Number of training images."""
        return int(self.class_counts.sum())


def task_of(data: LongTailedData, num_features: int, head: nn.Module, batch_size: int) -> Task:
    """The task of a trial.

    Args:
        data: that the trial is trained on.
        num_features: D of the classifier.
        head: of the classifier.
        batch_size: images per training batch.
    """
    counts = torch.from_numpy(data.class_counts), torch.from_numpy(data.clean_counts)
    return Task(len(data.class_names), num_features, *counts, batch_size, getattr(head, "scale", 1.0))


@dataclass(frozen=True)
class Moment:
    """A moment of the training, as tensors () on the device: a captured step reads their memory."""

    step: Tensor
    """Training steps before this one, over the whole stage; int64."""
    epoch: Tensor
    """Epochs that are complete, float64."""
    progress: Tensor
    """Share of all steps that lies behind, in [0, 1), float64."""

    @staticmethod
    def zero(device: torch.device | str = "cpu") -> "Moment":
        """The first step."""
        step = torch.zeros((), dtype=torch.int64, device=device)
        return Moment(step, step.double(), step.double())

    def set(self, step: int, steps_per_epoch: int, total_steps: int) -> None:
        """Moves to `step`, in place."""
        self.step.fill_(step)
        self.epoch.fill_(step // steps_per_epoch)
        self.progress.fill_(step / total_steps)


@dataclass(frozen=True)
class Context:
    """One batch at the classifier's parameters phi. Nothing in it carries a gradient, except `perturbation`."""

    method: "Method"
    """The method that the context is for; its base loss gives `losses`."""
    head: nn.Module
    """features (B, D) -> logits (B, num_classes)."""
    features: Tensor
    """(B, D), detached."""
    labels: Tensor
    """(B,) int64."""
    ids: Tensor
    """Position of each image in the training set, (B,) int64: the same image has the same number in every epoch."""
    moment: Moment
    """Step, epoch and progress."""
    seed: int = 0
    """The trial's seed, for `uniform`."""
    phase: Literal["virtual", "actual"] = "actual"
    """`virtual`: for the update of theta. `actual`: for the update of phi."""
    partners: Tensor | None = None
    """Labels of the images that are mixed into these (mixup, Remix), (B,) int64; None without mixing."""
    label_weight: Tensor | None = None
    """Weight of each image's own label, (B,) in [0, 1]; the rest is its partner's. None without mixing."""
    perturbation: Tensor | None = None
    """Zeros of the method's `perturbation_shape`. In the virtual phase the meta loss is differentiated by them."""
    perturbation_gradient: Tensor | None = None
    """In the actual phase: the derivative of the meta loss by the perturbation. None if the step computed none."""

    @cached_property
    def logits(self) -> Tensor:
        """The head's output at phi, (B, num_classes), detached."""
        with torch.no_grad():
            logits: Tensor = self.head(self.features)
        return logits

    @cached_property
    def losses(self) -> Tensor:
        """The base loss of each image at phi, (B,), detached."""
        with torch.no_grad():
            return self.method.sample_losses(self.logits, self)

    def of_labels(self, of_classes: Tensor) -> Tensor:
        """The values of the images' labels, from those of the classes (num_classes,): (B,), or (B, 2) for mixed images."""
        own = of_classes[self.labels]
        return own if self.partners is None else torch.stack([own, of_classes[self.partners]], dim=1)

    def over_labels(self, of_labels: Tensor) -> Tensor:
        """The values of the images, (B,): for mixed images the mean over both labels, (B, 2), weighted by `label_weight`."""
        if of_labels.dim() == 1 or self.label_weight is None:
            return of_labels
        return self.label_weight * of_labels[:, 0] + (1 - self.label_weight) * of_labels[:, 1]

    def virtual(self) -> "Context":
        """The context of the virtual phase; its perturbation is a new leaf of autograd."""
        shape = self.method.perturbation_shape(len(self.labels))
        zeros = None if shape is None else self.features.new_zeros(shape).requires_grad_()
        return self._kept(replace(self, phase="virtual", perturbation=zeros))

    def actual(self, perturbation_gradient: Tensor | None = None) -> "Context":
        """The context of the actual phase."""
        return self._kept(replace(self, phase="actual", perturbation=None, perturbation_gradient=perturbation_gradient))

    def _kept(self, other: "Context") -> "Context":
        """`other`, with what this context has already computed."""
        other.__dict__.update({name: self.__dict__[name] for name in ("logits", "losses") if name in self.__dict__})
        return other

    def uniform(self, *shape: int, stream: int = 0) -> Tensor:
        """Random numbers in [0, 1), float32 of `shape`: functions of seed, step and `stream` alone.

        So they are equal in both phases, on every worker, after a resumption, and in a captured step, where torch's generators
        would need a registration of their own. They come from a hash of the counters (as in Salmon et al., "Parallel Random
        Numbers: As Easy as 1, 2, 3", SC 2011), with the mixing function "lowbias32" of hash-prospector.

        Args:
            shape: of the result.
            stream: draws with different numbers are independent.
        """
        return uniform(self.moment.step, self.seed, stream, math.prod(shape)).view(shape)


def uniform(step: Tensor, seed: Tensor | int, stream: int, number: int, first: Tensor | int = 0) -> Tensor:
    """Random numbers in [0, 1), float32 (number,): functions of the arguments alone; see Context.uniform.

    They are those at the places from `first` on of the stream's numbers.
    """
    # The seed is mixed before the step is added: otherwise step 1 of seed 0 would have the numbers of step 0 of seed 1.
    of_step = _mixed(step + _mixed(seed & WORD))  # type: ignore[type-var]
    key = _mixed(of_step + ((seed >> 32) + 0x9E3779B9 * (stream + 1) & WORD))
    bits = _mixed(_mixed(torch.arange(number, device=step.device) + first) ^ key)
    return (bits >> 8).float().mul_(2**-24)


def _mixed(words: Words) -> Words:
    """32-bit words (int64, higher bits are dropped) -> 32-bit words; an input bit changes each output bit half of the time."""
    words = words & WORD
    for factor, shift in ((0x7FEB352D, 16), (0x846CA68B, 15)):
        words = (words ^ (words >> shift)) * factor & WORD  # int64 wraps around, which leaves the lower 32 bits right
    return words ^ (words >> 16)
