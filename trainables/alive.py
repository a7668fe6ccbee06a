"""Signs of life: work that may take minutes says that it goes on, so that whoever waits for it does not take it for a hang.

The loops of such work call `alive`. The process that is waited for listens: that of a slot touches its trials' heartbeat files, a
worker sends a heartbeat to its slot.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Listener = Callable[[], None]
_listeners: list[Listener] = []


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Calls `listener` at each sign of life while the block runs. It may be called very often."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def alive() -> None:
    """A sign of life, from the thread that does the process's work."""
    for listener in _listeners:
        listener()
