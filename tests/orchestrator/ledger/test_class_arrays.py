import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from orchestrator.ledger.class_arrays import SCHEMA, append_epoch, lines_file, read_class_arrays, seal
from orchestrator.ledger.ledger import LedgerError
from trainables.files import file_sha256


def classes(value: float) -> dict[str, list[Any]]:
    nothing = [None, None]
    return {
        "accuracy": [value, 0.5],
        "meta_accuracy": nothing,
        "difficulty": nothing,
        "weight": [1.0, 2.0],
        "train_count": [7, 3],
    }


def rows(folder: Path, part: dict[str, str]) -> list[tuple[int, int, float]]:
    end = {"event": "trial_end", "trial_id": "t0", **part}
    return [(row["epoch"], row["class"], row["accuracy"]) for row in read_class_arrays(folder, [end]).to_pylist()]


def test_of_a_repeated_epoch_the_last_counts_and_one_that_the_ledger_lacks_does_not(tmp_path: Path) -> None:
    for epoch, value in ((1, 0.1), (2, 0.9), (2, 0.2), (3, 0.3)):
        append_epoch(tmp_path, "t0", epoch, classes(value))
    part = seal(tmp_path, "t0", {1, 2})
    lines_file(tmp_path, "t0").unlink()
    assert rows(tmp_path, part) == [(1, 0, 0.1), (1, 1, 0.5), (2, 0, 0.2), (2, 1, 0.5)]
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["t0.parquet"]


def test_a_line_is_on_the_disk_before_the_ledger_can_name_its_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []

    def fsync(descriptor: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append(f"{place.name} {place.stat().st_size if place.is_file() else ''}".strip())

    monkeypatch.setattr(os, "fsync", fsync)
    append_epoch(tmp_path, "t0", 1, classes(0.1))
    size = (tmp_path / "parts" / "t0.jsonl").stat().st_size
    append_epoch(tmp_path, "t0", 2, classes(0.1))
    assert synced == [f"t0.jsonl {size}", "parts", f"t0.jsonl {2 * size}"]


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_torn_line_costs_its_epoch_alone(tmp_path: Path, cut: int) -> None:
    append_epoch(tmp_path, "t0", 1, classes(0.1))
    append_epoch(tmp_path, "t0", 2, classes(0.2))
    file = tmp_path / "parts" / "t0.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    append_epoch(tmp_path, "t0", 3, classes(0.3))
    whole = [1, 2, 3] if cut == 1 else [1, 3]  # only the end of the line was missing
    assert sorted({epoch for epoch, _, _ in rows(tmp_path, seal(tmp_path, "t0", {1, 2, 3}))}) == whole


def test_mistakes_are_kept_and_what_an_older_version_wrote_has_none(tmp_path: Path) -> None:
    append_epoch(tmp_path, "t0", 1, {**classes(0.1), "mistaken_for": [[1, 1], []]})
    append_epoch(tmp_path, "t0", 2, {**classes(0.1), "mistaken_for": [None, None]})
    append_epoch(tmp_path, "t0", 3, classes(0.1))
    end = {"event": "trial_end", "trial_id": "t0", **seal(tmp_path, "t0", {1, 2, 3})}
    expected = [[1, 1], [], None, None, None, None]
    assert read_class_arrays(tmp_path, [end])["mistaken_for"].to_pylist() == expected
    file = tmp_path / end["class_arrays"]
    pq.write_table(pq.read_table(file).drop_columns(["mistaken_for"]), file)
    table = read_class_arrays(tmp_path, [end | {"class_arrays_sha256": file_sha256(file)}])
    assert (table.schema, table["mistaken_for"].to_pylist()) == (SCHEMA, [None] * 6)
    assert table["accuracy"].to_pylist() == [0.1, 0.5] * 3


def test_an_interrupted_trial_has_a_part_and_goes_on(tmp_path: Path) -> None:
    append_epoch(tmp_path, "t0", 1, classes(0.1))
    interrupted = seal(tmp_path, "t0", {1})
    assert len(rows(tmp_path, interrupted)) == 2
    append_epoch(tmp_path, "t0", 2, classes(0.2))
    ended = seal(tmp_path, "t0", {1, 2})
    assert len(rows(tmp_path, ended)) == 4
    ends = [{"event": "trial_end", "trial_id": "t0", **part} for part in (interrupted, ended)]
    assert len(read_class_arrays(tmp_path, ends)) == 4
    with pytest.raises(LedgerError, match=r"t0.parquet is missing or was changed"):
        rows(tmp_path, interrupted)


def test_a_trial_without_an_epoch_has_no_part(tmp_path: Path) -> None:
    assert seal(tmp_path, "t0", set()) == {}
    append_epoch(tmp_path, "t0", 1, classes(0.1))
    assert seal(tmp_path, "t0", set()) == {}
