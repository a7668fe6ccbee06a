"""Steps that Ctrl-C does not cut in two: a signal that comes meanwhile is heeded at their end."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

DEFERRED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals whose handlers may raise KeyboardInterrupt."""


@contextmanager
def whole() -> Iterator[None]:
    """Inside this block no signal handler runs in the main thread. In other threads none ever does.

    The block must be short, and must not wait for anything: Ctrl-C would do nothing meanwhile.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _deferred(signal.SIGHUP), _deferred(signal.SIGTERM), _deferred(signal.SIGINT):
        yield


@contextmanager
def _deferred(number: signal.Signals) -> Iterator[None]:
    """One signal waits. What has no handler in Python (ignored, or the end of the process) stays as it is."""
    handler = signal.getsignal(number)
    if not callable(handler):
        yield
        return
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    try:
        signal.signal(number, note)
        yield
    finally:
        signal.signal(number, handler)
        if came:
            signal.raise_signal(number)
