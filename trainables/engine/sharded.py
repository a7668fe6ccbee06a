"""Data parallelism for the backbone: each worker runs its share of the images, and every worker gets the whole batch's features.

Only the backbone is data-parallel. Features are gathered, so every worker computes head, method and losses for the whole batch,
and these need no code for workers. In the backward pass each worker takes its own rows of the gradient at the features; the
gradients of the parameters are summed over workers (all-reduce).
"""

from collections.abc import Container, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trainables.collectives import Collectives
from trainables.engine.batch_norm import FastTangents, LocalStatistics, WholeBatchStatistics
from trainables.engine.draws import TRAINING, Key, Share
from trainables.engine.linearize import Linearization
from trainables.engine.parts import LinearizerInParts


class ShardedLinearizer(LinearizerInParts):
    """A Linearizer for workers: each worker has a share of the images and gets the features of the whole batch.

    Args:
        collectives: the workers of the trial.
        sync_batch_norm: whether BatchNorm uses the statistics of the whole batch instead of those of each share.
        autocast: as in Linearizer.
        compiled_batch_sizes: as in Linearizer; sizes of whole batches, not of shares.
        micro_batch: as in LinearizerInParts, for a worker's share; None with `sync_batch_norm`.
    """

    def __init__(
        self,
        collectives: Collectives,
        sync_batch_norm: bool = False,
        autocast: torch.dtype | None = None,
        compiled_batch_sizes: Container[int] = (),
        micro_batch: int | None = None,
    ) -> None:
        super().__init__(micro_batch, autocast, compiled_batch_sizes)
        assert not (sync_batch_norm and micro_batch), "statistics of the whole batch need the whole batch at once"
        self._collectives, self._sync = collectives, sync_batch_norm

    def __call__(
        self,
        backbone: nn.Module,
        parameters: list[Tensor],
        buffers: list[Tensor],
        images: Tensor,
        num_images: int | None = None,
        pushforward: bool = True,
        key: Key | None = None,
        stream: int = TRAINING,
    ) -> Linearization:
        """As Linearizer; `num_images` counts the whole batch."""
        assert num_images is not None
        own_share = super().__call__(backbone, parameters, buffers, images, num_images, pushforward, key, stream)
        return ShardedLinearization(own_share, num_images, self._collectives)

    def features(
        self,
        backbone: nn.Module,
        parameters: dict[str, Tensor],
        buffers: dict[str, Tensor],
        images: Tensor,
        num_images: int,
        autocast: torch.dtype | None,
        key: Key | None = None,
        stream: int = TRAINING,
    ) -> Tensor:
        """As Linearizer; can be differentiated any number of times."""
        replicated = _Replicate.apply(self._collectives, *parameters.values())
        own = dict(zip(parameters, replicated, strict=True))
        rows = super().features(backbone, own, buffers, images, num_images, autocast, key, stream)
        whole: Tensor = _Gather.apply(self._collectives, num_images, rows)
        return whole

    def _share(self, number: int, num_images: int) -> Share:
        return Share(self._collectives.share(num_images).start, number, num_images)

    def _statistics(self, number: int, num_images: int) -> TorchFunctionMode:
        return WholeBatchStatistics(self._collectives, num_images) if self._sync else FastTangents(of_share=True)

    def _differentiable_statistics(self, number: int, num_images: int) -> TorchFunctionMode:
        return WholeBatchStatistics(self._collectives, num_images) if self._sync else LocalStatistics(of_share=True)

    def _place(self, images: Tensor, num_images: int) -> tuple[Any, ...]:
        # The size of the whole batch, by which its statistics are divided, is a constant in the traced programs.
        return (*super()._place(images, num_images), num_images)


class ShardedLinearization(Linearization):
    """The linearization of this worker's share, with features and derivatives combined over all workers."""

    def __init__(self, own_share: Linearization, num_images: int, collectives: Collectives) -> None:
        self._own_share, self._num_images, self._collectives = own_share, num_images, collectives
        self.features = collectives.gather(own_share.features, num_images)

    def pullback(self, cotangent: Tensor, besides: Sequence[Tensor] = ()) -> list[Tensor]:
        """The pullbacks of each worker's own rows, summed; then the mean of `besides`. One all-reduce serves both."""
        own = self._own_share.pullback(cotangent[self._collectives.share(self._num_images)].contiguous())
        # Every worker computes the same `besides`, but GPU kernels may round differently. The mean keeps workers identical.
        return self._collectives.total([*own, *(tensor / self._collectives.size for tensor in besides)])

    def pushforward(self, tangents: Sequence[Tensor]) -> Tensor:
        """The tangent of the features, (B, D): the rows of all workers, gathered."""
        return self._collectives.gather(self._own_share.pushforward(tangents), self._num_images)

    def release(self) -> None:
        """As Linearization."""
        self._own_share.release()


# Two pairs of functions: in each pair one is the derivative of the other, so both can be differentiated any number of times.
# A tensor that is replicated (the same on all workers) has a replicated gradient. A tensor that belongs to a worker's own rows
# has a gradient that differs between workers.


class _Replicate(torch.autograd.Function):
    """Replicated parameters -> the copy that this worker uses for its own rows. The gradient is summed over workers."""

    @staticmethod
    def forward(ctx: Any, collectives: Collectives, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.collectives = collectives
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return (None, *_Total.apply(ctx.collectives, *gradients))


class _Total(torch.autograd.Function):
    """Each worker's contribution -> the sum over workers, replicated (all-reduce)."""

    @staticmethod
    def forward(ctx: Any, collectives: Collectives, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.collectives = collectives
        return tuple(collectives.total(tensors))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return (None, *_Replicate.apply(ctx.collectives, *gradients))


class _Gather(torch.autograd.Function):
    """Each worker's own rows -> all rows, replicated (all-gather)."""

    @staticmethod
    def forward(ctx: Any, collectives: Collectives, number: int, rows: Tensor) -> Tensor:
        ctx.collectives, ctx.number = collectives, number
        return collectives.gather(rows, number)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, None, _Cut.apply(ctx.collectives, ctx.number, gradients[0])


class _Cut(torch.autograd.Function):
    """All rows, replicated -> this worker's own rows."""

    @staticmethod
    def forward(ctx: Any, collectives: Collectives, number: int, whole: Tensor) -> Tensor:
        ctx.collectives, ctx.number = collectives, number
        return whole[collectives.share(number)].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, None, _Gather.apply(ctx.collectives, ctx.number, gradients[0])
