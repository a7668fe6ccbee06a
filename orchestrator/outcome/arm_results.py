"""The end of a comparison: what each arm of a sweep reached, tuned against tuned."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.ledger.events import Role, Status
from orchestrator.ledger.trial_states import or_lowest
from orchestrator.outcome.confirmation import Row
from orchestrator.outcome.tables import objective
from orchestrator.statistics.t_interval import half_width


class ArmResult(NamedTuple):
    """What an arm reached."""

    name: str
    num_trials: int
    """Trials that the arm's sampler proposed."""
    best: float | None
    """The highest `select_by` of the arm's finished trials, all on the sweep's own seed; None when none has finished."""
    configuration: str | None
    """The trial whose configuration stands for the arm: of the confirmed ones that with the highest mean."""
    mean: float | None
    """Mean of `select_by` over the fresh seeds; None without a configuration that has a result on every seed."""
    sd: float | None
    """Sample standard deviation over the fresh seeds."""
    gain: float | None
    """Mean difference to the first arm's configuration on the same seeds; None for the first arm."""
    gain_half: float | None
    """Half the width of the 95 % t-interval of `gain`, which is a mean of paired differences."""


def arm_results(rows: Sequence[Row], arms: Sequence[str]) -> list[ArmResult]:
    """The results of the arms: the highest confirmed mean first, then the arms without one by their best trials.

    Args:
        rows: of all trials; see `trial_rows`.
        arms: names of the arms. The others are compared with the first.
    """
    seeds = sorted({row["seed"] for row in rows if row["role"] == Role.CONFIRM})
    confirmed = {arm: _confirmed(rows, arm, seeds) for arm in arms}
    found = []
    for arm in arms:
        own = [row for row in rows if row["role"] == Role.SEARCH and row["variant"] == arm]
        finished = [objective(row) for row in own if row["status"] == Status.FINISHED]
        result = ArmResult(arm, len(own), max(finished, default=None), None, None, None, None, None)
        if (pair := confirmed[arm]) is not None:
            configuration, scores = pair
            result = result._replace(configuration=configuration, mean=float(scores.mean()), sd=float(scores.std(ddof=1)))
            if arm != arms[0] and (first := confirmed[arms[0]]) is not None:
                gains = scores - first[1]
                half = half_width(float(gains.std(ddof=1)), len(seeds))
                result = result._replace(gain=float(gains.mean()), gain_half=half)
        found.append(result)
    return sorted(found, key=lambda result: (-or_lowest(result.mean), -or_lowest(result.best)))


def _confirmed(rows: Sequence[Row], arm: str, seeds: Sequence[int]) -> tuple[str, NDArray[np.float64]] | None:
    """The arm's configuration with the highest mean over all fresh seeds, and its scores in the order of seeds.

    As in `confirmation`, a configuration without a result on some seed is out: the remaining seeds would flatter it.
    """
    if len(seeds) < 2:
        return None
    scores: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["role"] == Role.CONFIRM and row["variant"] == arm and row["status"] == Status.FINISHED:
            scores.setdefault(row["confirms"], {})[row["seed"]] = objective(row)
    complete = [(name, of_seed) for name, of_seed in scores.items() if len(of_seed) == len(seeds)]
    arrays = [(name, np.array([of_seed[seed] for seed in seeds])) for name, of_seed in complete]
    return max(arrays, key=lambda pair: float(pair[1].mean()), default=None)
