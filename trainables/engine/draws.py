"""The random numbers of a backbone, such as the masks of dropout: functions of seed, step and place alone.

So they are the same in the virtual and in the actual step, in a forward pass that is repeated, on every number of workers, in a
batch that runs in parts, after a resumption, and in a captured step.
"""

import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trainables.methods.context import uniform

aten = torch.ops.aten
TRAINING, META = 1000, 2000
"""The first streams of the draws on training batches and on meta batches. Methods have smaller ones."""


class Key(NamedTuple):
    """What random numbers depend on, as tensors () int64 on the device: a captured step reads their memory."""

    step: Tensor
    seed: Tensor

    @staticmethod
    def zero(device: torch.device) -> "Key":
        """The key of a backbone that is run outside of a trial."""
        return Key(torch.zeros((), dtype=torch.int64, device=device), torch.zeros((), dtype=torch.int64, device=device))


class Share(NamedTuple):
    """The images of a batch that run together, on a worker or in a part: those from `first` on, `number` of `total`."""

    first: Tensor | int
    number: int
    total: int


class Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context in which torch's random operators draw from a key in place of torch's generators.

    Args:
        key: seed and step.
        stream: of the first draw; each further one has the next stream.
        share: the images that run. Operators may draw several values for each image; the images' values lie one after another.
    """

    def __init__(self, key: Key, stream: int, share: Share) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.key, self.stream, self.share = key, stream, share
        self.number = 0
        """Draws so far."""

    def at(self, key: Key, first: Tensor) -> "Draws":
        """The same draws from their beginning, of another key, for as many images from `first` on."""
        self.key, self.share, self.number = key, self.share._replace(first=first), 0
        return self

    def of(self, rows: slice) -> "Draws":
        """New draws of the same key for some of the images."""
        return Draws(self.key, self.stream, Share(self.share.first + rows.start, rows.stop - rows.start, self.share.total))

    def place(self) -> tuple[Key, Tensor]:
        """The arguments of `at`, as tensors, for programs that are traced once for all steps and shares."""
        first = self.share.first
        return self.key, first if isinstance(first, Tensor) else self.key.step.new_full((), first)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Intercepts random operators; torch calls this method for every operator inside the context."""
        draw = DRAWN.get(func)
        return func(*args, **(kwargs or {})) if draw is None else draw(self, *args, **(kwargs or {}))

    def uniform(self, like: Tensor) -> Tensor:
        """Numbers in [0, 1), float32 with the shape of `like`.

        Raises:
            ValueError: when a share of the images cannot tell which of the numbers belong to it.
        """
        first, number, total = self.share
        start: Tensor | int = 0
        if number < total:
            if like.dim() == 0 or (number and like.shape[0] % number):
                raise ValueError(
                    f"the classifier's backbone draws random numbers of shape {tuple(like.shape)}, which are not those of "
                    f"{number} images; with several workers or compute.micro_batch, the first dimension must be the images"
                )
            start = first * (like.numel() // max(number, 1))
        self.number += 1
        return uniform(self.key.step, self.key.seed, self.stream + self.number, like.numel(), start).view(like.shape)


@contextmanager
def no_other_draws() -> Iterator[None]:
    """Sees that the block draws no random numbers of Python or numpy: a trace would hold the same ones for ever.

    Raises:
        ValueError: when it does.
    """
    before = random.getstate(), pickle.dumps(np.random.get_state())
    yield
    if before != (random.getstate(), pickle.dumps(np.random.get_state())):
        raise ValueError(
            "the classifier's backbone draws random numbers of Python or numpy, which would be the same in every step; allowed: "
            "torch's, such as torch.rand or nn.Dropout"
        )


def _dropout(draws: Draws, x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    if not train:
        return x.clone(), torch.ones_like(x, dtype=torch.bool)
    mask = draws.uniform(x) >= p
    return x * mask * (0.0 if p == 1 else 1 / (1 - p)), mask


def _bernoulli(draws: Draws, probability: Tensor, *, generator: Any = None) -> Tensor:
    return (draws.uniform(probability) < probability).to(probability.dtype)


def _bernoulli_p(draws: Draws, like: Tensor, p: float = 0.5, *, generator: Any = None) -> Tensor:
    return (draws.uniform(like) < p).to(like.dtype)


def _bernoulli_in_place(draws: Draws, target: Tensor, p: float = 0.5, *, generator: Any = None) -> Tensor:
    return target.copy_(draws.uniform(target) < p)


def _rand_like(draws: Draws, like: Tensor, *, dtype: Any = None, **_: Any) -> Tensor:
    return draws.uniform(like).to(dtype or like.dtype)


def _rand(draws: Draws, size: list[int], *, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
    like = torch.empty(size, dtype=dtype, device=device)
    return draws.uniform(like).to(like.dtype)


DRAWN: dict[Any, Callable[..., Any]] = {
    aten.native_dropout.default: _dropout,
    aten.bernoulli.default: _bernoulli,
    aten.bernoulli.p: _bernoulli_p,
    aten.bernoulli_.float: _bernoulli_in_place,
    aten.bernoulli_.Tensor: _bernoulli_in_place,
    aten.rand_like.default: _rand_like,
    aten.rand.default: _rand,
}
"""What is drawn in place of torch's operators."""
