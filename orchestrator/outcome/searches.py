"""What the arms reached in each of several searches: the scores of an ablation that repeats a search."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.ledger.events import Event, Kind, Role, Status
from orchestrator.ledger.ledger import LEDGER, last, read_ledger
from orchestrator.outcome.arm_results import ArmResult, arm_results
from orchestrator.outcome.confirmation import Row
from orchestrator.outcome.tables import objective, trial_rows

ENDS = (Kind.SWEEP_END, Kind.SWEEP_START, Kind.SWEEP_RESUME)
"""Kinds of events that say where a sweep stands."""


def search_folder(folder: Path, number: int) -> Path:
    """The results folder of a search, counted from 0, inside that of the ablation."""
    return folder / f"search_{number}"


def end_of(folder: Path) -> Mapping[str, Any]:
    """The last event of a search that says where it stands; empty if the search has not begun."""
    return last(read_ledger(folder), *ENDS) if (folder / LEDGER).exists() else {}


def complete_searches(folder: Path, config: SweepConfig) -> list[int]:
    """The numbers of the searches that have nothing left to do.

    Args:
        folder: results folder of an ablation that repeats a search.
        config: of the ablation.
    """
    return [number for number in range(len(config.searches())) if end_of(search_folder(folder, number)).get("complete")]


def rows_of(folder: Path, config: SweepConfig, events: Sequence[Event]) -> list[Row]:
    """What an ablation compares: its trials, or, if it repeats a search, a row for each arm of each complete search.

    The row of an arm has the columns that `compared` reads of a trial's. Its seed is the number of the search. A search that is
    not complete does not count: its arms need not have had equally many trials.

    Args:
        folder: results folder of the ablation.
        config: of the ablation.
        events: its ledger.
    """
    if not config.repeats_search:
        return trial_rows(events)
    found: list[Row] = []
    for number in complete_searches(folder, config):
        found += _arm_rows(trial_rows(read_ledger(search_folder(folder, number))), config, number)
    return found


def _arm_rows(rows: Sequence[Row], config: SweepConfig, number: int) -> Iterator[Row]:
    for result in arm_results(rows, [arm.name for arm in config.arms()]):
        runs = _chosen(rows, result, bool(config.search.confirm))
        columns = [name for name in (runs[0] if runs else {}) if name.startswith(("best/val/", "last/val/"))]
        values = {name: [run[name] for run in runs if run.get(name) is not None] for name in columns}
        yield {
            "variant": result.name,
            "seed": number,
            "status": str(Status.FINISHED if runs else Status.FAILED),
            "collapse": next((run["collapse"] for run in runs if run["collapse"]), None),
            **{name: fmean(of) for name, of in values.items() if of},
        }


def _chosen(rows: Sequence[Row], result: ArmResult, confirmed: bool) -> list[Row]:
    """The trials whose mean is the arm's score: those of its confirmed configuration on the fresh seeds, or its best trial.

    None, if no configuration of the arm was confirmed: the best trial, the luckiest of many, cannot take its place.
    """
    finished = [row for row in rows if row["variant"] == result.name and row["status"] == Status.FINISHED]
    if confirmed:
        return [row for row in finished if row["role"] == Role.CONFIRM and row["confirms"] == result.configuration]
    searched = [row for row in finished if row["role"] == Role.SEARCH]
    return [max(searched, key=objective)] if searched else []
