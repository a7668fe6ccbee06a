"""What the outputs of a weighting network were like in an epoch."""

import torch
from torch import Tensor

from trainables.methods.context import Context


class Outputs:
    """Statistics of outputs in (0, 1), (B, K), over the batches of an epoch.

    They are added up on the device and in place, so that a captured step can do it, too. When a step has several calls, the last
    one counts: that of the actual phase. So the repetitions before a capture count once.
    """

    def __init__(self) -> None:
        self._tensors: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
        self._of_images = False

    @torch.no_grad()
    def add(self, outputs: Tensor, context: Context) -> None:
        """Takes the outputs for a batch, (B, K)."""
        values = outputs.detach().double()
        if self._tensors is None:
            sums = torch.zeros(values.shape[1] + 3, dtype=torch.float64, device=values.device)
            last = torch.full((), -1, dtype=torch.int64, device=values.device)
            self._tensors = sums, torch.zeros_like(sums), torch.zeros_like(sums[:2]), last
        sums, pending, extremes, last = self._tensors
        self._of_images |= len(values) > 1
        sums += pending * (context.moment.step != last)
        below, rows = (values < 0.5).sum().double(), torch.ones_like(values[:, 0]).sum()
        pending.copy_(torch.cat([values.sum(0), torch.stack([values.square().sum(), below, rows])]))
        last.copy_(context.moment.step)
        liveliest = torch.minimum(values, 1 - values).max()
        extremes.copy_(torch.maximum(extremes, torch.stack([liveliest, (values.amax(0) - values.amin(0)).max()])))

    def take(self, sums: Tensor, extremes: Tensor, of_images: bool) -> None:
        """Takes the statistics of an epoch of single outputs, (B, 1), that were added up elsewhere.

        Args:
            sums: of the outputs and of their squares, the number below 1/2, and the number of images, (4,).
            extremes: as `extremes` gives them, (2,).
            of_images: whether a batch had several images.
        """
        last = torch.full((), -1, dtype=torch.int64, device=sums.device)
        self._tensors = sums, torch.zeros_like(sums), extremes, last
        self._of_images |= of_images

    def clear(self) -> None:
        """Begins a new epoch."""
        if self._tensors is not None:
            sums, pending, extremes, last = self._tensors
            for tensor in (sums, pending, extremes):
                tensor.zero_()
            last.fill_(-1)

    def _totals(self) -> Tensor | None:
        """Sums of the columns, of the squares, the number below 1/2, and the number of images."""
        if self._tensors is None:
            return None
        total = self._tensors[0] + self._tensors[1]
        return total if total[-1] > 0 else None

    def means(self) -> Tensor | None:
        """The mean of each column, (K,); None before the first batch of an epoch."""
        total = self._totals()
        return None if total is None else total[:-3] / total[-1]

    def moments(self) -> tuple[float, float, float] | None:
        """Mean and standard deviation of all entries, and the share below 1/2; None before the first batch of an epoch."""
        total = self._totals()
        if total is None:
            return None
        entries = total[-1] * (len(total) - 3)
        mean, square, below = (float(value / entries) for value in (total[:-3].sum(), total[-3], total[-2]))
        return mean, max(square - mean**2, 0.0) ** 0.5, below

    def extremes(self) -> tuple[float, float | None] | None:
        """The largest distance from the nearer of 0 and 1, and the largest difference between two images of a batch; the latter
        is None when all batches had one image. None before the first batch of an epoch.
        """
        if self._tensors is None or self._totals() is None:
            return None
        liveliest, widest = self._tensors[2].tolist()
        return liveliest, widest if self._of_images else None
