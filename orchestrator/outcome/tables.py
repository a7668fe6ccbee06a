"""Makes tidy tables from the ledger: trials, epochs and classes.

The tables can be made again from the ledger and parts/ at any time.
"""

from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa

from orchestrator.ledger.class_arrays import read_class_arrays
from orchestrator.ledger.events import Event, Kind, Role, Status
from orchestrator.ledger.ledger import read_ledger, write_table
from orchestrator.ledger.trial_states import TrialState, or_lowest, trial_states_of
from orchestrator.ledger.usage import usage_of
from orchestrator.outcome.confirmation import Row, confirmation
from trainables.settings import flatten


def write_tables(folder: Path) -> None:
    """Writes trials.parquet, epochs.parquet and classes.parquet of a results folder."""
    events = read_ledger(folder)
    write_table(table_of(trial_rows(events), TRIAL_COLUMNS), folder / "trials.parquet")
    write_table(table_of(epoch_rows(events), EPOCH_COLUMNS), folder / "epochs.parquet")
    write_table(read_class_arrays(folder, events), folder / "classes.parquet")


TRIAL_COLUMNS = {
    "trial_id": pa.string(),
    "role": pa.string(),
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
"""`role` is search, reference or confirm. `variant` is the name of a reference. `wall_s` is the number of seconds in a slot,
summed over all stints. `parent_trial` and `parent_epoch` are set for a trial that continues from another trial's state.
`confirms` names the trial whose configuration runs again on a fresh seed."""
EPOCH_COLUMNS = {"trial_id": pa.string(), "epoch": pa.int64(), "attempt": pa.int64(), "time": pa.float64()}
"""`time`: seconds since 1970."""


def trial_rows(events: list[Event]) -> list[Row]:
    """A row for each suggested trial: how the trial ended, `config/...`, `last/...` and `best/...` (the best-val epoch)."""
    busy_s = usage_of(events).busy_s()
    return [_trial_row(trial, busy_s.get(trial.trial_id)) for trial in trial_states_of(events).values()]


def _trial_row(trial: TrialState, wall_s: float | None) -> Row:
    row: Row = {
        "trial_id": trial.trial_id,
        "role": str(trial.role),
        "variant": trial.variant,
        "seed": trial.seed,
        "status": str(trial.status),
        "stop_reason": trial.stop_reason,
        "epochs": max(trial.metrics, default=0),
        "wall_s": wall_s,
        "parent_trial": trial.parent["trial_id"] if trial.parent else None,
        "parent_epoch": trial.parent["epoch"] if trial.parent else None,
        "confirms": trial.confirms,
        **{f"config/{key}": value for key, value in flatten(trial.config).items()},
    }
    if trial.metrics:
        # When no epoch has a number, there is no best epoch. The first epoch takes its place.
        best_epoch = trial.best_epoch or min(trial.metrics)
        row |= {f"last/{key}": value for key, value in trial.metrics[max(trial.metrics)].items()}
        row |= {"best/epoch": best_epoch} | {f"best/{key}": value for key, value in trial.metrics[best_epoch].items()}
    return row


def epoch_rows(events: list[Event]) -> list[Row]:
    """A row for each trial and epoch. When an epoch is repeated, the last attempt counts."""
    rows = {
        (event["trial_id"], event["epoch"]): {
            "trial_id": event["trial_id"],
            "epoch": event["epoch"],
            "attempt": event["attempt"],
            "time": event["time"],
            **event["metrics"],
        }
        for event in events
        if event["event"] == Kind.EPOCH
    }
    return list(rows.values())


def best_trial(rows: list[Row]) -> Row | None:
    """The trial to export; None when no trial has finished.

    After a confirmation, this is the best run of the configuration with the highest mean over fresh seeds. Otherwise this is the
    trial with the highest `select_by` at its best epoch. A configuration that the search ran on several seeds counts with their
    mean, and is represented by its first trial: the best of several seeds would be the luckiest. Among equals, the earlier trial
    wins.
    """
    finished = [row for row in rows if row["status"] == Status.FINISHED]
    confirmed = confirmation(rows)
    if confirmed and confirmed.comparison:
        winner = confirmed.comparison.summaries[0].name
        return max((row for row in finished if row["confirms"] == winner), key=objective, default=None)
    best = max(_by_configuration(finished), key=lambda runs: fmean(map(objective, runs)), default=None)
    return best[0] if best else None


def _by_configuration(rows: list[Row]) -> list[list[Row]]:
    """The runs of each configuration of the search on different seeds, in the order of their first trials."""
    found: dict[tuple[str, int], list[Row]] = {}
    runs_of: Counter[tuple[str, int]] = Counter()
    for row in rows:
        if row["role"] != Role.CONFIRM:
            run = (_configuration_of(row), row.get("config/seed", 0))
            found.setdefault((run[0], runs_of[run]), []).append(row)
            runs_of[run] += 1
    return list(found.values())


def _configuration_of(row: Row) -> str:
    """What tells a trial's configuration from others: all settings but the seed."""
    return repr(sorted((key, repr(row[key])) for key in row if key.startswith("config/") and key != "config/seed"))


def not_dominated(rows: list[Row], objectives: list[str]) -> list[Row]:
    """The Pareto front: finished trials, without confirmations, that no other trial dominates.

    A trial dominates another one when it is better in one objective and at least as good in all others.
    """
    finished = [row for row in rows if row["status"] == Status.FINISHED and row["role"] != Role.CONFIRM]
    scores = {row["trial_id"]: [or_lowest(row.get(f"best/{name}")) for name in objectives] for row in finished}

    def dominates(first: list[float], second: list[float]) -> bool:
        return first != second and all(a >= b for a, b in zip(first, second, strict=True))

    return [row for row in finished if not any(dominates(other, scores[row["trial_id"]]) for other in scores.values())]


def objective(row: Row) -> float:
    """The value by which trials are compared: `select_by` at the trial's best epoch."""
    return or_lowest(row.get(f"best/{row['config/select_by']}"))


def table_of(rows: list[Row], columns: dict[str, pa.DataType]) -> pa.Table:
    """Makes a table of rows: first `columns` with their types, then all other keys. A value that a row lacks is null.

    A column that holds numbers in some rows and words in others becomes text.
    """
    others = dict.fromkeys(key for row in rows for key in row if key not in columns)
    arrays = {name: pa.array([row.get(name) for row in rows], type=kind) for name, kind in columns.items()}
    arrays |= {name: _inferred([row.get(name) for row in rows]) for name in others}
    return pa.table(arrays)


def _inferred(values: list[Any]) -> pa.Array:
    """A column whose type follows from its values: pyarrow alone refuses values of several types."""
    present = [value for value in values if value is not None]
    if any(isinstance(value, float) for value in present) and all(isinstance(value, int | float) for value in present):
        return pa.array(values, type=pa.float64())
    if len({type(value) for value in present}) > 1:
        return pa.array([None if value is None else str(value) for value in values])
    return pa.array(values)
