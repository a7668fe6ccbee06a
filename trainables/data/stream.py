"""Large images: reader processes read, decode and augment the images of each batch, some batches ahead.

Images that are used again and again without augmentation are decoded once and kept, as far as there is room. On demand, training
images are augmented, and JPEG images decoded, on the trial's device.
"""

import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from trainables.data import ImageSet
from trainables.data.decode import channels_first, encoded_or_pixels, open_image
from trainables.data.device_decode import check_decoder, decode_each
from trainables.data.framing import Framing, framed
from trainables.data.handover import Collate, PixelBatch, shared_memory
from trainables.data.kept import KeptImages
from trainables.data.large_augment import CROP, augment, augment_image, num_draws, uniform, up_to_crop
from trainables.data.loader import (
    IN_READERS,
    ImageBatch,
    ImageFormat,
    ImageStore,
    LoadedSet,
    Normalisation,
    OnDevice,
    Request,
    Uses,
)
from trainables.data.shrunk import ShrunkImages, shrunk_images
from trainables.data.source import EncodedImages, Ids
from trainables.machine import keep_sockets_short, num_cores

IMAGENET = Normalisation((0.485 * 255, 0.456 * 255, 0.406 * 255), (0.229 * 255, 0.224 * 255, 0.225 * 255))
"""ImageNet's mean and std, which published weights expect. Statistics of the training set would take a pass over all images."""
GREY = Normalisation((0.449 * 255,), (0.226 * 255,))
DECODED_TOGETHER = 32
"""Images that are decoded on the device at a time. They have their own sizes until they are cropped, and may be large."""

Item = tuple[int, int | None, tuple[str, ...]]
"""The id of an image, the seed of its augmentation or None, and the names of the augmentations that the reader applies."""


class Streams(ImageStore):
    """Encoded images and the pools of reader processes that read them.

    A pool serves one list of batches after another, of any set. There are as many pools as lists are open at the same time: one
    for training batches, one for meta batches, and one for evaluation in between.

    Args:
        images: all images of the source.
        image_size: height and width of the images in a batch.
        grey: one channel instead of three.
        device: device of the batches.
        readers: processes of a pool, at most one per core; 0 reads in this process.
        room: bytes on the device for images that are kept.
        shrink: pixels that the short side of training images has at most; None leaves them as they are.
        moved: what is done with training images on the device.

    Raises:
        ValueError: when the device cannot decode images, but is to do so.
    """

    def __init__(
        self,
        images: EncodedImages,
        image_size: int,
        grey: bool,
        device: torch.device,
        readers: int,
        room: int = 0,
        shrink: int | None = None,
        moved: OnDevice = IN_READERS,
    ) -> None:
        if moved.decode:
            check_decoder(device)
        self.device, self.grey, self.moved = device, grey, moved
        self.kept = KeptImages((1 if grey else 3, image_size, image_size), device, room)
        self.num_not_kept = 0
        self._images, self._size, self._readers = images, image_size, min(readers, num_cores())
        self._held, self._shrink = images, shrink
        self._shrunk: ShrunkImages | None = None
        self._framing: Framing | None = None
        self._dataset = StreamDataset(images, image_size, grey, moved.decode)
        self._idle: list[_ReaderPool] = []
        self._warned = False

    def hold(self, ids: Ids, uses: Uses | None = None) -> None:
        """Checks that files exist, or keeps encoded rows, or shrinks the training images once. Plans which images are kept once
        they are decoded.
        """
        base = self._held
        if uses is not None:
            base = self._images
            self.num_not_kept = self.kept.plan(uses.again)
            if self._shrink is not None:
                self._shrunk = shrunk_images(self._images, uses.train, self._shrink, self.grey)
        self._held = base.shared(ids if self._shrunk is None else ids[~self._shrunk.pack.has(ids)])
        self._renew_dataset()

    def _renew_dataset(self) -> None:
        self._dataset = StreamDataset(self._held, self._size, self.grey, self.moved.decode, self._shrunk, self._framing)
        self._idle.clear()  # their reader processes have copies of the old dataset

    def note(self) -> str:
        """What a person should know of the images that are not kept."""
        number, size = self.num_not_kept, math.prod(self.kept.shape) * self.num_not_kept / 2**30
        return (
            f"compute.keep_gib: for {number} images that are used again and again without augmentation there is no room, so they "
            f"are decoded each time; with {size:.2f} GiB more they would be decoded once"
        )

    def format(self, _: Ids) -> ImageFormat:
        """The image format, normalised with ImageNet's statistics."""
        normalisation = GREY if self.grey else IMAGENET
        return ImageFormat((len(normalisation.mean), self._size, self._size), normalisation)

    def load(self, part: ImageSet, form: ImageFormat, augmentations: Sequence[str] = ()) -> "StreamSet":
        """A set whose batches come from the reader processes. Sets that are used at the same time have one framing."""
        if form.framing != self._framing:
            self._framing = form.framing
            self.kept.forget()
            self._renew_dataset()
        return StreamSet(self, part, form, augmentations)

    def place(self, image: int) -> str:
        """The origin of an image, for errors."""
        return self._images.place(image)

    def serve(self, batches: Iterable[list[Item]]) -> Iterator[Tensor | list[Tensor]]:
        """The images (C, H, W) uint8 of batches, in the given order; a few batches are prepared ahead. Images of one size are a
        tensor (B, C, H, W). Where the device decodes, an image of a training batch may be encoded, (N,).

        Raises:
            ValueError: when an image cannot be read; the message names the image. Or when readers cannot be started.
        """
        pool = self._idle.pop() if self._idle else _ReaderPool(self._dataset, self._readers, self.device)
        for batch in pool.serve(batches):
            if isinstance(batch, str):
                raise ValueError(batch)
            if batch.by_pipe and not self._warned:
                self._warned = True
                warnings.warn(f"compute.readers is {self._readers}: {batch.by_pipe}", stacklevel=2)
            yield batch.images()
        # Reached only when the caller has taken all batches. Otherwise the pool is dropped with the batches it has prepared.
        if pool.dataset is self._dataset:
            self._idle.append(pool)


