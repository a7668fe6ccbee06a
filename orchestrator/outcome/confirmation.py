"""Confirmation: the best configurations of a search, run again on fresh seeds, so that the winner is not just the luckiest."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from orchestrator.outcome.stats import Comparison, compare

CONFIRMED = "confirm"
"""The variant of trials that run a configuration again."""
Row = dict[str, Any]


def candidates(scores: Mapping[str, float | None], configurations: Mapping[str, str], top: int) -> list[str]:
    """The trials of the `top` best different configurations, the best first, the earlier one of equals."""
    best: dict[str, str] = {}
    for trial_id in sorted(scores, key=lambda trial_id: (-(scores[trial_id] or 0.0), trial_id)):
        if scores[trial_id] is not None:
            best.setdefault(configurations[trial_id], trial_id)
    return list(best.values())[:top]


def fresh_seeds(used: Iterable[int], count: int) -> list[int]:
    """Seeds that nothing has used so far, following on the largest."""
    first = max(used) + 1
    return list(range(first, first + count))


class Confirmation(NamedTuple):
    """What came of running the best configurations again."""

    comparison: Comparison | None
    """Of the configurations that have a result on every seed, the best mean first; None when there is none."""
    left_out: list[str]
    """Those that have not: they diverged or failed on some, and the seeds that are left would flatter them."""


def confirmation(rows: list[Row]) -> Confirmation | None:
    """The confirmed configurations compared, each known by its trial in the search; None when nothing was confirmed."""
    confirming = [row for row in rows if row["variant"] == CONFIRMED]
    if not confirming:
        return None
    seeds = sorted({row["seed"] for row in confirming})
    scores: dict[str, dict[int, float]] = {row["confirms"]: {} for row in confirming}
    for row in confirming:
        if row["status"] == "finished":
            scores[row["confirms"]][row["seed"]] = row[f"best/{row['config/select_by']}"]
    whole = {name: [of_seed[seed] for seed in seeds] for name, of_seed in scores.items() if len(of_seed) == len(seeds)}
    comparison = compare(whole) if whole and len(seeds) > 1 else None
    return Confirmation(comparison, sorted(scores.keys() - whole.keys()))


def verdict(found: Comparison) -> str:
    """In words, whether the best configuration is better than the others for sure."""
    best, *others = found.indistinguishable
    if len(found.summaries) == 1:
        return f"{best} is the only one, so there is nothing to tell it apart from"
    if others:
        return f"{best} has the highest mean, but cannot be told apart from {', '.join(others)} (paired t-tests, Holm, 5 %)"
    return f"{best} is better than all the others (paired t-tests, Holm, 5 %)"
