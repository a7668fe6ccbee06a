"""One stage of a trial while it runs: what is trained, on which images, and how."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainables.alive import alive
from trainables.collectives import Collectives
from trainables.config import TrialConfig
from trainables.data.features import FeatureSet
from trainables.data.loaded import LoadedData
from trainables.data.loader import LoadedSet, Request, training_order
from trainables.engine.averaged import Averaged
from trainables.engine.bilevel import BilevelStep, Course
from trainables.engine.draws import Key
from trainables.engine.linearize import Linearizer
from trainables.engine.optimizers import build_meta_optimizer, build_optimizer
from trainables.engine.sharded import ShardedLinearizer
from trainables.evaluate import accuracy_metrics, all_features, class_accuracies, predicted_classes
from trainables.method_config import MethodConfig
from trainables.methods import Method, build_method, task_of
from trainables.methods.context import Moment
from trainables.models import Classifier, build_head
from trainables.models.stage_heads import build_stage_head, normalise
from trainables.optim_config import OptimConfig
from trainables.seeds import derive_seed
from trainables.stage_config import HeadOptimConfig, TauNormConfig, TrainedHeadSettings, method_of


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
    average: Averaged | None = None
    """What is evaluated in place of phi; None: phi itself."""
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


class StageBuilder:
    """Builds the stages of one trial.

    Args:
        config: of the trial.
        loaded: the trial's images.
        classifier: the whole classifier. Its head becomes that of each later stage.
        collectives: the workers of the trial.
        captured: whether steps are captured as CUDA graphs.
    """

    def __init__(
        self, config: TrialConfig, loaded: LoadedData, classifier: Classifier, collectives: Collectives, captured: bool
    ) -> None:
        self._config, self._loaded, self._classifier = config, loaded, classifier
        self._collectives, self._captured = collectives, captured
        self._sets = Sets(loaded.train, loaded.meta, loaded.val)
        self._num_classes = len(loaded.data.class_counts)
        parameter = next(classifier.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype

    def first(self, method: Method, linearizer: Linearizer) -> Stage:
        """The stage that trains the whole classifier."""
        return self._stage(0, self._config.optim, method, self._classifier, self._sets, linearizer)

    def later(self, number: int, choosing: bool) -> Stage:
        """A stage that trains a head on the features of the classifier as it is now.

        Args:
            number: of the stage, from 1 on.
            choosing: whether what the stage takes from val is chosen now; otherwise it comes from a state.
        """
        settings, whole = self._config.later_stages()[number - 1], self._classifier
        sets = frozen_features(whole, self._sets, self._collectives)
        self.replace_head(number)
        if isinstance(settings, TauNormConfig) and choosing:
            choose_tau(settings, whole.head, sets.val, self._selecting, self._num_classes, self._collectives)
        trains = isinstance(settings, TrainedHeadSettings)
        optim = settings.optim if isinstance(settings, TrainedHeadSettings) else HeadOptimConfig()
        method = self.method(method_of(settings), optim, whole.head)
        linearizer = Linearizer() if self._collectives.alone else ShardedLinearizer(self._collectives)
        head_alone = Classifier(nn.Identity(), whole.head, whole.num_features)
        return self._stage(number, optim, method, head_alone, sets, linearizer, trains)

    def replace_head(self, number: int) -> None:
        """Gives the whole classifier the head that stage `number` begins with."""
        settings, head = self._config.later_stages()[number - 1], self._classifier.head.requires_grad_(True)
        head = build_stage_head(settings, head, self._num_classes, lambda: self._new_head(number))
        self._classifier.head = head.to(self._device, self._dtype)

    def _selecting(self, class_accuracy: Tensor) -> float:
        """The metric that selects the epoch, from the accuracies on val (num_classes,)."""
        counts = torch.bincount(self._sets.val.labels, minlength=self._num_classes).cpu()
        of_training = torch.from_numpy(self._loaded.data.clean_counts)
        return accuracy_metrics("val", class_accuracy.cpu(), of_training, counts)[self._config.select_by]

    def method(self, config: MethodConfig, optim: OptimConfig, head: nn.Module) -> Method:
        """A method for this trial's task."""
        task = task_of(self._loaded.data, self._classifier.num_features, head, optim.batch_size)
        return build_method(config, task, self._config.seed).to(self._device, self._dtype)

    @torch.no_grad()
    def shift_statistics(self, number: int, linearizer: Linearizer, epoch: int) -> None:
        """Runs an epoch of class-balanced batches through the backbone in train mode, which moves BatchNorm's statistics.

        Before stage `number`, which is of a head alone: random numbers of the backbone, such as dropout's, come from its seed.

        Source: MiSLAS (Zhong et al., CVPR 2021), section 3.4. Each worker sees its share of every batch, as in training.
        """
        backbone, optim, share = self._classifier.backbone, self._config.optim, self._collectives.share
        parameters: dict[str, Tensor] = dict(backbone.named_parameters())
        buffers = dict(backbone.named_buffers())
        labels = torch.from_numpy(self._loaded.data.train.labels)
        order = training_order(labels, optim.batch_size, self._config.seed, epoch, "class_balanced")
        requests = [Request(positions, share=share(len(positions))) for positions in order]
        seed = torch.tensor(derive_seed(self._config.seed, "draws", number), device=self._device)
        for step, (images, given, *_) in enumerate(self._sets.train.batches(requests)):
            alive()
            key = Key(torch.full_like(seed, step), seed)
            linearizer.features(backbone, parameters, buffers, images.to(self._dtype), len(given), linearizer.autocast, key)

    def _stage(
        self,
        number: int,
        optim: OptimConfig,
        method: Method,
        classifier: Classifier,
        sets: Sets,
        linearizer: Linearizer,
        trains: bool = True,
    ) -> Stage:
        config, epochs = self._config, self._config.stage_epochs()[number]
        optimizer = build_optimizer(optim, classifier, self._captured)
        meta_optimizer = build_meta_optimizer(method, self._captured)
        # The small difference corrects rounding: 0.55 * 100 is more than 55 in floating point.
        first_meta_step = math.ceil(method.meta_from * len(epochs) * steps_per_epoch(sets.train, optim) - 1e-9)
        course = Course(Moment.zero(self._device), derive_seed(config.seed, "draws", number), first_meta_step)
        bilevel_step = BilevelStep(
            classifier, method, optimizer, meta_optimizer, config.bilevel, linearizer, self._collectives, course
        )
        average = None if optim.ema is None else Averaged(classifier, optim.ema)
        return Stage(number, epochs, optim, classifier, method, optimizer, meta_optimizer, bilevel_step, sets, average, trains)

    def _new_head(self, number: int) -> nn.Module:
        """A head with fresh weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self._config.seed, "phi", number))
            return build_head(self._config.classifier, self._classifier.num_features, self._num_classes)


def steps_per_epoch(train: LoadedSet, optim: OptimConfig) -> int:
    """Training steps of an epoch; the last one may have fewer images."""
    return math.ceil(len(train) / optim.batch_size)


def frozen_features(classifier: Classifier, sets: Sets, collectives: Collectives) -> Sets:
    """The features of all images of the sets."""
    found: dict[int, FeatureSet] = {}
    for images in (sets.train, sets.meta, sets.val):  # val may be the meta set itself
        if id(images) not in found:
            found[id(images)] = FeatureSet(all_features(classifier, images, collectives), images.labels)
    return Sets(*(found[id(images)] for images in (sets.train, sets.meta, sets.val)))


def choose_tau(
    config: TauNormConfig,
    head: nn.Module,
    val: LoadedSet,
    selecting: Callable[[Tensor], float],
    num_classes: int,
    collectives: Collectives,
) -> float:
    """Divides the class vectors of a linear head by their lengths to the power tau, in place; tau is the best on val.

    Args:
        config: which powers are tried. Of equally good ones the smallest is taken.
        head: changed in place.
        val: features.
        selecting: how good accuracies on val (num_classes,) are.
        num_classes: number of logits.
        collectives: the workers of the trial.

    Returns: tau.
    """
    assert isinstance(head, nn.Linear)
    classifier = Classifier(nn.Identity(), head, head.in_features)
    weight = head.weight.detach().clone()

    def accuracy(tau: float) -> float:
        head.weight.data.copy_(normalise(weight, tau))
        predicted = predicted_classes(classifier, val, collectives=collectives)
        return selecting(class_accuracies(predicted, val.labels, num_classes))

    taus: list[float] = torch.linspace(0, config.max_tau, config.points).tolist()
    best = max(taus, key=accuracy)
    head.weight.data.copy_(normalise(weight, best))
    return best
