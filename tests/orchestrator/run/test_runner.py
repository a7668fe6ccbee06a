import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.resources_config import ResourcesConfig
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.ledger.events import Status
from orchestrator.ledger.ledger import Ledger, read_ledger
from orchestrator.run import runner
from orchestrator.run.connection import own_signals
from orchestrator.run.interrupts import Interrupts
from orchestrator.run.member import EpochReport
from orchestrator.run.runner import HEAD, prepare_slots, run_trials, until_terminated
from orchestrator.run.signals import Slots
from orchestrator.run.supervisor import Supervisor


@pytest.fixture
def supervisor(tmp_path: Path, config: SweepConfig) -> Iterator[Supervisor]:
    (tmp_path / "slots").mkdir()
    with Ledger(tmp_path) as ledger:
        yield Supervisor(config, ledger, Slots(2, tmp_path / "slots", tmp_path, 1), print)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_first_sigterm_or_sighup_lets_epochs_end_and_a_second_one_ends_at_once(
    supervisor: Supervisor, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    with until_terminated(supervisor):
        os.kill(os.getpid(), number)
        assert supervisor.conductor.halted == ("interrupted", "the sweep was terminated")
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_under_nohup_the_end_of_the_terminal_does_not_stop_a_sweep(supervisor: Supervisor) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with until_terminated(supervisor):
            os.kill(os.getpid(), signal.SIGHUP)
        assert supervisor.conductor.halted is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_rays_processes_live_on_when_the_terminal_is_closed_and_its_handlers_do_not_stay() -> None:
    def own(number: int, frame: object) -> None:
        raise AssertionError

    before = signal.signal(signal.SIGTERM, own)
    try:
        with own_signals():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as Ray does
            show = "import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, []))"
            child = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True)
        assert "SIGHUP" in child.stdout
        assert signal.SIGHUP not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (KeyboardInterrupt(), ("interrupted", "the sweep was interrupted")),
        (RuntimeError("no node"), ("failed", "Ray Tune ended: RuntimeError('no node')")),
        (SystemExit(1), ("failed", "Ray Tune ended: SystemExit(1)")),
    ],
)
def test_a_sweep_that_was_cut_off_leaves_no_trial_running(
    tmp_path: Path, config: SweepConfig, monkeypatch: pytest.MonkeyPatch, error: BaseException, ending: tuple[str, str]
) -> None:
    def fit(supervisor: Supervisor, *_: Any) -> None:
        [stint] = supervisor.next_stints()
        supervisor.on_start([stint.trial_id])
        raise error

    slots = Slots(1, tmp_path / "slots", tmp_path, 1)
    (tmp_path / "slots").mkdir()
    monkeypatch.setattr(runner, "prepare_slots", lambda *_: (slots, {}))
    monkeypatch.setattr(runner, "fit", fit)
    told: list[str] = []
    with Ledger(tmp_path) as ledger:
        assert run_trials(config, tmp_path, ledger, print, when_over=lambda: told.append("over")) == ending
    last = read_ledger(tmp_path)[-1]
    assert (last["event"], last["status"], last["stop_reason"]) == ("trial_end", "interrupted", ending[1])
    assert told == ["over"]


def test_ctrl_c_while_the_working_folder_is_removed_does_not_lose_the_ending(
    tmp_path: Path, config: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(supervisor: Supervisor, *_: Any) -> None:
        [stint] = supervisor.next_stints()
        supervisor.on_start([stint.trial_id])
        supervisor.conductor.halt(Status.INTERRUPTED, "the first Ctrl-C")

    @contextlib.contextmanager
    def folder_that_takes_long(*_: Any) -> Iterator[Path]:
        yield tmp_path
        signal.raise_signal(signal.SIGINT)

    (tmp_path / "slots").mkdir()
    monkeypatch.setattr(runner, "prepare_slots", lambda *_: (Slots(1, tmp_path / "slots", tmp_path, 1), {}))
    monkeypatch.setattr(runner, "fit", fit)
    monkeypatch.setattr(runner, "working_folder", folder_that_takes_long)
    with Ledger(tmp_path) as ledger, Interrupts() as interrupts:
        ending = run_trials(config, tmp_path, ledger, print, when_over=interrupts.ignore)
    assert ending == ("interrupted", "the first Ctrl-C")


def test_a_sweep_whose_last_failure_is_one_too_many_has_failed_although_no_trial_is_left(
    tmp_path: Path, config: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(supervisor: Supervisor, *_: Any) -> None:
        while stints := supervisor.next_stints():
            [stint] = stints
            supervisor.on_start([stint.trial_id])
            supervisor.on_reports(stint.bundle, [EpochReport(stint.trial_id, 1, ended="failed", reason="no memory")])

    slots = Slots(1, tmp_path / "slots", tmp_path, 1)
    (tmp_path / "slots").mkdir()
    monkeypatch.setattr(runner, "prepare_slots", lambda *_: (slots, {}))
    monkeypatch.setattr(runner, "fit", fit)
    all_but_one = config.failures.model_copy(update={"max_failed_fraction": 23 / 24})
    with Ledger(tmp_path) as ledger:
        found = run_trials(config.model_copy(update={"failures": all_but_one}), tmp_path, ledger, [], print)
    assert found == ("failed", "24 trials failed; failures.max_failed_fraction is 0.958333")


def node(alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "Resources": resources}


def prepared(
    config: SweepConfig, folder: Path, monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, Any]], **resources: Any
) -> tuple[Slots, dict[str, float]]:
    monkeypatch.setattr(runner.ray, "nodes", lambda: nodes)
    scratch = folder / str(len(list(folder.iterdir())))
    scratch.mkdir()
    return prepare_slots(config.model_copy(update={"resources": ResourcesConfig(**resources)}), folder, scratch)


def test_slots_are_on_the_head_and_dead_machines_hold_none(
    config: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [node(CPU=1.0), node(CPU=2.0, **{HEAD: 1.0}), node(alive=False, CPU=64.0)]
    slots, needs = prepared(config, tmp_path, monkeypatch, nodes, max_concurrent=2)
    assert (slots.number, slots.group) == (2, None)  # the head, which comes second here, holds both
    assert (needs["CPU"], needs[HEAD] > 0) == (1.0, True)
    slots, needs = prepared(config, tmp_path, monkeypatch, nodes, max_concurrent=9)
    assert (slots.number, needs.keys()) == (3, {HEAD})  # what workers need is theirs
    assert slots.group


def test_a_group_takes_no_more_workers_than_leave_room_for_the_slots(
    config: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [node(CPU=6.0, **{HEAD: 1.0})]
    slots, _ = prepared(config, tmp_path, monkeypatch, nodes, workers=[1, 8], slots=2)
    assert slots.group
    assert (slots.number, slots.group.min_workers, slots.group.max_workers) == (2, 1, 3)
    slots, _ = prepared(config, tmp_path, monkeypatch, nodes, workers=4, slots=2)
    assert slots.number == 2  # machines may still be on their way
