"""Which configurations are confirmed, and on which seeds: the choosing half of `search.confirm`."""

from collections.abc import Iterable, Mapping


def candidates(scores: Mapping[str, float | None], configurations: Mapping[str, str], top: int) -> list[str]:
    """The trials of the `top` best different configurations, the best first; of equals the earlier trial.

    Args:
        scores: by trial; None where a trial has no number.
        configurations: by trial, without the seed.
        top: how many configurations.
    """
    best: dict[str, str] = {}
    for trial_id in sorted(scores, key=lambda trial_id: (-(scores[trial_id] or 0.0), trial_id)):
        if scores[trial_id] is not None:
            best.setdefault(configurations[trial_id], trial_id)
    return list(best.values())[:top]


def fresh_seeds(used: Iterable[int], count: int) -> list[int]:
    """`count` seeds that nothing has used so far: those after the largest one."""
    first = max(used) + 1
    return list(range(first, first + count))
