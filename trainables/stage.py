"""One stage of a trial while it runs: what is trained, on which images, and how."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainables.collectives import Collectives
from trainables.data.features import FeatureSet
from trainables.data.loader import LoadedSet, Request
from trainables.engine.bilevel import BilevelStep
from trainables.engine.linearize import Linearizer
from trainables.evaluate import class_accuracies, training_pass
from trainables.methods import Method
from trainables.models import Classifier
from trainables.models.stage_heads import normalise
from trainables.optim_config import OptimConfig
from trainables.stage_config import TauNormConfig


@dataclass(frozen=True)
class Sets:
    """The three sets of a stage: images, or the frozen features of images."""

    train: LoadedSet
    meta: LoadedSet
    val: LoadedSet


@dataclass
class Stage:
    """A stage. With frozen features its classifier has the identity as backbone, so the same engine trains a head alone."""

    number: int
    epochs: range
    """Counted from 0 over the whole trial."""
    optim: OptimConfig
    classifier: Classifier
    method: Method
    optimizer: Optimizer
    meta_optimizer: Optimizer | None
    bilevel_step: BilevelStep
    sets: Sets
    trains: bool = True
    """Whether there are gradient steps."""
    kinds: set[tuple[bool, bool, bool]] = field(default_factory=set)
    """The kinds of steps that were made."""

    @property
    def steps_per_epoch(self) -> int:
        """Training steps of an epoch."""
        return steps_per_epoch(self.sets.train, self.optim) if self.trains else 0

    @property
    def total_steps(self) -> int:
        """Training steps of the stage."""
        return len(self.epochs) * self.steps_per_epoch

    def is_first_of_kind(self, step: int) -> bool:
        """Whether no step like this one came before it: such a step traces, compiles or captures what later ones use."""
        has_last_batch = (step + 1) % self.steps_per_epoch == 0  # which is often smaller
        kind = (has_last_batch, self.bilevel_step.updates_theta(step), self.bilevel_step.compares(step))
        known = kind in self.kinds
        self.kinds.add(kind)
        return not known


def steps_per_epoch(train: LoadedSet, optim: OptimConfig) -> int:
    """Training steps of an epoch; the last one may have fewer images."""
    return math.ceil(len(train) / optim.batch_size)


def frozen_features(classifier: Classifier, sets: Sets, collectives: Collectives) -> Sets:
    """The features of all images of the sets."""
    found: dict[int, FeatureSet] = {}
    for images in (sets.train, sets.meta, sets.val):  # val may be the meta set itself
        if id(images) not in found:
            found[id(images)] = FeatureSet(training_pass(classifier, images, collectives).features, images.labels)
    return Sets(*(found[id(images)] for images in (sets.train, sets.meta, sets.val)))


def choose_tau(config: TauNormConfig, head: nn.Module, val: LoadedSet, num_classes: int, collectives: Collectives) -> float:
    """Divides the class vectors of a linear head by their lengths to the power tau, in place; tau is the best on val.

    Of equally good powers the smallest is taken. Returns: tau.
    """
    assert isinstance(head, nn.Linear)
    classifier = Classifier(nn.Identity(), head, head.in_features)
    weight = head.weight.detach().clone()

    def accuracy(tau: float) -> float:
        head.weight.data.copy_(normalise(weight, tau))
        return float(class_accuracies(classifier, val, num_classes, collectives=collectives).nanmean())

    taus: list[float] = torch.linspace(0, config.max_tau, config.points).tolist()
    best = max(taus, key=accuracy)
    head.weight.data.copy_(normalise(weight, best))
    return best


@torch.no_grad()
def shift_statistics(
    classifier: Classifier, train: LoadedSet, batches: list[Tensor], linearizer: Linearizer, collectives: Collectives
) -> None:
    """Runs batches of training images (positions) through the backbone in train mode, which moves BatchNorm's statistics.

    Source: MiSLAS (Zhong et al., CVPR 2021), section 3.4. Each worker sees its share of every batch, as in training.
    """
    backbone = classifier.backbone
    parameters: dict[str, Tensor] = dict(backbone.named_parameters())
    buffers = dict(backbone.named_buffers())
    dtype = next(classifier.parameters()).dtype
    requests = [Request(positions, share=collectives.share(len(positions))) for positions in batches]
    for images, labels, *_ in train.batches(requests):
        linearizer.features(backbone, parameters, buffers, images.to(dtype), len(labels), linearizer.autocast)
