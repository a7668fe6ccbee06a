"""Collectives of the workers of a trial: all-reduce, all-gather and broadcast, and each worker's share of a batch.

Every worker must call the same functions in the same order; a call returns when all workers have made it. Each call is one
collective operation. A trial with one worker communicates nothing: the functions return the given tensors themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist


@dataclass(frozen=True)
class Collectives:
    """Worker `rank` (from 0) of `size`, over torch.distributed's default process group, which the caller has set up."""

    rank: int
    size: int

    @property
    def alone(self) -> bool:
        """Whether there is nobody to communicate with. Tests of a backend communicate in a group of one, too."""
        return self.size == 1

    def are_gone(self) -> bool:
        """Whether there is no process group any more for a trial with several workers."""
        return self.size > 1 and not dist.is_initialized()

    def shares(self, number: int) -> list[int]:
        """How many of `number` rows each worker has, (size,). Shares differ by at most one, as in torch.tensor_split."""
        return [number // self.size + (rank < number % self.size) for rank in range(self.size)]

    def share(self, number: int) -> slice:
        """The slice of `number` rows that belongs to this worker; may be empty."""
        shares = self.shares(number)
        first = sum(shares[: self.rank])
        return slice(first, first + shares[self.rank])

    def total(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sum over workers of each tensor (all-reduce); bit-identical on all workers."""
        if self.alone or not tensors:
            return list(tensors)
        # One all-reduce of a flat tensor, because each all-reduce has a latency of its own.
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
        dist.all_reduce(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]

    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The mean over workers of each tensor (all-reduce); bit-identical on all workers."""
        return list(tensors) if self.alone else [tensor / self.size for tensor in self.total(tensors)]

    def gather(self, rows: Tensor, number: int) -> Tensor:
        """All `number` rows of a batch (all-gather), from this worker's share of the rows, (share, ...)."""
        if self.alone:
            return rows
        shares = self.shares(number)
        # all_gather needs tensors of one size, so each share is padded to the largest, which is the first.
        padded = rows.new_zeros(shares[0], *rows.shape[1:])
        padded[: len(rows)] = rows.detach()
        everything = rows.new_empty(self.size * shares[0], *rows.shape[1:])
        dist.all_gather_into_tensor(everything, padded)
        if shares[0] == shares[-1]:
            return everything
        return torch.cat([block[:share] for block, share in zip(torch.split(everything, shares[0]), shares, strict=True)])

    def agreed(self, values: Tensor) -> Tensor:
        """The values of worker 0 (broadcast, in place), for values that may differ between workers by clocks or rounding."""
        if not self.alone:
            dist.broadcast(values, 0)
        return values


ALONE = Collectives(0, 1)
"""The collectives of a trial in one process, which needs no process group."""
