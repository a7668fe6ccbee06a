"""Makes tidy tables from the ledger: trials, epochs and classes.

The tables can be made again from the ledger and parts/ at any time.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

import pyarrow as pa

from orchestrator.ledger.class_arrays import SCHEMA as CLASSES
from orchestrator.ledger.class_arrays import class_tables
from orchestrator.ledger.events import EpochEvent, Event, Role, Status
from orchestrator.ledger.last_attempts import last_attempts
from orchestrator.ledger.parquet_files import schema_of, table_of, tables_of, write_parts, write_table
from orchestrator.ledger.trial_states import TrialState, or_lowest, trial_states_of
from orchestrator.ledger.usage import usage_of
from orchestrator.outcome.confirmation import Row, confirmation
from trainables.collapse import verdict
from trainables.config import ROUNDING, UNDECIDING
from trainables.settings import flatten

TABLES = ("trials", "epochs", "classes")
"""The tables of a results folder, by the names of their files."""


def write_tables(folder: Path, events: Sequence[Event], out: Path | None = None) -> None:
    """Writes trials.parquet, epochs.parquet and classes.parquet of a results folder.

    Args:
        folder: results folder.
        events: the ledger. It is read several times, because the epochs of a large sweep do not fit into the memory.
        out: where the tables go; None means the results folder.
    """
    out = out or folder
    write_table(table_of(trial_rows(events), TRIAL_COLUMNS), out / "trials.parquet")
    epochs = schema_of(epoch_rows(events), EPOCH_COLUMNS)
    write_parts(out / "epochs.parquet", epochs, tables_of(epoch_rows(events), epochs))
    write_parts(out / "classes.parquet", CLASSES, class_tables(folder, events))


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
    "collapse": pa.string(),
}
"""`role` is search, reference or confirm. `variant` is the name of a reference or an arm. `wall_s` is the number of seconds in a
slot, summed over all stints. `parent_trial` and `parent_epoch` are set for a trial that continues from another trial's state.
`confirms` names the trial whose configuration runs again on a fresh seed. `collapse` is the verdict on the weighting in the last
epoch; null if nothing has collapsed."""
EPOCH_COLUMNS = {"trial_id": pa.string(), "epoch": pa.int64(), "attempt": pa.int64(), "time": pa.float64()}
"""`time`: seconds since 1970."""


def trial_rows(events: Sequence[Event]) -> list[Row]:
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
        **(trial.test if trial.config.get("read_test") else {}),  # a sweep's reading belongs to the export
        **{f"pairing/{name}": digest for name, digest in trial.pairing.items()},
        "collapse": verdict(trial.metrics[max(trial.metrics)]) or None if trial.metrics else None,
        **{f"config/{key}": value for key, value in flatten(trial.config).items()},
    }
    if trial.metrics:
        # When no epoch has a number, there is no best epoch. The first epoch takes its place.
        best_epoch = trial.best_epoch or min(trial.metrics)
        row |= {f"last/{key}": value for key, value in trial.metrics[max(trial.metrics)].items()}
        row |= {"best/epoch": best_epoch} | {f"best/{key}": value for key, value in trial.metrics[best_epoch].items()}
    return row


def epoch_rows(events: Sequence[Event]) -> Iterator[Row]:
    """A row for each trial and epoch."""
    return map(_epoch_row, last_attempts(events))


def _epoch_row(event: EpochEvent) -> Row:
    return {
        "trial_id": event["trial_id"],
        "epoch": event["epoch"],
        "attempt": event["attempt"],
        "time": event["time"],
        **event["metrics"],
    }


def best_trial(rows: list[Row]) -> Row | None:
    """The trial to export; None when no trial has finished. See `best_runs`."""
    return next(iter(best_runs(rows)), None)


def best_runs(rows: list[Row]) -> list[Row]:
    """The trials of the best configuration that may be exported, the first one for choice; none when no trial has finished."""
    return next(iter(ranked_runs(rows)), [])


def ranked_runs(rows: list[Row]) -> list[list[Row]]:
    """The trials that may be exported for each configuration, the first one for choice. The best configuration comes first.

    After a confirmation, configurations with a higher mean over fresh seeds come first, each with its best run; those that were
    not confirmed follow. Otherwise the mean of `select_by` at the best epoch counts, over a configuration's runs, which are in
    the order of their numbers: the best of several seeds would be the luckiest. Among equals, the earlier trial wins.
    """
    finished = [row for row in rows if row["status"] == Status.FINISHED]
    searched = sorted(_by_configuration(finished), key=lambda runs: -fmean(map(objective, runs)))
    confirmed = confirmation(rows)
    if not confirmed or not confirmed.comparison:
        return searched
    names = [summary.name for summary in confirmed.comparison.summaries]
    runs_of = [[row for row in finished if row["confirms"] == name] for name in names]
    others = [runs for runs in searched if not any(run["trial_id"] in names for run in runs)]
    return [*([max(runs, key=objective)] for runs in runs_of if runs), *others]


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
    """What tells a trial's configuration from others: all settings that decide its result, but the seed."""
    settings = {key.removeprefix("config/"): row[key] for key in row if key.startswith("config/")}
    return repr(sorted((key, repr(settings[key])) for key in settings.keys() - {"seed"} - UNDECIDING - ROUNDING))


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
