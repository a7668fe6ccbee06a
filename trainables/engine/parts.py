"""Micro-batches: a backbone runs a batch in parts, one after another, and only one part's activations are in memory at a time.

Only the backbone runs in parts. The features of all parts are put together, so head, method and losses see the whole batch, and
whatever they compute from it, such as a mean over its weights, is the same. A derivative runs each part's forward pass again,
adds up the gradients of the parameters, or puts the tangents of the features together. The parts are those that as many workers
would have, and what sharded.py says about BatchNorm of shares holds for them too.
"""

from collections.abc import Callable, Container, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trainables.collectives import Collectives
from trainables.engine.draws import Draws
from trainables.engine.linearize import Linearization, Linearizer, Parameters


class LinearizerInParts(Linearizer):
    """A Linearizer that runs at most `micro_batch` images at a time; None: all at once, as Linearizer.

    Args:
        micro_batch: images, at least 1. With several workers, of each worker.
        autocast: as in Linearizer.
        compiled_batch_sizes: as in Linearizer; sizes of whole batches, not of parts.
    """

    def __init__(
        self, micro_batch: int | None, autocast: torch.dtype | None = None, compiled_batch_sizes: Container[int] = ()
    ) -> None:
        super().__init__(autocast, compiled_batch_sizes)
        self._micro_batch = micro_batch

    def _run(
        self,
        backbone: nn.Module,
        parameters: list[Tensor],
        buffers: list[Tensor],
        images: Tensor,
        pushforward: bool,
        draws: Draws,
    ) -> Linearization:
        whole, rows = super()._run, parts(len(images), self._micro_batch)
        if len(rows) == 1:
            return whole(backbone, parameters, buffers, images, pushforward, draws)

        def run(part: slice, buffers: list[Tensor]) -> Linearization:
            return whole(backbone, parameters, buffers, images[part], pushforward, draws.of(part))

        return LinearizationInParts(run, rows, buffers)

    def _features(
        self,
        backbone: nn.Module,
        parameters: Parameters,
        buffers: Parameters,
        images: Tensor,
        autocast: torch.dtype | None,
        draws: Draws,
    ) -> Tensor:
        whole, rows = super()._features, parts(len(images), self._micro_batch)
        if len(rows) == 1:
            return whole(backbone, parameters, buffers, images, autocast, draws)

        def run(part: slice, *values: Tensor) -> Tensor:
            state = dict(zip(parameters, values, strict=True))
            return whole(backbone, state, buffers, images[part], autocast, draws.of(part))

        return torch.cat([recomputed(partial(run, part), list(parameters.values())) for part in rows])


def parts(number: int, most: int | None) -> list[slice]:
    """The slices of `number` rows, as few as possible with at most `most` rows each; their sizes differ by at most one."""
    size = 1 if most is None else max(1, -(-number // most))
    return [Collectives(rank, size).share(number) for rank in range(size)]


class LinearizationInParts(Linearization):
    """The linearization of a batch that runs in parts. Between two calls no activations are kept, so `release` frees nothing.

    Args:
        run: rows, buffers -> the linearization of these images.
        rows: of each part.
        buffers: of the backbone; each part updates its own copies, and these become the mean over the parts.
    """

    def __init__(self, run: Callable[[slice, list[Tensor]], Linearization], rows: list[slice], buffers: list[Tensor]) -> None:
        self._rows, self._parts, features = rows, [], []
        copies = [[buffer.clone() for buffer in buffers] for _ in rows]
        for part, own in zip(rows, copies, strict=True):
            here = run(part, own)
            here.release()
            self._parts.append(here)
            features.append(here.features)
        self.features = torch.cat(features)
        for buffer, *updated in zip(buffers, *copies, strict=True):
            if buffer.is_floating_point():
                # The sum of the changes, because a mean of equal numbers may round to another number.
                buffer.add_(sum(after - buffer for after in updated) / len(rows))
            else:
                buffer.copy_(updated[0])

    def pullback(self, cotangent: Tensor, besides: Sequence[Tensor] = ()) -> list[Tensor]:
        """As Linearization: the sum of the pullbacks of all parts."""
        totals: list[Tensor] = []
        for part, rows in self._one_by_one():
            gradients = part.pullback(cotangent[rows].contiguous())
            # Copies, because a program may give the same tensor as the gradient of two parameters, or the cotangent itself.
            totals = totals or [torch.zeros_like(gradient) for gradient in gradients]
            for total, own in zip(totals, gradients, strict=True):
                total.add_(own)
        return [*totals, *besides]

    def pushforward(self, tangents: Sequence[Tensor]) -> Tensor:
        """As Linearization: the tangents of the features of all parts."""
        return torch.cat([part.pushforward(tangents) for part, _ in self._one_by_one()])

    def release(self) -> None:
        """As Linearization."""

    def _one_by_one(self) -> Iterator[tuple[Linearization, slice]]:
        """Each part with its rows. Before the next part, the activations that a derivative has computed again are freed."""
        for part, rows in zip(self._parts, self._rows, strict=True):
            yield part, rows
            part.release()


def recomputed(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Tensor:
    """function(*inputs), of which autograd keeps the inputs only: each derivative computes the function again.

    The result can be differentiated twice. torch's checkpoint would keep all parts' activations for the second derivative.
    """
    found: Tensor = _Recomputed.apply(function, *inputs)
    return found


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(*inputs)
        return function(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, *_Gradient.apply(ctx.function, gradients[0], *ctx.saved_tensors)


class _Gradient(torch.autograd.Function):
    """function, cotangent, inputs -> the gradient of <cotangent, function(*inputs)> for each input."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], cotangent: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.function = function
        ctx.save_for_backward(cotangent, *inputs)
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        with torch.enable_grad():
            return torch.autograd.grad(function(*leaves), leaves, cotangent, materialize_grads=True)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *along: Tensor) -> Any:
        leaves = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        with torch.enable_grad():
            features = ctx.function(*leaves[1:])
            found = torch.autograd.grad(features, leaves[1:], leaves[0], create_graph=True, materialize_grads=True)
            # Gradients of inputs that the function does not use are zeros without a graph.
            pairs = [(gradient, tangent) for gradient, tangent in zip(found, along, strict=True) if gradient.requires_grad]
            outputs, tangents = ([pair[i] for pair in pairs] for i in (0, 1))
            return None, *torch.autograd.grad(outputs, leaves, tangents, materialize_grads=True)
