"""The space as a whole: which parameters depend on others, the order in which they are drawn, and the points of a grid."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.config.search_config import (
    CategoricalParameter,
    FloatParameter,
    IntParameter,
    Parameter,
    SearchConfig,
    extreme_values,
)
from trainables.loss_config import LOSS_SETTINGS
from trainables.method_config import METHOD_SETTINGS
from trainables.settings import Settings, named_values

Space = dict[str, Parameter]
"""Searched settings by dotted name."""
METHOD = "method.name"
"""The method. A method's own settings are drawn only together with that method."""
NAMES: Mapping[str, Mapping[str, type[Settings]]] = {
    METHOD: METHOD_SETTINGS,
    "method.base_loss.name": LOSS_SETTINGS,
    "method.meta_loss.name": LOSS_SETTINGS,
}
"""The names that can be searched, with the settings class of each of their values."""
WITH_PRIORS = ("tpe", "gp", "random")
"""Samplers that draw each proposal from scratch, so that some of its values may come from a prior."""
MAX_GRID = 100_000
"""Number of points of the largest grid. No sweep finishes a larger one, which would be a random search that costs memory."""


def conditions(space: Space, name: str) -> dict[str, list[Any]]:
    """The searched settings that `name` depends on, each with the values that let `name` be drawn.

    They come from the parameter's `when`. A method's setting also depends on `method.name`: only methods with that setting
    let it be drawn. The same holds for a loss's settings and the loss's name.
    """
    needed = dict(space[name].when)
    for selector, table in NAMES.items():
        owner = selector.removesuffix("name")
        if selector in space and name.startswith(owner) and name != selector:
            field = name.removeprefix(owner).split(".")[0]
            rows = [row for row in extreme_values(space[selector]) if row in table and field in table[row].model_fields]
            # A `when` may name methods without the setting; these cannot let `name` be drawn.
            needed[selector] = [row for row in needed.get(selector, rows) if row in rows]
    return needed


def names_within(space: Space, selector: str) -> set[str]:
    """Dotted names of all settings that the searched values of `selector` have, and `selector` itself."""
    owner, rows = selector.removesuffix("name"), extreme_values(space[selector])
    return {f"{owner}{name}" for row in rows if row in NAMES[selector] for name in named_values(NAMES[selector][row])}


def is_drawn(space: Space, name: str, values: dict[str, Any]) -> bool:
    """Whether `name` is drawn after the settings before it in the drawing order were drawn as `values`."""
    return all(key in values and values[key] in allowed for key, allowed in conditions(space, name).items())


def draws_of(space: Space, names: Iterable[str]) -> list[dict[str, Any]]:
    """All draws of some searched settings, by dotted name, with the settings that these depend on; numbers at their extremes."""
    needed: set[str] = set()
    waiting = [name for name in names if name in space]
    while waiting:
        needed.add(name := waiting.pop())
        waiting += conditions(space, name).keys() - needed
    draws: list[dict[str, Any]] = [{}]
    for name in drawing_order(space):
        if name in needed:
            values = [{name: value} for value in dict.fromkeys(extreme_values(space[name]))]
            draws = [draw | more for draw in draws for more in (values if is_drawn(space, name, draw) else [{}])]
    return draws


def drawing_order(space: Space) -> list[str]:
    """The names of a space in the order of drawing: each name after the names that it depends on, otherwise as in the file.

    Raises:
        ValueError: naming the parameters that depend on each other.
    """
    order: list[str] = []
    # One name at a time, so that names keep the order of the file as far as their conditions allow.
    while waiting := [name for name in space if name not in order]:
        ready = next((name for name in waiting if conditions(space, name).keys() <= set(order)), None)
        if ready is None:
            raise ValueError(f"space.{waiting[0]}.when: {', '.join(waiting)} wait for each other; allowed: no circles")
        order.append(ready)
    return order


def contexts(space: Space, name: str) -> list[dict[str, Any]]:
    """All combinations of values with which `name` is drawn, by dotted name; empty when `name` can never be drawn."""
    found: list[dict[str, Any]] = [{}]
    for key, values in conditions(space, name).items():
        pieces = [piece | {key: value} for piece in contexts(space, key) for value in values]
        # Two conditions may depend on the same setting: only combinations in which both see the same value are possible.
        found = [one | piece for one in found for piece in pieces if all(one[k] == piece[k] for k in one.keys() & piece.keys())]
    return found


def check_conditions(space: Space) -> None:
    """Checks that every condition names a searched setting and values that can be drawn, and that there is no cycle.

    Raises:
        ValueError: naming the parameter, its condition and the allowed values.
    """
    for name, parameter in space.items():
        for key, values in parameter.when.items():
            if key not in space or key == name:
                others = ", ".join(other for other in space if other != name) or "nothing, it is searched alone"
                raise ValueError(f"space.{name}.when: {key} is not another searched setting; allowed: {others}")
            for value in values:
                if not _can_be_drawn(space[key], value):
                    raise ValueError(f"space.{name}.when: {key} is {value!r}; allowed: {_drawn_values(space[key])}")
    drawing_order(space)


