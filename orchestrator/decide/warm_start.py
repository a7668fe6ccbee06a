"""What a new sweep learns from an earlier sweep: the points that were tried, and their results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.proposals import objectives_of
from orchestrator.ledger.events import Event, Role, Status
from orchestrator.ledger.ledger import start_of
from orchestrator.ledger.trial_states import trial_states_of
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
        ConfigError: when there is no such trial, or when the earlier sweep has another `trial.select_by`. Values of
            different metrics cannot be compared.
    """
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
        if trial.role == Role.SEARCH and trial.status in ENDED and not trial.parent
    ]
    if not found:
        raise ConfigError(f"command line: --warm-start {source}: none of its trials has ended")
    return found


def other_settings(events: Sequence[Event], config: SweepConfig) -> list[str]:
    """Settings outside the new sweep's space that differ between the two sweeps, each with both values, in words."""
    differing = differences(start_of(events)["config"]["trial"], config.trial.model_dump())
    return [f"trial.{key} {then!r} then, {now!r} now" for key, (then, now) in differing.items() if key not in config.space]
