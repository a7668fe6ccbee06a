"""BatchNorm in train mode, in three variants that torch does not offer.

FastTangents computes the tangent with a few kernels; torch's own formula takes a dozen passes over the data. LocalStatistics
handles a worker that has no image of a batch. WholeBatchStatistics normalises with the statistics of the whole batch when
workers share the batch.

y = weight * (x - mean(x)) * invstd(x) + bias. The Jacobian dy/dx is symmetric. The backward kernel multiplies by the transposed
Jacobian, so the same kernel computes the tangent.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from trainables.collectives import Collectives

aten = torch.ops.aten


class Call(NamedTuple):
    """The arguments of F.batch_norm, in the order of its signature."""

    x: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5


class BatchNormRule(TorchFunctionMode):
    """A context in which the subclass replaces BatchNorm in train mode. BatchNorm in eval mode stays torch's."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Intercepts F.batch_norm; torch calls this method for every torch function inside the context."""
        if func is not F.batch_norm:
            return func(*args, **(kwargs or {}))
        call = Call(*args, **(kwargs or {}))
        return self._in_training(call) if call.training else F.batch_norm(*call)

    def _in_training(self, call: Call) -> Tensor:
        raise NotImplementedError


class LocalStatistics(BatchNormRule):
    """torch's BatchNorm, except that a batch without images leaves the running statistics unchanged.

    Args:
        of_share: whether the images are a worker's share of a batch. A share with a single value per channel has no statistics
            either, so its output is the bias. For a whole batch with a single value per channel, torch's error is kept.
    """

    def __init__(self, of_share: bool = False) -> None:
        super().__init__()
        self._of_share = of_share

    def _in_training(self, call: Call) -> Tensor:
        x = call.x
        if not len(x) or (self._of_share and x.numel() == x.shape[1]):
            # Constant statistics and x - x make all derivatives for x and weight 0; batch statistics of no data would be NaN.
            ones = x.new_ones(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
            call = call._replace(x=x - x, running_mean=torch.zeros_like(ones), running_var=ones, training=False)
        return F.batch_norm(*call)


class FastTangents(LocalStatistics):
    """LocalStatistics with the tangent formula of _BatchNorm. Values and gradients are torch's."""

    def _in_training(self, call: Call) -> Tensor:
        x, running_mean, running_var, weight, bias, _, momentum, eps = call
        # The rule below needs weight, running statistics and more than one value per channel; other calls take torch's path.
        if running_mean is None or weight is None or x.numel() <= x.shape[1]:
            return super()._in_training(call)
        y: Tensor = _BatchNorm.apply(x, weight, bias, running_mean, running_var, momentum, eps)
        return y


class _BatchNorm(torch.autograd.Function):
    """BatchNorm with hand-written backward and jvp. The forward pass updates the running statistics, as torch's does."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float, eps: float
    ) -> Tensor:
        y, mean, invstd = aten._native_batch_norm_legit(x, weight, bias, running_mean, running_var, True, momentum, eps)
        ctx.save_for_backward(x, weight, mean, invstd)
        ctx.save_for_forward(x, weight, mean, invstd)
        ctx.eps = eps
        return y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return (*_transposed(ctx, gradients[0], [True, True, True]), None, None, None, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        along_x, along_weight, along_bias = tangents[:3]
        x, _, mean, invstd = ctx.saved_tensors
        # The part along x is the backward kernel, because the Jacobian is symmetric. y is linear in weight and bias.
        tangent: Tensor = _transposed(ctx, along_x, [True, False, False])[0]
        scale = along_weight * invstd
        per_channel = [1, -1] + [1] * (x.dim() - 2)
        return tangent.addcmul_(x, scale.view(per_channel)).add_((along_bias - mean * scale).view(per_channel))


def _transposed(ctx: Any, gradient: Tensor, wanted: list[bool]) -> tuple[Tensor, ...]:
    """The transposed Jacobian times `gradient`: the gradients for x, weight and bias where `wanted` is true."""
    x, weight, mean, invstd = ctx.saved_tensors
    gradients = aten.native_batch_norm_backward(gradient, x, weight, None, None, mean, invstd, True, ctx.eps, wanted)
    return tuple(gradients)


class WholeBatchStatistics(BatchNormRule):
    """BatchNorm with the statistics of the whole batch, of which each worker has a share.

    Derivatives include the other workers' images. They work in reverse mode and in forward mode, and can be differentiated again.

    Args:
        collectives: the workers of the trial.
        num_images: number of images in the whole batch.
    """

    def __init__(self, collectives: Collectives, num_images: int) -> None:
        super().__init__()
        self._collectives, self._num_images = collectives, num_images

    def _in_training(self, call: Call) -> Tensor:
        x, running_mean, running_var, weight, bias, _, momentum, eps = call
        positions = math.prod(x.shape[2:])
        number = self._num_images * positions
        if number == 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")  # as torch does
        mean, var = self._statistics(x.to(torch.promote_types(x.dtype, torch.float32)), positions)
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.detach(), momentum)
                running_var.lerp_(var.detach() * (number / (number - 1)), momentum)
        invstd = torch.rsqrt(var + eps)
        scale = invstd if weight is None else weight * invstd
        shift = -mean * scale if bias is None else bias - mean * scale
        per_channel = [1, -1] + [1] * (x.dim() - 2)
        return torch.addcmul(shift.view(per_channel), x, scale.view(per_channel)).to(x.dtype)

    def _statistics(self, x: Tensor, positions: int) -> tuple[Tensor, Tensor]:
        """Mean and variance of each channel, (C,) each, over all images of all workers.

        The per-worker means and variances are gathered and then combined (Chan et al., 1979). Sums of squares would be
        inaccurate when the mean is far from 0, because of cancellation.
        """
        over = [dim for dim in range(x.dim()) if dim != 1]
        # A worker without images contributes 0, but the 0 must be on the tape: each backward pass through the all-reduce below is
        # an all-reduce too, and the other workers would wait for this one.
        own = torch.stack(torch.var_mean(x, over, correction=0) if len(x) else (x.sum(over), x.sum(over)))
        # Each worker fills its own row and leaves zeros in the others, so that an all-reduce gathers all rows.
        slots = [torch.zeros_like(own)] * self._collectives.size
        slots[self._collectives.rank] = own
        variances, means = cast(Tensor, AllSum.apply(torch.stack(slots))).unbind(1)  # (workers, C) each
        shares = self._collectives.shares(self._num_images)
        part = torch.cat([x.new_full((1, 1), share / self._num_images) for share in shares])
        mean = (part * means).sum(0)
        return mean, (part * (variances + (means - mean).square())).sum(0)


class AllSum(torch.autograd.Function):
    """All-reduce (sum) with a derivative. Every worker uses the sum for its own rows, so the gradient is an all-reduce too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total: Tensor = _all_sum(x)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return AllSum.apply(gradients[0])

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        total: Tensor = _all_sum(tangents[0])
        return total


@torch.library.custom_op("tailtune::all_sum", mutates_args=())
def _all_sum(x: Tensor) -> Tensor:
    """All-reduce (sum) as one operator, which tracing, torch.compile and autograd keep whole. A torch collective is three."""
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


@_all_sum.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)
