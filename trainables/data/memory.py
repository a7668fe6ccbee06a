"""Small images: decoded once and kept on the device as uint8. A batch is gathered by its indices."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.data import ImageSet
from trainables.data.augment import augment, num_draws
from trainables.data.decode import decode_all
from trainables.data.loader import ImageBatch, ImageFormat, ImageStore, LoadedSet, Normalisation, Request, Uses
from trainables.data.source import EncodedImages, Ids, Source

PREPARED_TOGETHER = 2**22
"""Values that are prepared at a time, several batches of small images. Launching a kernel costs as much as a few images."""


class Pool(ImageStore):
    """Decoded images, (M, C, H, W) uint8 on a device.

    Of a decoded source the pool has all images; of an encoded source only those that `hold` was called for.
    """

    def __init__(self, source: Source, device: torch.device, image_size: int | None = None, grey: bool = False) -> None:
        self._images, self._device, self._size, self._grey = source.images, device, image_size, grey
        self._row_of = np.full(len(source.labels), -1)  # by image id; -1 for images that the pool does not have
        self.pixels = torch.empty(0, dtype=torch.uint8, device=device)
        self._sums = np.empty(0, np.int64)
        if isinstance(source.images, np.ndarray):
            self._add(np.arange(len(source.labels)), source.images)

    def hold(self, ids: Ids, uses: Uses | None = None) -> None:
        """Decodes those of `ids` (N,) that the pool does not have yet. It keeps them all, whatever they are used for.

        Raises:
            ValueError: when an image cannot be read or has another size; the message names its place.
        """
        missing = np.unique(ids[self._row_of[ids] < 0])
        if not len(missing):
            return
        assert isinstance(self._images, EncodedImages)
        found = decode_all(self._images, missing, self._size, self._grey)
        if len(self.pixels) and found.shape[1:] != self.pixels.shape[1:]:
            place = self._images.place(int(missing[0]))
            raise ValueError(f"data.root: {place}: the image is {found.shape[1:]}, those before {tuple(self.pixels.shape[1:])}")
        self._add(missing, found)

    def _add(self, ids: Ids, pixels: NDArray[np.uint8]) -> None:
        found, sums = torch.from_numpy(pixels), channel_sums(pixels)
        self._row_of[ids] = np.arange(len(self.pixels), len(self.pixels) + len(found))
        first = not len(self.pixels)
        self.pixels = found.to(self._device) if first else torch.cat([self.pixels, found.to(self._device)])
        self._sums = np.concatenate([self._sums, sums]) if len(self._sums) else sums

    def rows(self, ids: Ids) -> Tensor:
        """The rows of `pixels` that hold the images `ids` (N,)."""
        return torch.from_numpy(self._row_of[ids]).to(self._device)

    def format(self, ids: Ids) -> ImageFormat:
        """The image format, normalised with the mean and standard deviation of each channel over the held images `ids`."""
        channels, height, width = self.pixels.shape[1:]
        return ImageFormat((channels, height, width), self.statistics(ids))

    def load(self, part: ImageSet, form: ImageFormat, augmentations: Sequence[str] = ()) -> "MemorySet":
        """A set whose batches are gathered from the pool."""
        return MemorySet(self, part, form, augmentations)

    def statistics(self, ids: Ids) -> Normalisation:
        """Mean and standard deviation of each channel over the held images `ids`."""
        sums, squares = self._sums[self._row_of[ids]].sum(0).tolist()
        number = len(ids) * math.prod(self.pixels.shape[2:])
        mean = [total / number for total in sums]
        # Integers up to the square root: the sums are exact and do not depend on the order of the images.
        std = [math.sqrt(number * square - total**2) / number for total, square in zip(sums, squares, strict=True)]
        return Normalisation(tuple(mean), tuple(value or 1.0 for value in std))  # a constant channel has std 0


def channel_sums(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Sum and sum of squares of each image's channels, (N, 2, C), from pixels (N, C, H, W)."""
    sums = np.empty((len(pixels), 2, pixels.shape[1]), np.int64)
    for first in range(0, len(pixels), 128):  # an int64 copy of all images would take eight times their memory
        values = pixels[first : first + 128].astype(np.int64)
        sums[first : first + 128, 0] = values.sum((2, 3))
        sums[first : first + 128, 1] = np.square(values, out=values).sum((2, 3))
    return sums


class MemorySet(LoadedSet):
    """A set whose images are in a pool.

    Args:
        pool: holds the images of `part`.
        part: ids and labels of the set.
        form: the trial's image format.
        augmentations: names of the augmentations for requests with `draws`.
    """

    def __init__(self, pool: Pool, part: ImageSet, form: ImageFormat, augmentations: Sequence[str] = ()) -> None:
        self._pool, self._augmentations = pool, augmentations
        self.shape, self._normalisation = form.shape, form.normalisation
        self._rows = pool.rows(part.ids)
        self.labels = torch.from_numpy(part.labels).to(self._rows.device)
        self._mean_pixel = torch.tensor(form.normalisation.mean, device=self._rows.device).round()

    def batches(self, requests: Sequence[Request]) -> Iterator[ImageBatch]:
        """The batches; several are gathered, augmented and normalised at a time."""
        for group in self._grouped(requests):
            rows = [request.rows() for request in group]
            loaded = torch.cat([request.positions[mine] for request, mine in zip(group, rows, strict=True)])
            pixels = self._pool.pixels.index_select(0, self._rows[loaded.to(self._rows.device)])
            if group[0].draws and len(pixels):  # a worker's shares may be empty
                draws = torch.cat([self._draws(request)[mine] for request, mine in zip(group, rows, strict=True)])
                pixels = augment(self._augmentations, pixels, draws.to(pixels.device), self._mean_pixel)
            images = torch.split(self._normalisation(pixels), [len(mine) for mine in rows])
            # One copy to the device serves all batches of the group.
            positions = torch.cat([request.positions for request in group]).to(self._rows.device)
            whole = torch.split(positions, [len(request.positions) for request in group])
            yield from map(self._batch, group, images, whole)

    def _grouped(self, requests: Sequence[Request]) -> Iterator[list[Request]]:
        """Groups of requests that are prepared together: of limited size, and all with `draws` or all without."""
        most = PREPARED_TOGETHER // math.prod(self.shape)
        group: list[Request] = []
        for request in requests:
            mixed = group and bool(request.draws) != bool(group[0].draws)
            if group and (mixed or _total(group) + len(request.positions) > most):
                yield group
                group = []
            group.append(request)
        if group:
            yield group

    def _draws(self, request: Request) -> Tensor:
        """Uniform random numbers for each row of the batch, (R, num_draws).

        They are drawn on the CPU for the whole batch, so that an image gets the same numbers on every device and worker.
        """
        shape = (len(request.positions) // len(request.draws), num_draws(self._augmentations))
        return torch.cat([torch.rand(shape, generator=torch.Generator().manual_seed(draw)) for draw in request.draws])


def _total(group: list[Request]) -> int:
    return sum(len(request.positions) for request in group)
