"""Batches of a trial's sets: which images a batch has, and the interfaces of the classes that load their pixels.

The order of batches and every augmentation are functions of seed, epoch and step. A checkpoint therefore stores nothing about
them: a trial that continues requests the remaining batches.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainables.collectives import ALONE, Collectives
from trainables.data import ImageSet
from trainables.data.framing import Framing
from trainables.data.mix import Mixing, Mixture
from trainables.data.source import Ids
from trainables.seeds import derive_seed


class ImageBatch(NamedTuple):
    """A batch of R rows on the device: the requested share of its images, and everything else of all rows.

    A batch of V views has each of its images V times: R = V * B, one view after another.
    """

    images: Tensor
    """Normalised float32 images (R, C, H, W), or the requested share of them."""
    labels: Tensor
    """Labels (R,)."""
    positions: Tensor
    """Positions (R,) of the images in the set, int64: what tells one image of the set from another."""
    partners: Tensor | None = None
    """Labels (R,) of the images that are mixed into the images; None if nothing is."""
    label_weight: Tensor | None = None
    """Weights (R,) of `labels`, float32 in [0, 1]; `partners` have the rest. None if no images are mixed."""


class Request(NamedTuple):
    """A batch of R rows to load. An image is the same in any share of the batch."""

    positions: Tensor
    """Positions (R,) of the images in the set; the batch has the labels of all of them. A batch of V views has R = V * B rows:
    the positions of the B images V times."""
    draws: tuple[int, ...] = ()
    """Seeds of the augmentation, one for each view; empty for images without augmentation."""
    share: slice = slice(None)
    """Which images of the batch are wanted."""
    mixture: Mixture | None = None
    """How the images are mixed with each other; None if they are not."""

    def rows(self) -> Tensor:
        """The rows of the batch that are loaded, (M,), ascending: those of the share, and the partners of these."""
        own = self._own()
        return own if self.mixture is None else torch.unique(torch.cat([own, self.mixture.partners[own]]))

    def mixed(self, images: Tensor) -> Tensor:
        """The images of the share, mixed if they are to be, from normalised images (M, C, H, W) of `rows`."""
        if self.mixture is None:
            return images
        rows, own = self.rows(), self._own()
        places = (torch.searchsorted(rows, some).to(images.device) for some in (own, self.mixture.partners[own]))
        return self.mixture.blend(*(images[place] for place in places))

    def _own(self) -> Tensor:
        return torch.arange(len(self.positions))[self.share]


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

    def _batch(self, request: Request, images: Tensor, positions: Tensor) -> ImageBatch:
        """The batch of a request, from the normalised images (M, C, H, W) of its `rows` and all positions (R,) on the device."""
        labels, mixture = self.labels[positions], request.mixture
        if mixture is None:
            return ImageBatch(images, labels, positions)
        partners, label_weight = (values.to(labels.device) for values in (mixture.partners, mixture.label_weight))
        return ImageBatch(request.mixed(images), labels, positions, labels[partners], label_weight)


class ImageFormat(NamedTuple):
    """The input format of a classifier: images of `shape` (C, H, W), normalised."""

    shape: tuple[int, int, int]
    normalisation: "Normalisation"
    framing: Framing | None = None
    """What is seen of an image that is streamed and not augmented; None as `framed` says."""

    def noted(self) -> dict[str, str]:
        """The format as metadata of a model's file."""
        framing = {} if self.framing is None else {"framing": json.dumps(self.framing._asdict())}
        return {"image_shape": json.dumps(self.shape), "normalisation": json.dumps(self.normalisation._asdict())} | framing

    def stored(self) -> list[Any]:
        """The format in a trial's state: shape, mean, std, and the fields of the framing if there is one."""
        return [self.shape, *self.normalisation, *([] if self.framing is None else [list(self.framing)])]

    @classmethod
    def of_state(cls, stored: Sequence[Any]) -> "ImageFormat":
        """The format that `stored` has given."""
        shape, mean, std, *framing = stored
        return cls(tuple(shape), Normalisation(tuple(mean), tuple(std)), *(Framing(*some) for some in framing))

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> "ImageFormat":
        """The format that `noted` has given. Files of versions that knew no framing have none.

        Raises:
            KeyError, ValueError, TypeError: when the metadata are not of this project.
        """
        mean, std = (json.loads(metadata["normalisation"])[name] for name in ("mean", "std"))
        normalisation = Normalisation(tuple(mean), tuple(std))
        return cls(tuple(json.loads(metadata["image_shape"])), normalisation, noted_framing(metadata))


def noted_framing(metadata: Mapping[str, str]) -> Framing | None:
    """The framing among the metadata of a model's file."""
    noted = json.loads(metadata.get("framing", "null"))
    return None if noted is None else Framing(**noted | {"colour": tuple(noted["colour"])})


class OnDevice(NamedTuple):
    """What is done with the training images of a stream on the trial's device, instead of in the reader processes."""

    augment: bool = False
    """Whether images are augmented there once they have one size."""
    decode: bool = False
    """Whether JPEG images are decoded there. Then images are cropped there, too."""


IN_READERS = OnDevice()


class Uses(NamedTuple):
    """What a trial uses images for."""

    again: Sequence[Ids]
    """The sets that are used again and again without augmentation, the most important one first."""
    train: Ids
    """The images that training batches are made of."""