@dataclass(frozen=True)
class _Plan:
    """How the pixels of a batch come about."""

    ids: Ids
    """The images of the batch that are loaded, (M,)."""
    items: list[Item] = field(default_factory=list)
    """What the readers are asked for; may be empty."""
    read: Ids | None = None
    """The images of `items`, ascending, each once, if they are not augmented. None: `items` has all of `ids`, in their order."""
    draws: Tensor | None = None
    """The random numbers of the images' augmentation, (M, ...). None: they are not augmented."""


class StreamSet(LoadedSet):
    """A set whose images are read when a batch needs them, except those that are kept."""

    def __init__(self, streams: Streams, part: ImageSet, form: ImageFormat, augmentations: Sequence[str] = ()) -> None:
        self.labels = torch.from_numpy(part.labels).to(streams.device)
        self.shape, self._augmentations, moved = form.shape, tuple(augmentations), streams.moved
        # Those that single images go through. The rest is done for a whole batch.
        self._alone = up_to_crop(augmentations) if moved.augment or moved.decode else self._augmentations
        self._streams, self._ids, self._normalisation, self._framing = streams, part.ids, form.normalisation, form.framing

    def batches(self, requests: Sequence[Request]) -> Iterator[ImageBatch]:
        """The batches; up to two for each reader are prepared ahead. The reader processes stay for the next call."""
        # Each plan is made once, when either the readers or the batches get to it: a kept image may have arrived meanwhile.
        of_readers, of_batches = itertools.tee(self._plans(requests))
        served, is_reading = self._streams.serve(plan.items for plan in of_readers if plan.items), False
        for request, plan in zip(requests, of_batches, strict=True):
            # The readers are not asked for the empty shares that workers may have, nor for batches of kept images.
            is_reading |= bool(plan.items)
            found = next(served) if plan.items else torch.empty(0, *self.shape, dtype=torch.uint8)
            images = self._normalisation(self._put_together(plan, self._augmented(plan, found)))
            yield self._batch(request, images, request.positions.to(self.labels.device))
        # This exhausts the generator, so that `serve` keeps the pool for the next call. Nothing starts a pool that is not needed.
        assert not is_reading or next(served, None) is None

    def _plans(self, requests: Sequence[Request]) -> Iterator[_Plan]:
        kept, under_way = self._streams.kept, np.empty(0, np.int64)
        for request in requests:
            rows = request.rows()
            ids = self._ids[request.positions[rows].numpy()]
            if request.draws:
                yield self._augmentation(request, rows, ids)
                continue
            needed, planned = np.unique(ids), kept.is_planned(ids)
            if planned.any():
                planned = kept.is_planned(needed)
                there = kept.has(needed[planned])
                under_way = under_way[~kept.has(under_way)]
                to_keep = np.setdiff1d(needed[planned][~there], under_way, assume_unique=True)
                under_way = np.union1d(under_way, to_keep)
                needed = np.union1d(needed[~planned], to_keep)
            yield _Plan(ids, [(image, None, ()) for image in needed.tolist()], needed)

    def _augmentation(self, request: Request, rows: Tensor, ids: Ids) -> _Plan:
        """Images with a seed each, so that an image does not depend on the process that augments it."""
        number = len(request.positions) // len(request.draws)
        of_views = [np.random.SeedSequence(draw).generate_state(number, np.uint64) for draw in request.draws]
        seeds = np.concatenate(of_views)[rows.numpy()]
        items = [(image, seed, self._alone) for image, seed in zip(ids.tolist(), seeds.tolist(), strict=True)]
        return _Plan(ids, items, draws=uniform(seeds, num_draws(self._augmentations)))

    def _augmented(self, plan: _Plan, found: Tensor | list[Tensor]) -> Tensor:
        """The pixels (M, C, H, W) on the device, after what the readers have left to do."""
        device, draws = self.labels.device, plan.draws
        if draws is None or not plan.items:
            return _stacked(found).to(device, non_blocking=True)
        of_one = num_draws(self._alone)
        if self._streams.moved.decode:
            found = self._decoded(plan, found, draws[:, :of_one])
        rest = self._augmentations[len(self._alone) :]
        return augment(rest, _stacked(found).to(device, non_blocking=True), draws[:, of_one:], self.shape[1])

    def _decoded(self, plan: _Plan, found: Tensor | list[Tensor], draws: Tensor) -> list[Tensor]:
        """The images (C, H, W) on the device, of one size, decoded and cropped there."""
        done = []
        for first in range(0, len(found), DECODED_TOGETHER):
            some = slice(first, first + DECODED_TOGETHER)
            places = [self._streams.place(image) for image in plan.ids[some].tolist()]
            images = decode_each(list(found[some]), places, self._streams.grey, self.labels.device)
            each = zip(images, draws[some], strict=True)
            done += [augment_image(self._alone, *one, self.shape[1], self._framing) for one in each]
        return done

    def _put_together(self, plan: _Plan, pixels: Tensor) -> Tensor:
        """The pixels (M, C, H, W) of a batch, from those that were read for it."""
        kept = self._streams.kept
        if plan.read is None:
            return pixels
        new = kept.is_planned(plan.read)
        if new.any():
            kept.keep(plan.read[new], pixels[torch.from_numpy(new).to(pixels.device)])
        planned = kept.is_planned(plan.ids)
        if planned.all():
            return kept.pixels(plan.ids)
        whole = pixels.new_empty(len(plan.ids), *self.shape)
        of_kept, of_read = (torch.from_numpy(np.flatnonzero(some)).to(pixels.device) for some in (planned, ~planned))
        whole[of_kept] = kept.pixels(plan.ids[planned])
        whole[of_read] = pixels[torch.from_numpy(np.searchsorted(plan.read, plan.ids[~planned])).to(pixels.device)]
        return whole


