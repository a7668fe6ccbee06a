"""A backbone whose images are shared out over workers, seen as if it had looked at the whole batch.

Only the backbone is shared out. Its features are gathered, so that head, method and losses are those of the whole batch on every
worker and need to know nothing about workers. What goes back is cut into shares again, and what arrives at the parameters is
summed.
"""

from collections.abc import Container, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trainables.collectives import Collectives
from trainables.engine.batch_norm import FastTangents, LocalStatistics, WholeBatchStatistics
from trainables.engine.linearize import Linearization, Linearizer, call_backbone


class ShardedLinearizer(Linearizer):
    """As Linearizer, but of the images each worker has its share, and features are those of the whole batch.

    Args:
        collectives: between the workers.
        sync_batch_norm: whether BatchNorm takes the statistics of the whole batch instead of each share's own.
        autocast: as in Linearizer.
        compiled_batch_sizes: of the whole batches.
    """

    def __init__(
        self,
        collectives: Collectives,
        sync_batch_norm: bool = False,
        autocast: torch.dtype | None = None,
        compiled_batch_sizes: Container[int] = (),
    ) -> None:
        super().__init__(autocast, compiled_batch_sizes)
        self._collectives, self._sync = collectives, sync_batch_norm

    def __call__(
        self, backbone: nn.Module, parameters: list[Tensor], buffers: list[Tensor], images: Tensor, num_images: int | None = None
    ) -> Linearization:
        """As Linearizer; `num_images` are those of the whole batch."""
        assert num_images is not None
        own_share = super().__call__(backbone, parameters, buffers, images, num_images)
        return ShardedLinearization(own_share, num_images, self._collectives)

    def features(
        self,
        backbone: nn.Module,
        parameters: dict[str, Tensor],
        buffers: dict[str, Tensor],
        images: Tensor,
        num_images: int,
        autocast: torch.dtype | None,
    ) -> Tensor:
        """As Linearizer; differentiable as often as one likes."""
        replicated = _Replicate.apply(self._collectives, *parameters.values())
        state = dict(zip(parameters, replicated, strict=True)) | buffers
        with self._statistics(num_images) if self._sync else LocalStatistics(of_share=True):
            rows = call_backbone(backbone, state, images, autocast)
        whole: Tensor = _Gather.apply(self._collectives, num_images, rows)
        return whole

    def _statistics(self, num_images: int) -> TorchFunctionMode:
        return WholeBatchStatistics(self._collectives, num_images) if self._sync else FastTangents(of_share=True)

    def _key(self, images: Tensor, num_images: int) -> tuple[Any, ...]:
        # Statistics of a whole batch are divided by its size, which is a constant in the programs.
        return (*super()._key(images, num_images), num_images if self._sync else None)


class ShardedLinearization(Linearization):
    """The linearization of this worker's share, with its features and derivatives put together with the others'."""

    def __init__(self, own_share: Linearization, num_images: int, collectives: Collectives) -> None:
        self._own_share, self._num_images, self._collectives = own_share, num_images, collectives
        self.features = collectives.gather(own_share.features, num_images)

    def pullback(self, cotangent: Tensor, besides: Sequence[Tensor] = ()) -> list[Tensor]:
        """The sum of what each worker pulls back for its own rows; then the mean of `besides`, in the same message."""
        own = self._own_share.pullback(cotangent[self._collectives.share(self._num_images)].contiguous())
        # Every worker has computed the same `besides`, but kernels on a GPU may round them differently from time to time.
        return self._collectives.total([*own, *(tensor / self._collectives.size for tensor in besides)])

    def pushforward(self, tangents: Sequence[Tensor]) -> Tensor:
        """The rows of all workers."""
        return self._collectives.gather(self._own_share.pushforward(tangents), self._num_images)

    def release(self) -> None:
        """As Linearization."""
        self._own_share.release()


# Two pairs of functions, each the other's derivative, so that they can be differentiated any number of times. A tensor that all
# workers have alike has a gradient that all have alike; what stands for a worker's own rows has a gradient of its own.


class _Replicate(torch.autograd.Function):
    """Parameters that all workers have alike -> what each uses for its own rows."""

    @staticmethod
    def forward(ctx: Any, collectives: Collectives, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.collectives = collectives
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return (None, *_Total.apply(ctx.collectives, *gradients))


class _Total(torch.autograd.Function):
    """What each worker has for its own rows -> the sum, which all have alike."""

    @staticmethod
    def forward(ctx: Any, collectives: Collectives, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.collectives = collectives
        return tuple(collectives.total(tensors))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return (None, *_Replicate.apply(ctx.collectives, *gradients))


class _Gather(torch.autograd.Function):
    """Each worker's own rows -> all rows, which all have alike."""

    @staticmethod
    def forward(ctx: Any, collectives: Collectives, number: int, rows: Tensor) -> Tensor:
        ctx.collectives, ctx.number = collectives, number
        return collectives.gather(rows, number)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, None, _Cut.apply(ctx.collectives, ctx.number, gradients[0])


class _Cut(torch.autograd.Function):
    """All rows, which all workers have alike -> each worker's own."""

    @staticmethod
    def forward(ctx: Any, collectives: Collectives, number: int, whole: Tensor) -> Tensor:
        ctx.collectives, ctx.number = collectives, number
        return whole[collectives.share(number)].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, None, _Gather.apply(ctx.collectives, ctx.number, gradients[0])
