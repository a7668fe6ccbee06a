"""Feature vectors as the sets of a trial: what a head is trained on when the backbone does not learn."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from trainables.data import ImageSet
from trainables.data.loader import ImageBatch, ImageFormat, ImageStore, LoadedSet, Normalisation, Request, Uses
from trainables.data.source import Ids, Vectors

ROWS_AT_ONCE = 4096
"""Vectors whose sums are computed at a time: a copy in double precision of all would take several times their memory."""


class FeatureSet(LoadedSet):
    """The features of a set, (N, D), and its labels, (N,), on the device.

    Args:
        features: standardised already.
        labels: as the trainer sees them.
        views: features of augmented copies of the images, (N, V, D); a request with `draws` takes one of them at random.
        normalisation: of the views.
    """

    def __init__(
        self, features: Tensor, labels: Tensor, views: Tensor | None = None, normalisation: Normalisation | None = None
    ) -> None:
        self.features, self.labels = features, labels
        self.shape = (features.shape[1], 1, 1)
        self._views, self._normalisation = views, normalisation

    def batches(self, requests: Sequence[Request]) -> Iterator[ImageBatch]:
        """As LoadedSet, with features (R, D) in place of images."""
        for request in requests:
            rows = request.rows()
            yield self._batch(request, self._rows(request, rows), request.positions.to(self.labels.device))

    def _rows(self, request: Request, rows: Tensor) -> Tensor:
        """The features of some rows of a batch."""
        positions = request.positions[rows].to(self.labels.device)
        if not request.draws or self._views is None or self._normalisation is None:
            return self.features[positions]
        chosen = self._drawn(request)[rows].to(self.labels.device)
        return standardised(self._views[positions, chosen], self._normalisation)

    def _drawn(self, request: Request) -> Tensor:
        """The view of each row of the batch, (R,). Drawn on the CPU for the whole batch: the same on every device and worker."""
        assert self._views is not None
        number = len(request.positions) // len(request.draws)
        generators = (torch.Generator().manual_seed(draw) for draw in request.draws)
        return torch.cat([torch.randint(self._views.shape[1], (number,), generator=generator) for generator in generators])


class FeaturePool(ImageStore):
    """All vectors of a source, for one trial after another.

    Args:
        vectors: of the source.
        device: of the batches.
        standardise: whether each number is standardised over the training images.
    """

    def __init__(self, vectors: Vectors, device: torch.device, standardise: bool) -> None:
        self._vectors, self._device, self._standardise = vectors, device, standardise

    def hold(self, ids: Ids, uses: Uses | None = None) -> None:
        """Nothing: all vectors are in memory."""

    def format(self, ids: Ids) -> ImageFormat:
        """Vectors of length D as images (D, 1, 1), with the mean and the standard deviation of each number over `ids`."""
        features = self._vectors.features
        length = features.shape[1]
        if not self._standardise:
            return ImageFormat((length, 1, 1), Normalisation((0.0,) * length, (1.0,) * length))
        groups = np.array_split(ids, -(-len(ids) // ROWS_AT_ONCE))
        mean = sum(features[some].astype(np.float64).sum(0) for some in groups) / len(ids)
        squares = sum(np.square(features[some].astype(np.float64) - mean).sum(0) for some in groups)
        std = np.sqrt(squares / len(ids))
        return ImageFormat((length, 1, 1), Normalisation(tuple(mean.tolist()), tuple(np.where(std > 0, std, 1.0).tolist())))

    def load(self, part: ImageSet, form: ImageFormat, augmentations: Sequence[str] = ()) -> FeatureSet:
        """The vectors of a set."""
        features = torch.from_numpy(self._vectors.features[part.ids]).to(self._device)
        labels = torch.from_numpy(part.labels).to(self._device)
        views = None
        if augmentations and self._vectors.views is not None:
            views = torch.from_numpy(self._vectors.views[part.ids]).to(self._device)
        return FeatureSet(standardised(features, form.normalisation), labels, views, form.normalisation)


def standardised(features: Tensor, normalisation: Normalisation) -> Tensor:
    """(features - mean) / std in float32, from features (N, D)."""
    mean, std = (torch.tensor(values, device=features.device) for values in normalisation)
    return (features.float() - mean) / std
