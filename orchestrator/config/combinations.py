"""Checks that settings that are valid one by one are valid together: every pair of parameters at their extreme values."""

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

from orchestrator.config.search_config import CategoricalParameter, extreme_values
from orchestrator.config.space import Space, conditions, contexts, drawing_order
from trainables.config_file import ConfigError

Values = dict[str, Any]
"""Some searched settings by dotted name."""
Apply = Callable[[Values], Any]
"""Takes some searched settings; raises ConfigError where they give no valid trial."""


def check_combinations(space: Space, apply: Apply) -> None:
    """Checks whole draws that together hold every pair of extreme values. The parameters alone are valid already.

    Raises:
        ConfigError: naming the parameters that exclude each other, and a condition that keeps them apart.
    """
    for values in covering_draws(space):
        try:
            apply(values)
        except ConfigError:
            raise _explained(space, apply, values) from None


def covering_draws(space: Space) -> Iterator[Values]:
    """Whole draws of extreme values. Every two values that can be drawn together are together in one of them, for every choice of
    the settings that they depend on. The draws are far fewer than the pairs, because each holds many pairs.
    """
    order, needed, rng = drawing_order(space), {name: conditions(space, name) for name in space}, random.Random(0)
    extremes = {name: extreme_values(space[name]) for name in order}
    draws_with: dict[tuple[str, str], int] = {}  # the numbers of the draws that hold a value, as bits
    count = 0
    for pair in _pairs(space, order):
        common = -1
        for name, value in pair.items():
            common &= draws_with.get((name, repr(value)), 0)
        if common:
            continue
        values: Values = {}
        for name in order:
            if name in pair:
                values[name] = pair[name]
            elif all(key in values and values[key] in allowed for key, allowed in needed[name].items()):
                values[name] = rng.choice(extremes[name])
        for name, value in values.items():
            draws_with[name, repr(value)] = draws_with.get((name, repr(value)), 0) | 1 << count
        count += 1
        yield values


def _pairs(space: Space, order: list[str]) -> Iterator[Values]:
    """The extreme values of every two parameters that are drawn together, with the settings that these depend on."""
    contexts_of = {name: contexts(space, name) for name in order}
    for first, second in itertools.combinations(order, 2):
        for one, other in itertools.product(contexts_of[first], contexts_of[second]):
            context = one | other
            if any(one[key] != other[key] for key in one.keys() & other.keys()):
                continue
            choices = [[context[name]] if name in context else extreme_values(space[name]) for name in (first, second)]
            yield from (context | {first: a, second: b} for a, b in itertools.product(*choices))


def _explained(space: Space, apply: Apply, values: Values) -> ConfigError:
    """The error about a draw that is not valid: the fewest of its settings that are still not valid together."""
    for name in reversed(drawing_order(space)):
        fewer = {key: value for key, value in values.items() if key != name}
        depended_on = any(name in conditions(space, other) for other in fewer)  # these are not drawn without it
        if not depended_on and not _is_valid(apply, fewer):
            values = fewer
    try:
        apply(values)
    except ConfigError as error:
        reason = str(error)
    *first, last = (f"space.{name}" for name in values)
    given = ", ".join(f"{name} {value}" for name, value in values.items())
    return ConfigError(
        f"{', '.join(first)} and {last} do not go together: with {given}, {reason.partition(': ')[2]}; a condition keeps them "
        f"apart: {_cure(space, apply, values)}"
    )


def _cure(space: Space, apply: Apply, values: Values) -> str:
    """A condition that keeps some settings apart: for one of them, the values of another one with which it is valid."""
    # Numbers first, and the later ones before the earlier ones: `momentum.when: {optimizer: [sgd]}` rather than the reverse.
    order = list(values)
    names = sorted(values, key=lambda name: (isinstance(space[name], CategoricalParameter), -order.index(name)))
    for name, key in itertools.permutations(names, 2):
        if not isinstance(space[key], CategoricalParameter) or name in conditions(space, key):
            continue
        rest = {other: value for other, value in values.items() if other not in (name, key)}
        valid = [
            choice
            for choice in extreme_values(space[key])
            if all(_is_valid(apply, rest | {key: choice, name: value}) for value in extreme_values(space[name]))
        ]
        if valid:
            return f"space.{name}.when: {{{key}: [{', '.join(map(str, valid))}]}}"
    return f"`when` in space.{names[0]}, or a narrower range"


def _is_valid(apply: Apply, values: Values) -> bool:
    try:
        apply(values)
    except ConfigError:
        return False
    return True
