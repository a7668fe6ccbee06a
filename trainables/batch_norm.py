"""BatchNorm in train mode with a tangent of a few kernels; torch's own formula for it takes a dozen passes over the data.

y = weight * (x - mean(x)) * invstd(x) + bias. The Jacobian of y for x is symmetric, so the kernel of the backward pass, which
multiplies by its transpose, serves the tangent as well.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten


class FastTangents(TorchFunctionMode):
    """Inside this context every BatchNorm in train mode uses the rule below. Values and gradients are torch's."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for every function that a module calls."""
        return (_batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training or running_mean is None or weight is None:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    y: Tensor = _BatchNorm.apply(x, weight, bias, running_mean, running_var, momentum, eps)
    return y


class _BatchNorm(torch.autograd.Function):
    """The running statistics move in the forward pass, as in torch's own."""

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
        tangent: Tensor = _transposed(ctx, along_x, [True, False, False])[0]
        scale = along_weight * invstd
        per_channel = [1, -1] + [1] * (x.dim() - 2)
        return tangent.addcmul_(x, scale.view(per_channel)).add_((along_bias - mean * scale).view(per_channel))


def _transposed(ctx: Any, gradient: Tensor, wanted: list[bool]) -> tuple[Tensor, ...]:
    """The gradients for x, weight and bias of which `wanted` says true."""
    x, weight, mean, invstd = ctx.saved_tensors
    gradients = aten.native_batch_norm_backward(gradient, x, weight, None, None, mean, invstd, True, ctx.eps, wanted)
    return tuple(gradients)
