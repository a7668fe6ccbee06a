"""The sets of a trial, ready to be asked for batches: which images a batch has, and where its pixels come from.

The order of batches and every augmentation depend on the seed, the epoch and the step only, so nothing about them needs saving: a
trial that goes on in the middle asks for the batches that are left.
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
"""Normalised float32 images (B, C, H, W), or the share of them that was asked for, and labels (B,), on the device."""


class Request(NamedTuple):
    """A batch to be made: positions (B,) in the set, the seed of their augmentation, or None for the images as they are, and
    which of the images are wanted. The labels of all are given, and an image is the same in any share.
    """

    positions: Tensor
    draw: int | None = None
    share: slice = slice(None)


class LoadedSet(ABC):
    """One set of a trial."""

    shape: tuple[int, int, int]
    """Of its images, (C, H, W)."""
    labels: Tensor
    """(N,), on the device, as the trainer sees them."""

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.labels)

    @abstractmethod
    def batches(self, requests: Sequence[Request]) -> Iterator[ImageBatch]:
        """The batches, one after another; may be prepared ahead. What a request gives does not depend on the others.

        Raises:
            ValueError: when an image cannot be read; the message names it.
        """


class ImageFormat(NamedTuple):
    """What a classifier takes: images of `shape` (C, H, W), normalised."""

    shape: tuple[int, int, int]
    normalisation: "Normalisation"


class ImageStore(ABC):
    """Where the pixels of a source come from; serves all sets, and one trial after another."""

    @abstractmethod
    def hold(self, ids: Ids) -> None:
        """Makes the images `ids` (N,) ready.

        Raises:
            ValueError: naming the place of an image that is missing, cannot be read or has another size.
        """

    @abstractmethod
    def format(self, ids: Ids) -> ImageFormat:
        """What images look like in a trial that trains on the held images `ids`."""

    @abstractmethod
    def load(self, part: ImageSet, form: ImageFormat, augmentations: Sequence[str] = ()) -> LoadedSet:
        """A set of held images; those of requests with a draw get `augmentations`."""


class Normalisation(NamedTuple):
    """(pixel - mean) / std, for each channel (C,), in units of the pixels, 0 to 255."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Float32 images of uint8 ones, (B, C, H, W)."""
        mean, std = (torch.tensor(values, device=pixels.device)[:, None, None] for values in self)
        return pixels.float().sub_(mean).div_(std)


def training_requests(
    order: Sequence[Tensor], seed: int, first_step: int, augmented: bool, collectives: Collectives = ALONE
) -> list[Request]:
    """This worker's shares of the batches of `order`, whose first one is that of `first_step` (from 0 over the whole trial)."""
    draws = (derive_seed(seed, "augment", first_step + number) if augmented else None for number in range(len(order)))
    return [Request(positions, draw, collectives.share(len(positions))) for positions, draw in zip(order, draws, strict=True)]


def training_order(labels: Tensor, batch_size: int, seed: int, epoch: int, sampler: str = "instance") -> list[Tensor]:
    """The positions of each batch of an epoch (counted from 1), all but the last of `batch_size`.

    `instance` is a new permutation each time. The others draw as many images with replacement, one of a class with n images in
    proportion to n^(q - 1), so that the class comes in proportion to n^q: q = 0 is `class_balanced`, 1/2 is `square_root`.
    Source: Kang et al., ICLR 2020, section 3.

    Args:
        labels: of the training set, (N,), on the CPU.
        batch_size: images per batch.
        seed: of the trial.
        epoch: counted from 1.
        sampler: its name.
    """
    generator = _generator(seed, "train_batches", epoch)
    if sampler == "instance":
        return list(torch.split(torch.randperm(len(labels), generator=generator), batch_size))
    exponent = {"class_balanced": 0.0, "square_root": 0.5}[sampler]
    weights = torch.bincount(labels).double().pow(exponent - 1)[labels]
    # By inversion: torch.multinomial stops at 2^24 images.
    cumulated = weights.cumsum(0)
    draws = torch.rand(len(labels), dtype=torch.float64, generator=generator) * cumulated[-1]
    drawn = torch.searchsorted(cumulated, draws, right=True).clamp_max(len(labels) - 1)
    return list(torch.split(drawn, batch_size))


def meta_order(num_images: int, batch_size: int, seed: int, step: int) -> Tensor:
    """The meta batch of a step (counted from 0 over the whole trial): drawn without replacement, or all images."""
    if batch_size >= num_images:
        return torch.arange(num_images)
    return torch.randperm(num_images, generator=_generator(seed, "meta_batches", step))[:batch_size]


def _generator(seed: int, stream: str, count: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, stream, count))
