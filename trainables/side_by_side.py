"""Trains several trials in one process, an epoch of each at a time: fused where possible, the others one after another."""

from collections.abc import Callable, Sequence
from typing import Protocol

from trainables.engine.health import OutOfMemory, TrialEnded
from trainables.fused_run import FusedRun
from trainables.fusion import fusion_key
from trainables.trial_run import TrialRun

AfterStep = Callable[[int], None]
Outcome = dict[str, float] | TrialEnded | ValueError
"""What an epoch of a trial gave: its metrics, or why the trial has ended."""


class Run(Protocol):
    """What trains a trial: a TrialRun, or a group of workers."""

    def run_epoch(self, after_step: AfterStep | None = None) -> dict[str, float]:
        """Trains and evaluates one epoch."""


class FusedEpochFailed(Exception):
    """Fused trials cannot go on, and nobody knows because of which of them. Each may be able to go on alone, from its last saved
    state.
    """


class SideBySide:
    """Trials that one process trains. A run that starts another trial goes into another SideBySide."""

    def __init__(self) -> None:
        self._fused: list[FusedRun] = []

    def run_epoch(self, runs: Sequence[Run], after_step: AfterStep | None = None) -> list[Outcome]:
        """Trains and evaluates one epoch of each trial.

        Args:
            runs: trials that have been started or loaded.
            after_step: called after each step.

        Returns: what the epoch gave, for each of `runs`.

        Raises:
            FusedEpochFailed: when fused trials need too much memory, or their data cannot be read.
        """
        outcomes: dict[int, Outcome] = {}
        kept = []
        groups = _groups(runs)
        for fused in self._fused:
            # Before its members are fused with others, or go on alone.
            if not any(_is_within(group, fused) for group in groups):
                fused.disband()
        for group in groups:
            fused = self._fuse(group)
            try:
                outcomes |= zip(map(id, group), fused.run_epoch(after_step), strict=True)
            except (OutOfMemory, ValueError) as error:
                hint = ", or a smaller resources.fused" if isinstance(error, OutOfMemory) else ""
                raise FusedEpochFailed(f"{len(group)} fused trials cannot go on together: {error}{hint}") from error
            kept.append(fused)
        self._fused = kept
        return [outcomes[id(run)] if id(run) in outcomes else _epoch_alone(run, after_step) for run in runs]

    def _fuse(self, group: list[TrialRun]) -> FusedRun:
        """The trials as one run: that of the epoch before, without those that have left, or a new one."""
        for fused in self._fused:
            if _is_within(group, fused):
                for member in [member for member in fused.members if member not in group]:
                    fused.leave(member)
                return fused
        return FusedRun(group)


def _is_within(group: list[TrialRun], fused: FusedRun) -> bool:
    """Whether all trials of a group are trained by this run."""
    return set(map(id, group)) <= set(map(id, fused.members))


def _groups(runs: Sequence[Run]) -> list[list[TrialRun]]:
    """The trials that can be fused with others, together with these."""
    groups: dict[tuple[str, int, int], list[TrialRun]] = {}
    for run in runs:
        if isinstance(run, TrialRun) and run.epoch < run.config.stage_epochs()[0].stop and (key := fusion_key(run.config)):
            groups.setdefault((key, run.epoch, id(run.loaded)), []).append(run)
    return [group for group in groups.values() if len(group) > 1]


def _epoch_alone(run: Run, after_step: AfterStep | None) -> Outcome:
    try:
        return run.run_epoch(after_step)
    except (TrialEnded, ValueError) as reason:
        return reason
