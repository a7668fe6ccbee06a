"""What figures and sentences are made of: the sweep, and what is computed of it once for all of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from orchestrator.config.space import Space
from orchestrator.decide.importance import Importance, importances
from orchestrator.decide.plots import Tried
from orchestrator.ledger.trial_states import number_of
from orchestrator.outcome.confirmation import Row
from orchestrator.outcome.parts import trials_of_arm
from orchestrator.report.close_trials import close_trials
from orchestrator.report.reading import Sweep, read

RESAMPLES, RESAMPLES_OF_MANY, MANY = 200, 40, 40
"""Bootstrap resamples for the intervals of importances; fewer of more than MANY trials, of which each takes longer."""


class SearchedArm(NamedTuple):
    """A part of the search with a sampler of its own."""

    name: str
    """Empty when there is only one."""
    space: Space
    tried: list[Tried]
    """The trials with a result."""
    importances: list[Importance]
    """The most important setting first; none where there is a reason in `why_no_importances`."""
    why_no_importances: str

    def by_importance(self) -> list[str]:
        """All settings, those with the highest importance first."""
        known = [one.name for one in self.importances]
        return [*known, *(name for name in self.space if name not in known)]


class Material(NamedTuple):
    """A sweep and what was computed of it."""

    sweep: Sweep
    close: dict[str, str]
    """The trials that are shown class by class, each with what it is."""
    arms: list[SearchedArm]

    def row(self, number: int) -> Row:
        """The row of the trial with a number."""
        row = self.sweep.rows[number]
        assert number_of(row["trial_id"]) == number
        return row


def gather(folder: Path, more: Sequence[str] = ()) -> Material:
    """Reads a results folder and computes what the report needs.

    Args:
        folder: of a sweep or an ablation.
        more: further trials to show class by class.

    Raises:
        ConfigError: when the folder holds no sweep, or the sweep no such trial.
    """
    sweep = read(folder, lambda config, rows: close_trials(config, rows, more).keys())
    arms = [] if sweep.config.ablation else [_searched(sweep, number) for number in range(len(sweep.config.arms()))]
    return Material(sweep, close_trials(sweep.config, sweep.rows, more), arms)


def _searched(sweep: Sweep, number: int) -> SearchedArm:
    arm = sweep.config.arms()[number]
    found = trials_of_arm(sweep.rows, arm)
    tried = [Tried(number_of(trial_id), values, value) for trial_id, values, value in found]
    try:
        scores, resamples = (
            [(values, value) for _, values, value in found],
            RESAMPLES if len(found) <= MANY else RESAMPLES_OF_MANY,
        )
        return SearchedArm(arm.name, arm.space, tried, importances(arm.space, scores, resamples=resamples), "")
    except ValueError as error:
        return SearchedArm(arm.name, arm.space, tried, [], str(error))
