"""Compares a trial with the same trial, trained again: equal bit for bit, or in which epoch they part and what explains it."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

Metrics = Mapping[str, float | None]
NOT_COMPARED = ("time/", "system/")
"""How the names of metrics begin that tell of the machine, not of the trial."""


class Difference(NamedTuple):
    """A metric that is not the same."""

    epoch: int
    metric: str
    recorded: float | None
    again: float | None

    @property
    def size(self) -> float:
        """The absolute difference; infinite where only one of the two is a number."""
        if self.recorded is None or self.again is None:
            return math.inf
        return abs(self.again - self.recorded)


class Repeat(NamedTuple):
    """What came of training a trial again."""

    epochs: int
    """That were compared."""
    numbers: int
    """That were compared, in all epochs."""
    first: list[Difference]
    """All metrics that differ in the first epoch in which one does."""
    largest: dict[str, float]
    """The largest difference of each metric that differs, over all epochs."""

    @property
    def is_identical(self) -> bool:
        """Whether all numbers are the same, bit for bit."""
        return not self.first


def compare(recorded: Mapping[int, Metrics], again: Mapping[int, Metrics]) -> Repeat:
    """Compares the epochs that were trained again with what the ledger holds of them.

    Args:
        recorded: the metrics of each epoch, as in the ledger, where what is not a number is None.
        again: the same, of the trial that was trained again; NaN is what None is in the ledger. Epochs that are not recorded are
            left out.
    """
    both = sorted(recorded.keys() & again.keys())
    found = [difference for epoch in both for difference in _differences(epoch, recorded[epoch], again[epoch])]
    largest: dict[str, float] = {}
    for difference in found:
        largest[difference.metric] = max(difference.size, largest.get(difference.metric, 0.0))
    numbers = sum(len(_compared(recorded[epoch])) for epoch in both)
    return Repeat(len(both), numbers, [some for some in found if some.epoch == found[0].epoch], largest)


def _differences(epoch: int, recorded: Metrics, again: Metrics) -> list[Difference]:
    there, here = _compared(recorded), _compared(again)
    pairs = [(name, there.get(name), here.get(name)) for name in dict.fromkeys((*there, *here))]
    return [Difference(epoch, name, old, new) for name, old, new in pairs if old != new]


def _compared(metrics: Metrics) -> dict[str, float | None]:
    known = {name: value for name, value in metrics.items() if not name.startswith(NOT_COMPARED)}
    return {name: value if value is not None and math.isfinite(value) else None for name, value in known.items()}


def explanations(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What differs between the program and the machine that trained a trial and those that trained it again, in words.

    Args:
        recorded: `git_commit`, `versions` and `machine` of the sweep's start; what an older version did not note is left out.
        here: the same of this process.
    """
    found = []
    versions, ours = recorded.get("versions", {}), here["versions"]
    found += [f"{name} {versions[name]} then, {ours.get(name)} now" for name in versions if versions[name] != ours.get(name)]
    then, now = ((facts.get("git_commit"), facts.get("changes")) for facts in (recorded, here))
    if then != now:
        found.append(f"the program: {_program(*then)} then, {_program(*now)} now")
    machine, this = recorded.get("machine", {}), here.get("machine", {})
    found += [f"{name}: {machine[name]} then, {this.get(name)} now" for name in machine if machine[name] != this.get(name)]
    return found


def _program(commit: str | None, changes: str | None) -> str:
    if commit is None:
        return "installed without a repository"
    return commit.removesuffix("+changes")[:10] + (f" with {changes}" if changes else "")
