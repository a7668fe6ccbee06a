"""Which training images have labels that a model doubts: by the exported model, or by models that have not seen them.

The score is the normalised margin of confident learning: the probability of the most probable other class, minus that of the
label. Source: Northcutt et al., "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 2021. A model has seen its
training images, and with enough epochs it knows wrong labels by heart. `cross_examine` trains models that have not seen what they
judge.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.checkpoint import unpack
from trainables.config import TrialConfig
from trainables.data import ImageSet, LongTailedData, build_data
from trainables.data.kept import room_for_images
from trainables.data.loaded import LoadedData, format_of, load_data, on_device, open_store
from trainables.data.loader import ImageFormat, LoadedSet
from trainables.data.source import Ids, image_name
from trainables.data.thumbnails import thumbnails
from trainables.data_config import EncodedConfig
from trainables.engine.numerics import numerics
from trainables.evaluate import features_at
from trainables.export_model import read_model
from trainables.machine import choose_device, num_cores
from trainables.methods import Method, build_method, task_of
from trainables.methods.context import Context, Moment
from trainables.models import Classifier, expected_input
from trainables.seeds import derive_seed
from trainables.stage_config import HeadOptimConfig, method_of
from trainables.trained import trained_classifier
from trainables.trial_run import TrialRun

MOST = 200_000
"""Training images that are judged at most, evenly spread over the classes."""
SHOWN = 100
"""The most suspicious images, of which there are thumbnails."""
Floats = NDArray[np.float64]


class Judged(NamedTuple):
    """What models say about images, each field (N,)."""

    given: Ids
    """The labels, as the trainer sees them."""
    predicted: Ids
    """The most probable classes."""
    confidence: Floats
    """Their probabilities."""
    given_probability: Floats
    """The probabilities of the labels."""
    other_probability: Floats
    """The probabilities of the most probable classes other than the labels."""
    loss: Floats
    """Cross-entropy: minus the logarithm of the label's probability."""
    weight: Floats
    """The method's weights, NaN where it has none."""

    def at(self, rows: Ids) -> "Judged":
        """These images, in this order."""
        return Judged._make(values[rows] for values in self)

    @property
    def score(self) -> Floats:
        """The normalised margin, in [-1, 1]: above 0, another class is more probable than the label."""
        return self.other_probability - self.given_probability


class Suspects(NamedTuple):
    """Training images, the most suspicious first."""

    names: list[str]
    """Files below the root, or what a source without files has."""
    judged: Judged
    likely: NDArray[np.bool_]
    """Whether confident learning counts the label as wrong, (N,)."""
    flipped: NDArray[np.bool_] | None
    """Whether `data.noise` has changed the label, (N,); None without noise."""
    fold: Ids | None
    """The fold in which no model saw the image, from 0, (N,); None for the exported model, which has seen all images."""
    thumbnails: list[str | None]
    """Data URIs of the first ones; empty where an image could not be read, None where there is a vector in place of an image."""
    class_names: tuple[str, ...]
    num_images: int
    """Training images, also those that were not judged."""
    notes: tuple[str, ...] = ()
    """What a person should know."""


def examine(model: Path, best: bytes | None = None) -> Suspects:
    """The training images of an exported model as this model sees them, which was trained on them.

    Args:
        model: its file.
        best: the model's `epoch` and the method's state `theta` then, packed; None for no weights.

    Raises:
        ValueError: when the images are not those that the model was trained on, or one cannot be read.
    """
    classifier, config, metadata = read_model(model)
    device = choose_device("cpu" if config.device == "cpu" else "auto")  # this machine may have no GPU, unlike the training's
    torch.set_num_threads(num_cores())
    data = build_data(config.data, config.seed)
    if data.sha256 != metadata["split_sha256"]:
        raise ValueError(
            f"data: the images or labels are not those of {model}: the split's sha256 was {metadata['split_sha256']}"
        )
    number = len(data.train)
    # Training images are in the order of their classes, so evenly spaced ones keep the shares of the classes.
    some = np.arange(number) if number <= MOST else np.linspace(0, number - 1, MOST).astype(np.int64)
    store = open_store(config.data, data.source, device, config.compute.readers)
    store.hold(data.train.ids[some])
    form = ImageFormat.of(metadata)
    classifier.to(device)
    state = None if best is None else unpack(best, "the best epoch")
    with numerics(config.compute, device):
        weighs = None if state is None else _method_of(config, data, classifier, state["theta"], state["epoch"])
        judged = _judge(config, classifier, store.load(_some(data.train, some), form), weighs)
    notes = [] if number <= MOST else [f"{MOST} of {number} training images were judged, evenly spread over the classes"]
    return _ranked(config, data, some, judged, None, notes)


