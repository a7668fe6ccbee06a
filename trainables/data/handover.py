"""Batches on their way from reader processes to the trial: in shared memory, or through pipes if it is full."""

import os
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

SHARED_MEMORY = "/dev/shm"
"""Where Linux keeps shared memory. Containers often have 64 MiB of it."""


@dataclass(frozen=True)
class PixelBatch:
    """A batch on its way from a reader process to the trial.

    Args:
        pixels: the batch (B, C, H, W) uint8 itself; or, as bytes, the pickled handle of a tensor in shared memory.
        by_pipe: why the batch goes through a pipe instead of shared memory; empty otherwise.
        shapes: of images of different shapes, encoded ones among them. Then `pixels` has the values of all of them, (N,).
    """

    pixels: Tensor | NDArray[np.uint8] | bytes
    by_pipe: str = ""
    shapes: tuple[torch.Size, ...] = ()

    def tensor(self) -> Tensor:
        """The batch in this process."""
        if isinstance(self.pixels, bytes):
            found: Tensor = ForkingPickler.loads(self.pixels)
            return found
        return torch.from_numpy(self.pixels) if isinstance(self.pixels, np.ndarray) else self.pixels

    def images(self) -> Tensor | list[Tensor]:
        """The images in this process: a tensor (B, C, H, W), or images of their own shapes."""
        values = self.tensor()
        if not self.shapes:
            return values
        parts = torch.split(values, [shape.numel() for shape in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def pin_memory(self) -> "PixelBatch":
        """The batch in pinned memory; called by the DataLoader.

        Encoded images are not pinned: nobody knows how long nvJPEG goes on reading pinned memory.
        """
        values = self.tensor()
        return PixelBatch(values.pin_memory() if values.dim() == 4 else values, self.by_pipe, self.shapes)


class Collate:
    """Makes a batch of items, in the process that read them, and hands it over.

    The DataLoader would pickle the tensor in a thread of the reader process. An error there, such as shared memory that is full,
    is printed and lost: the batch never arrives, and the trial waits for ever. So the tensor is pickled here, where an error can
    be answered: the reader sends all further batches through its pipe.
    """

    def __init__(self) -> None:
        self._by_pipe = ""

    def __call__(self, items: list[Tensor | str]) -> PixelBatch | str:
        """A batch, or the first error message among the items."""
        if wrong := [item for item in items if isinstance(item, str)]:
            return wrong[0]
        images = [item for item in items if isinstance(item, Tensor)]
        shapes = tuple(image.shape for image in images)
        if len(set(shapes)) == 1:
            batch, shapes = torch.stack(images), ()
        else:
            batch = torch.cat([image.flatten() for image in images])
        if get_worker_info() is None:
            return PixelBatch(batch, shapes=shapes)
        if not self._by_pipe:
            try:
                return PixelBatch(bytes(ForkingPickler.dumps(batch)), shapes=shapes)
            except (RuntimeError, OSError) as error:  # no space, no file descriptor, or no socket in the folder of TMPDIR
                self._by_pipe = (
                    f"a batch of {batch.nbytes / 2**20:.1f} MiB cannot be handed over in shared memory ({shared_memory()}), so "
                    f"that readers send their batches through pipes, which is slower: {error}"
                )
        return PixelBatch(batch.numpy(), self._by_pipe, shapes)


def shared_memory() -> str:
    """The size of shared memory, and how much of it is free, in words."""
    try:
        found = os.statvfs(SHARED_MEMORY)
    except OSError:  # not on every system
        return "its size is unknown"
    total, free = (blocks * found.f_frsize / 2**20 for blocks in (found.f_blocks, found.f_bavail))
    return f"{SHARED_MEMORY} has {total:.0f} MiB, {free:.0f} of them free"
