"""Which trials a report shows closely, class by class: the best, the references, those of the confirmation, the top ten."""

from collections.abc import Collection, Sequence
from math import isfinite

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.ledger.events import Role
from orchestrator.ledger.trial_states import check_known
from orchestrator.outcome.confirmation import Row
from orchestrator.outcome.tables import best_trial, objective

TOP = 10
MOST_CONFIRMED = 10
"""Of the runs on fresh seeds."""
MOST_VARIANTS = 20
"""Of an ablation, each with its first trial."""


def close_trials(config: SweepConfig, rows: list[Row], more: Sequence[str] = ()) -> dict[str, str]:
    """The trials, each with what it is in words, the best one first.

    Args:
        config: of the sweep.
        rows: of all trials.
        more: ids of further trials that a person asks for.

    Raises:
        ConfigError: when the sweep has no such trial.
    """
    known = {row["trial_id"]: row for row in rows}
    for wanted in more:
        check_known(wanted, list(known), "this sweep")
    found = _of_ablation(rows) if config.ablation else _of_sweep(rows)
    return found | {trial_id: _named(known[trial_id]) for trial_id in more if trial_id not in found}


def _of_ablation(rows: list[Row]) -> dict[str, str]:
    first = {row["variant"]: row for row in reversed(rows) if row.get("best/epoch")}
    names = list(dict.fromkeys(row["variant"] for row in rows if row["variant"] in first))[:MOST_VARIANTS]
    return {first[name]["trial_id"]: f"{name}, seed {first[name]['seed']}" for name in names}


def _of_sweep(rows: list[Row]) -> dict[str, str]:
    best = best_trial(rows)
    found = {best["trial_id"]: "the best" + (f", {best['variant']}" if best["variant"] else "")} if best else {}
    for row in rows:
        if row["role"] == Role.REFERENCE:
            found.setdefault(row["trial_id"], _named(row))
    confirmed = best["confirms"] if best else None
    runs = [row for row in rows if row["role"] == Role.CONFIRM and confirmed in (None, row["confirms"])]
    for row in runs[:MOST_CONFIRMED]:
        found.setdefault(row["trial_id"], _named(row))
    for place, row in enumerate(ranked(rows)[:TOP], 1):
        found.setdefault(row["trial_id"], f"number {place} of the search")
    return found


def _named(row: Row) -> str:
    if row["role"] == Role.CONFIRM:
        return f"{row['confirms']} again, seed {row['seed']}"
    return str(row["variant"] or "searched")


def ranked(rows: Collection[Row]) -> list[Row]:
    """The trials of the search that have a result, the best first."""
    searched = [row for row in rows if row["role"] == Role.SEARCH and isfinite(objective(row))]
    return sorted(searched, key=lambda row: -objective(row))
