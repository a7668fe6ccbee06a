"""What the workers of a trial tell each other: shares of a batch, sums and gathered rows, each in one flat message.

Every worker calls the same functions in the same order; a call returns when all have made it. A worker alone says nothing: it
gets back the very tensors that it gave.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist


@dataclass(frozen=True)
class Collectives:
    """Worker `rank` (from 0) of `size`, over torch.distributed's default process group, which is there already."""

    rank: int
    size: int

    def shares(self, number: int) -> list[int]:
        """How many of `number` rows each worker has, (size,): they differ by at most one, as in torch.tensor_split."""
        return [number // self.size + (rank < number % self.size) for rank in range(self.size)]

    def share(self, number: int) -> slice:
        """Which of `number` rows are this worker's; may be none."""
        shares = self.shares(number)
        first = sum(shares[: self.rank])
        return slice(first, first + shares[self.rank])

    def total(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sum over workers of each tensor; the same bits everywhere."""
        if self.size == 1 or not tensors:
            return list(tensors)
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
        dist.all_reduce(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]

    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The mean over workers of each tensor; the same bits everywhere."""
        return list(tensors) if self.size == 1 else [tensor / self.size for tensor in self.total(tensors)]

    def gather(self, rows: Tensor, number: int) -> Tensor:
        """All `number` rows of a batch from each worker's share of them, (share, ...)."""
        if self.size == 1:
            return rows
        shares = self.shares(number)
        # Messages have one size: shares are filled up to the largest, which is the first.
        padded = rows.new_zeros(shares[0], *rows.shape[1:])
        padded[: len(rows)] = rows.detach()
        everything = rows.new_empty(self.size * shares[0], *rows.shape[1:])
        dist.all_gather_into_tensor(everything, padded)
        if shares[0] == shares[-1]:
            return everything
        return torch.cat([block[:share] for block, share in zip(torch.split(everything, shares[0]), shares, strict=True)])

    def agreed(self, values: Tensor) -> Tensor:
        """The first worker's values, in place, for what may differ from one to the next by a clock or by a rounding."""
        if self.size > 1:
            dist.broadcast(values, 0)
        return values


ALONE = Collectives(0, 1)
"""A trial in one process. It needs no process group."""
