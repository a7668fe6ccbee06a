"""Training steps as CUDA graphs: a step is captured once and then replayed, so that the GPU does not wait for Python."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainables.engine.bilevel import BilevelStep
from trainables.engine.meta_gradient import Batch, Measured


class CapturedStep:
    """Runs a BilevelStep by replaying CUDA graphs, one graph for each kind of step (with and without an update of theta).

    The step size must be a tensor on the device and both optimisers must be capturable; see optimizers.py. Two kinds of steps
    run uncaptured: steps that compare the meta-gradient with double backward, and steps whose batch size differs from that of
    the first batch, such as the last step of an epoch.
    """

    def __init__(self, bilevel_step: BilevelStep) -> None:
        self._step = bilevel_step
        self._graphs: dict[bool, _Graph] = {}
        self._batch_size: int | None = None

    def __call__(self, batch: Batch, meta_batch: Batch | None, step: int) -> Measured:
        """As BilevelStep."""
        self._batch_size = self._batch_size or len(batch.labels)
        if len(batch.labels) != self._batch_size or self._step.compares(step):
            return self._step(batch, meta_batch, step)
        kind = self._step.updates_theta(step)
        if kind not in self._graphs:
            try:
                self._graphs[kind] = _Graph(self._step, batch, meta_batch, step)
            except RuntimeError as reason:
                warnings.warn(f"compute.cuda_graphs: going on without CUDA graphs, capture failed ({reason})", stacklevel=2)
                self._batch_size = -1  # no batch has this size: all later steps run uncaptured
                return self._step(batch, meta_batch, step)
        return self._graphs[kind].replay(batch, meta_batch)


class _Graph:
    """One captured step and the tensors that it reads from and writes to."""

    def __init__(self, bilevel_step: BilevelStep, batch: Batch, meta_batch: Batch | None, step: int) -> None:
        self._batch, self._meta_batch = copied(batch), copied(meta_batch) if meta_batch else None
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with untouched(bilevel_step):
            stream.wait_stream(torch.cuda.current_stream())
            try:
                with torch.cuda.stream(stream):
                    # Tracing and the libraries' own allocations cannot be captured, so they must happen before the capture.
                    for _ in range(3):
                        bilevel_step(self._batch, self._meta_batch, step)
            finally:
                torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            measured = bilevel_step(self._batch, self._meta_batch, step)
            self._names, self._values = list(measured), torch.stack([value.double() for value in measured.values()])

    def replay(self, batch: Batch, meta_batch: Batch | None) -> Measured:
        """Runs the captured step on batches of the captured sizes."""
        for mine, given in ((self._batch, batch), (self._meta_batch, meta_batch)):
            if mine is not None and given is not None:
                for target, source in zip(parts_of(mine), parts_of(given), strict=True):
                    target.copy_(source)
        self._graph.replay()
        # A copy, because the next replay overwrites the captured values.
        return dict(zip(self._names, self._values.clone().unbind(), strict=True))


@contextmanager
def untouched(bilevel_step: BilevelStep) -> Iterator[None]:
    """Restores, in place, what the steps inside change: phi, theta, running statistics, sums of weights, and both optimisers.

    Optimiser states that are created inside are set to 0, the start value of momentum and of Adam's averages. They are not
    deleted, because the graph captures their memory.
    """
    optimizers = [optimizer for optimizer in (bilevel_step.optimizer, bilevel_step.meta_optimizer) if optimizer is not None]
    weights = bilevel_step.weights
    learned = [*bilevel_step.classifier.state_dict().values(), *bilevel_step.method.state_dict().values()]
    tensors = [*learned, weights.sums, weights.counts]
    before = [tensor.clone() for tensor in tensors]
    known = {id(tensor): tensor.clone() for optimizer in optimizers for tensor in _state_tensors(optimizer)}
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
            for tensor in (tensor for optimizer in optimizers for tensor in _state_tensors(optimizer)):
                tensor.copy_(known.get(id(tensor), torch.zeros_like(tensor)))


def _state_tensors(optimizer: Optimizer) -> list[Tensor]:
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


def copied(batch: Batch) -> Batch:
    """A copy of the batch with the same memory layout."""
    return replace(batch, **{name: part.clone() for name, part in vars(batch).items() if part is not None})


def parts_of(batch: Batch) -> list[Tensor]:
    """The tensors of a batch, without those that it does not have."""
    return [part for part in vars(batch).values() if part is not None]