def cross_examine(config: TrialConfig, num_folds: int, on_epoch: Callable[[int, int], None]) -> Suspects:
    """The training images as models see them that have not seen them: each model trains on all folds but one and judges that one.

    The sealed test set is not read.

    Args:
        config: of the trial that is trained `num_folds` times.
        num_folds: at least 2.
        on_epoch: called before each epoch with the number of the fold, from 0, and of the epoch, from 1.

    Raises:
        ValueError: when the data cannot give what `config` asks for.
        TrialEnded: when a model diverges, or memory does not suffice.
    """
    config = config.model_copy(update={"read_test": False})
    device = choose_device(config.device)
    room, expected = room_for_images(config.compute.keep_gib, device, config.threads), expected_input(config.classifier)
    moved = on_device(config.compute)
    whole = load_data(config.data, config.seed, device, config.compute.readers, None, room, expected, moved)
    data = whole.data
    fold_of = folds(data.train.labels, num_folds, np.random.default_rng(derive_seed(config.seed, "folds")))
    run, parts = TrialRun(), list[tuple[Ids, Judged]]()
    for fold in range(num_folds):
        held = np.flatnonzero(fold_of == fold)
        if not len(held):
            continue
        run.start(config, _without(whole, config, fold_of != fold))
        while run.epoch < config.epochs:
            on_epoch(fold, run.epoch + 1)
            run.run_epoch()
        if run.best is None:
            raise ValueError(f"fold {fold + 1}: no epoch has a {config.select_by} that is a number")
        counts, epoch = run.loaded.data.class_counts.tolist(), run.best.epoch
        classifier = trained_classifier(config, run.best.phi, run.loaded.format.shape, counts, config.stage_at(epoch))
        classifier.to(run.device, run.dtype)
        assert run.best.theta is not None
        with numerics(config.compute, run.device):
            weighs = _method_of(config, run.loaded.data, classifier, run.best.theta, epoch)
            images = whole.store.load(_some(data.train, held), run.loaded.format)
            parts.append((held, _judge(config, classifier, images, weighs)))
    positions = np.concatenate([held for held, _ in parts])
    judged = Judged._make(np.concatenate(values) for values in zip(*(judged for _, judged in parts), strict=True))
    notes = []
    if alone := np.flatnonzero(fold_of < 0).tolist():
        classes = ", ".join(data.class_names[label] for label in data.train.labels[alone])
        notes.append(f"not judged, because a model without the only image of a class cannot know the class: {classes}")
    return _ranked(config, data, positions, judged, fold_of, notes)


def folds(labels: Ids, num_folds: int, rng: np.random.Generator) -> Ids:
    """The fold of each image, (N,), from 0, from labels (N,); -1 for the only image of a class, which no model can do without.

    Each class is spread evenly. A class with fewer images than there are folds is missing in some.
    """
    found = np.full(len(labels), -1)
    first = 0
    for c in np.unique(labels):
        of_class = rng.permutation(np.flatnonzero(labels == c))
        if len(of_class) > 1:
            found[of_class] = (first + np.arange(len(of_class))) % num_folds
            first += len(of_class)  # small classes do not all go to the first folds
    return found


def likely_wrong(given: Ids, probabilities: tuple[Ids, Floats, Floats], num_classes: int) -> NDArray[np.bool_]:
    """Which labels confident learning counts as wrong, (N,): another class is predicted, with at least the probability that the
    images labelled as that class have for it on average.

    Args:
        given: labels, (N,).
        probabilities: predicted classes, their probabilities, and those of the labels, each (N,).
        num_classes: of the data.
    """
    predicted, confidence, of_label = probabilities
    counts = np.bincount(given, minlength=num_classes)
    thresholds = np.bincount(given, of_label, minlength=num_classes) / np.maximum(counts, 1)
    found: NDArray[np.bool_] = (predicted != given) & (confidence >= thresholds[predicted])
    return found


def _some(part: ImageSet, positions: Ids) -> ImageSet:
    return ImageSet(part.ids[positions], part.labels[positions])


def _without(whole: LoadedData, config: TrialConfig, kept: NDArray[np.bool_]) -> LoadedData:
    """The data of a trial with some of its training images, (N,). Which classes are many, medium and few stays as it is."""
    data, part = whole.data, _some(whole.data.train, np.flatnonzero(kept))
    meta = part if data.meta is data.train else data.meta
    counts = np.bincount(part.labels, minlength=len(data.class_names))
    split = replace(data.split, train=part.ids)
    fewer = replace(data, split=split, train=part, meta=meta, class_counts=counts)
    form, store = format_of(whole.store, fewer, whole.key[-1]), whole.store
    if data.val is data.meta:
        fewer = replace(fewer, val=meta)
    loaded = {name: store.load(getattr(fewer, name), form) for name in ("meta", "val")}
    if fewer.val is fewer.meta:
        loaded["val"] = loaded["meta"]
    return LoadedData(whole.key, fewer, form, store, store.load(part, form, config.data.augment), loaded["meta"], loaded["val"])


