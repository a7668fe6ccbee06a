"""Takes the winner of a sweep apart: the plan of an ablation that sets each searched setting back to its default in turn, or goes
from the defaults to the winner step by step; and the trials among which the winner was found.
"""

from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.config.ablation_config import PATH
from orchestrator.config.arms import Arm
from orchestrator.config.space import Space
from orchestrator.config.sweep_config import SweepConfig, apply_changes
from orchestrator.ledger.events import Kind, Role, Status
from orchestrator.ledger.ledger import last, read_ledger
from orchestrator.ledger.trial_states import trial_states_of
from orchestrator.outcome.confirmation import Row
from orchestrator.outcome.tables import best_trial, objective, trial_rows
from trainables.config import TrialConfig
from trainables.config_file import ConfigError, Origin, Tree, check
from trainables.settings import named_values

TUNED, UNTUNED = "tuned", "untuned"
"""The variants with all settings of the winner, and with none of them."""
KEPT = ("budget", "failures", "resources", "tracking", "checkpoint_interval", "checkpoints")
"""Parts of the sweep's settings that the ablation takes over."""
SEEDS = 10


def plan_of_sweep(folder: Path, path: bool = False) -> Tree:
    """The plan for the winner of a sweep, on seeds that the sweep has not used.

    The defaults are the settings of the sweep's `trial`, from which the search began; for an arm those of the arm.

    Args:
        folder: results folder of the sweep.
        path: whether the plan goes from the defaults to the winner, each step with the setting that gains most; otherwise it sets
            one setting at a time back to its default.

    Raises:
        ConfigError: when the folder holds no sweep with a finished trial, or the winner has no searched setting, or, with `path`,
            fewer than two.
    """
    config, rows, best, arm = _winner(folder)
    trial = check(TrialConfig, trial_states_of(read_ledger(folder))[best["trial_id"]].config, Origin(str(folder)))
    tuned, defaults = named_values(trial), named_values(arm.trial)
    changed = {name: defaults[name] for name in arm.space if name in tuned and name in defaults and tuned[name] != defaults[name]}
    if not changed:
        raise ConfigError(
            f"command line: --from-sweep is {folder}, whose best trial, {best['trial_id']}, has the defaults in all searched "
            "settings; allowed: a sweep whose best trial is one of the search"
        )
    plan, trial = _steps(folder, trial, changed) if path else (_one_by_one(changed), trial)
    seed = max(row["seed"] for row in rows) + 1
    dumped = config.model_dump()
    return {
        "trial": trial.model_dump() | {"seed": seed},
        **{part: dumped[part] for part in KEPT},
        "ablation": plan | {"seeds": SEEDS},
    }


def _one_by_one(defaults: dict[str, Any]) -> Tree:
    """The winner, the defaults, and the winner with one of the settings back at its default."""
    variants: dict[str, Any] = {TUNED: {}, UNTUNED: dict(defaults)}
    if len(defaults) > 1:
        short = _short_names(list(defaults))
        variants |= {f"without_{short[name]}": {name: value} for name, value in defaults.items()}
    return {"variants": variants, "reference": TUNED}


def _steps(folder: Path, winner: TrialConfig, defaults: dict[str, Any]) -> tuple[Tree, TrialConfig]:
    """The plan of the path to the winner, and the trial with the defaults, where the path begins."""
    if len(defaults) < 2:
        raise ConfigError(
            f"command line: --path is given, but the best trial of {folder} differs from the defaults in {', '.join(defaults)} "
            "alone; allowed: --from-sweep without --path"
        )
    tuned, short = named_values(winner), _short_names(list(defaults))
    components = {short[name]: {name: tuned[name]} for name in defaults}
    return {"kind": PATH, "components": components}, apply_changes(winner, defaults, "--from-sweep")


def searched_trials(folder: Path) -> tuple[Space, list[tuple[dict[str, Any], float]]]:
    """The space in which the winner of a sweep was found, and the searched settings and the objective of the trials in it.

    The trials are those of the winner's arm that the sampler proposed. Trials that were stopped early count, too, with the best
    value that they had reached in fewer epochs. The finished ones alone are survivors: a setting that made all its bad trials
    stop would look harmless among them. The scheduler stopped the others because they were behind, so they are rightly not among
    the best. How far they are behind is overstated. A trial with a parent is left out: its result also depends on the settings
    of the parent.

    Args:
        folder: results folder of the sweep.

    Raises:
        ConfigError: when the folder holds no sweep with a finished trial.
    """
    _, rows, _, arm = _winner(folder)
    return arm.space, [(settings, value) for _, settings, value in trials_of_arm(rows, arm)]


def trials_of_arm(rows: list[Row], arm: Arm) -> list[tuple[str, dict[str, Any], float]]:
    """Id, searched settings and objective of the trials that the sampler of an arm proposed; see `searched_trials`."""
    own = [row for row in rows if row["role"] == Role.SEARCH and row["variant"] == arm.name and row["parent_trial"] is None]
    counted = [row for row in own if row["status"] in (Status.FINISHED, Status.STOPPED_EARLY) and isfinite(objective(row))]
    return [
        (
            row["trial_id"],
            {name: row[f"config/{name}"] for name in arm.space if row.get(f"config/{name}") is not None},
            objective(row),
        )
        for row in counted
    ]


class _Winner(NamedTuple):
    """The best trial of a sweep, and where it comes from."""

    config: SweepConfig
    rows: list[Row]
    """All trials of the sweep."""
    best: Row
    arm: Arm
    """The arm of the best trial; the first one for a reference."""


def _winner(folder: Path) -> _Winner:
    """Reads a sweep.

    Raises:
        ConfigError: when the folder holds no sweep with a finished trial.
    """
    events = read_ledger(folder)
    config = check(SweepConfig, last(events, Kind.SWEEP_START, Kind.SWEEP_RESUME)["config"], Origin(str(folder)))
    rows = trial_rows(events)
    best = best_trial(rows)
    if best is None or config.ablation:
        state = "is an ablation" if config.ablation else "has no finished trial"
        raise ConfigError(f"command line: --from-sweep is {folder}, which {state}; allowed: a sweep with a finished trial")
    arms = config.arms()
    return _Winner(config, rows, best, next((arm for arm in arms if arm.name == best["variant"]), arms[0]))


def _short_names(names: list[str]) -> dict[str, str]:
    """The last parts of dotted names, as long as they differ; otherwise the whole names, with `_` for the dots."""
    last_parts = [name.split(".")[-1] for name in names]
    whole = [name.replace(".", "_") for name in names]
    return {
        name: last if last_parts.count(last) == 1 else full for name, last, full in zip(names, last_parts, whole, strict=True)
    }
