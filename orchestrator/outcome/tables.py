"""From the ledger to tidy tables: trials, epochs and classes. They can be made again from the ledger and parts/ at any time."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from orchestrator.ledger.class_arrays import read_class_arrays
from orchestrator.ledger.ledger import Event, read_ledger, write_table
from orchestrator.ledger.trial_states import or_lowest
from orchestrator.ledger.usage import usage_of
from orchestrator.outcome.confirmation import CONFIRMED, Row, confirmation
from trainables.settings import flatten


def write_tables(folder: Path) -> None:
    """Writes trials.parquet, epochs.parquet and classes.parquet of a results folder."""
    events = read_ledger(folder)
    write_table(table_of(trial_rows(events), TRIAL_COLUMNS), folder / "trials.parquet")
    write_table(table_of(epoch_rows(events), EPOCH_COLUMNS), folder / "epochs.parquet")
    write_table(read_class_arrays(folder, events), folder / "classes.parquet")


TRIAL_COLUMNS = {
    "trial_id": pa.string(),
    "variant": pa.string(),
    "seed": pa.int64(),
    "status": pa.string(),
    "stop_reason": pa.string(),
    "epochs": pa.int64(),
    "wall_s": pa.float64(),
    "parent_trial": pa.string(),
    "parent_epoch": pa.int64(),
    "confirms": pa.string(),
}
"""`wall_s`: in a slot, all stints together. A trial that goes on from another one's state has a parent; one that runs another
one's configuration on a fresh seed confirms it."""
EPOCH_COLUMNS = {"trial_id": pa.string(), "epoch": pa.int64(), "attempt": pa.int64(), "time": pa.float64()}
"""`time`: seconds since 1970."""


def trial_rows(events: list[Event]) -> list[Row]:
    """A row for each trial that was suggested: how it ended, `config/...`, `last/...` and `best/...` (the best-val epoch)."""
    rows: dict[str, Row] = {}
    epochs: dict[str, dict[int, Event]] = {}  # a repeated epoch replaces what it repeats
    select_by = ""
    for event in events:
        trial_id = event.get("trial_id", "")
        if event["event"] == "suggest":
            select_by = event["config"]["select_by"]
            parent = event.get("parent") or {}
            rows[trial_id] = {
                "trial_id": trial_id,
                "variant": event["variant"],
                "seed": event["seed"],
                "status": "running",
                "stop_reason": None,
                "epochs": 0,
                "wall_s": None,
                "parent_trial": parent.get("trial_id"),
                "parent_epoch": parent.get("epoch"),
                "confirms": event.get("confirms"),
                **{f"config/{key}": value for key, value in flatten(event["config"]).items()},
            }
        elif event["event"] == "trial_start":
            rows[trial_id] |= {"status": "running", "stop_reason": None}
        elif event["event"] == "epoch":
            epochs.setdefault(trial_id, {})[event["epoch"]] = event
        elif event["event"] == "trial_end":
            rows[trial_id] |= {"status": event["status"], "stop_reason": event["stop_reason"]}
    for trial_id, seconds in usage_of(events).busy_s().items():
        rows[trial_id]["wall_s"] = seconds
    for trial_id, its_epochs in epochs.items():
        rows[trial_id]["epochs"] = max(its_epochs)
        in_order = [its_epochs[epoch] for epoch in sorted(its_epochs)]
        best = max(in_order, key=lambda event: or_lowest(event["metrics"][select_by]))
        rows[trial_id] |= {f"last/{key}": value for key, value in its_epochs[max(its_epochs)]["metrics"].items()}
        rows[trial_id] |= {"best/epoch": best["epoch"]} | {f"best/{key}": value for key, value in best["metrics"].items()}
    return list(rows.values())


def epoch_rows(events: list[Event]) -> list[Row]:
    """A row for each trial and epoch; when an epoch was repeated, the last attempt counts."""
    rows = {
        (event["trial_id"], event["epoch"]): {
            "trial_id": event["trial_id"],
            "epoch": event["epoch"],
            "attempt": event["attempt"],
            "time": event["time"],
            **event["metrics"],
        }
        for event in events
        if event["event"] == "epoch"
    }
    return list(rows.values())


def best_trial(rows: list[Row]) -> Row | None:
    """The trial to export; None when none finished.

    After a confirmation it is the best run of the configuration with the highest mean over fresh seeds; otherwise the trial with
    the highest `select_by` at its best epoch. The earlier one of equals.
    """
    finished = [row for row in rows if row["status"] == "finished"]
    confirmed = confirmation(rows)
    if confirmed and confirmed.comparison:
        winner = confirmed.comparison.summaries[0].name
        finished = [row for row in finished if row["confirms"] == winner]
    else:
        finished = [row for row in finished if row["variant"] != CONFIRMED]
    return max(finished, key=objective, default=None)


def not_dominated(rows: list[Row], objectives: list[str]) -> list[Row]:
    """The finished trials of the search to which no other is superior in one objective and equal or superior in all."""
    finished = [row for row in rows if row["status"] == "finished" and row["variant"] != CONFIRMED]
    scores = {row["trial_id"]: [or_lowest(row.get(f"best/{name}")) for name in objectives] for row in finished}

    def dominates(first: list[float], second: list[float]) -> bool:
        return first != second and all(a >= b for a, b in zip(first, second, strict=True))

    return [row for row in finished if not any(dominates(other, scores[row["trial_id"]]) for other in scores.values())]


def objective(row: Row) -> float:
    """What trials are compared by: `select_by` at the trial's best epoch."""
    return or_lowest(row.get(f"best/{row['config/select_by']}"))


def table_of(rows: list[Row], columns: dict[str, pa.DataType]) -> pa.Table:
    """Rows as a table with `columns` first and typed, then all other keys; what a row lacks is null.

    A column that holds both numbers and words in different rows becomes text.
    """
    others = dict.fromkeys(key for row in rows for key in row if key not in columns)
    arrays = {name: pa.array([row.get(name) for row in rows], type=kind) for name, kind in columns.items()}
    arrays |= {name: _inferred([row.get(name) for row in rows]) for name in others}
    return pa.table(arrays)


def _inferred(values: list[Any]) -> pa.Array:
    present = [value for value in values if value is not None]
    if any(isinstance(value, float) for value in present) and all(isinstance(value, int | float) for value in present):
        return pa.array(values, type=pa.float64())
    if len({type(value) for value in present}) > 1:
        return pa.array([None if value is None else str(value) for value in values])
    return pa.array(values)
