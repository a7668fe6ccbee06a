"""Ctrl-C and SIGTERM while a sweep runs. Afterwards the caller's signal handlers are as before."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

TAKEN = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""The signals whose handlers a sweep changes: SIGUSR1 is changed by Ray Tune, which does not restore it."""


class Interrupts:
    """Ctrl-C that cannot get lost: some libraries swallow a KeyboardInterrupt that reaches them while they are being imported.

    A context manager. In a thread other than the main one Python lets nobody change signal handlers: there it does nothing, and
    Ctrl-C stays with the caller.
    """

    def __init__(self) -> None:
        self._pressed = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupts":
        """Takes Ctrl-C over."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in TAKEN}
            signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Gives all signals back to the caller."""
        for number, handler in self._before.items():
            if handler is not None:  # None stands for a handler that was not set from Python and cannot be set from here
                signal.signal(number, handler)
        self._before = {}

    def check(self) -> None:
        """Raises KeyboardInterrupt when Ctrl-C has been pressed."""
        if self._pressed:
            raise KeyboardInterrupt

    def ignore(self) -> None:
        """From now on Ctrl-C does nothing: what is left takes seconds, and half of it would be worth nothing."""
        if self._before:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Inside this block Ctrl-C counts again: reading a large test set takes a while, and an export that was cut off is begun
        anew.
        """
        if self._before:
            signal.signal(signal.SIGINT, self._handle)
        try:
            yield
        finally:
            self.ignore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._pressed = True
        raise KeyboardInterrupt
