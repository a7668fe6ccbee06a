"""Whether a trial is alive: every measured quantity is finite, the meta loss does train theta, and the memory suffices."""

import math
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from trainables.collectives import ALONE, Collectives
from trainables.machine import peak_resident

REPORTED = ("train/loss", "meta/loss", "meta/grad_norm", "meta/grad_cosine")
"""Which quantities become metrics of an epoch, as means over its steps."""

LOOK_EVERY = 50
"""Steps from one look at the numbers to the next. Looking makes the program wait for a GPU; not looking wastes a broken trial."""

DEAD_AFTER = 20
"""Consecutive meta-gradients of exactly 0 after which a trial stops."""


class TrialEnded(Exception):
    """The trial cannot go on; the message says why, `status` how it ends."""

    status = "failed"


class Diverged(TrialEnded):
    """A quantity is no longer finite; the message names the step and the first one that broke."""

    status = "diverged"


class DeadMetaGradient(TrialEnded):
    """The meta loss does not reach theta."""


class OutOfMemory(TrialEnded):
    """The trial needs more memory than there is; the message says when, how much it took, and what helps."""


@contextmanager
def within_memory(when: str) -> Iterator[None]:
    """Ends the trial when the work inside runs out of memory, and gives back what that work has taken.

    Args:
        when: as the message has it, such as `in epoch 3`.

    Raises:
        OutOfMemory: in place of torch's error or Python's.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        message = out_of_memory(when, on_gpu=isinstance(error, torch.OutOfMemoryError))
        traceback.clear_frames(error.__traceback__)  # they hold the tensors of the step that failed
        torch.cuda.empty_cache()
        raise OutOfMemory(message) from None


def is_out_of_memory(error: Exception) -> bool:
    """Whether that is what went wrong; torch has a kind of error for a GPU, but only words for the memory of a CPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def out_of_memory(when: str, on_gpu: bool) -> str:
    """What is said when it has happened; the peaks are those of this trial on a GPU, but of the whole process without."""
    smaller = "a smaller optim.batch_size or bilevel.meta_batch_size, bilevel.memory=lean"
    if not on_gpu:
        took = f"this process took up to {peak_resident() / 2**30:.1f} GiB"
        return f"out of memory {when}: {took}; what helps: {smaller}, or fewer trials side by side"
    peak, total = torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties().total_memory
    took = f"the trial took up to {peak / 2**30:.1f} of the GPU's {total / 2**30:.1f} GiB"
    return f"out of memory {when}: {took}; what helps: {smaller}, compute.precision=bf16, or fewer trials per GPU"


class Health:
    """Takes what each step measured; `zero_updates` counts the latest meta-gradients that were exactly 0. All workers of a trial
    see what the first has measured.
    """

    def __init__(self, watch_meta_gradient: bool, zero_updates: int = 0, collectives: Collectives = ALONE) -> None:
        self._watch_meta_gradient, self._collectives = watch_meta_gradient, collectives
        self.zero_updates = zero_updates
        self._unseen: list[tuple[int, dict[str, Tensor]]] = []
        self._reported: dict[str, list[float]] = {}

    def record(self, step: int, measured: dict[str, Tensor], alpha: float) -> None:
        """Takes the quantities () of `step` (from 0), in the order in which they were computed; looks at them now and then.

        Raises:
            Diverged: when one of them is not finite.
            DeadMetaGradient: after DEAD_AFTER meta-gradients of exactly 0 although alpha > 0.
        """
        self._unseen.append((step, measured if alpha > 0 else {k: v for k, v in measured.items() if k != "meta/grad_norm"}))
        if len(self._unseen) >= LOOK_EVERY:
            self._look()

    def epoch_means(self) -> dict[str, float]:
        """The reported quantities averaged over the steps since the last call.

        Raises:
            Diverged, DeadMetaGradient: as `record`.
        """
        self._look()
        means = {name: math.fsum(values) / len(values) for name, values in self._reported.items()}
        self._reported = {}
        return means

    def _look(self) -> None:
        steps, self._unseen = self._unseen, []
        if not steps:
            return
        # One transfer for all numbers.
        numbers = torch.stack([value.double() for _, measured in steps for value in measured.values()])
        values = iter(self._collectives.agreed(numbers).tolist())
        for step, measured in steps:
            for name in measured:
                self._look_at(name, next(values), step)

    def _look_at(self, name: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise Diverged(f"{name} became {value} in step {step + 1}")
        if name in REPORTED:
            self._reported.setdefault(name, []).append(value)
        if name == "meta/grad_norm" and self._watch_meta_gradient:
            self.zero_updates = 0 if value else self.zero_updates + 1
            if self.zero_updates == DEAD_AFTER:
                raise DeadMetaGradient(
                    f"the meta-gradient was exactly 0 in {DEAD_AFTER} consecutive updates up to step {step + 1}: the meta loss "
                    "does not train the weighting network. Its output is detached, saturated, or does not depend on its "
                    "parameters; bilevel.meta_gradient=none says that this is wanted"
                )
