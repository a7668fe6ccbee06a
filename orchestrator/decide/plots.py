"""Optuna's own plots of a sweep that has run: the history, a slice for each searched setting, the contours of two settings."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import create_trial
from optuna.visualization import plot_contour, plot_optimization_history, plot_slice

from orchestrator.config.search_config import CategoricalParameter, FloatParameter, IntParameter
from orchestrator.config.space import Space

BESIDE = 0.08
"""How far outside a logarithmic range its `or_exactly` is drawn, as a share of the range: a logarithm has no place for 0."""


class Tried(NamedTuple):
    """A trial of the search."""

    number: int
    values: dict[str, Any]
    """Of the searched settings, by dotted name. A setting that was not drawn may be missing or None."""
    objective: float


def history_plot(trials: Sequence[Tried]) -> Any:
    """Optuna's plot of the optimisation history; over the trials' numbers."""
    figure = plot_optimization_history(_study([({}, trial.objective) for trial in trials], {}))
    for trace in figure.data[:2]:
        trace.x = [trial.number for trial in trials]
    return figure


def slice_plot(space: Space, trials: Sequence[Tried], name: str) -> Any:
    """Optuna's slice plot of one setting; values as `place_of` gives them."""
    return plot_slice(_study_of(space, trials, [name]), params=[name])


def contour_plot(space: Space, trials: Sequence[Tried], first: str, second: str) -> Any:
    """Optuna's contour plot of two settings; values as `place_of` gives them. Optuna draws the first by alphabet from left to
    right.
    """
    return plot_contour(_study_of(space, trials, [first, second]), params=[first, second])


def with_values(trials: Sequence[Tried], names: Sequence[str]) -> list[Tried]:
    """The trials that have drawn all of some settings, in the order in which the plots show them."""
    return [trial for trial in trials if all(trial.values.get(name) is not None for name in names)]


def place_of(parameter: FloatParameter | IntParameter | CategoricalParameter, value: Any) -> Any:
    """Where a value is drawn: at itself, or a little outside a logarithmic range that does not hold it."""
    if isinstance(parameter, CategoricalParameter):
        return value
    if parameter.log and not parameter.low <= value <= parameter.high:
        below = value < parameter.low
        step = (parameter.high / parameter.low) ** BESIDE
        return parameter.low / step if below else parameter.high * step
    return value


def _study_of(space: Space, trials: Sequence[Tried], names: Sequence[str]) -> optuna.Study:
    chosen = with_values(trials, names)
    places = [{name: place_of(space[name], trial.values[name]) for name in names} for trial in chosen]
    axes = {name: _axis(space[name], [place[name] for place in places]) for name in names}
    return _study([(place, trial.objective) for place, trial in zip(places, chosen, strict=True)], axes)


def _axis(parameter: FloatParameter | IntParameter | CategoricalParameter, places: Sequence[Any]) -> BaseDistribution:
    if isinstance(parameter, CategoricalParameter):
        return CategoricalDistribution(parameter.choices)
    low, high = min([parameter.low, *places]), max([parameter.high, *places])
    return FloatDistribution(float(low), float(high), log=parameter.log)


def _study(points: Sequence[tuple[dict[str, Any], float]], axes: dict[str, BaseDistribution]) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    study.add_trials([create_trial(params=params, distributions=axes, value=value) for params, value in points])
    return study
