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

    taken = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    before = {number: signal.signal(number, own) for number in taken}
    try:
        with Interrupts() as interrupts:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # as Ray Tune does, which leaves it so
            interrupts.ignore()
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        assert [signal.getsignal(number) for number in taken] == [own] * 4
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_end_of_the_machine_or_of_the_terminal_counts_as_ctrl_c(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
        interrupts.ignore()
        os.kill(os.getpid(), number)  # what is left takes seconds
        with pytest.raises(KeyboardInterrupt), interrupts.heeded():
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_under_nohup_the_end_of_the_terminal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            os.kill(os.getpid(), signal.SIGHUP)
            interrupts.check()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
