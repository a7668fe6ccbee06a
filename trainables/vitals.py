"""Whether a trial is alive: every measured quantity is finite, and the meta loss does train theta."""

import math

import torch
from torch import Tensor

from trainables.collectives import ALONE, Collectives

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


class Vitals:
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
