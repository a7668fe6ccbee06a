import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from orchestrator.outcome.stats import compare, holm, paired_p_value, shrink


def test_holm_as_worked_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert all(p <= c <= 1 for p, c in zip(p_values, corrected, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()


def test_the_paired_test_is_the_t_test_of_the_differences() -> None:
    first, second = np.array([0.8, 0.82, 0.79, 0.85]), np.array([0.78, 0.83, 0.75, 0.80])
    differences = first - second
    t = differences.mean() / (differences.std(ddof=1) / 2)
    assert paired_p_value(first, second) == pytest.approx(2 * stats.t.sf(t, df=3))
    assert paired_p_value(first, first) == 1.0
    assert paired_p_value(first, first - 0.1) == 0.0


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
    assert together.indistinguishable == ["best", "second", "third"]
    p_values = [found.summaries[1].p_value for found in alone]
    assert [summary.p_value for summary in together.summaries] == pytest.approx([1.0, *holm(p_values)])