def _stacked(images: Tensor | list[Tensor]) -> Tensor:
    return images if isinstance(images, Tensor) else torch.stack(images)


class StreamDataset(Dataset[Tensor | str]):
    """The work of a reader process: an item becomes pixels (C, H, W) uint8, or an error message if it cannot be read.

    Args:
        images: encoded.
        image_size: height and width of the pixels.
        grey: one channel instead of three.
        undecoded: whether images that would be augmented stay as they are: encoded (N,), or with pixels of their own size if the
            device does not decode their format.
        shrunk: small copies that are read in place of some images.
        framing: what the classifier sees of an image that is not augmented.
    """

    def __init__(
        self,
        images: EncodedImages,
        image_size: int,
        grey: bool,
        undecoded: bool,
        shrunk: ShrunkImages | None = None,
        framing: Framing | None = None,
    ) -> None:
        self._images, self._size, self._grey, self._undecoded, self._shrunk = images, image_size, grey, undecoded, shrunk
        self._framing = framing

    def __getitem__(self, item: Item) -> Tensor | str:
        """Loads one item; called by torch's DataLoader."""
        image, draw, names = item
        try:
            if draw is None:
                return torch.from_numpy(self._framed(image))
            is_cut = CROP not in names and self._framing is not None
            if self._undecoded and not is_cut:
                return torch.from_numpy(encoded_or_pixels(self._images, image, self._grey))
            pixels = torch.from_numpy(self._framed(image) if is_cut else self._pixels(image))
        except (ValueError, OSError) as error:
            return str(error)  # the DataLoader would put a reader's whole traceback into the message of an exception
        draws = uniform(np.array([draw], np.uint64), num_draws(names))[0]
        return augment_image(names, pixels, draws, self._size, self._framing)

    def _framed(self, image: int) -> NDArray[np.uint8]:
        """The pixels (C, size, size) of an image that is not augmented."""
        return channels_first(framed(self._open(image), self._size, self._framing))

    def _open(self, image: int) -> Image.Image:
        if self._shrunk is not None and image in self._shrunk.pack:
            return self._shrunk.open(image)
        return open_image(self._images, image, self._grey)

    def _pixels(self, image: int) -> NDArray[np.uint8]:
        """The pixels (C, H, W) that are augmented."""
        if self._shrunk is not None and image in self._shrunk.pack:
            return self._shrunk.pixels(image)
        return channels_first(open_image(self._images, image, self._grey))


