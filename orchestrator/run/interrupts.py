"""Ctrl-C, SIGTERM and SIGHUP while a sweep runs. Afterwards the caller's signal handlers are as before."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

TAKEN = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""The signals whose handlers a sweep changes: SIGUSR1 is changed by Ray Tune, which does not restore it."""
ENDING = (signal.SIGTERM, signal.SIGHUP)
"""The machine goes away, or the terminal (the ssh connection ends)."""


def heeded_endings() -> list[signal.Signals]:
    """The signals of ENDING that count: under nohup SIGHUP is ignored, and stays so."""
    return [number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN]


class Interrupts:
    """Ctrl-C that cannot get lost: some libraries swallow a KeyboardInterrupt that reaches them while they are being imported.

    SIGTERM and SIGHUP count as Ctrl-C, except while trials run (runner.until_terminated).

    A context manager. In a thread other than the main one Python lets nobody change signal handlers: there it does nothing, and
    Ctrl-C stays with the caller.
    """

    def __init__(self) -> None:
        self._pressed = False
        self._before: dict[signal.Signals, Any] = {}
        self._own: list[signal.Signals] = []

    def __enter__(self) -> "Interrupts":
        """Takes the signals over."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in TAKEN}
            self._own = [signal.SIGINT, *heeded_endings()]
            self._set(self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Gives all signals back to the caller."""
        for number, handler in self._before.items():
            if handler is not None:  # None stands for a handler that was not set from Python and cannot be set from here
                signal.signal(number, handler)
        self._before, self._own = {}, []

    def check(self) -> None:
        """Raises KeyboardInterrupt when Ctrl-C has been pressed, or another of the signals has come."""
        if self._pressed:
            raise KeyboardInterrupt

    def ignore(self) -> None:
        """From now on the signals do nothing: what is left takes seconds, and half of it would be worth nothing."""
        self._set(signal.SIG_IGN)

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Inside this block the signals count again: reading a large test set takes a while, and an export that was cut off is
        begun anew.
        """
        self._set(self._handle)
        try:
            yield
        finally:
            self.ignore()

    def _set(self, handler: Any) -> None:
        for number in self._own:
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._pressed = True
        raise KeyboardInterrupt
