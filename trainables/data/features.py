"""Frozen features as a set of a trial: what a head is trained on when the backbone no longer learns."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from trainables.data.loader import ImageBatch, LoadedSet, Request


class FeatureSet(LoadedSet):
    """The features of a set, (N, D), and its labels, (N,), on the device. Nothing is augmented or mixed."""

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        self.features, self.labels = features, labels
        self.shape = (features.shape[1], 1, 1)

    def batches(self, requests: Sequence[Request]) -> Iterator[ImageBatch]:
        """As LoadedSet, with features (R, D) in place of images."""
        for request in requests:
            positions = request.positions.to(self.labels.device)
            yield ImageBatch(self.features[positions[request.share]], self.labels[positions], positions)
