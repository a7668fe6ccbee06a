import contextlib
import os
import signal

import pytest

from orchestrator.run.interrupts import Interrupts


def test_ctrl_c_that_a_library_has_swallowed_still_counts() -> None:
    with Interrupts() as interrupts:
        interrupts.check()
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()


def test_the_callers_signal_handlers_are_as_before_after_a_sweep() -> None:
    def own(number: int, frame: object) -> None:
        raise AssertionError

    taken = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, own) for number in taken}
    try:
        with Interrupts() as interrupts:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # as Ray Tune does, which leaves it so
            interrupts.ignore()
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        assert [signal.getsignal(number) for number in taken] == [own] * 3
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
