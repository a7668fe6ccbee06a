"""Small images on the device: a whole set lives there as uint8, and a batch is a few indices.

The order of batches depends on the seed and the epoch only, so nothing about it needs saving.
"""

import functools

import torch
from torch import Tensor

from trainables.data import ImageSet, LongTailedData
from trainables.data.augment import AUGMENTATIONS, Augmentation
from trainables.seeds import derive_seed


class DeviceSet:
    """One set on a device."""

    def __init__(self, images: ImageSet, data: LongTailedData, device: torch.device) -> None:
        self.images = torch.from_numpy(images.images).to(device)
        self.labels = torch.from_numpy(images.labels).to(device)
        self._mean, self._std = data.mean, data.std

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.labels)

    def batch(self, ids: Tensor, augment: Augmentation | None = None) -> tuple[Tensor, Tensor]:
        """Normalised float32 images (B, C, H, W) and labels (B,) at the positions `ids` (B,); `augment` sees them as uint8."""
        images = self.images[ids] if augment is None else augment(self.images[ids])
        return (images.float() - self._mean) / self._std, self.labels[ids]


def training_order(num_images: int, batch_size: int, seed: int, epoch: int) -> list[Tensor]:
    """The batches of an epoch (counted from 1): a new permutation each, the last batch may be smaller."""
    return list(torch.split(torch.randperm(num_images, generator=_generator(seed, "train_batches", epoch)), batch_size))


def meta_order(num_images: int, batch_size: int, seed: int, step: int) -> Tensor:
    """The meta batch of a step (counted from 0 over the whole trial): drawn without replacement, or all images."""
    if batch_size >= num_images:
        return torch.arange(num_images)
    return torch.randperm(num_images, generator=_generator(seed, "meta_batches", step))[:batch_size]


def augmentation(name: str, seed: int, step: int) -> Augmentation | None:
    """What a step (counted from 0 over the whole trial) does to its training images; None for nothing."""
    return None if name == "none" else functools.partial(AUGMENTATIONS[name], generator=_generator(seed, "augment", step))


def _generator(seed: int, stream: str, count: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, stream, count))
