"""Which checkpoints a sweep keeps: what a trial may go on from, and the states of the trials that may be exported."""

from collections.abc import Callable
from heapq import nlargest

from orchestrator.config.checkpoint_config import Keep
from orchestrator.ledger.events import Role, Status
from orchestrator.ledger.trial_states import RECENT, Checkpoint, State, TrialState, TrialStates, or_lowest

BEST = 5
"""Trials that keep their states although nothing asks for them, so that the best one has its state whatever happens to others."""


class Retention:
    """Tells which checkpoints are dispensable.

    With `best`, the trial that is exported in the end has its state. A configuration that ran once and is the best in the end
    was always among the best of those that ran once, because its score does not change. A configuration that ran on several seeds
    keeps the states of all its runs: their mean may still rise.

    Args:
        keep: `checkpoints.keep` of the sweep.
        best: how many configurations keep their states, at least BEST.
        trials: the states of all trials.
        num_runs: how often a trial's configuration was suggested.
    """

    def __init__(self, keep: Keep, best: int, trials: TrialStates, num_runs: Callable[[TrialState], int]) -> None:
        self._keep, self._best, self._trials, self._num_runs = keep, max(best, BEST), trials, num_runs
        self._holding: dict[str, TrialState] = {}

    def drop(self, trial: TrialState) -> list[Checkpoint]:
        """Forgets the checkpoints of a trial that nobody needs, and returns them."""
        kept = trial.checkpoints[-number:] if (number := self._number(trial)) else []
        needed = self._needed_by_heirs(trial)
        dropped = [checkpoint for checkpoint in trial.checkpoints if checkpoint not in kept and checkpoint.epoch not in needed]
        trial.checkpoints = [checkpoint for checkpoint in trial.checkpoints if checkpoint not in dropped]
        if trial.state == State.ENDED and self._keep == "best":
            self._holding.pop(trial.trial_id, None)
            if trial.checkpoints:
                self._holding[trial.trial_id] = trial
        return dropped

    def concerned_by_end_of(self, trial: TrialState) -> list[TrialState]:
        """The trials that may need fewer checkpoints, now that a trial has ended: others may have lost their places."""
        return list((self._holding | {trial.trial_id: trial}).values())

    def _number(self, trial: TrialState) -> int:
        """How many of its last checkpoints a trial keeps."""
        if trial.state != State.ENDED:
            return RECENT
        if self._keep == "best" and not self._is_wanted(trial):
            return 0
        return RECENT if trial.status == Status.FINISHED else 1

    def _is_wanted(self, trial: TrialState) -> bool:
        if trial.role != Role.SEARCH:
            return True
        if trial.status != Status.FINISHED:
            return False
        if self._num_runs(trial) > 1:
            return True
        rivals = [other for other in self.concerned_by_end_of(trial) if other.role == Role.SEARCH]
        single = [other for other in rivals if other.status == Status.FINISHED and self._num_runs(other) == 1]
        return trial in nlargest(self._best, single, key=lambda other: (or_lowest(other.best_value), -other.number))

    def _needed_by_heirs(self, trial: TrialState) -> set[int]:
        """Epochs from whose states other trials may have to begin again."""
        heirs = [heir for heir in self._trials.heirs_of(trial.trial_id) if heir.state != State.ENDED]
        return {heir.parent["epoch"] for heir in heirs if heir.parent and len(heir.checkpoints) < RECENT}
