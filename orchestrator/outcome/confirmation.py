"""The result of a confirmation.

The best configurations of a search ran again on fresh seeds, so that luck does not choose the winner.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from orchestrator.ledger.events import Role, Status
from orchestrator.outcome.stats import Comparison, compare

Row = dict[str, Any]


class Confirmation(NamedTuple):
    """The results of running the best configurations again."""

    comparison: Comparison | None
    """Compares the configurations that have a result on every seed, the best mean first. None when there is no such
    configuration, or only one seed."""
    left_out: list[str]
    """Configurations without a result on some seed, because a run diverged or failed. The remaining seeds would flatter them."""


def confirmation(rows: list[Row]) -> Confirmation | None:
    """Compares the confirmed configurations, each known by its trial in the search; None when nothing was confirmed."""
    confirming = [row for row in rows if row["role"] == Role.CONFIRM]
    if not confirming:
        return None
    seeds = sorted({row["seed"] for row in confirming})
    scores: dict[str, dict[int, float]] = {row["confirms"]: {} for row in confirming}
    for row in confirming:
        if row["status"] == Status.FINISHED:
            scores[row["confirms"]][row["seed"]] = row[f"best/{row['config/select_by']}"]
    # Only configurations with a result on every seed: the tests pair results by seed.
    complete = {name: [of_seed[seed] for seed in seeds] for name, of_seed in scores.items() if len(of_seed) == len(seeds)}
    comparison = compare(complete) if complete and len(seeds) > 1 else None
    return Confirmation(comparison, sorted(scores.keys() - complete.keys()))


def verdict(found: Comparison, labels: Mapping[str, str] = MappingProxyType({})) -> str:
    """Says in words whether the best configuration is better than the others at the 5 % level.

    Args:
        found: the comparison.
        labels: what to call configurations in place of their names, where there is something.
    """
    best, *others = (labels.get(name, name) for name in found.indistinguishable)
    if len(found.summaries) == 1:
        return f"{best} is the only one, so there is nothing to tell it apart from"
    if others:
        return f"{best} has the highest mean, but cannot be told apart from {', '.join(others)} (Tukey's test over seeds, 5 %)"
    return f"{best} is better than all the others (Tukey's test over seeds, 5 %)"
