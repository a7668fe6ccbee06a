"""Large images: read, decoded and augmented anew each time, by reader processes that work ahead."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from trainables.data import ImageSet
from trainables.data.decode import channels_first, middle, open_image
from trainables.data.loader import ImageBatch, ImageFormat, ImageStore, LoadedSet, Normalisation, Request
from trainables.data.source import EncodedImages, Ids
from trainables.machine import num_cores

IMAGENET = Normalisation((0.485 * 255, 0.456 * 255, 0.406 * 255), (0.229 * 255, 0.224 * 255, 0.225 * 255))
"""What published weights expect. Statistics of the training set would take a pass over all of it."""
GREY = Normalisation((0.449 * 255,), (0.226 * 255,))
SHORT_SIDE = 256 / 224
"""Of an image that is not augmented, over the side of the square that is cut out of its middle."""

Item = tuple[int, int | None, tuple[str, ...]]
"""The id of an image, the seed of its augmentation, and what that is."""


class Streams(ImageStore):
    """Encoded images and the reader processes that read them.

    Readers serve one list of batches after another, of any set. As many lists as are open at a time, so many teams of them there
    are: one for training batches, one for meta batches, one for measuring between them.

    Args:
        images: all of the source.
        image_size: height and width of the batches.
        grey: one channel instead of three.
        device: where batches go.
        readers: processes of a pool, as far as there are cores; 0 reads in this one.
    """

    def __init__(self, images: EncodedImages, image_size: int, grey: bool, device: torch.device, readers: int) -> None:
        self.device = device
        self._images, self._size, self._grey, self._readers = images, image_size, grey, min(readers, num_cores())
        self._dataset = StreamDataset(images, image_size, grey)
        self._idle: list[_ReaderPool] = []

    def hold(self, ids: Ids) -> None:
        """Looks whether files are there, or keeps encoded rows in memory."""
        self._dataset = StreamDataset(self._images.hold(ids), self._size, self._grey)
        self._idle.clear()  # their readers have a copy of the old one

    def format(self, _: Ids) -> ImageFormat:
        """Normalised by ImageNet's statistics."""
        normalisation = GREY if self._grey else IMAGENET
        return ImageFormat((len(normalisation.mean), self._size, self._size), normalisation)

    def load(self, part: ImageSet, form: ImageFormat, augmentations: Sequence[str] = ()) -> "StreamSet":
        """A set that asks the readers for its batches."""
        return StreamSet(self, part, form, augmentations)

    def serve(self, batches: Iterable[list[Item]]) -> Iterator[Tensor]:
        """Batches (B, C, H, W) uint8, in their order; a few are prepared ahead.

        Raises:
            ValueError: when an image cannot be read; the message names it.
        """
        pool = self._idle.pop() if self._idle else _ReaderPool(self._dataset, self._readers, self.device)
        for pixels in pool.serve(batches):
            if isinstance(pixels, str):
                raise ValueError(pixels)
            yield pixels
        if pool.dataset is self._dataset:
            self._idle.append(pool)  # one whose batches nobody wanted to the end goes, with what it has prepared


class StreamSet(LoadedSet):
    """A set whose images are read when they are needed."""

    def __init__(self, streams: Streams, part: ImageSet, form: ImageFormat, augmentations: Sequence[str] = ()) -> None:
        self.labels = torch.from_numpy(part.labels).to(streams.device)
        self.shape, self._augmentations = form.shape, tuple(augmentations)
        self._streams, self._ids, self._normalisation = streams, part.ids, form.normalisation

    def batches(self, requests: Sequence[Request]) -> Iterator[ImageBatch]:
        """As many batches ahead as there are readers, times two. Readers outlive the call, and serve the next one."""
        served = self._streams.serve(items for request in requests if (items := self._items(request)))
        for request in requests:
            empty = not len(request.positions[request.share])
            pixels = torch.empty(0, *self.shape, dtype=torch.uint8) if empty else next(served)
            positions = request.positions.to(self.labels.device)
            yield self._normalisation(pixels.to(self.labels.device, non_blocking=True)), self.labels[positions]
        assert next(served, None) is None  # ... which also tells the readers that their batches were wanted to the end

    def _items(self, request: Request) -> list[Item]:
        """A request image by image, each with a seed of its own: what it becomes does not depend on which reader takes it."""
        ids = self._ids[request.positions[request.share].numpy()].tolist()
        if request.draw is None:
            return [(image, None, ()) for image in ids]
        seeds = np.random.SeedSequence(request.draw).generate_state(len(request.positions), np.uint64) >> np.uint64(1)
        return [(image, seed, self._augmentations) for image, seed in zip(ids, seeds[request.share].tolist(), strict=True)]


class StreamDataset(Dataset[Tensor | str]):
    """What a reader process does: an item as pixels (C, H, W) uint8, or what is wrong with it, as words."""

    def __init__(self, images: EncodedImages, image_size: int, grey: bool) -> None:
        self._images, self._size, self._grey = images, image_size, grey

    def __getitem__(self, item: Item) -> Tensor | str:
        """Called by torch."""
        image_id, draw, names = item
        try:
            image = open_image(self._images, image_id, self._grey)
        except ValueError as error:
            return str(error)  # an exception would come with the reader's whole traceback in its message
        if draw is None:
            return torch.from_numpy(channels_first(middle(image, round(self._size * SHORT_SIDE), self._size)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw)
            return large_augmentation(names, self._size)(torch.from_numpy(channels_first(image)))


@functools.cache
def large_augmentation(names: tuple[str, ...], size: int) -> Callable[[Tensor], Tensor]:
    """From an image (C, H, W) uint8 of any size to one of `size` by `size`; draws from torch's global generator."""
    from torchvision.transforms import v2  # takes a second to import, and only streams need it

    steps = {
        "resized_crop": lambda: v2.RandomResizedCrop(size, antialias=True),
        "flip": v2.RandomHorizontalFlip,
        "color_jitter": lambda: v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4),
        "rand_augment": lambda: v2.RandAugment(num_ops=2, magnitude=10),
    }
    whole = [] if "resized_crop" in names else [v2.Resize(round(size * SHORT_SIDE), antialias=True), v2.CenterCrop(size)]
    composed: Callable[[Tensor], Tensor] = v2.Compose([*whole, *(steps[name]() for name in names)])
    return composed


def collate(items: list[Tensor | str]) -> Tensor | str:
    """A batch of pixels, or the first thing that is wrong in it."""
    wrong = [item for item in items if isinstance(item, str)]
    return wrong[0] if wrong else torch.stack([item for item in items if isinstance(item, Tensor)])


class _ReaderPool:
    """Reader processes that serve one list of batches after another."""

    def __init__(self, dataset: StreamDataset, readers: int, device: torch.device) -> None:
        self.dataset = dataset
        self._list = _List()
        self._loader: DataLoader[Tensor | str] = DataLoader(
            dataset,
            batch_sampler=self._list,
            num_workers=readers,
            persistent_workers=readers > 0,
            pin_memory=device.type == "cuda",
            collate_fn=collate,
            generator=torch.Generator(),  # nothing is drawn from it, but torch would ask its global one for a seed
        )

    def serve(self, batches: Iterable[list[Item]]) -> Iterator[Tensor | str]:
        """The batches, in their order, whichever reader made them."""
        self._list.batches = batches
        return iter(self._loader)


class _List:
    """What torch reads anew at the start of each pass. Not the pool itself: a reference cycle would keep its readers alive."""

    batches: Iterable[list[Item]]

    def __iter__(self) -> Iterator[list[Item]]:
        return iter(self.batches)
