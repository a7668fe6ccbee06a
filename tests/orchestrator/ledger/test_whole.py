import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.ledger.events import Event
from orchestrator.ledger.ledger import Ledger, read_ledger
from orchestrator.ledger.whole import whole


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def number(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    """A signal whose handler raises KeyboardInterrupt."""
    before = signal.signal(request.param, signal.default_int_handler)
    yield request.param
    signal.signal(request.param, before)


def test_a_signal_waits_until_the_step_is_over(number: signal.Signals) -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), whole(), whole():  # noqa: PT012
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        done.append("all of it")
    assert done == ["all of it"]
    assert signal.getsignal(number) is signal.default_int_handler


def test_what_is_ignored_stays_so_and_other_threads_are_let_alone() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with whole():
            os.kill(os.getpid(), signal.SIGINT)
        entered = []

        def run() -> None:
            with whole():
                entered.append(True)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        assert entered == [True]
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_event_that_is_written_is_taken_even_when_ctrl_c_comes_in_a_listener(tmp_path: Path, number: signal.Signals) -> None:
    taken: list[str] = []
    shown: list[str] = []

    def interrupted(event: Event) -> None:
        os.kill(os.getpid(), number)
        taken.append(event["event"])

    with Ledger(tmp_path) as ledger:
        ledger.listen(shown.append)  # type: ignore[arg-type]
        ledger.listen(interrupted, essential=True)
        with pytest.raises(KeyboardInterrupt):
            ledger.append("trial_end", trial_id="t0000", status="finished", stop_reason=None)
    assert taken == [event["event"] for event in read_ledger(tmp_path)] == ["trial_end"]
    assert len(shown) == 1


def test_ctrl_c_ends_the_waiting_for_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    def full(descriptor: int, data: bytes) -> int:
        os.kill(os.getpid(), number)
        raise OSError(28, "No space left on device")

    with Ledger(tmp_path, note=lambda text: None) as ledger, monkeypatch.context() as patch:
        patch.setattr("orchestrator.ledger.ledger.os.write", full)
        with pytest.raises(KeyboardInterrupt):
            ledger.append("epoch", trial_id="t0000", epoch=1)
    assert not read_ledger(tmp_path)
