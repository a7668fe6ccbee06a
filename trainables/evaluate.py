"""How good a classifier is: per class, many/medium/few, overall. Metric names are made here."""

from collections.abc import Callable

import torch
from torch import Tensor

from trainables.data.loader import DeviceSet

MANY_ABOVE, FEW_BELOW = 100, 20
"""Bands by training images per class: many > 100, medium 20..100, few < 20 (Liu et al., CVPR 2019)."""


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
    return torch.bincount(hits, minlength=num_classes) / torch.bincount(images.labels, minlength=num_classes)


def accuracy_metrics(prefix: str, class_accuracy: Tensor, class_counts: Tensor) -> dict[str, float]:
    """Means of class accuracies over all classes and over the bands of their training counts; an empty band is NaN.

    On a balanced set the mean over classes is the accuracy. Both arguments are (num_classes,).
    """
    bands: dict[str, Callable[[Tensor], Tensor]] = {
        "acc": lambda n: n >= 0,
        "acc_many": lambda n: n > MANY_ABOVE,
        "acc_medium": lambda n: (n >= FEW_BELOW) & (n <= MANY_ABOVE),
        "acc_few": lambda n: n < FEW_BELOW,
    }
    return {f"{prefix}/{name}": class_accuracy[chosen(class_counts)].mean().item() for name, chosen in bands.items()}