class ImageStore(ABC):
    """Provides the pixels of a source's images to all sets, for one trial after another."""

    @abstractmethod
    def hold(self, ids: Ids, uses: Uses | None = None) -> None:
        """Prepares the images `ids` (N,), so that sets of them can be loaded.

        Args:
            ids: of all sets.
            uses: of the images. None: they have none but those of the last call, whose images stay held.

        Raises:
            ValueError: when an image is missing, cannot be read or has another size; the message names its place.
        """

    @abstractmethod
    def format(self, ids: Ids) -> ImageFormat:
        """The image format of a trial that trains on the held images `ids`."""

    @abstractmethod
    def load(self, part: ImageSet, form: ImageFormat, augmentations: Sequence[str] = ()) -> LoadedSet:
        """A set of held images. Requests with `draws` apply `augmentations`."""


class Normalisation(NamedTuple):
    """(pixel - mean) / std with mean and std for each channel, (C,), in units of the pixels, 0 to 255."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalised float32 images from uint8 images, (B, C, H, W)."""
        mean, std = (torch.tensor(values, device=pixels.device)[:, None, None] for values in self)
        return pixels.float().sub_(mean).div_(std)


class Expected(NamedTuple):
    """What pre-trained weights expect of images."""

    normalisation: Normalisation
    """In units of the largest value of a pixel."""
    framing: Framing | None = None
    """What is seen of an image that is not augmented; None leaves it to the data."""


def training_requests(
    order: Sequence[Tensor],
    seed: int,
    first_step: int,
    augmented: bool,
    collectives: Collectives = ALONE,
    views: int = 1,
    mixing: Mixing | None = None,
) -> list[Request]:
    """This worker's shares of the batches of an epoch. Augmentation and mixture are functions of seed and step.

    Args:
        order: positions of the images of each batch, (B,).
        seed: the trial's seed.
        first_step: the step of the first batch, from 0 over the whole trial.
        augmented: whether the images are augmented.
        collectives: the workers of the trial; each has a share of all V * B rows of a batch.
        views: V, how many differently augmented images a batch has of each of its images.
        mixing: draws how the images are mixed; None for images that are not.
    """
    requests = []
    for step, positions in enumerate(order, first_step):
        draws = tuple(_draw(seed, step, view) for view in range(views)) if augmented else ()
        # Partners are an order of the batch's images, so their stream is that of the order, of the step instead of the trial.
        mixture = mixing.draw(positions, derive_seed(_draw(seed, step), "train_batches"), views) if mixing else None
        requests.append(Request(positions.repeat(views), draws, collectives.share(views * len(positions)), mixture))
    return requests


def _draw(seed: int, step: int, view: int = 0) -> int:
    """The seed of the augmentation of a view. The first view has the seed that a batch without further views has."""
    first = derive_seed(seed, "augment", step)
    return derive_seed(first, "augment", view) if view else first


def training_order(
    labels: Tensor, batch_size: int, seed: int, epoch: int, sampler: str = "instance", num_epochs: int = 1
) -> list[Tensor]:
    """The positions of each batch of an epoch. All batches have `batch_size` images, except perhaps the last.

    `instance` is a new permutation in each epoch. The other samplers draw N images with replacement. Source: Kang et al., ICLR
    2020, section 3.

    Args:
        labels: of the training set, (N,), on the CPU.
        batch_size: images per batch.
        seed: the trial's seed.
        epoch: counted from 1.
        sampler: `instance`, or a key of IMAGE_WEIGHTS.
        num_epochs: of the whole trial, T; `progressively_balanced` needs it.
    """
    generator = _generator(seed, "train_batches", epoch)
    if sampler == "instance":
        return list(torch.split(torch.randperm(len(labels), generator=generator), batch_size))
    assert 1 <= epoch <= num_epochs or sampler != "progressively_balanced"
    weights = IMAGE_WEIGHTS[sampler](torch.bincount(labels).double(), (epoch - 1) / num_epochs)[labels]
    # Inversion sampling, because torch.multinomial is limited to 2^24 images.
    cumulated = weights.cumsum(0)
    draws = torch.rand(len(labels), dtype=torch.float64, generator=generator) * cumulated[-1]
    # A draw below 1 times the total can round up to the total, which would be one position too far.
    drawn = torch.searchsorted(cumulated, draws, right=True).clamp_max(len(labels) - 1)
    return list(torch.split(drawn, batch_size))


IMAGE_WEIGHTS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "class_balanced": lambda counts, _: counts.pow(-1.0),
    "square_root": lambda counts, _: counts.pow(-0.5),
    "progressively_balanced": lambda counts, progress: (
        (1 - progress) / counts.sum() + progress / (counts.count_nonzero() * counts)
    ),
}
"""Training images of each class (num_classes,), and t / T, the share of the epochs that are done -> a number that the probability
of each image of the class is proportional to. Multiplied by the size of the class: 1, n^(1/2), and (1 - t/T) n/N + (t/T) / C, of
which the first part is `instance` and the second part `class_balanced`."""


def meta_order(num_images: int, batch_size: int, seed: int, step: int) -> Tensor:
    """Positions of the meta batch of `step` (from 0 over the whole trial): drawn without replacement; all if there are few."""
    if batch_size >= num_images:
        return torch.arange(num_images)
    # A copy: a part of the permutation would keep all of it in memory as long as its batch is wanted.
    return torch.randperm(num_images, generator=_generator(seed, "meta_batches", step))[:batch_size].clone()


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
