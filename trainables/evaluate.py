"""How good a classifier is: per class, many/medium/few, overall. Metric names are made here."""

import math

import torch
from torch import Tensor

from trainables.collectives import ALONE, Collectives
from trainables.data.loader import LoadedSet, Request
from trainables.data.profiles import BANDS

PIXELS_AT_ONCE = 2**25
"""In a batch of the evaluation; what its activations take is a hundred times that, and more."""


@torch.no_grad()
def class_accuracies(
    classifier: torch.nn.Module,
    images: LoadedSet,
    num_classes: int,
    most: int | None = None,
    collectives: Collectives = ALONE,
) -> Tensor:
    """Accuracy on each class of `images`, (num_classes,) in [0, 1], NaN for absent classes; BatchNorm in eval mode.

    The classifier's mode is put back afterwards. `most` images are looked at, the first ones; None takes all. Each worker looks
    at its share of them, and all get the same answer.
    """
    dtype = next(classifier.parameters()).dtype
    was_training = classifier.training
    classifier.eval()
    batch_size = max(1, min(1024, PIXELS_AT_ONCE // math.prod(images.shape)))
    positions = torch.arange(len(images))[:most]
    share = collectives.share(len(positions))
    requests = [Request(some) for some in torch.split(positions[share], batch_size) if len(some)]
    labels = images.labels[share]
    predicted = [classifier(pixels.to(dtype)).argmax(1) for pixels, _ in images.batches(requests)]
    classifier.train(was_training)
    found = torch.cat(predicted) == labels if predicted else labels > labels  # a share may have no images
    counts = [torch.bincount(some, minlength=num_classes) for some in (labels[found], labels)]
    hits, totals = collectives.total(counts)
    return hits.double() / totals


def accuracy_metrics(prefix: str, class_accuracy: Tensor, class_counts: Tensor) -> dict[str, float]:
    """Means of class accuracies over all classes and over the bands of their training counts; an empty band is NaN.

    On a balanced set the mean over classes is the accuracy. Both arguments are (num_classes,). Rounded to nine digits: equal
    numbers of hits give equal metrics, whichever classes they fell on.
    """
    accuracy = class_accuracy.double()
    return {f"{prefix}/{name}": round(accuracy[band(class_counts)].mean().item(), 9) for name, band in BANDS.items()}
