"""Measures how long training steps take, without what else happens in an epoch."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext


class StepTimer:
    """The mean time of an epoch's steps. It begins with the first of them.

    Args:
        clock: seconds.
        wait: waits until the device has done what it was given.
    """

    def __init__(self, clock: Callable[[], float], wait: Callable[[], None]) -> None:
        self._clock, self._wait = clock, wait
        self._began = clock()
        self._aside_s = 0.0
        self._is_aside = False
        self._steps = 0

    def step(self, counts: bool) -> AbstractContextManager[None]:
        """One step; of a step that does not count, the time is left out. Steps that count do not wait for the device."""
        if not counts:
            return self.aside()
        self._steps += 1
        return nullcontext()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leaves out the time of what happens inside."""
        if self._is_aside:
            yield
            return
        self._is_aside = True
        self._wait()
        began = self._clock()
        try:
            yield
            self._wait()
        finally:
            self._aside_s += self._clock() - began
            self._is_aside = False

    def mean_s(self) -> float:
        """Seconds of a step, when the device has done all of them; NaN when none counts."""
        return (self._clock() - self._began - self._aside_s) / self._steps if self._steps else math.nan
