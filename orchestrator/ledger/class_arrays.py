"""Arrays by class, which are too large for the ledger: parts/<trial>.parquet. The trial's last event holds the file's SHA-256.

Until a trial has ended, its arrays are in parts/<trial>.jsonl, a line for each epoch, so that a crash loses nothing.
"""

import json
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from orchestrator.ledger.events import Event, Kind
from orchestrator.ledger.ledger import LedgerError
from orchestrator.ledger.parquet_files import write_table
from orchestrator.ledger.paths import inside
from trainables.files import file_sha256, sync

FOLDER = "parts"
"""Name of the folder in the results folder; tools outside this repository read it."""
COLUMNS = {
    "trial_id": pa.string(),
    "epoch": pa.int64(),
    "class": pa.int64(),
    "accuracy": pa.float64(),
    "mistaken_for": pa.list_(pa.int64()),
    "meta_accuracy": pa.float64(),
    "difficulty": pa.float64(),
    "weight": pa.float64(),
    "train_count": pa.int64(),
    "clean_count": pa.int64(),
}
"""Accuracies are fractions: `accuracy` on val, `meta_accuracy` is A_C as the method last saw it. `mistaken_for` has the predicted
class of each val image of the class that is wrong, in epochs that were the best so far. `train_count` counts the labels that the
trainer sees, `clean_count` those before `data.noise`."""
SCHEMA = pa.schema(list(COLUMNS.items()))
LINES = pa.schema(
    [("epoch", pa.int64())]
    + [(name, pa.list_(kind)) for name, kind in COLUMNS.items() if name not in ("trial_id", "epoch", "class")]
)
"""A line of a trial that goes on."""


def append_epoch(folder: Path, trial_id: str, epoch: int, classes: dict[str, list[Any]]) -> None:
    """Appends the arrays of an epoch, each (num_classes,). They are on the disk (fsync) before the ledger names the epoch."""
    path = lines_file(folder, trial_id)
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
    lines = _lines(lines_file(folder, trial_id))
    last = {epoch: place for place, epoch in enumerate(lines["epoch"].to_pylist()) if epoch in epochs}
    if not last:
        return {}
    path = folder / FOLDER / f"{trial_id}.parquet"
    write_table(_by_class(trial_id, lines.take([last[epoch] for epoch in sorted(last)])), path)
    return {"class_arrays": f"{FOLDER}/{path.name}", "class_arrays_sha256": file_sha256(path)}


def lines_file(folder: Path, trial_id: str) -> Path:
    """The file with the lines that a trial's parquet file is made from. It may be removed after the ledger says that the trial
    has ended for good: a resumed trial needs it.
    """
    return folder / FOLDER / f"{trial_id}.jsonl"


def class_tables(folder: Path, events: Iterable[Event]) -> Iterator[pa.Table]:
    """All arrays by class, a row for each trial, epoch and class; a table for each trial.

    Raises:
        LedgerError: when a file is missing or not what the ledger says was written.
        UnsafePath: when a file lies outside the folder.
    """
    ends = {event["trial_id"]: event for event in events if event["event"] == Kind.TRIAL_END and event.get("class_arrays")}
    for event in ends.values():
        path = inside(folder, event["class_arrays"])
        if not path.is_file() or file_sha256(path) != event["class_arrays_sha256"]:
            raise LedgerError(f"{path} is missing or was changed after it was written")
        yield _as_now(pq.read_table(path, partitioning=None))


def read_class_arrays(folder: Path, events: Iterable[Event]) -> pa.Table:
    """The same as one table, in memory."""
    return pa.concat_tables([SCHEMA.empty_table(), *class_tables(folder, events)])


def _as_now(table: pa.Table) -> pa.Table:
    """With all columns: one that an older version did not write holds nulls."""
    for name in SCHEMA.names:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows, COLUMNS[name]))
    return table.select(SCHEMA.names).cast(SCHEMA)


def _by_class(trial_id: str, lines: pa.Table) -> pa.Table:
    """A row for each epoch and class, from a line for each epoch."""
    numbers = pc.list_value_length(lines["train_count"]).to_numpy()
    columns = {
        "trial_id": pa.array([trial_id] * int(numbers.sum()), pa.string()),
        "epoch": pa.array(np.repeat(lines["epoch"].to_numpy(), numbers)),
        "class": pa.array(np.concatenate([np.arange(number) for number in numbers])),
    }
    for name in SCHEMA.names[len(columns) :]:
        columns[name] = pc.list_flatten(_without_gaps(lines[name], numbers))
    return pa.table(columns, schema=SCHEMA)


def _without_gaps(arrays: pa.ChunkedArray, numbers: npt.NDArray[np.int32]) -> pa.ChunkedArray:
    """An array in every line: where a line has none, because an older version wrote it, one of nulls."""
    if not arrays.null_count:
        return arrays
    filled = [array or [None] * number for array, number in zip(arrays.to_pylist(), numbers.tolist(), strict=True)]
    return pa.chunked_array([pa.array(filled, arrays.type)])


def _lines(path: Path) -> pa.Table:
    """Epochs and their arrays, in the order of writing; a torn line is left out."""
    whole = [line for line in path.read_bytes().splitlines() if line.endswith(b"}")] if path.is_file() else []
    if not whole:
        return LINES.empty_table()
    text = b"\n".join(whole)
    one_block = pa_json.ReadOptions(use_threads=False, block_size=len(text) + 1)
    known = pa_json.ParseOptions(explicit_schema=LINES, unexpected_field_behavior="ignore")
    return pa_json.read_json(pa.BufferReader(text), read_options=one_block, parse_options=known)


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"