class _Weighs(NamedTuple):
    """A method as it was at the end of an epoch."""

    method: Method
    moment: Moment
    """The last step of the epoch."""
    batch_size: int
    """Images of a batch in training: methods may compare the images of a batch."""


def _method_of(
    config: TrialConfig, data: LongTailedData, classifier: Classifier, theta: dict[str, Tensor], epoch: int
) -> _Weighs | None:
    """The method of the stage that `epoch` belongs to, with its state; None when it weighs by the meta loss of a step alone."""
    number = config.stage_at(epoch)
    settings = config.later_stages()[number - 1] if number else None
    optim = config.optim if settings is None else getattr(settings, "optim", HeadOptimConfig())
    task = task_of(data, classifier.num_features, classifier.head, optim.batch_size)
    method = build_method(config.method if settings is None else method_of(settings), task, config.seed)
    if method.perturbation_shape(1) is not None:
        return None
    method.load_state_dict(theta)
    parameter = next(classifier.parameters())
    method.to(parameter.device, parameter.dtype).requires_grad_(False)
    stage, moment = config.stage_epochs()[number], Moment.zero(parameter.device)
    steps = math.ceil(len(data.train) / optim.batch_size)
    moment.set(max(0, (epoch - stage.start) * steps - 1), steps, len(stage) * steps)
    return _Weighs(method, moment, optim.batch_size)


@torch.no_grad()
def _judge(config: TrialConfig, classifier: Classifier, images: LoadedSet, weighs: _Weighs | None) -> Judged:
    """What a classifier and its method say about the images of a set."""
    # Methods may compare the images of a batch. Those of a set are in the order of their classes, which training never has.
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    rows: list[tuple[Tensor, ...]] = []
    for positions, features in features_at(classifier, images, order):
        labels, logits = images.labels[positions], classifier.head(features)
        adjusted = logits if classifier.adjustment is None else classifier.adjustment(logits)
        logs = adjusted.double().log_softmax(1)
        own = logs.gather(1, labels[:, None])[:, 0]
        others = logs.scatter(1, labels[:, None], -math.inf).amax(1)
        confidence, predicted = logs.max(1)
        weights = torch.full_like(own, math.nan)
        if weighs is not None:
            for some in torch.split(torch.arange(len(labels), device=labels.device), weighs.batch_size):
                found = _weights(weighs, classifier, features[some], labels[some], positions[some], config.seed)
                weights[some] = weights[some] if found is None else found.double()
        rows.append((labels, predicted, confidence.exp(), own.exp(), others.exp(), -own, weights))
    back = torch.argsort(order)
    return Judged._make(torch.cat(values).cpu()[back].numpy() for values in zip(*rows, strict=True))


def _weights(
    weighs: _Weighs, classifier: Classifier, features: Tensor, labels: Tensor, positions: Tensor, seed: int
) -> Tensor | None:
    """The method's weights of a batch's images, (B,); None where it has none."""
    method = weighs.method
    if (of_classes := method.class_weights()) is not None:
        return of_classes[labels]
    context = Context(method, classifier.head, features, labels, positions, weighs.moment, seed)
    return method.sample_weights(context, method.begin_batch(context))


def _ranked(
    config: TrialConfig, data: LongTailedData, positions: Ids, judged: Judged, fold_of: Ids | None, notes: list[str]
) -> Suspects:
    """The images at `positions` of the training set, (N,), the most suspicious first; of equals, the one with the larger loss."""
    likely = likely_wrong(judged.given, (judged.predicted, judged.confidence, judged.given_probability), len(data.class_names))
    order = np.lexsort((positions, -judged.loss, -judged.score))
    positions, images = positions[order], data.source.images
    ids = data.train.ids[positions]
    flipped = None
    if config.data.noise.kind != "none":
        flipped = data.train.labels[positions] != data.source.labels[ids]
    return Suspects(
        names=[image_name(images, image) for image in ids.tolist()],
        judged=judged.at(order),
        likely=likely[order],
        flipped=flipped,
        fold=None if fold_of is None else fold_of[positions],
        thumbnails=thumbnails(data.source, ids[:SHOWN], isinstance(config.data, EncodedConfig) and config.data.grey),
        class_names=data.class_names,
        num_images=len(data.train),
        notes=tuple(notes),
    )
