"""Health checks of a trial: three failures end it, each with its reason.

A measured quantity is no longer finite; the meta-gradient stays exactly 0, so the meta loss does not train theta; or the trial
runs out of memory.
"""

import math
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from trainables.collectives import ALONE, Collectives
from trainables.machine import peak_resident

REPORTED = ("train/loss", "meta/loss", "meta/grad_norm", "meta/grad_cosine")
"""The quantities that become metrics of an epoch, as means over its steps."""

LENGTHS = ("meta/grad_norm", "meta/v_norm", "train/grad_norm")
"""Their means over an epoch give the lever of theta."""

LOOK_EVERY = 50
"""Steps between two checks. A check synchronises with the GPU; a longer interval lets a broken trial run on for longer."""


class TrialEnded(Exception):
    """The trial cannot go on. The message gives the reason, `status` the trial's final status."""

    status = "failed"


class Diverged(TrialEnded):
    """A quantity is no longer finite. The message names the step and the first such quantity."""

    status = "diverged"


class DeadMetaGradient(TrialEnded):
    """The meta-gradient stays exactly 0: the meta loss does not train theta."""


class OutOfMemory(TrialEnded):
    """The trial needs more memory than there is. The message says when, the peak memory, and which settings help."""


@contextmanager
def within_memory(when: str) -> Iterator[None]:
    """Ends the trial when the work inside runs out of memory, and frees the memory of that work.

    Args:
        when: goes into the message, for instance `in epoch 3`.

    Raises:
        OutOfMemory: instead of torch's or Python's own error.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        message = out_of_memory(when, on_gpu=isinstance(error, torch.OutOfMemoryError))
        traceback.clear_frames(error.__traceback__)  # the frames reference the tensors of the failed step
        torch.cuda.empty_cache()
        raise OutOfMemory(message) from None


def is_out_of_memory(error: Exception) -> bool:
    """Whether `error` means out of memory. torch has an exception type for GPU memory, but only a message for CPU memory."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def out_of_memory(when: str, on_gpu: bool) -> str:
    """The error message, with the peak memory: of this trial on a GPU, of the whole process on a CPU."""
    smaller = "a smaller optim.batch_size, bilevel.meta_batch_size or compute.micro_batch, bilevel.memory=lean"
    if not on_gpu:
        took = f"this process took up to {peak_resident() / 2**30:.1f} GiB"
        return f"out of memory {when}: {took}; what helps: {smaller}, or fewer trials side by side"
    peak, total = torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties().total_memory
    took = f"the trial took up to {peak / 2**30:.1f} of the GPU's {total / 2**30:.1f} GiB"
    return f"out of memory {when}: {took}; what helps: {smaller}, compute.precision=bf16, or fewer trials per GPU"


class Health:
    """Checks the measured quantities of all steps and averages them over an epoch.

    All workers of a trial check the values of worker 0, so that they take the same decision.

    Args:
        dead_after: the trial ends after so many consecutive meta-gradients of exactly 0; None if they do not matter.
        zero_updates: how many of the latest consecutive meta-gradients were exactly 0.
        collectives: the workers of the trial.
    """

    def __init__(self, dead_after: int | None, zero_updates: int = 0, collectives: Collectives = ALONE) -> None:
        self.dead_after, self._collectives = dead_after, collectives
        self.zero_updates = zero_updates
        self.lever: float | None = None
        """How much a step of theta changed phi's gradient in the last epoch: the meta-gradient's length in units of
        ||v|| ||dL/dphi||, means over the epoch. None if the epoch had no meta-gradient."""
        self._unseen: list[tuple[int, dict[str, Tensor]]] = []
        self._reported: dict[str, list[float]] = {}

    def record(self, step: int, measured: dict[str, Tensor], alpha: float) -> None:
        """Adds the quantities of `step`; checks all pending ones every LOOK_EVERY steps.

        Args:
            step: counted from 0 over the whole trial.
            measured: quantities () in the order in which they were computed.
            alpha: step size of the virtual step. With 0 the meta-gradient is 0 too, so it does not count as dead.

        Raises:
            Diverged: when a quantity is not finite.
            DeadMetaGradient: after `dead_after` consecutive meta-gradients of exactly 0 with alpha > 0.
        """
        self._unseen.append((step, measured if alpha > 0 else {k: v for k, v in measured.items() if k != "meta/grad_norm"}))
        if len(self._unseen) >= LOOK_EVERY:
            self._look()

    def take(self, step: int, values: Mapping[str, float], alpha: float) -> None:
        """As `record`, of quantities that are numbers already; checks them at once."""
        for name, value in values.items():
            if alpha > 0 or name != "meta/grad_norm":
                self._look_at(name, value, step)

    def epoch_means(self) -> dict[str, float]:
        """Means of the reported quantities over the steps since the last call; checks the pending quantities first.

        Raises:
            Diverged, DeadMetaGradient: as `record`.
        """
        self._look()
        means = {name: math.fsum(values) / len(values) for name, values in self._reported.items()}
        self._reported = {}
        self.lever = lever(*(means.get(name) for name in LENGTHS))
        return {name: mean for name, mean in means.items() if name in REPORTED}

    def _look(self) -> None:
        steps, self._unseen = self._unseen, []
        if not steps:
            return
        # One transfer for all numbers, because each transfer waits for the GPU.
        numbers = torch.stack([value.double() for _, measured in steps for value in measured.values()])
        values = iter(self._collectives.agreed(numbers).tolist())
        for step, measured in steps:
            for name in measured:
                self._look_at(name, next(values), step)

    def _look_at(self, name: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise Diverged(f"{name} became {value} in step {step + 1}")
        if name in REPORTED or name in LENGTHS:
            self._reported.setdefault(name, []).append(value)
        if name == "meta/grad_norm" and self.dead_after is not None:
            self.zero_updates = 0 if value else self.zero_updates + 1
            if self.zero_updates == self.dead_after:
                raise DeadMetaGradient(
                    f"the meta-gradient was exactly 0 in {self.dead_after} consecutive updates up to step {step + 1}: the meta "
                    "loss does not train the weighting network. Its output is detached, saturated, or does not depend on its "
                    "parameters; set bilevel.meta_gradient=none if this is intended"
                )


def lever(meta_gradient: float | None, v: float | None, gradient: float | None) -> float | None:
    """||d <v, dL/dphi> / dtheta|| / (||v|| ||dL/dphi||) from the three lengths; None if one is missing, or 0 in the divisor."""
    if meta_gradient is None or not v or not gradient:
        return None
    return meta_gradient / (v * gradient)
