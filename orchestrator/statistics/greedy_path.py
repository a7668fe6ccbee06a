"""An ablation path: from no component to all, each step with the component that gains most. Needs no library."""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

Score = tuple[int, float]
"""How many results a set of components has, and their mean. More results count first: a set that diverges on a seed loses."""


class Walk(NamedTuple):
    """An ablation path as far as it is known."""

    steps: list[str]
    """The components in the order in which the path takes them."""
    open: list[frozenset[str]]
    """The sets of components that the next step is chosen among, if any of them is not trained yet; empty when the path ends."""


def walk(components: Sequence[str], score_of: Callable[[Collection[str]], Score | None]) -> Walk:
    """Goes as far as the results allow. Of equal sets, that of the component which comes first in `components` is taken.

    Source: Fawcett and Hoos, Analysing differences between algorithm configurations through ablation, J. Heuristics 22, 2016.

    Args:
        components: by name.
        score_of: of a set of components; None as long as it is not trained.
    """
    steps: list[str] = []
    while len(steps) < len(components):
        left = [name for name in components if name not in steps]
        scores = {name: score_of({*steps, name}) for name in left}
        known = {name: score for name, score in scores.items() if score is not None}
        if len(known) < len(left):
            return Walk(steps, [frozenset({*steps, name}) for name in left])
        steps.append(max(left, key=known.__getitem__))
    return Walk(steps, [])
