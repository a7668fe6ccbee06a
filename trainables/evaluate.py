"""Predictions and accuracies of a classifier: per class, by many/medium/few band, and overall. Names the accuracy metrics."""

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from trainables.alive import alive
from trainables.collectives import ALONE, Collectives
from trainables.data.loader import LoadedSet, Request
from trainables.data.profiles import BANDS
from trainables.engine.numerics import autocasting
from trainables.methods.base import TrainingPass
from trainables.models.classifier import Classifier

PIXELS_AT_ONCE = 2**25
"""Pixel values in a batch of the evaluation. The activations take a hundred times as much memory, and more."""


@torch.no_grad()
def predicted_classes(
    classifier: Classifier,
    images: LoadedSet,
    most: int | None = None,
    collectives: Collectives = ALONE,
    predict: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The most probable class of each image, (N,); BatchNorm is in eval mode.

    The classifier's mode is restored afterwards. Only the first `most` images are evaluated; None takes all. `predict` adjusts
    the logits (B, num_classes) before the largest is taken. Each worker evaluates its share, and all workers get the same result.
    """
    number = len(images) if most is None else min(most, len(images))
    logits = (classifier.head(features) for features in _features(classifier, images, collectives.share(number)))
    predicted = [(predict(some) if predict else some).argmax(1) for some in logits]
    return collectives.gather(torch.cat([images.labels[:0], *predicted]), number)  # a share may be empty


def class_accuracies(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Accuracy on each class, (num_classes,) in [0, 1], from predicted classes and labels, both (N,); NaN for absent classes."""
    hits, totals = (torch.bincount(some, minlength=num_classes) for some in (labels[predicted == labels], labels))
    return hits.double() / totals


def mistakes(predicted: Tensor, labels: Tensor, num_classes: int) -> list[list[int]]:
    """What the images of each class were mistaken for: the predicted class of each image that is wrong, in ascending order."""
    wrong = predicted != labels
    found: list[list[int]] = [[] for _ in range(num_classes)]
    for label, taken in sorted(zip(labels[wrong].tolist(), predicted[wrong].tolist(), strict=True)):
        found[label].append(taken)
    return found


@torch.no_grad()
def all_features(classifier: Classifier, images: LoadedSet, collectives: Collectives = ALONE) -> Tensor:
    """The classifier's features on all of `images`, (N, D). Each worker computes its share and gets the whole."""
    rows = [_no_features(classifier), *_features(classifier, images, collectives.share(len(images)))]
    return collectives.gather(torch.cat(rows), len(images))


@torch.no_grad()
def training_pass(classifier: Classifier, images: LoadedSet, collectives: Collectives = ALONE) -> TrainingPass:
    """The classifier's features and logits on all of `images`. Each worker computes its share and gets the whole."""
    rows = itertools.chain([_no_features(classifier)], _features(classifier, images, collectives.share(len(images))))
    outputs = [(features, classifier.head(features)) for features in rows]
    features, logits = (collectives.gather(torch.cat(parts), len(images)) for parts in zip(*outputs, strict=True))
    return TrainingPass(features, logits, images.labels)


def _no_features(classifier: Classifier) -> Tensor:
    """The features of no image, (0, D): a worker's share may have none."""
    return next(classifier.parameters()).new_zeros(0, classifier.num_features)


def _features(classifier: Classifier, images: LoadedSet, share: slice) -> Iterator[Tensor]:
    """Features of the images at the positions `share`, as `features_at`."""
    for _, features in features_at(classifier, images, torch.arange(len(images))[share]):
        yield features


def features_at(classifier: Classifier, images: LoadedSet, positions: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Positions (B,) on the images' device, and features (B, D) of the images there, a batch at a time, without augmentation.

    The backbone runs under torch.autocast if the classifier says so; features always have the parameters' type.
    The classifier is in eval mode until the last batch has been taken.
    """
    dtype = next(classifier.parameters()).dtype
    was_training = classifier.training
    classifier.eval()
    batch_size = max(1, min(1024, PIXELS_AT_ONCE // math.prod(images.shape)))
    requests = [Request(some) for some in torch.split(positions, batch_size) if len(some)]
    for pixels, _, places, *_ in images.batches(requests):
        alive()
        with autocasting(pixels.device, classifier.autocast):
            features: Tensor = classifier.backbone(pixels.to(dtype))
        yield places, features.to(dtype)
    classifier.train(was_training)


def accuracy_metrics(
    prefix: str, class_accuracy: Tensor, class_counts: Tensor, set_counts: Tensor | None = None
) -> dict[str, float]:
    """Means of class accuracies over all classes (balanced accuracy) and over the bands of training counts; an empty band is NaN.

    Classes without an image in the set are left out. With `set_counts`, the images of each class in the set, there is also
    `plain_acc`, the share of its images that are right. On a balanced set, it equals the balanced accuracy. All tensors are
    (num_classes,). The means are rounded to nine decimals, so that equal numbers of correct images give equal metrics, however
    they are distributed over classes.
    """
    accuracy = class_accuracy.double()
    present = ~accuracy.isnan()
    metrics = {f"{prefix}/{name}": accuracy[band(class_counts) & present].mean() for name, band in BANDS.items()}
    if set_counts is not None:
        hits = accuracy[present] * set_counts[present]
        metrics[f"{prefix}/plain_acc"] = hits.sum() / set_counts.sum()
    return {name: round(mean.item(), 9) for name, mean in metrics.items()}


def without_gaps(class_accuracy: Tensor) -> Tensor:
    """Class accuracies (num_classes,) in which absent classes (NaN) have the mean of the others: neither difficult nor easy."""
    absent = class_accuracy.isnan()
    return class_accuracy.where(~absent, class_accuracy[~absent].mean())
