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

    With `best`, the trial that is exported in the end has its state. A configuration that ran once and is the best in the end was
    always among the best of those that ran once, because its score does not change. A configuration that ran on several seeds
    keeps the state of its first run that still has one: their mean may still rise.

    Args:
        keep: `checkpoints.keep` of the sweep.
        best: how many configurations keep their states, at least BEST.
        trials: the states of all trials.
        num_runs: how often a trial's configuration was suggested.
    """

    def __init__(self, keep: Keep, best: int, trials: TrialStates, num_runs: Callable[[TrialState], int]) -> None:
        self._keep, self._best, self._trials, self._num_runs = keep, max(best, BEST), trials, num_runs
        self._holding: dict[str, TrialState] = {}

    def after_epoch(self, trial: TrialState) -> list[Checkpoint]:
        """Forgets the checkpoints of a trial that goes on which nobody needs any more, and returns them."""
        return self._drop(trial, RECENT)

    def after_end(self, trial: TrialState) -> list[Checkpoint]:
        """The same after a trial has ended, also for trials that ended before: it may have taken their places."""
        if self._keep == "all":
            return self._drop(trial, _of_use(trial))
        self._holding[trial.trial_id] = trial
        wanted = self._wanted()
        dropped = []
        for other in list(self._holding.values()):
            dropped += self._drop(other, _of_use(other) if other.trial_id in wanted else 0)
            if not other.checkpoints:
                del self._holding[other.trial_id]
        return dropped

    def _wanted(self) -> set[str]:
        """The trials that keep their states although they have ended."""
        searched = {trial_id: trial for trial_id, trial in self._holding.items() if trial.role == Role.SEARCH}
        finished = sorted((t for t in searched.values() if t.status == Status.FINISHED), key=lambda trial: trial.number)
        single = [trial for trial in finished if self._num_runs(trial) == 1]
        best = nlargest(self._best, single, key=lambda trial: (or_lowest(trial.best_value), -trial.number))
        first = {trial.configuration: trial for trial in reversed(finished) if self._num_runs(trial) > 1}
        return {trial.trial_id for trial in [*best, *first.values()]} | (self._holding.keys() - searched.keys())

    def _drop(self, trial: TrialState, number: int) -> list[Checkpoint]:
        """Forgets all but the last `number` checkpoints of a trial, and those that other trials need."""
        kept, needed = trial.checkpoints[-number:] if number else [], self._needed_by_heirs(trial)
        dropped = [checkpoint for checkpoint in trial.checkpoints if checkpoint not in kept and checkpoint.epoch not in needed]
        trial.checkpoints = [checkpoint for checkpoint in trial.checkpoints if checkpoint not in dropped]
        return dropped

    def _needed_by_heirs(self, trial: TrialState) -> set[int]:
        """Epochs from whose states other trials may have to begin again."""
        heirs = [heir for heir in self._trials.heirs_of(trial.trial_id) if heir.state != State.ENDED]
        return {heir.parent["epoch"] for heir in heirs if heir.parent and len(heir.checkpoints) < RECENT}


def _of_use(trial: TrialState) -> int:
    """From how many of its last checkpoints a trial that has ended may be exported: from the last one, or, if that is damaged,
    from the one before, if it was written after the best epoch.
    """
    if trial.status != Status.FINISHED or trial.best_epoch is None:
        return 1
    recent = trial.checkpoints[-RECENT:]
    return max(1, sum(checkpoint.epoch >= trial.best_epoch for checkpoint in recent))
