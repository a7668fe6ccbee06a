import json
from contextlib import suppress
from pathlib import Path

import pytest

from orchestrator.ledger.head import HEAD, Head, read_head, write_head
from orchestrator.ledger.ledger import LEDGER, Ledger, LedgerError, read_ledger


def write(folder: Path) -> list[bytes]:
    """A ledger of five lines, of which the fourth is the last that is sure to be on the disk; returns the lines."""
    with Ledger(folder, clock=lambda: 1.0) as ledger:
        ledger.append("sweep_start")
        ledger.append("epoch", trial_id="t0000", epoch=1)
        ledger.append("epoch", trial_id="t0000", epoch=2)
        ledger.append("trial_end", trial_id="t0000", status="finished", stop_reason=None)
        ledger.append("suggest", trial_id="t0001")
    return (folder / LEDGER).read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_lines_that_are_cut_off_the_end_show(tmp_path: Path, kept: int) -> None:
    lines = write(tmp_path)
    (tmp_path / LEDGER).write_bytes(b"".join(lines[:kept]))
    for read in (read_ledger, Ledger):
        with pytest.raises(LedgerError, match=rf"holds {kept} whole lines, but it had at least 4 .*Restore .*remove the file"):
            read(tmp_path)
    (tmp_path / HEAD).unlink()
    assert len(read_ledger(tmp_path)) == kept


@pytest.mark.parametrize("kept", [4, 5])
def test_what_a_power_cut_may_take_is_not_missed(tmp_path: Path, kept: int) -> None:
    lines = write(tmp_path)
    (tmp_path / LEDGER).write_bytes(b"".join(lines[:kept]) + b'{"torn')
    assert len(read_ledger(tmp_path)) == kept


def test_another_last_line_shows(tmp_path: Path) -> None:
    lines = write(tmp_path)
    changed = lines[3].replace(b"finished", b"diverged")
    (tmp_path / LEDGER).write_bytes(b"".join(lines[:3]) + changed)
    with pytest.raises(LedgerError, match="line 4: it is not the line that"):
        read_ledger(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"lines": null, "sha256": ""}', "\x00\x00"])
def test_a_head_that_cannot_be_read_says_nothing(tmp_path: Path, content: str) -> None:
    write(tmp_path)
    (tmp_path / HEAD).write_text(content)
    assert len(read_ledger(tmp_path)) == 5


def test_the_lines_are_on_the_disk_before_the_head_counts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[object] = []
    monkeypatch.setattr("orchestrator.ledger.ledger.os.fsync", lambda descriptor: steps.append("synced"))
    monkeypatch.setattr("orchestrator.ledger.ledger.write_head", lambda folder, head: steps.append(head.lines))
    with Ledger(tmp_path) as ledger:
        ledger.append("sweep_start")
        ledger.append("suggest", trial_id="t0000")
        ledger.sync()
        ledger.sync()  # nothing new
        assert steps == ["synced", 1, "synced", 2]


def test_events_that_are_written_together_reach_the_disk_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[object] = []
    monkeypatch.setattr("orchestrator.ledger.ledger.os.fsync", lambda descriptor: steps.append("synced"))
    monkeypatch.setattr("orchestrator.ledger.ledger.write_head", lambda folder, head: steps.append(head.lines))
    with Ledger(tmp_path) as ledger:
        with ledger.together():
            ledger.append("sweep_start")
            with ledger.together():
                ledger.append("trial_start", trial_id="t0000", attempt=1)
            assert steps == []
        assert steps == ["synced", 2]
        with ledger.together():
            ledger.append("suggest", trial_id="t0001")  # which need not be on the disk before the sweep goes on
        assert steps == ["synced", 2]
        with suppress(KeyboardInterrupt), ledger.together():
            ledger.append("trial_start", trial_id="t0001", attempt=1)
            raise KeyboardInterrupt
        assert steps == ["synced", 2, "synced", 4]
        with ledger.together():
            ledger.append("trial_start", trial_id="t0002", attempt=1)
            ledger.sync()  # something is about to be removed
            assert steps[4:] == ["synced", 5]
        assert steps[4:] == ["synced", 5]
        ledger.append("trial_start", trial_id="t0003", attempt=1)
        assert steps[6:] == ["synced", 6]


def test_a_full_disk_leaves_the_older_head(tmp_path: Path) -> None:
    write_head(tmp_path, Head(1, "a"))
    (tmp_path / f"{HEAD}.partial").symlink_to("/dev/full")
    write_head(tmp_path, Head(2, "b"))
    assert read_head(tmp_path) == Head(1, "a", str(tmp_path / HEAD))
    assert json.loads((tmp_path / HEAD).read_text()) == {"lines": 1, "sha256": "a"}