class _ReaderPool:
    """Reader processes that serve one list of batches after another."""

    def __init__(self, dataset: StreamDataset, readers: int, device: torch.device) -> None:
        if readers:
            keep_sockets_short()
        self.dataset = dataset
        self._list = _List()
        self._readers = readers
        self._loader: DataLoader[Tensor | str] = DataLoader(
            dataset,
            batch_sampler=self._list,
            num_workers=readers,
            persistent_workers=readers > 0,
            pin_memory=device.type == "cuda",
            collate_fn=Collate(),
            # No order is drawn from this generator. Without it, the DataLoader would draw a seed from torch's global generator.
            generator=torch.Generator(),
        )

    def serve(self, batches: Iterable[list[Item]]) -> Iterator[PixelBatch | str]:
        """The batches in the given order, independent of which reader made which.

        Raises:
            ValueError: when the readers cannot be started, for instance because shared memory is full.
        """
        self._list.batches = batches
        try:
            return iter(self._loader)
        except OSError as error:
            raise ValueError(
                f"compute.readers is {self._readers}, but the reader processes cannot be started: {error} ({shared_memory()}); "
                "allowed: 0, which reads in the training process"
            ) from error


class _List:
    """The batch sampler, which torch iterates at the start of each pass.

    It is not the pool itself: a reference cycle would keep the reader processes running after the pool is dropped.
    """

    batches: Iterable[list[Item]]

    def __iter__(self) -> Iterator[list[Item]]:
        return iter(self.batches)
