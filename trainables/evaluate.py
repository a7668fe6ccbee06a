"""How good a classifier is: per class, many/medium/few, overall. Metric names are made here."""

import torch
from torch import Tensor

from trainables.data.loader import DeviceSet
from trainables.data.profiles import BANDS


@torch.no_grad()
def class_accuracies(classifier: torch.nn.Module, images: DeviceSet, num_classes: int, batch_size: int = 1024) -> Tensor:
    """Accuracy on each class of `images`, (num_classes,) in [0, 1], NaN for absent classes; BatchNorm in eval mode.

    The classifier's mode is put back afterwards.
    """
    was_training = classifier.training
    classifier.eval()
    chunks = torch.split(torch.arange(len(images), device=images.labels.device), batch_size)
    predicted = [classifier(images.batch(ids)[0]).argmax(1) for ids in chunks]
    classifier.train(was_training)
    hits = images.labels[torch.cat(predicted) == images.labels]
    totals = torch.bincount(images.labels, minlength=num_classes)
    return torch.bincount(hits, minlength=num_classes).double() / totals


def accuracy_metrics(prefix: str, class_accuracy: Tensor, class_counts: Tensor) -> dict[str, float]:
    """Means of class accuracies over all classes and over the bands of their training counts; an empty band is NaN.

    On a balanced set the mean over classes is the accuracy. Both arguments are (num_classes,). Rounded to nine digits: equal
    numbers of hits give equal metrics, whichever classes they fell on.
    """
    accuracy = class_accuracy.double()
    return {f"{prefix}/{name}": round(accuracy[band(class_counts)].mean().item(), 9) for name, band in BANDS.items()}
