import errno
import json
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.ledger import ledger as ledger_module
from orchestrator.ledger.ledger import LEDGER, Ledger, LedgerError, read_ledger


def write(folder: Path, count: int = 4) -> None:
    with Ledger(folder, clock=lambda: 12.5) as ledger:
        for number in range(count):
            ledger.append("epoch", trial_id="t0000", epoch=number)


def test_events_come_back_in_order_with_time_and_number(tmp_path: Path) -> None:
    write(tmp_path)
    events = read_ledger(tmp_path)
    assert [(event["n"], event["epoch"], event["time"]) for event in events] == [(i, i, 12.5) for i in range(4)]


def test_a_reopened_ledger_continues_the_chain(tmp_path: Path) -> None:
    write(tmp_path, 2)
    with Ledger(tmp_path) as ledger:
        ledger.append("sweep_end", status="finished")
    assert [event["n"] for event in read_ledger(tmp_path)] == [0, 1, 2]


@settings(max_examples=40)
@given(cut=st.integers(0, 600))
def test_a_ledger_cut_anywhere_keeps_all_whole_lines(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = tmp_path_factory.mktemp("cut")
    write(folder)
    content = (folder / LEDGER).read_bytes()[:cut]
    (folder / LEDGER).write_bytes(content)
    assert len(read_ledger(folder)) == content.count(b"\n")
    with Ledger(folder) as ledger:
        ledger.append("epoch", epoch="next")
    assert [event["n"] for event in read_ledger(folder)] == list(range(content.count(b"\n") + 1))


def test_a_ledger_that_is_only_opened_stays_as_it_is(tmp_path: Path) -> None:
    write(tmp_path)
    torn = (tmp_path / LEDGER).read_bytes()[:-5]
    (tmp_path / LEDGER).write_bytes(torn)
    with Ledger(tmp_path) as ledger:
        assert len(ledger.past) == 3
    assert (tmp_path / LEDGER).read_bytes() == torn


@pytest.mark.parametrize("damage", ["change", "remove", "swap"])
def test_a_changed_lost_or_moved_line_shows(tmp_path: Path, damage: str) -> None:
    write(tmp_path)
    lines = (tmp_path / LEDGER).read_bytes().splitlines(keepends=True)
    if damage == "change":
        lines[1] = lines[1].replace(b'"epoch":1', b'"epoch":7')
    elif damage == "remove":
        del lines[1]
    else:
        lines[1], lines[2] = lines[2], lines[1]
    (tmp_path / LEDGER).write_bytes(b"".join(lines))
    with pytest.raises(LedgerError, match=r"line \d: the line before it was changed or is missing"):
        read_ledger(tmp_path)


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.append("epoch", metrics={"a": float("nan"), "b": [float("inf"), 1.5]})
    line = (tmp_path / LEDGER).read_text()
    assert json.loads(line, parse_constant=lambda name: pytest.fail(name))["metrics"] == {"a": None, "b": [None, 1.5]}


@pytest.mark.parametrize("error", [RuntimeError("display gone"), SystemExit("display gone")])
def test_a_listener_that_fails_is_left_out_and_hurts_nobody(tmp_path: Path, error: BaseException) -> None:
    heard = []

    def broken(event: dict[str, object]) -> None:
        raise error

    with Ledger(tmp_path) as ledger:
        ledger.listen(broken)
        ledger.listen(heard.append)
        with pytest.warns(UserWarning, match="display gone"):
            ledger.append("epoch", epoch=1)
        ledger.append("epoch", epoch=2)
    assert [event["epoch"] for event in heard] == [1, 2]


def test_a_folder_without_a_ledger_is_named(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="holds no sweep"):
        read_ledger(tmp_path)


def test_a_ledger_has_one_writer_and_any_number_of_readers(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.append("epoch", epoch=1)
        with pytest.raises(LedgerError, match="in use by another process"):
            Ledger(tmp_path)
        assert len(read_ledger(tmp_path)) == 1
        ledger.append("epoch", epoch=2)
    with Ledger(tmp_path) as ledger:
        ledger.append("epoch", epoch=3)
    assert [event["epoch"] for event in read_ledger(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK])
def test_where_a_file_system_has_no_locks_the_sweep_goes_on_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(file: object, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(ledger_module.fcntl, "flock", refuse)
    notes: list[str] = []
    with Ledger(tmp_path, note=notes.append) as ledger:
        ledger.append("epoch", epoch=1)
    assert len(read_ledger(tmp_path)) == 1
    (note,) = notes
    assert "cannot be locked, because its file system has no locks" in note


def test_a_lock_that_fails_otherwise_is_not_taken_for_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: object, operation: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(ledger_module.fcntl, "flock", fail)
    with pytest.raises(LedgerError, match=r"cannot be locked \(Input/output error\)"):
        Ledger(tmp_path)


@pytest.mark.parametrize("line", ["[]", "3", "{}", "nonsense"])
def test_a_line_that_is_no_event_shows(tmp_path: Path, line: str) -> None:
    write(tmp_path)
    with (tmp_path / LEDGER).open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(LedgerError, match="line 5"):
        read_ledger(tmp_path)


def test_a_disk_that_takes_a_few_bytes_at_a_time_gets_all_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_all = os.write
    monkeypatch.setattr(ledger_module.os, "write", lambda descriptor, data: write_all(descriptor, data[:7]))
    write(tmp_path)
    assert [event["epoch"] for event in read_ledger(tmp_path)] == [0, 1, 2, 3]


def test_a_pickled_ledger_carries_nothing(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        assert vars(pickle.loads(pickle.dumps(ledger))) == {}
