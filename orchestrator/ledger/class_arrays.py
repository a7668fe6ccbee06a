"""Arrays by class, which are too large for the ledger: parts/<trial>.parquet. The trial's last event holds the file's SHA-256.

Until a trial has ended, its arrays are in parts/<trial>.jsonl, a line for each epoch, so that a crash loses nothing.
"""

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.ledger.events import Event, Kind
from orchestrator.ledger.ledger import LedgerError, write_table
from orchestrator.ledger.paths import inside
from trainables.files import file_sha256, sync

FOLDER = "parts"
"""Name of the folder in the results folder; tools outside this repository read it."""
COLUMNS = {
    "trial_id": pa.string(),
    "epoch": pa.int64(),
    "class": pa.int64(),
    "accuracy": pa.float64(),
    "meta_accuracy": pa.float64(),
    "difficulty": pa.float64(),
    "weight": pa.float64(),
    "train_count": pa.int64(),
}
"""Accuracies are fractions: `accuracy` on val, `meta_accuracy` is A_C as the method last saw it."""
SCHEMA = pa.schema(list(COLUMNS.items()))


def append_epoch(folder: Path, trial_id: str, epoch: int, classes: dict[str, list[float | None]]) -> None:
    """Appends the arrays of an epoch, each (num_classes,). They are on the disk (fsync) before the ledger names the epoch."""
    path = _open_file(folder, trial_id)
    path.parent.mkdir(exist_ok=True)
    is_new = not path.exists()
    line = json.dumps({"epoch": epoch, **classes}, separators=(",", ":"))
    with path.open("ab") as file:
        if file.tell() and not _ends_a_line(path):
            file.write(b"\n")  # the process before was killed while it wrote a line
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync(path.parent)


def seal(folder: Path, trial_id: str, epochs: Collection[int]) -> dict[str, str]:
    """Writes a trial's parquet file; returns {"class_arrays", "class_arrays_sha256"} for its last event, or {} without epochs.

    Args:
        folder: results folder.
        trial_id: of the trial.
        epochs: those that the ledger holds; others are left out.
    """
    rows = {epoch: classes for epoch, classes in _lines(_open_file(folder, trial_id)) if epoch in epochs}
    if not rows:
        return {}
    path = folder / FOLDER / f"{trial_id}.parquet"
    write_table(
        pa.Table.from_pylist([row for epoch in sorted(rows) for row in _by_class(trial_id, epoch, rows[epoch])], SCHEMA), path
    )
    return {"class_arrays": f"{FOLDER}/{path.name}", "class_arrays_sha256": file_sha256(path)}


def close(folder: Path, trial_id: str) -> None:
    """Removes the lines that the parquet file was made from. Only after the ledger says that the trial has ended for good: a
    resumed trial needs them.
    """
    _open_file(folder, trial_id).unlink(missing_ok=True)


def read_class_arrays(folder: Path, events: list[Event]) -> pa.Table:
    """All arrays by class, a row for each trial, epoch and class.

    Raises:
        LedgerError: when a file is missing or not what the ledger says was written.
        UnsafePath: when a file lies outside the folder.
    """
    ends = {event["trial_id"]: event for event in events if event["event"] == Kind.TRIAL_END and event.get("class_arrays")}
    tables = [SCHEMA.empty_table()]
    for event in ends.values():
        path = inside(folder, event["class_arrays"])
        if not path.is_file() or file_sha256(path) != event["class_arrays_sha256"]:
            raise LedgerError(f"{path} is missing or was changed after it was written")
        tables.append(pq.read_table(path, partitioning=None).cast(SCHEMA))
    return pa.concat_tables(tables)


def _by_class(trial_id: str, epoch: int, classes: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [
        {"trial_id": trial_id, "epoch": epoch, "class": c} | {name: values[c] for name, values in classes.items()}
        for c in range(len(classes["train_count"]))
    ]


def _lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Epochs and their arrays, in the order of writing; a torn line is left out."""
    found = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            classes = json.loads(line)
        except ValueError:
            continue
        found.append((classes.pop("epoch"), classes))
    return found


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


def _open_file(folder: Path, trial_id: str) -> Path:
    return folder / FOLDER / f"{trial_id}.jsonl"
