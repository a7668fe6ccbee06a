"""Decoded images of a stream that are used again and again as they are, those of meta and val: decoded once, and then kept."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.data.source import Ids
from trainables.machine import memory_limit, num_cores

GPU_SHARE, MEMORY_SHARE = 1 / 8, 1 / 4
"""Shares of the memory that kept images may take: of a GPU, by each worker; of a machine, by all workers on it."""
NOWHERE = -1


def room_for_images(gib: float | None, device: torch.device, threads: int) -> int:
    """Bytes that a worker may take for images that are kept.

    Args:
        gib: the setting `compute.keep_gib`.
        device: of the trial, where the images are kept.
        threads: of the worker. As many workers as have cores for their threads share a machine's memory.
    """
    if gib is not None:
        return int(gib * 2**30)
    if device.type == "cuda":
        return int(GPU_SHARE * torch.cuda.get_device_properties(device).total_memory)
    return int(MEMORY_SHARE * memory_limit() * min(1.0, threads / num_cores()))


class KeptImages:
    """Pixels (C, H, W) uint8 of images on a device, found by the images' ids.

    Which images may be kept is planned first. An image takes its place when its pixels arrive. The memory of places that no image
    has taken yet is not in use on a CPU.

    Args:
        shape: (C, H, W) of every image.
        device: where the pixels are.
        room: bytes that all pixels may take.
    """

    def __init__(self, shape: tuple[int, int, int], device: torch.device, room: int) -> None:
        self.shape, self._device = shape, device
        self._most = room // math.prod(shape)
        self._row_of: NDArray[np.int64] = np.empty(0, np.int64)  # by image id
        self._planned: NDArray[np.bool_] = np.empty(0, np.bool_)  # by image id
        self._free: list[int] = []
        self._pixels = torch.empty(0, *shape, dtype=torch.uint8, device=device)

    def plan(self, sets: Sequence[Ids]) -> int:
        """Plans to keep the images of `sets`, the most important set first, as far as there is room.

        Images that were kept before stay as long as their places are not needed.

        Returns: the number of images of `sets` for which there is no room.
        """
        every = np.concatenate([np.empty(0, np.int64), *sets])
        _, first = np.unique(every, return_index=True)
        wanted = every[np.sort(first)]  # each image once, in the given order
        ids = wanted[: self._most]
        if len(ids) > len(self._pixels):
            # All is forgotten before more memory is taken, so that two copies never exist at a time.
            self._row_of[:] = NOWHERE
            self._pixels = torch.empty(0, *self.shape, dtype=torch.uint8, device=self._device)
            self._pixels = torch.empty(len(ids), *self.shape, dtype=torch.uint8, device=self._device)
            self._free = list(range(len(ids)))
        longer = max(int(ids.max(initial=-1)) + 1 - len(self._row_of), 0)
        self._row_of = np.concatenate([self._row_of, np.full(longer, NOWHERE)])
        self._planned = np.zeros(len(self._row_of), np.bool_)
        self._planned[ids] = True
        return len(wanted) - len(ids)

    def is_planned(self, ids: Ids) -> NDArray[np.bool_]:
        """Whether each of `ids` (N,) is or will be kept, (N,)."""
        planned = np.zeros(len(ids), np.bool_)
        known = ids < len(self._planned)
        planned[known] = self._planned[ids[known]]
        return planned

    def has(self, ids: Ids) -> NDArray[np.bool_]:
        """Whether the pixels of each of `ids` (N,), which are planned, have arrived, (N,)."""
        found: NDArray[np.bool_] = self._row_of[ids] != NOWHERE
        return found

    def keep(self, ids: Ids, pixels: Tensor) -> None:
        """Keeps those pixels (N, C, H, W) of distinct images `ids` (N,), which are planned, that have not arrived before."""
        new = np.flatnonzero(~self.has(ids))
        if not len(new):
            return
        if len(self._free) < len(new):
            self._make_room()
        rows = np.array([self._free.pop() for _ in new])
        self._pixels[torch.from_numpy(rows).to(self._device)] = pixels[torch.from_numpy(new).to(pixels.device)].to(self._device)
        self._row_of[ids[new]] = rows

    def pixels(self, ids: Ids) -> Tensor:
        """Pixels (N, C, H, W) of images `ids` (N,) that are kept."""
        return self._pixels.index_select(0, torch.from_numpy(self._row_of[ids]).to(self._device))

    def forget(self) -> None:
        """Gives up all images; what is planned stays planned."""
        kept = np.flatnonzero(self._row_of != NOWHERE)
        self._free += self._row_of[kept].tolist()
        self._row_of[kept] = NOWHERE

    def _make_room(self) -> None:
        """Gives up all images that are not planned. What remains has room, because no more is planned than there are places."""
        unplanned = np.flatnonzero(~self._planned & (self._row_of != NOWHERE))
        self._free += self._row_of[unplanned].tolist()
        self._row_of[unplanned] = NOWHERE
