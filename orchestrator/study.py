"""Optuna's part of a sweep: samplers, suggestions, and what a trial's end means to the study. Knows nothing of Ray."""

import math
from collections.abc import Callable
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import Trial, TrialState

from orchestrator.config import CategoricalParameter, FloatParameter, Parameter
from trainables.registry import lookup

Space = dict[str, Parameter]

SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    # Eight random trials first, so that on a small budget most trials profit from the model.
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=8),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}


def build_sampler(name: str, seed: int) -> BaseSampler:
    """The sampler `name`, seeded. Optuna's own talk is switched off: what it says stands in the ledger."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return lookup(SAMPLERS, name, "sampler")(seed)


def suggest(space: Space, trial: Trial) -> None:
    """Draws a point of the space (Optuna's define-by-run form). An atom makes two draws: at it or not, then where."""
    for name, parameter in space.items():
        if isinstance(parameter, CategoricalParameter):
            trial.suggest_categorical(name, parameter.choices)
        elif isinstance(parameter, FloatParameter):
            if parameter.atom is None or not trial.suggest_categorical(_at_atom(name), [True, False]):
                trial.suggest_float(name, parameter.low, parameter.high, log=parameter.log)
        else:
            trial.suggest_int(name, parameter.low, parameter.high, log=parameter.log)


def values_of(space: Space, params: dict[str, Any]) -> dict[str, Any]:
    """Settings by dotted name from Optuna's parameters."""
    return {
        name: parameter.atom if isinstance(parameter, FloatParameter) and params.get(_at_atom(name)) else params[name]
        for name, parameter in space.items()
    }


def params_of(space: Space, values: dict[str, Any]) -> dict[str, Any] | None:
    """Optuna's parameters from settings by dotted name, or None when they lie outside the space."""
    params: dict[str, Any] = {}
    for name, parameter in space.items():
        value = values.get(name)
        if isinstance(parameter, CategoricalParameter):
            inside = value in parameter.choices
        elif isinstance(parameter, FloatParameter) and parameter.atom is not None and value == parameter.atom:
            params[_at_atom(name)] = True
            continue
        else:
            inside = value is not None and parameter.low <= value <= parameter.high
            if isinstance(parameter, FloatParameter) and parameter.atom is not None:
                params[_at_atom(name)] = False
        if not inside:
            return None
        params[name] = value
    return params


def outcome(status: str, value: float | None) -> tuple[TrialState, float | None]:
    """What the study is told of a trial that ended with `status` and objective `value`.

    A trial without a finite objective is FAIL: Optuna would leave it RUNNING for ever, and the sampler would shun its place.
    """
    if status in ("diverged", "failed") or value is None or not math.isfinite(value):
        return TrialState.FAIL, None
    # A pruned trial keeps the epochs that it reported; Optuna takes no further value for it.
    return (TrialState.PRUNED, None) if status == "stopped_early" else (TrialState.COMPLETE, value)


def _at_atom(name: str) -> str:
    return f"{name} at atom"
