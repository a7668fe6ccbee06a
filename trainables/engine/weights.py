"""The weights that the images of an epoch got, by class."""

import torch
from torch import Tensor
from torch.nn import functional as F


class WeightsByClass:
    """Sums of weights by class. They are added up on the device and in place, so that a captured step can do it, too.

    Args:
        num_classes: number of classes.
        device: where the weights are.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.sums, self.counts = (torch.zeros(num_classes, dtype=torch.float64, device=device) for _ in range(2))
        self._weighted = False

    def add(self, labels: Tensor, weights: Tensor | None) -> None:
        """Adds a batch: labels (B,) and weights (B,). None: the method does not weigh images."""
        if weights is None:
            return
        self._weighted = True
        # A product with ones and zeros instead of index_add_, whose sums on a GPU differ from run to run.
        of_class = F.one_hot(labels, len(self.sums)).double().T
        self.sums += of_class @ weights.detach().double()
        self.counts += of_class.sum(1)

    def take(self, sums: Tensor, counts: Tensor) -> None:
        """Takes the sums of weights and the images of each class, both (num_classes,), that were added up elsewhere."""
        self._weighted = True
        self.sums.copy_(sums)
        self.counts.copy_(counts)

    def means(self) -> Tensor | None:
        """The mean weight of each class's images, (num_classes,), NaN for a class without one; None without weights."""
        return self.sums / self.counts if self._weighted else None

    def clear(self) -> None:
        """Begins a new epoch."""
        self.sums.zero_()
        self.counts.zero_()
