"""Statistics of a few configurations that ran on the same seeds."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats


class Summary(NamedTuple):
    """A configuration's scores over seeds."""

    name: str
    mean: float
    sd: float
    """Sample standard deviation over seeds (n - 1 in the denominator)."""
    shrunken: float
    """The mean, shrunken towards the mean of all configurations by the share of their differences that chance explains."""
    p_value: float
    """p-value of the best configuration's higher mean: paired t-test over seeds, two-sided, Holm-corrected. 1 for the best."""


class Comparison(NamedTuple):
    """A comparison of configurations on the same seeds."""

    summaries: list[Summary]
    """The best mean first."""
    num_seeds: int
    indistinguishable: list[str]
    """Names of the best configuration and of those that cannot be told apart from the best at the 5 % level."""


def compare(scores: Mapping[str, Sequence[float]], level: float = 0.05) -> Comparison:
    """Compares configurations that ran on the same seeds.

    Args:
        scores: the scores of each configuration in the order of seeds; the same number for each, at least 2.
        level: significance level of the tests against the best configuration.
    """
    names = sorted(scores, key=lambda name: -float(np.mean(scores[name])))
    table = np.array([scores[name] for name in names], dtype=float)  # (configurations, seeds)
    # Holm's correction, because the best is tested against every other configuration.
    p_values = [1.0, *holm([paired_p_value(table[0], row) for row in table[1:]])]
    summaries = [
        Summary(name, float(row.mean()), float(row.std(ddof=1)), float(shrunken), p_value)
        for name, row, shrunken, p_value in zip(names, table, shrink(table), p_values, strict=True)
    ]
    return Comparison(summaries, table.shape[1], [summary.name for summary in summaries if summary.p_value > level])


def shrink(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over seeds, shrunken towards their common mean.

    The shrinkage is the share of the means' variance that the differences within seeds explain. Source: empirical Bayes, Morris,
    JASA 1983, with variances from a two-way analysis.

    Args:
        table: scores, (configurations, seeds).

    Returns: (configurations,).
    """
    num_configurations, num_seeds = table.shape
    means: NDArray[np.float64] = table.mean(axis=1)
    if num_configurations < 2:
        return means
    # Without the effects of configuration and seed: a seed that is hard for all configurations is no noise between them.
    residuals = table - means[:, None] - table.mean(axis=0) + table.mean()
    by_chance = (residuals**2).sum() / ((num_configurations - 1) * (num_seeds - 1)) / num_seeds
    observed = means.var(ddof=1)
    kept = max(0.0, 1 - by_chance / observed) if observed > 0 else 0.0
    shrunken: NDArray[np.float64] = means.mean() + kept * (means - means.mean())
    return shrunken


def paired_p_value(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """p-value of a two-sided paired t-test. When all differences are equal, the value is 1 if they are 0, otherwise 0."""
    differences = first - second
    if np.allclose(differences, differences[0]):  # the t-statistic would divide by 0
        return 1.0 if np.allclose(differences, 0) else 0.0
    return float(stats.ttest_rel(first, second).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for the number of tests, in the same order. Source: Holm, 1979."""
    order = np.argsort(p_values)
    corrected, largest = np.empty(len(p_values)), 0.0
    for rank, index in enumerate(order):
        # The maximum keeps a corrected value from falling below that of a smaller p-value.
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = largest
    return [float(p) for p in corrected]
