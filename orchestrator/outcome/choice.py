"""Which trials of a sweep are exported: its best one, the first of its ranking, those of its Pareto front, or a certain one."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.ledger.ledger import LEDGER
from orchestrator.ledger.trial_states import TrialStates, check_known
from orchestrator.outcome.confirmation import Row
from orchestrator.outcome.tables import best_runs, not_dominated, ranked_runs
from trainables.config_file import ConfigError

T = TypeVar("T")


class NothingToExport(RuntimeError):
    """No trial has finished."""


class Choice(NamedTuple):
    """A trial to export."""

    runs: list[Row]
    """The rows of the trial and of other runs of its configuration that may stand in for it, the first one for choice."""
    out: Path
    """The new folder."""
    words: str
    """Why it is exported."""
    is_best: bool = False
    """Whether it is the one that the sweep has chosen."""

    @property
    def partial(self) -> Path:
        """The folder in which it is written, before that gets its name. What a crash leaves there goes with the next export."""
        return self.out.with_name(f"{self.out.name}.partial")


def check_new(choices: Sequence[Choice]) -> None:
    """Sees that an export overwrites nothing, and that there may be folders where it goes.

    Raises:
        FileExistsError: when one of the folders exists already, or one in which it would be written.
        ConfigError: when a folder above it is a file.
    """
    for choice in choices:
        if os.path.lexists(choice.out):
            raise FileExistsError(f"{choice.out} exists already; nothing was changed; choose another --out")
        if os.path.lexists(choice.partial) and not (choice.out.parent / LEDGER).exists():  # may be anybody's
            raise FileExistsError(
                f"{choice.partial} exists already, perhaps from an export that was cut off; nothing was changed; remove it, or "
                "choose another --out"
            )
        above = next(place for place in choice.out.absolute().parents if os.path.lexists(place))
        if not above.is_dir():
            raise ConfigError(f"command line: {choice.out} cannot be a folder, because {above} is a file; choose another --out")


def best(folder: Path, rows: list[Row], out: Path | None) -> list[Choice]:
    """The best trial, by default to `folder`/best.

    Raises:
        NothingToExport: when no trial has finished.
    """
    return [Choice(_finished(folder, best_runs(rows)), out or folder / "best", "It is the sweep's best trial.", is_best=True)]


def top(folder: Path, rows: list[Row], number: int, out: Path | None) -> list[Choice]:
    """The best `number` configurations: the first is the best trial. By default to `folder`/best_1 and so on, else `out`/1.

    Raises:
        NothingToExport: when no trial has finished.
        ConfigError: when there are fewer configurations.
    """
    ranked = _finished(folder, ranked_runs(rows))
    if not 1 <= number <= len(ranked):
        raise ConfigError(f"command line: --top is {number}; allowed: 1 to {len(ranked)}, the configurations that have finished")
    return [
        Choice(
            runs,
            folder / f"best_{rank}" if out is None else out / str(rank),
            f"Its configuration is number {rank} of {len(ranked)} by {runs[0]['config/select_by']}.",
            is_best=rank == 1,
        )
        for rank, runs in enumerate(ranked[:number], 1)
    ]


def pareto(folder: Path, rows: list[Row], config: SweepConfig, out: Path | None) -> list[Choice]:
    """The Pareto front of the sweep's objectives. By default to `folder`/pareto_<trial>, else `out`/<trial>.

    Raises:
        NothingToExport: when no trial has finished.
        ConfigError: when the sweep has one objective.
    """
    objectives = config.search.objectives
    if not objectives:
        raise ConfigError("command line: --pareto, but search.objectives is None; allowed: --top K, which takes one objective")
    front = _finished(folder, not_dominated(rows, list(objectives)))
    words = f"It is on the Pareto front of {', '.join(objectives)}: no other trial is better in one and as good in all."
    return [Choice([row], folder / f"pareto_{row['trial_id']}" if out is None else out / row["trial_id"], words) for row in front]


def certain(folder: Path, rows: list[Row], trials: TrialStates, trial_id: str, out: Path | None) -> list[Choice]:
    """A trial by its id, also one that was stopped early. By default to `folder`/export_<trial>.

    Raises:
        ConfigError: when there is no such trial, or it has no result.
    """
    check_known(trial_id, list(trials), str(folder))
    row = next(row for row in rows if row["trial_id"] == trial_id)
    if row.get(f"best/{row['config/select_by']}") is None:
        raise ConfigError(f"command line: --trial is {trial_id}, which has no result; allowed: a trial with an accuracy")
    ended = row["status"].replace("_", " ")
    words = f"Somebody asked for this trial, which ended as {ended}; the sweep's choice may be another one."
    return [Choice([row], out or folder / f"export_{trial_id}", words)]


def _finished(folder: Path, found: list[T]) -> list[T]:
    if not found:
        raise NothingToExport(f"no trial of {folder} has finished, so there is no best one")
    return found