def check_drawn(space: Space, parts: Sequence[Space]) -> None:
    """Checks that every parameter can be drawn in one of the parts of a space. `check_conditions` comes first: on a cycle,
    `contexts` would recurse without end.

    Raises:
        ValueError: naming the parameter.
    """
    for name in space:
        if len(parts) > 1 and not any(name in part for part in parts):
            raise ValueError(f"space.{name} is never drawn: each arm lacks it, fixes it or excludes it by its conditions")
        if not any(name in part and contexts(part, name) for part in parts):
            raise ValueError(f"space.{name} is never drawn: its conditions exclude each other; allowed: those that can meet")


def check_sampler(space: Space, search: SearchConfig, trials: int) -> None:
    """Checks that the sampler can work on the space.

    Args:
        space: that is searched.
        search: the sampler.
        trials: how many trials the sampler proposes.

    Raises:
        ValueError: naming the sampler, what the sampler needs and what the space has.
    """
    if search.sampler == "cmaes" and not numbers_of_every_trial(space):
        raise ValueError(
            "search.sampler is 'cmaes', but space has no float or int that every trial draws; allowed: one without or_exactly "
            "and conditions, or another sampler"
        )
    named = [name for name in space if getattr(space[name], "prior", None) is not None]
    if named and search.sampler not in WITH_PRIORS:
        raise ValueError(
            f"space.{named[0]}.prior is set, but search.sampler is {search.sampler!r}; allowed: no prior, or one of "
            f"{', '.join(WITH_PRIORS)}"
        )
    if search.sampler == "grid":
        check_grid(space, trials)


def numbers_of_every_trial(space: Space) -> list[str]:
    """Names of the numbers that every trial draws: ints, and floats without `or_exactly`, that have no condition."""
    # A trial that takes `or_exactly` does not draw the float itself.
    exact_values = {
        name for name, parameter in space.items() if isinstance(parameter, FloatParameter) and parameter.or_exactly is not None
    }
    words = {name for name, parameter in space.items() if isinstance(parameter, CategoricalParameter)}
    return [name for name in space if name not in exact_values | words and not conditions(space, name)]


def check_grid(space: Space, trials: int) -> None:
    """Checks that the space has a grid, and that the grid has a point for every searched trial.

    Raises:
        ValueError: naming the parameter without grid values, or the size of the grid.
    """
    for name, parameter in space.items():
        if conditions(space, name):
            raise ValueError(f"space.{name} has conditions, but search.sampler is 'grid'; allowed: none, or another sampler")
        if isinstance(parameter, FloatParameter) and parameter.points is None:
            raise ValueError(f"space.{name}.points is missing, but search.sampler is 'grid'; allowed: 2 or more")
    size = grid_size(space)
    if size > MAX_GRID:
        raise ValueError(
            f"space gives a grid of {size} points; allowed: at most {MAX_GRID}, with fewer points for each parameter"
        )
    if trials > size:
        raise ValueError(f"search.trials is {trials}, but the grid has {size} points; allowed: at most {size}")


def grid_values(parameter: FloatParameter | IntParameter | CategoricalParameter) -> Sequence[Any]:
    """The values of a parameter on a grid, without duplicates."""
    if isinstance(parameter, CategoricalParameter):
        return list(dict.fromkeys(parameter.choices))
    if isinstance(parameter, IntParameter):
        if parameter.points is None:
            return range(parameter.low, parameter.high + 1)
        # dict.fromkeys, because two values may round to the same whole number.
        return list(
            dict.fromkeys(round(value) for value in _evenly(parameter.low, parameter.high, parameter.log, parameter.points))
        )
    assert parameter.points is not None, "check_grid refuses it"
    exact = [] if parameter.or_exactly is None else [parameter.or_exactly]
    return list(dict.fromkeys([*_evenly(parameter.low, parameter.high, parameter.log, parameter.points), *exact]))


def num_points(space: Space) -> int | None:
    """How many points a space has, constraints and conditions left aside; None when a real number is drawn."""
    points = 1
    for parameter in space.values():
        if isinstance(parameter, FloatParameter):
            return None
        points *= parameter.high - parameter.low + 1 if isinstance(parameter, IntParameter) else len(set(parameter.choices))
    return points


def grid_size(space: Space) -> int:
    """Number of points of the grid."""
    return math.prod(len(grid_values(parameter)) for parameter in space.values())


def _evenly(low: float, high: float, log: bool, points: int) -> list[float]:
    """`points` evenly spaced numbers from `low` to `high`. Both bounds are included as given, so without rounding error."""
    steps = [step / (points - 1) for step in range(1, points - 1)]
    return [low, *(low * (high / low) ** step if log else low + (high - low) * step for step in steps), high]


def _can_be_drawn(parameter: FloatParameter | IntParameter | CategoricalParameter, value: Any) -> bool:
    """Whether a draw can give exactly `value`; of a float's values only `or_exactly` counts."""
    if isinstance(parameter, CategoricalParameter):
        return value in parameter.choices
    if isinstance(parameter, IntParameter):
        return isinstance(value, int) and parameter.low <= value <= parameter.high
    return parameter.or_exactly is not None and value == parameter.or_exactly


def _drawn_values(parameter: FloatParameter | IntParameter | CategoricalParameter) -> str:
    """The values for which `_can_be_drawn` is true, in words."""
    if isinstance(parameter, CategoricalParameter):
        return ", ".join(str(choice) for choice in parameter.choices)
    if isinstance(parameter, IntParameter):
        return f"{parameter.low} to {parameter.high}"
    return (
        "its or_exactly value, because no draw hits another real number"
        if parameter.or_exactly is None
        else f"its or_exactly value {parameter.or_exactly}"
    )
