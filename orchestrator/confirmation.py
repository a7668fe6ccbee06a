"""Confirmation: the best configurations of a search, run again on fresh seeds, so that the winner is not just the luckiest."""

from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.stats import Comparison, compare

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


def confirmed_scores(rows: list[Row]) -> dict[str, dict[int, float]]:
    """What each confirmed configuration reached, by the id of its trial in the search and by seed."""
    scores: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["variant"] == CONFIRMED and row["status"] == "finished":
            scores.setdefault(row["confirms"], {})[row["seed"]] = row[f"best/{row['config/select_by']}"]
    return scores


def confirmation(rows: list[Row]) -> Comparison | None:
    """The confirmed configurations compared, the best mean first; None when there are none, or too few seeds in common."""
    scores = confirmed_scores(rows)
    common = sorted(set.intersection(*(set(of_seed) for of_seed in scores.values()))) if scores else []
    if len(common) < 2:
        return None
    return compare({trial_id: [of_seed[seed] for seed in common] for trial_id, of_seed in scores.items()})
