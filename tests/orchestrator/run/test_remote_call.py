"""Calls on a machine of the cluster. Here the only machine is this one; a worker process stands for a machine that is lost."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.run import remote_call
from orchestrator.run.connection import local_ray
from orchestrator.run.remote_call import CallLost, call_on_worker

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
CONFIG = SweepConfig.model_validate({"search": {"trials": 1}})
TOO_LARGE = SweepConfig.model_validate({"search": {"trials": 1}, "resources": {"cpus_per_worker": 500}})


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with local_ray():
        yield


def nothing() -> None:
    """Nothing happens while the call is waited for."""


def lose(journal: Path, times: int) -> int:
    """Ends its process the first `times` times; returns the number of calls."""
    with journal.open("a") as file:
        file.write("call\n")
    calls = journal.read_text().count("call")
    if calls <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return calls


def test_a_call_whose_machine_is_lost_is_made_again(tmp_path: Path) -> None:
    assert call_on_worker(CONFIG, pytest.fail, nothing, lose, tmp_path / "journal", times=1) == 2


def test_calls_that_lose_all_their_machines_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_call, "RETRIES", 1)
    with pytest.raises(CallLost, match="2 machines were lost one after the other: "):
        call_on_worker(CONFIG, pytest.fail, nothing, lose, tmp_path / "journal", times=99)
    assert (tmp_path / "journal").read_text().count("call") == 2


def test_an_error_is_the_one_that_was_raised_there() -> None:
    def refuse() -> None:
        raise ValueError("trial.data.root is /nowhere")

    with pytest.raises(ValueError, match=r"^trial\.data\.root is /nowhere$"):
        call_on_worker(CONFIG, pytest.fail, nothing, refuse)


def test_what_is_waited_for_is_told_and_ctrl_c_ends_the_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_call, "SILENT_S", 0.0)
    notes: list[str] = []
    threading.Timer(3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        call_on_worker(TOO_LARGE, notes.append, nothing, nothing)
    assert notes == [notes[0]]  # once, because nothing changes
    assert notes[0].startswith("waiting for a machine with 500 CPU (")
