"""Batches of a trial's sets: which images a batch has, and the interfaces of the classes that load their pixels.

The order of batches and every augmentation are functions of seed, epoch and step. A checkpoint therefore stores nothing about
them: a trial that continues requests the remaining batches.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trainables.collectives import ALONE, Collectives
from trainables.data import ImageSet
from trainables.data.source import Ids
from trainables.seeds import derive_seed

ImageBatch = tuple[Tensor, Tensor]
"""Normalised float32 images (B, C, H, W), or the requested share of them, and labels (B,) of the whole batch, on the device."""


class Request(NamedTuple):
    """A batch to load. An image is the same in any share of the batch."""

    positions: Tensor
    """Positions (B,) of the batch's images in the set; the batch has the labels of all of them."""
    draw: int | None = None
    """Seed of the augmentation; None for images without augmentation."""
    share: slice = slice(None)
    """Which images of the batch are wanted."""


class LoadedSet(ABC):
    """One set of a trial."""

    shape: tuple[int, int, int]
    """Shape of the images, (C, H, W)."""
    labels: Tensor
    """Labels (N,) on the device, as the trainer sees them, that is, including wrong ones."""

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    @abstractmethod
    def batches(self, requests: Sequence[Request]) -> Iterator[ImageBatch]:
        """The batches, in the order of the requests; they may be prepared ahead. A batch depends on its own request only.

        Raises:
            ValueError: when an image cannot be read; the message names the image.
        """


class ImageFormat(NamedTuple):
    """The input format of a classifier: images of `shape` (C, H, W), normalised."""

    shape: tuple[int, int, int]
    normalisation: "Normalisation"


class ImageStore(ABC):
    """Provides the pixels of a source's images to all sets, for one trial after another."""

    @abstractmethod
    def hold(self, ids: Ids) -> None:
        """Prepares the images `ids` (N,), so that sets of them can be loaded.

        Raises:
            ValueError: when an image is missing, cannot be read or has another size; the message names its place.
        """

    @abstractmethod
    def format(self, ids: Ids) -> ImageFormat:
        """The image format of a trial that trains on the held images `ids`."""

    @abstractmethod
    def load(self, part: ImageSet, form: ImageFormat, augmentations: Sequence[str] = ()) -> LoadedSet:
        """A set of held images. Requests with a `draw` apply `augmentations`."""


class Normalisation(NamedTuple):
    """(pixel - mean) / std with mean and std for each channel, (C,), in units of the pixels, 0 to 255."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalised float32 images from uint8 images, (B, C, H, W)."""
        mean, std = (torch.tensor(values, device=pixels.device)[:, None, None] for values in self)
        return pixels.float().sub_(mean).div_(std)


def training_requests(
    order: Sequence[Tensor], seed: int, first_step: int, augmented: bool, collectives: Collectives = ALONE
) -> list[Request]:
    """This worker's shares of the batches in `order`; the first batch belongs to `first_step` (from 0 over the whole trial)."""
    draws = (derive_seed(seed, "augment", first_step + number) if augmented else None for number in range(len(order)))
    return [Request(positions, draw, collectives.share(len(positions))) for positions, draw in zip(order, draws, strict=True)]


def training_order(labels: Tensor, batch_size: int, seed: int, epoch: int, sampler: str = "instance") -> list[Tensor]:
    """The positions of each batch of an epoch. All batches have `batch_size` images, except perhaps the last.

    `instance` is a new permutation in each epoch. The other samplers draw N images with replacement. An image of a class with n
    images is drawn with probability proportional to n^(q - 1), so the class is drawn in proportion to n^q: q = 0 is
    `class_balanced`, q = 1/2 is `square_root`. Source: Kang et al., ICLR 2020, section 3.

    Args:
        labels: of the training set, (N,), on the CPU.
        batch_size: images per batch.
        seed: the trial's seed.
        epoch: counted from 1.
        sampler: `instance`, `class_balanced` or `square_root`.
    """
    generator = _generator(seed, "train_batches", epoch)
    if sampler == "instance":
        return list(torch.split(torch.randperm(len(labels), generator=generator), batch_size))
    exponent = {"class_balanced": 0.0, "square_root": 0.5}[sampler]
    weights = torch.bincount(labels).double().pow(exponent - 1)[labels]
    # Inversion sampling, because torch.multinomial is limited to 2^24 images.
    cumulated = weights.cumsum(0)
    draws = torch.rand(len(labels), dtype=torch.float64, generator=generator) * cumulated[-1]
    # A draw below 1 times the total can round up to the total, which would be one position too far.
    drawn = torch.searchsorted(cumulated, draws, right=True).clamp_max(len(labels) - 1)
    return list(torch.split(drawn, batch_size))


def meta_order(num_images: int, batch_size: int, seed: int, step: int) -> Tensor:
    """Positions of the meta batch of `step` (from 0 over the whole trial): drawn without replacement; all if there are few."""
    if batch_size >= num_images:
        return torch.arange(num_images)
    return torch.randperm(num_images, generator=_generator(seed, "meta_batches", step))[:batch_size]


def balanced_meta_orders(labels: Tensor, batch_size: int, seed: int, epoch: int, number: int) -> list[Tensor]:
    """Positions of all meta batches of an epoch, drawn from training images. Each has `batch_size` images, with repetition.

    Round after round has one random image of each class, in a random order. So the images of any two classes differ by at most
    one over the epoch. Source: BALMS (Ren et al., NeurIPS 2020), whose meta sampler is class-balanced too.

    Args:
        labels: of the training set, (N,), on the CPU.
        batch_size: images per batch.
        seed: the trial's seed.
        epoch: counted from 1.
        number: meta batches in the epoch.
    """
    by_class, counts = torch.argsort(labels, stable=True), torch.bincount(labels)
    starts, present = counts.cumsum(0) - counts, counts.nonzero().flatten()
    generator = _generator(seed, "meta_batches", epoch)
    rounds = (-(-number * batch_size // len(present)), len(present))
    classes = present[torch.rand(rounds, generator=generator).argsort(dim=1, stable=True)]
    draws = (torch.rand(rounds, dtype=torch.float64, generator=generator) * counts[classes]).long()
    # A draw below 1 times the count can round up to the count, which would be an image of the next class.
    positions = by_class[starts[classes] + torch.minimum(draws, counts[classes] - 1)].flatten()
    return list(torch.split(positions[: number * batch_size], batch_size))[:number]


def _generator(seed: int, stream: str, count: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, stream, count))
