"""Which configurations are confirmed, and on which seeds: the choosing half of `search.confirm`."""

from collections.abc import Collection, Iterable, Mapping
from statistics import fmean


def candidates(
    scores: Mapping[str, float | None], configurations: Mapping[str, str], top: int, always: Collection[str] = ()
) -> list[str]:
    """The trials of the `top` best different configurations, and of all those that are confirmed in any case; the best first, of
    equals the earlier trial.

    A configuration that ran on several seeds has the mean of its scores: the best of several seeds would be the luckiest.

    Args:
        scores: by trial; None where a trial has no number.
        configurations: by trial, without the seed.
        top: how many configurations.
        always: configurations that take no place among the `top`: those of references, so that there is something to compare
            the best with.

    Returns: the first trial of each configuration.
    """
    pooled: dict[str, dict[str, float]] = {}
    for trial_id in sorted(scores):
        if (score := scores[trial_id]) is not None:
            pooled.setdefault(configurations[trial_id], {})[trial_id] = score
    means = {min(of_seeds): fmean(of_seeds.values()) for of_seeds in pooled.values()}
    ranked = sorted(means, key=lambda trial_id: (-means[trial_id], trial_id))
    chosen = [trial_id for trial_id in ranked if configurations[trial_id] not in always][:top]
    return [trial_id for trial_id in ranked if trial_id in chosen or configurations[trial_id] in always]


def fresh_seeds(used: Iterable[int], count: int) -> list[int]:
    """`count` seeds that nothing has used so far: those after the largest one."""
    first = max(used) + 1
    return list(range(first, first + count))
