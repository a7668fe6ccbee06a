import itertools
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from orchestrator.outcome.stats import compare, p_values_of_best, shrink, variance_by_chance

Table = NDArray[np.float64]


def test_with_two_configurations_the_test_is_the_paired_t_test() -> None:
    first, second = np.array([0.8, 0.82, 0.79, 0.85]), np.array([0.78, 0.83, 0.75, 0.80])
    assert p_values_of_best(np.array([first, second])) == pytest.approx([stats.ttest_rel(first, second).pvalue])
    assert p_values_of_best(np.array([first, first])) == [1.0]
    assert p_values_of_best(np.array([first, first - 0.1])) == [0.0]
    assert p_values_of_best(np.array([first])) == []


def test_without_effects_of_seeds_the_variance_is_that_of_a_one_way_analysis() -> None:
    """Against scipy's Tukey test, whose residuals have more degrees of freedom: the same variance where seeds have no effect."""
    noise = np.array([[1.0, -1.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0], [-1.0, 1.0, 1.0, -1.0], [-1.0, -1.0, -1.0, 3.0]]) / 100
    table = noise + np.array([[0.9], [0.8], [0.7], [0.6]])
    assert np.allclose(table.mean(axis=0), table.mean())
    one_way = (noise - noise.mean(axis=1)[:, None]) ** 2
    assert variance_by_chance(table) == pytest.approx(one_way.sum() / 9 / 4)


@pytest.mark.slow
@pytest.mark.parametrize("num_configurations", [2, 3, 5, 10, 20])
def test_of_equal_configurations_the_best_is_called_better_in_five_of_a_hundred_cases(num_configurations: int) -> None:
    """The best is chosen from the same data. 1000 simulated confirmations: the limit is three standard errors above 5 %."""
    rng, wrong = np.random.default_rng(num_configurations), 0
    limit = stats.studentized_range.ppf(0.95, num_configurations, (num_configurations - 1) * 4)
    for _ in range(1000):
        table = rng.normal(0, 1, (num_configurations, 5)) + rng.normal(0, 1, 5)
        table = table[np.argsort(-table.mean(axis=1))]
        wrong += (table[0].mean() - table[-1].mean()) / np.sqrt(variance_by_chance(table)) > limit
    assert wrong <= 50 + 3 * np.sqrt(1000 * 0.05 * 0.95)
    assert min(p_values_of_best(table)) <= 1


def winners_bias(rule: Callable[[Table], Table], true_differences: float, num_configurations: int, num_seeds: int) -> float:
    """How far the winner's mean is above the truth under a rule, in standard errors, over 400 simulated confirmations."""
    rng, found = np.random.default_rng([num_configurations, num_seeds, int(10 * true_differences)]), []
    for _ in range(400):
        truth = rng.normal(0, true_differences / np.sqrt(num_seeds), num_configurations)
        table = truth[:, None] + rng.normal(0, 1, (num_configurations, num_seeds)) + rng.normal(0, 1, num_seeds)
        means = table.mean(axis=1)
        winner = means.argmax()
        found.append((rule(table)[winner] - means.mean()) - (truth[winner] - truth.mean()))
    return abs(float(np.mean(found))) * np.sqrt(num_seeds)


def with_morris_factor(table: Table) -> Table:
    means, k = table.mean(axis=1), len(table)
    kept = max(0.0, 1 - max(k - 3, 0) / (k - 1) * variance_by_chance(table) / means.var(ddof=1))
    return means.mean() + kept * (means - means.mean())


def harder(table: Table) -> Table:
    means = table.mean(axis=1)
    kept = max(0.0, 1 - 1.5 * variance_by_chance(table) / means.var(ddof=1))
    return means.mean() + kept * (means - means.mean())


@pytest.mark.slow
def test_no_other_rule_leaves_the_winner_nearer_to_the_truth() -> None:
    cases = list(itertools.product((0.0, 0.5, 1.0, 2.0), (2, 3, 5, 10, 20), (3, 5, 10)))
    bias = {
        rule.__name__: np.mean([winners_bias(rule, *case) for case in cases])
        for rule in (shrink, with_morris_factor, harder, lambda table: table.mean(axis=1))
    }
    assert bias["shrink"] == min(bias.values())
    assert bias["shrink"] < 0.16
    assert bias["with_morris_factor"] > 0.3


def test_shrinking_removes_luck_and_leaves_what_is_certain() -> None:
    rng = np.random.default_rng(0)
    luck = rng.normal(0, 1, (40, 5))
    assert np.abs(shrink(luck) - luck.mean()).max() < 0.5 * np.abs(luck.mean(axis=1) - luck.mean()).max()
    certain = np.arange(4.0)[:, None] + np.array([0.0, 0.1, 0.2])  # seeds shift all alike
    assert shrink(certain) == pytest.approx(certain.mean(axis=1))
    assert shrink(np.full((3, 2), 0.5)).tolist() == [0.5, 0.5, 0.5]


def test_shrunken_means_are_nearer_to_the_truth() -> None:
    """Of configurations with differences as large as their luck: the reason to shrink at all."""
    rng = np.random.default_rng(1)
    plain, shrunken = [], []
    for _ in range(300):
        truth = rng.normal(0, 1, 6)
        table = truth[:, None] + rng.normal(0, 2, (6, 4))
        plain.append(((table.mean(axis=1) - truth) ** 2).mean())
        shrunken.append(((shrink(table) - truth) ** 2).mean())
    assert np.mean(shrunken) < 0.85 * np.mean(plain)


def test_the_best_mean_comes_first_and_equals_cannot_be_told_apart() -> None:
    noise = np.array([0.01, -0.02, 0.015, -0.005, 0.0])
    found = compare({"bad": 0.6 + noise[::-1], "good": 0.8 + noise, "as good": 0.799 + noise[[3, 0, 4, 2, 1]]})
    assert [summary.name for summary in found.summaries] == ["good", "as good", "bad"]
    assert found.indistinguishable == ["good", "as good"]
    assert found.num_seeds == 5
    assert found.summaries[0].mean == pytest.approx(0.8)
    assert found.summaries[0].sd == pytest.approx(noise.std(ddof=1))


def test_a_difference_that_is_certain_alone_may_be_luck_among_several() -> None:
    best = np.array([0.80, 0.82, 0.79, 0.85])
    others = {"second": best - [0.02, 0.05, 0.03, 0.01], "third": best - [0.05, 0.03, 0.01, 0.03]}
    alone = [compare({"best": best, name: scores}) for name, scores in others.items()]
    together = compare({"best": best, **others})
    assert [found.indistinguishable for found in alone] == [["best"], ["best"]]
    for found, summary in zip(alone, together.summaries[1:], strict=True):
        assert summary.p_value == pytest.approx(p_values_of_best(np.array([best, *others.values()]))[summary.name == "third"])
        assert found.summaries[1].p_value < 0.05
