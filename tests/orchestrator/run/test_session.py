import contextlib
import os
import signal
from pathlib import Path

import pytest
from recorded import sweep_in

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.ledger.ledger import Ledger, read_ledger
from orchestrator.run.interrupts import Interrupts
from orchestrator.run.remote_call import CallLost
from orchestrator.run.session import Watch, begin, conclude, report_on
from trainables.checkpoint import DamagedCheckpoint
from trainables.shown_commands import shown_command

CONFIG = SweepConfig.model_validate({"search": {"trials": 1}})
WATCH = Watch(print, lambda past: contextlib.nullcontext(print))


def test_ctrl_c_while_the_test_set_is_read_leaves_the_export_for_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.run.session.write_tables", lambda folder, events: None)
    monkeypatch.setattr("orchestrator.run.session.export_best", lambda folder, ledger, **_: os.kill(os.getpid(), signal.SIGINT))
    with Interrupts() as interrupts:
        interrupts.ignore()
        os.kill(os.getpid(), signal.SIGINT)
        with Ledger(tmp_path) as ledger:
            assert conclude(tmp_path, CONFIG, ledger, "finished", None, 50_000, interrupts, WATCH) == "interrupted"
        os.kill(os.getpid(), signal.SIGINT)  # ignored again
    assert [event["status"] for event in read_ledger(tmp_path)] == ["interrupted"]


def conclusion(folder: Path, status: str, reason: str | None = None) -> tuple[str, dict[str, object]]:
    """How a sweep ends, and its last event."""
    with Interrupts() as interrupts, Ledger(folder) as ledger:
        status = conclude(folder, CONFIG, ledger, status, reason, 500, interrupts, WATCH)
    return status, read_ledger(folder)[-1]


def test_a_sweep_without_a_finished_trial_ends_as_failed(tmp_path: Path) -> None:
    status, end = conclusion(tmp_path, "finished")
    assert (status, end["event"], end["status"]) == ("failed", "sweep_end", "failed")


@pytest.mark.parametrize(
    ("status", "reason", "complete"),
    [("finished", None, True), ("finished", "budget.cost of 5 is used up", False), ("interrupted", None, False)],
)
def test_a_sweep_is_complete_when_nothing_is_left_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str, reason: str | None, complete: bool
) -> None:
    exported: list[Path] = []
    monkeypatch.setattr("orchestrator.run.session.export_best", lambda folder, ledger, **_: exported.append(folder))
    found, end = conclusion(tmp_path, status, reason)
    assert (found, end["complete"], end["reason"]) == (status, complete, reason)
    assert exported == ([tmp_path] if status == "finished" else [])  # an interrupted sweep reads no test set


def test_a_best_trial_whose_states_are_all_damaged_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(*_: object, **__: object) -> None:
        raise DamagedCheckpoint("gone")

    monkeypatch.setattr("orchestrator.run.session.export_best", damaged)
    assert conclusion(tmp_path, "finished")[0] == "failed"


def test_a_reading_of_the_test_set_that_is_lost_is_left_for_a_resumption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object, **__: object) -> None:
        raise CallLost("4 machines were lost")

    monkeypatch.setattr("orchestrator.run.session.export_best", lost)
    status, end = conclusion(tmp_path, "finished")
    assert (status, end["status"], end["complete"]) == ("interrupted", "interrupted", False)


def test_earlier_exports_are_kept_when_a_sweep_has_gone_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = iter("123")

    def export(folder: Path, ledger: Ledger, **_: object) -> None:
        (folder / "best").mkdir()
        (folder / "best" / next(numbers)).touch()

    monkeypatch.setattr("orchestrator.run.session.export_best", export)
    for _ in range(3):
        conclusion(tmp_path, "finished")
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("best*/*"))
    assert found == ["best.1/1", "best.2/2", "best/3"]


def test_each_segment_of_a_sweep_is_numbered_and_holds_its_configuration(tmp_path: Path) -> None:
    facts = {"config": {"trial": {"epochs": 1}}, "git_commit": "a", "versions": {}, "split": {}}
    with Ledger(tmp_path) as ledger:
        begin(ledger, facts, Path("old"), [{"values": {}}])
    for _ in range(2):
        with Ledger(tmp_path) as ledger:
            begin(ledger, facts | {"config": {"trial": {"epochs": 2}}}, None, None)
    first, second, third = read_ledger(tmp_path)
    assert (first["event"], first["warm_start"], first["warm_start_from"]) == ("sweep_start", [{"values": {}}], "old")
    assert (second["event"], second["segment"], second["config"]) == ("sweep_resume", 2, {"trial": {"epochs": 2}})
    assert third["segment"] == 3


def test_a_report_that_cannot_be_written_is_told_and_changes_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []

    def broken(folder: Path, **_: object) -> None:
        raise OSError("the disk\nis full")

    monkeypatch.setattr("orchestrator.report.writing.write_report", broken)
    monkeypatch.setattr("orchestrator.run.session.export_best", lambda folder, ledger, **_: folder)
    with Interrupts() as interrupts, Ledger(tmp_path) as ledger:
        watch = WATCH._replace(note=notes.append)
        assert conclude(tmp_path, CONFIG, ledger, "finished", None, 500, interrupts, watch) == "finished"
    assert read_ledger(tmp_path)[-1]["complete"]
    again = shown_command("orchestrator.report", str(tmp_path))
    assert notes == [f"the report was not written: the disk is full; {again} tries again"]


def test_the_report_of_a_sweep_that_has_ended_is_its_page_alone(tmp_path: Path) -> None:
    folder, notes = sweep_in(tmp_path, "search.trials=2"), []
    report_on(folder, notes.append)
    assert "4 trials took" in (folder / "report.html").read_text()
    assert not (folder / "figures").exists()
    assert notes == []
