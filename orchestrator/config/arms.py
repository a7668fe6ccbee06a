"""The arms of a sweep: methods that are compared, each tuned in a study of its own with the same number of trials.

A sweep that compares nothing has one arm without a name, which is the whole search.
"""

from collections.abc import Collection
from typing import NamedTuple

from orchestrator.config.search_config import Parameter
from orchestrator.config.space import METHOD, NAMES, Space, contexts, names_within
from trainables.config import TrialConfig
from trainables.settings import named_values

FIXED = ("seed", "epochs", "threads", "device", "select_by", "data", "plugins")
"""Trial settings that all trials of a sweep share, because their results are compared on the same images."""
SEARCH = "search"
"""Name of the arm that searches over several methods, beside references that are tuned. No reference can have this name."""


class Arm(NamedTuple):
    """A part of the search with a sampler of its own."""

    name: str
    """The method's or the reference's name; empty when the sweep has one arm, which is the whole search."""
    trial: TrialConfig
    """The settings that every trial of the arm starts from."""
    space: Space
    """The settings that are searched in this arm."""
    trials: int
    """Number of trials that the arm's sampler proposes."""


def space_of_arm(space: Space, trial: TrialConfig, fixed: Collection[str]) -> Space:
    """The part of a space that applies to an arm.

    Args:
        space: of the whole sweep.
        trial: the settings that the arm starts from.
        fixed: names of settings that are not searched in this arm.

    Returns: the parameters whose settings the arm's trials have, and whose conditions can be met. Conditions on fixed settings
        are left out where `trial` meets them.
    """
    values = named_values(trial)
    free = {name: parameter for name, parameter in space.items() if name not in fixed}
    has = searchable_settings(trial, free)
    found: Space = {}
    for name, parameter in free.items():
        settled = [key for key in parameter.when if key in fixed]
        if name in has and all(key in values and values[key] in parameter.when[key] for key in settled):
            found[name] = _without_conditions(parameter, settled)
    # A parameter that depends on one that is never drawn is never drawn either, and so on.
    while alone := [name for name in found if not found[name].when.keys() <= found.keys()]:
        found = {name: parameter for name, parameter in found.items() if name not in alone}
    return {name: parameter for name, parameter in found.items() if contexts(found, name)}


def searchable_settings(trial: TrialConfig, space: Space) -> set[str]:
    """Dotted names that a space may hold. When methods or losses are searched, their settings replace those of `trial`'s own."""
    settings = {name for name in named_values(trial) if name.split(".")[0] not in FIXED}
    for selector in NAMES:
        if selector in space and selector in settings:
            settings = {name for name in settings if not name.startswith(selector.removesuffix("name"))}
            settings |= names_within(space, selector)
    return {name for name in settings if name in NAMES or not name.endswith(".name")} | {METHOD}


def _without_conditions(parameter: Parameter, keys: Collection[str]) -> Parameter:
    return parameter.model_copy(update={"when": {key: values for key, values in parameter.when.items() if key not in keys}})
