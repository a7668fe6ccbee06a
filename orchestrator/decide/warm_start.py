"""What a new sweep learns from an earlier sweep: the points that were tried, and their results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.config.space import METHOD
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.proposals import objectives_of
from orchestrator.ledger.events import Event, Role, Status
from orchestrator.ledger.ledger import start_of
from orchestrator.ledger.trial_states import TrialState, trial_states_of
from trainables.config_file import ConfigError, Origin, check
from trainables.settings import differences, flatten

ENDED = (Status.FINISHED, Status.STOPPED_EARLY, Status.DIVERGED)


def earlier_trials(source: Path, events: Sequence[Event], config: SweepConfig) -> list[dict[str, Any]]:
    """Reads the searched trials of an earlier sweep that have ended.

    Args:
        source: folder of the earlier sweep, for error messages.
        events: of the earlier sweep.
        config: of the new sweep.

    Returns: for each trial, its settings of the new sweep's space, status, objectives and history.

    Raises:
        ConfigError: when there is no such trial, when the earlier sweep has another `trial.select_by`, or when the new sweep has
            several arms. Values of different metrics cannot be compared, and arms that began with different numbers of trials
            neither.
    """
    if config.compares_arms:
        raise ConfigError(
            f"command line: --warm-start {source}: this sweep compares {len(config.arms())} arms (search.per_method, or "
            "references with tuned: true), and each has to begin without trials to be tuned with the same number; allowed: no "
            "--warm-start"
        )
    settings = check(SweepConfig, start_of(events)["config"], Origin(str(source))) if events else None
    if settings is None:
        raise ConfigError(f"{source} holds no sweep to start from")
    if settings.trial.select_by != config.trial.select_by:
        raise ConfigError(
            f"command line: --warm-start {source}: trial.select_by is {settings.trial.select_by!r} there and "
            f"{config.trial.select_by!r} here; allowed: the same"
        )
    found = [
        {
            "values": {name: value for name, value in flatten(trial.config).items() if name in config.space},
            "status": trial.status,
            "own_fault": trial.own_fault,
            "objectives": objectives_of(trial, config),
            "history": {str(epoch): value for epoch, value in trial.values.items() if value is not None},
        }
        for trial in trial_states_of(events).values()
        # A trial with a parent is left out: its result also depends on the settings of the parent.
        if trial.role == Role.SEARCH
        and trial.status in ENDED
        and not trial.parent
        and (not trial.variant or _fits(trial, config))
    ]
    if not found:
        which = "none of its trials with this method and these stages" if settings.compares_arms else "none of its trials"
        raise ConfigError(f"command line: --warm-start {source}: {which} has ended")
    return found


def _fits(trial: TrialState, config: SweepConfig) -> bool:
    """Whether a trial of an arm has the method and the stages of the new sweep. Other arms would mislead the sampler: what is
    good for one method need not be good for another one.
    """
    stages = [stage.name for stage in config.trial.stages]
    same_method = METHOD in config.space or trial.config["method"]["name"] == config.trial.method.name
    return same_method and [stage["name"] for stage in trial.config["stages"]] == stages


def other_settings(events: Sequence[Event], config: SweepConfig) -> list[str]:
    """Settings outside the new sweep's space that differ between the two sweeps, each with both values, in words."""
    differing = differences(start_of(events)["config"]["trial"], config.trial.model_dump())
    return [f"trial.{key} {then!r} then, {now!r} now" for key, (then, now) in differing.items() if key not in config.space]
