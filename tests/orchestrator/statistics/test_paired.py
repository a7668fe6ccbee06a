import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import integrate, stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from orchestrator.statistics.paired import (
    PairedRow,
    PrimaryTest,
    Rule,
    Scores,
    Verdict,
    paired_table,
    undecided,
    verdicts,
)
from orchestrator.statistics.seeds import looks, seeds_needed, smallest_p

RULE = Rule(margin=0.01)
SIGN_FLIP = Rule(margin=0.01, test=PrimaryTest.SIGN_FLIP)


def by_seed(table: NDArray[np.float64], first: int = 0) -> Scores:
    """Scores of variants `v0`, `v1`, ..., of a table (variants, seeds)."""
    return {f"v{number}": dict(enumerate(row.tolist(), first)) for number, row in enumerate(table)}


def random_table(num_variants: int = 5, num_seeds: int = 8, seed: int = 0) -> NDArray[np.float64]:
    """Scores near 0.8, of which some variants are better and some are worse than the first."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 0.01, (num_variants, num_seeds)) + rng.normal(0, 0.03, num_seeds)
    return 0.8 + noise + np.linspace(0, 0.03, num_variants)[:, None] * (-1) ** np.arange(num_variants)[:, None]


def with_differences(*differences: float) -> Scores:
    """A reference `v0`, and `v1` with these differences."""
    base = np.array([0.80, 0.82, 0.79, 0.85, 0.81, 0.77, 0.83, 0.84, 0.78, 0.86])[: len(differences)]
    return by_seed(np.array([base, base + differences]))


def compared(scores: Scores, rule: Rule = RULE) -> PairedRow:
    """The row of `v1` against `v0`."""
    return paired_table(scores, "v0", rule)[1]


def sign_flip_by_enumeration(differences: list[float]) -> float:
    """The share of all signs whose sum is at least as far from 0."""
    sums = [abs(math.fsum(values)) for values in itertools.product(*([value, -value] for value in differences))]
    return sum(total >= abs(math.fsum(differences)) - 1e-12 for total in sums) / len(sums)


def holm_by_hand(p_values: list[float]) -> list[float]:
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    found, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        found[index] = highest
    return found


# Each number against what scipy, statsmodels or a formula say of the same data.


def test_a_row_has_the_numbers_that_scipy_and_statsmodels_compute() -> None:
    table = random_table()
    rows = paired_table(by_seed(table), "v0", RULE)
    p_values = [stats.ttest_rel(variant, table[0]).pvalue for variant in table[1:]]
    tost = [ttost_paired(variant, table[0], -0.01, 0.01)[0] for variant in table[1:]]
    assert [row.p_t for row in rows[1:]] == pytest.approx(p_values)
    assert [row.p_corrected for row in rows[1:]] == pytest.approx(multipletests(p_values, method="holm")[1])
    assert [row.p_equivalence for row in rows[1:]] == pytest.approx(multipletests(tost, method="holm")[1])
    for row, scores in zip(rows[1:], table[1:], strict=True):
        of_difference = stats.ttest_rel(scores, table[0]).confidence_interval(0.95)
        assert (row.difference_low, row.difference_high) == pytest.approx(tuple(of_difference))
        assert row.difference == pytest.approx(scores.mean() - table[0].mean())
        assert row.superiority == (scores > table[0]).mean()
    for row, scores in zip(rows, table, strict=True):
        assert (row.mean, row.sd) == pytest.approx((scores.mean(), math.sqrt(((scores - scores.mean()) ** 2).sum() / 7)))
        assert (row.low, row.high) == pytest.approx(tuple(stats.ttest_1samp(scores, 0).confidence_interval(0.95)))


def test_the_bootstrap_interval_is_that_of_scipys_paired_bootstrap_and_about_that_of_t() -> None:
    first, second = random_table(2, 20)
    row = compared(by_seed(np.array([first, second])))
    found = stats.bootstrap(
        (second, first),
        lambda one, other, axis: one.mean(axis=axis) - other.mean(axis=axis),
        paired=True,
        method="BCa",
        rng=np.random.default_rng(1),
    ).confidence_interval
    width = found.high - found.low
    assert (row.bootstrap_low, row.bootstrap_high) == pytest.approx(tuple(found), abs=0.03 * width)
    assert (row.bootstrap_low, row.bootstrap_high) == pytest.approx((row.difference_low, row.difference_high), abs=0.15 * width)


def test_on_skewed_differences_the_bootstrap_interval_is_the_accelerated_one() -> None:
    differences = np.random.default_rng(0).exponential(0.01, 12) ** 2
    row = compared(by_seed(np.array([np.zeros(12), differences])))
    found = {
        method: stats.bootstrap((differences,), np.mean, method=method, rng=np.random.default_rng(1)).confidence_interval
        for method in ("BCa", "percentile")
    }
    width = found["BCa"].high - found["BCa"].low
    assert (row.bootstrap_low, row.bootstrap_high) == pytest.approx(tuple(found["BCa"]), abs=0.03 * width)
    assert abs(found["percentile"].high - found["BCa"].high) > 0.1 * width


@pytest.mark.parametrize("seed", range(5))
def test_the_sign_flip_test_counts_all_signs(seed: int) -> None:
    table = random_table(2, 5, seed)
    expected = sign_flip_by_enumeration((table[1] - table[0]).tolist())
    row = compared(by_seed(table), SIGN_FLIP)
    assert row.p_sign_flip == pytest.approx(expected)
    assert row.p_corrected == pytest.approx(expected)


def test_sums_that_are_equal_but_for_rounding_tie_in_the_sign_flip_test() -> None:
    table = np.array([[4, 25, 18, 0, 27], [22, 24, 6, 12, 10]])  # images of 30 that were classified rightly
    assert sign_flip_by_enumeration((table[1] - table[0]).tolist()) == 1  # the sum is 0
    assert compared(by_seed(table / 30)).p_sign_flip == 1  # without care, 0.9375
    assert compared(with_differences(0.01, 0.01, 0.02)).p_sign_flip == 0.25
    assert compared(with_differences(0.01, -0.01, 0.02)).p_sign_flip == 0.75  # six sums of eight are 0.02 or 0.04 from 0


def test_above_sixteen_seeds_the_signs_are_random_and_repeat_with_the_seed() -> None:
    table = np.array([np.zeros(17), np.random.default_rng(3).normal(0.4, 1, 17)])
    row = compared(by_seed(table))
    signs = np.array(list(itertools.product((1, -1), repeat=17)))
    exact = (np.abs(signs @ table[1]) >= abs(table[1].sum()) - 1e-9).mean()
    assert row.p_sign_flip == pytest.approx(exact, abs=4 * math.sqrt(exact / 100_000))
    assert row == compared(by_seed(table))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_equivalence_test_is_two_t_tests_against_the_margins(sign: int) -> None:
    differences = sign * np.array([0.002, -0.001, 0.004, 0.000, 0.003])
    se = differences.std(ddof=1) / math.sqrt(5)
    above, below = stats.t.sf((differences.mean() + 0.01) / se, 4), stats.t.cdf((differences.mean() - 0.01) / se, 4)
    row = compared(with_differences(*differences))
    assert row.p_equivalence == pytest.approx(max(above, below))
    assert row.verdict is Verdict.EQUIVALENT


def test_holms_correction_by_hand() -> None:
    """Of three tests the smallest p counts three times, the next twice, and none less than a smaller one."""
    assert holm_by_hand([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    rows = paired_table(by_seed(random_table()), "v0", RULE)[1:]
    assert [row.p_corrected for row in rows] == pytest.approx(holm_by_hand([row.p_t or 0 for row in rows]))


def test_a_difference_that_is_found_alone_may_be_chance_among_several() -> None:
    alone = with_differences(0.01, 0.02, 0.03, 0.0, 0.015)
    rng = np.random.default_rng(0)
    others = {name: {seed: score + rng.normal(0, 0.02) for seed, score in alone["v0"].items()} for name in ("v2", "v3")}
    assert compared(alone).verdict is Verdict.BETTER
    assert compared(alone | others).verdict is Verdict.UNDECIDED


def test_looks_multiply_the_corrected_p_values() -> None:
    once, four = (paired_table(by_seed(random_table()), "v0", Rule(margin=0.01, num_looks=number))[1:] for number in (1, 4))
    assert [row.p_corrected for row in four] == pytest.approx([min(1, 4 * (row.p_corrected or 0)) for row in once])
    assert [row.p_equivalence for row in four] == pytest.approx([min(1, 4 * (row.p_equivalence or 0)) for row in once])
    assert [row.p_t for row in four] == [row.p_t for row in once]


def test_effect_size_and_superiority_by_hand() -> None:
    row = compared(with_differences(0.01, 0.03, 0.0, -0.02))
    assert row.effect_size == pytest.approx(0.005 / math.sqrt((0.005**2 + 0.025**2 + 0.005**2 + 0.025**2) / 3))
    assert row.superiority == 0.625  # two higher and one tie of four


# How many seeds.


def test_five_seeds_alone_cannot_reach_five_percent_by_sign_flips() -> None:
    assert smallest_p(5, 1) == 0.0625
    assert smallest_p(6, 1) == 0.03125
    assert smallest_p(6, 8) == 0.25
    assert smallest_p(2, 8) == 1.0
    assert seeds_needed(1) == 6
    assert seeds_needed(8) == 9
    assert seeds_needed(1, 0.0625) == 5


@pytest.mark.parametrize("num_seeds", [2, 5, 6])
def test_the_sign_flip_test_reaches_its_smallest_p(num_seeds: int) -> None:
    scores = with_differences(*(0.01 + 0.001 * np.arange(num_seeds)))
    assert compared(scores, SIGN_FLIP).p_corrected == pytest.approx(smallest_p(num_seeds, 1))


def test_looks_grow_by_about_half_and_end_at_the_most() -> None:
    assert looks(3, 12) == [3, 5, 8, 12]
    assert looks(5, 6) == [5, 6]
    assert looks(4, 4) == [4]
    assert looks(2, 4) == [2, 3, 4]
    for fewest, most in itertools.combinations(range(2, 40), 2):
        found = looks(fewest, most)
        assert (found[0], found[-1], found) == (fewest, most, sorted(set(found)))
        assert len(found) <= 2 + math.log(most / fewest) / math.log(1.5)
    for fewest, most in [(1, 5), (6, 5)]:
        with pytest.raises(ValueError, match=f"seeds from {fewest} to {most}"):
            looks(fewest, most)


@pytest.mark.parametrize(("num_variants", "num_looks"), [(1, 1), (4, 1), (4, 4)])
def test_further_seeds_give_the_power_that_statsmodels_computes(num_variants: int, num_looks: int) -> None:
    """Against statsmodels' own solution for a two-sided test at the level of Holm's first step."""
    table = np.random.default_rng(1).normal(0.8, 0.02, (num_variants + 1, 8))
    rows = paired_table(by_seed(table), "v0", Rule(margin=0.001, num_looks=num_looks))[1:]
    waiting = [row for row in rows if row.verdict is Verdict.UNDECIDED]
    assert waiting
    for row in waiting:
        assert row.effect_size is not None
        number = TTestPower().solve_power(abs(row.effect_size), alpha=0.05 / num_variants / num_looks, power=0.8)
        assert row.further_seeds == math.ceil(number) - 8


def test_without_an_observed_difference_no_number_of_seeds_is_named() -> None:
    assert compared(with_differences(0.1, -0.1, 0.1, -0.1)).further_seeds is None
    assert compared(with_differences(0.1, -0.1, 0.1, -0.0999)).further_seeds is None
    assert compared(with_differences(0.02, 0.021, 0.022, 0.023)).further_seeds is None  # decided


def test_the_sign_flip_test_needs_as_many_seeds_as_make_its_smallest_p_small_enough() -> None:
    scores = with_differences(0.02, 0.021, 0.022)
    assert compared(scores, RULE).verdict is Verdict.BETTER
    assert compared(scores, SIGN_FLIP).verdict is Verdict.UNDECIDED
    assert compared(scores, SIGN_FLIP).further_seeds == 3
    assert compared(scores, Rule(margin=0.01, test=PrimaryTest.SIGN_FLIP, num_looks=8)).further_seeds == 6


# Degenerate data.


@pytest.mark.parametrize("test", PrimaryTest)
@pytest.mark.parametrize("num_seeds", [2, 3, 10])
def test_a_variant_without_any_effect_is_equivalent(test: PrimaryTest, num_seeds: int) -> None:
    row = compared(with_differences(*[0.0] * num_seeds), Rule(margin=0.001, test=test))
    assert (row.p_t, row.p_sign_flip, row.p_corrected, row.p_equivalence) == (1, 1, 1, 0)
    assert (row.difference, row.difference_low, row.difference_high, row.bootstrap_low, row.bootstrap_high) == (0, 0, 0, 0, 0)
    assert (row.effect_size, row.superiority, row.verdict, row.further_seeds) == (None, 0.5, Verdict.EQUIVALENT, None)


@pytest.mark.parametrize("test", PrimaryTest)
def test_equal_differences_prove_no_more_than_their_signs(test: PrimaryTest) -> None:
    """0.3 - 0.1 - 0.3 is not exactly 0.82 - 0.1 - 0.82. With that rounding error as standard deviation, t would be about 1e16."""
    base = np.array([0.3, 0.82, 0.79, 0.45, 0.81, 0.1])
    assert np.ptp((base - 0.1) - base) > 0
    six = compared(by_seed(np.array([base, base - 0.1])), Rule(margin=0.2, test=test))
    assert (six.p_t, six.p_sign_flip, six.p_corrected, six.p_equivalence) == (2 / 64, 2 / 64, 2 / 64, 1 / 64)
    assert (six.effect_size, six.superiority, six.verdict) == (None, 0, Verdict.WORSE)
    three = compared(by_seed(np.array([base, base - 0.1])[:, :3]), Rule(margin=0.01, test=test))
    assert (three.p_t, three.p_equivalence, three.verdict, three.further_seeds) == (0.25, 1, Verdict.UNDECIDED, 3)
    assert (three.difference_low, three.difference_high) == pytest.approx((-0.1, -0.1))
    assert (three.bootstrap_low, three.bootstrap_high) == pytest.approx((-0.1, -0.1))


def test_scores_that_differ_by_a_rounding_error_are_ties() -> None:
    scores = {"v0": {0: 0.3, 1: 0.5, 2: 0.6}, "v1": {0: 0.1 + 0.2, 1: 0.5, 2: 0.6}}
    assert scores["v1"][0] > scores["v0"][0]
    assert compared(scores).verdict is Verdict.EQUIVALENT
    assert compared(scores | {"v1": scores["v1"] | {2: 0.7}}).superiority == pytest.approx(2 / 3)


def test_differences_at_the_margin_are_not_within() -> None:
    scores = {"v0": dict.fromkeys(range(8), 0.5), "v1": dict.fromkeys(range(8), 0.75)}
    assert compared(scores, Rule(margin=0.25)).p_equivalence == 1
    assert compared(scores, Rule(margin=0.26)).p_equivalence == 1 / 256


def test_two_seeds_are_tested_with_one_degree_of_freedom() -> None:
    row = compared(with_differences(0.01, 0.03))
    assert row.p_t == pytest.approx(2 * (0.5 - math.atan(2) / math.pi))  # t = 0.02 / 0.01 has a Cauchy distribution
    assert row.p_sign_flip == 0.5
    assert (row.bootstrap_low, row.bootstrap_high) == pytest.approx((0.01, 0.03))
    assert row.verdict is Verdict.UNDECIDED


def test_with_one_seed_there_are_means_only() -> None:
    rows = paired_table({"v0": {7: 0.8}, "v1": {7: 0.9}}, "v0", RULE)
    assert rows[0] == PairedRow("v0", 1, 0.8, None, None, None)
    assert rows[1] == PairedRow("v1", 1, 0.9, None, None, None, num_pairs=1, difference=0.9 - 0.8)
    assert undecided({"v0": {7: 0.8}, "v1": {7: 0.9}}, "v0", RULE) == ["v1"]


def test_the_reference_alone_is_compared_with_nothing() -> None:
    assert paired_table({"v0": {1: 0.5, 2: 0.7}}, "v0", RULE)[0].verdict is None
    assert undecided({"v0": {1: 0.5, 2: 0.7}}, "v0", RULE) == []


def test_few_and_coarse_scores_give_numbers_and_no_warning() -> None:
    """Accuracies of 20 images on 2 to 6 seeds have many ties; warnings are errors."""
    rng = np.random.default_rng(0)
    for num_seeds in (2, 3, 4, 5, 6) * 8:
        scores = by_seed(rng.integers(12, 16, (3, num_seeds)) / 20)
        for row in paired_table(scores, "v0", SIGN_FLIP)[1:]:
            assert all(math.isfinite(value) for value in row if isinstance(value, float))
            assert None not in row._replace(effect_size=0, further_seeds=0)
            assert min(row.p_t or 0, row.p_sign_flip or 0) > 0


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"v1": {0: 0.5}}, "unknown reference 'v0'; choose one of"),
        ({"v0": {0: 0.5, 3: math.nan}, "v1": {0: 0.5}}, "the score of 'v0' on seed 3 is nan"),
        ({"v0": {0: 0.5}, "v1": {0: math.inf}}, "the score of 'v1' on seed 0 is inf"),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(scores: Scores, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_table(scores, "v0", RULE)


def test_a_rule_refuses_what_is_out_of_range() -> None:
    for margin in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="margin is"):
            Rule(margin=margin)
    for level in (0.0, 1.0):
        with pytest.raises(ValueError, match="level is"):
            Rule(margin=0.1, level=level)
    with pytest.raises(ValueError, match="num_looks is 0"):
        Rule(margin=0.1, num_looks=0)


# What must not matter, and what must.


def same_comparison(rows: list[PairedRow], others: list[PairedRow]) -> None:
    """All that is of differences agrees, but for rounding."""
    for row, other in zip(rows, others, strict=True):
        assert row.verdict == other.verdict
        assert row.further_seeds == other.further_seeds
        for one, same in zip(row[6:-2], other[6:-2], strict=True):
            assert (one is None) == (same is None)
            assert (one or 0) == pytest.approx(same or 0, rel=1e-6, abs=1e-12)


def test_an_effect_of_the_seed_changes_nothing() -> None:
    table = random_table()
    shifted = table + np.random.default_rng(5).normal(0, 1, table.shape[1])
    same_comparison(paired_table(by_seed(table), "v0", RULE), paired_table(by_seed(shifted), "v0", RULE))


@pytest.mark.parametrize("test", PrimaryTest)
def test_the_opposite_sign_makes_better_worse(test: PrimaryTest) -> None:
    rule = Rule(margin=0.01, test=test)
    table = random_table(4, 10)
    found, opposite = verdicts(by_seed(table), "v0", rule), verdicts(by_seed(-table), "v0", rule)
    assert {Verdict.BETTER, Verdict.WORSE} <= set(found.values())
    swap = {Verdict.BETTER: Verdict.WORSE, Verdict.WORSE: Verdict.BETTER}
    assert opposite == {name: swap.get(verdict, verdict) if verdict else None for name, verdict in found.items()}
    rows, others = paired_table(by_seed(table), "v0", rule)[1:], paired_table(by_seed(-table), "v0", rule)[1:]
    for row, other in zip(rows, others, strict=True):
        assert row.p_corrected == pytest.approx(other.p_corrected)
        assert row.difference == pytest.approx(-(other.difference or 0))


def test_the_order_of_variants_and_seeds_changes_nothing_else() -> None:
    scores = by_seed(random_table())
    backwards = {name: dict(reversed(scores[name].items())) for name in reversed(scores)}
    rows = paired_table(backwards, "v0", RULE)
    assert [row.name for row in rows] == ["v4", "v3", "v2", "v1", "v0"]
    same_comparison(rows[::-1], paired_table(scores, "v0", RULE))


def test_percent_and_fractions_have_the_same_verdicts() -> None:
    table = random_table()
    rows = paired_table(by_seed(table), "v0", RULE)
    in_percent = paired_table(by_seed(100 * table), "v0", Rule(margin=1.0))
    for row, other in zip(rows[1:], in_percent[1:], strict=True):
        assert row.verdict == other.verdict
        assert (row.p_corrected, row.p_equivalence) == pytest.approx((other.p_corrected, other.p_equivalence))
        assert (row.bootstrap_low or 0) * 100 == pytest.approx(other.bootstrap_low)


def test_only_common_seeds_are_compared() -> None:
    table = random_table(3, 8)
    scores = by_seed(table)
    fewer = scores | {"v1": {seed: scores["v1"][seed] for seed in (6, 1, 3)} | {99: 0.0}}
    rows, all_seeds = paired_table(fewer, "v0", RULE), paired_table(scores, "v0", RULE)
    assert [(row.num_seeds, row.num_pairs) for row in rows] == [(8, None), (4, 3), (8, 8)]
    assert rows[1].p_t == pytest.approx(stats.ttest_rel(table[1, [1, 3, 6]], table[0, [1, 3, 6]]).pvalue)
    assert rows[2].p_t == all_seeds[2].p_t


def test_a_variant_without_pairs_still_counts_as_a_test() -> None:
    """Otherwise a failed run would make all other findings more certain."""
    scores = by_seed(random_table(2, 8)) | {"elsewhere": {50: 0.1, 51: 0.2}, "failed": {}}
    row, elsewhere = paired_table(scores, "v0", RULE)[1:]
    assert row.p_corrected == pytest.approx(3 * (row.p_t or 0))
    assert elsewhere == PairedRow("elsewhere", 2, *elsewhere[2:6], num_pairs=0)
    assert undecided(scores, "v0", RULE) == ["elsewhere", "failed"]


def test_without_a_score_of_the_reference_there_are_means_only() -> None:
    (row,) = paired_table({"v0": {}, "v1": {0: 0.5, 1: 0.7}}, "v0", RULE)
    assert row == PairedRow("v1", 2, *row[2:6], num_pairs=0)
    assert undecided({"v0": {}, "v1": {0: 0.5, 1: 0.7}}, "v0", RULE) == ["v1"]


def test_the_table_and_the_short_functions_agree() -> None:
    scores = by_seed(random_table(6, 6))
    rows = paired_table(scores, "v0", RULE)[1:]
    assert verdicts(scores, "v0", RULE) == {row.name: row.verdict for row in rows}
    assert undecided(scores, "v0", RULE) == [row.name for row in rows if row.verdict is Verdict.UNDECIDED]


# Simulations with a known truth.


def not_above(count: int, number: int, rate: float = 0.05) -> bool:
    """Whether a one-sided binomial test at 1 % does not find that the true rate is above `rate`."""
    return bool(stats.binomtest(count, number, rate, alternative="greater").pvalue > 0.01)


def rate_of(verdict: Verdict, draw: Callable[[np.random.Generator], NDArray[np.float64]], rule: Rule, repetitions: int) -> float:
    """Share of repetitions in which a variant with these differences to the reference has the verdict."""
    rng, found = np.random.default_rng(0), 0
    for _ in range(repetitions):
        differences = draw(rng)
        found += verdicts(by_seed(np.array([0 * differences, differences])), "v0", rule)["v1"] is verdict
    return found / repetitions


@pytest.mark.slow
@pytest.mark.parametrize(("test", "num_seeds"), [(PrimaryTest.PAIRED_T, 10), (PrimaryTest.SIGN_FLIP, 9)])
def test_of_equal_variants_some_is_called_different_in_at_most_five_of_a_hundred_tables(
    test: PrimaryTest, num_seeds: int
) -> None:
    """500 tables of 8 variants and a reference on seeds with a common effect. Nine seeds are what 8 sign-flip tests need."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(500):
        table = rng.normal(0, 1, (9, num_seeds)) + rng.normal(0, 3, num_seeds)
        found = verdicts(by_seed(table), "v0", Rule(margin=0.5, test=test))
        wrong += bool({Verdict.BETTER, Verdict.WORSE} & set(found.values()))
    assert not_above(wrong, 500)
    assert wrong > 0


@pytest.mark.slow
def test_a_true_difference_is_found_as_often_as_the_power_says() -> None:
    effect_size = TTestPower().solve_power(nobs=10, alpha=0.05, power=0.8)
    found = rate_of(Verdict.BETTER, lambda rng: rng.normal(effect_size, 1, 10), Rule(margin=0.1), 1000)
    assert found == pytest.approx(0.8, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [1, -1])
def test_a_variant_at_the_margin_is_called_equivalent_in_at_most_five_of_a_hundred_cases(sign: int) -> None:
    found = rate_of(Verdict.EQUIVALENT, lambda rng: rng.normal(sign * 0.5, 1, 20), Rule(margin=0.5), 1000)
    assert not_above(round(1000 * found), 1000)


@pytest.mark.slow
def test_an_equal_variant_is_called_equivalent_as_often_as_the_normal_distribution_says() -> None:
    """The exact probability, integrated over the standard deviation s: the mean is within the margin by t(0.95) standard errors,
    and the t-test does not call it different, so it is within t(0.975) standard errors of 0. The mean is normal and independent
    of s, and (n - 1) s^2 has a chi-square distribution with n - 1 degrees of freedom.
    """
    number, margin = 10, 1.0

    def given(chi_square: float) -> float:
        s = math.sqrt(chi_square / (number - 1))
        bound = min(math.sqrt(number) * margin - stats.t.ppf(0.95, number - 1) * s, stats.t.ppf(0.975, number - 1) * s)
        return float(max(0.0, 2 * stats.norm.cdf(bound) - 1) * stats.chi2.pdf(chi_square, number - 1))

    power = integrate.quad(given, 0, 60, limit=200)[0]
    assert 0.5 < power < 0.9
    found = rate_of(Verdict.EQUIVALENT, lambda rng: rng.normal(0, 1, number), Rule(margin=margin), 1000)
    assert found == pytest.approx(power, abs=0.05)


def at_each_look(scores: Scores, rule: Rule, numbers: list[int]) -> list[dict[str, Verdict | None]]:
    """Verdicts of an ablation that gives more seeds to undecided variants only."""
    known: dict[str, dict[int, float]] = {name: {} for name in scores}
    waiting, found = list(scores)[1:], []
    for number in numbers:
        for name in ["v0", *waiting]:
            known[name] = {seed: scores[name][seed] for seed in range(number)}
        found.append(verdicts(known, "v0", rule))
        waiting = [name for name, verdict in found[-1].items() if verdict is Verdict.UNDECIDED]
    return found


@pytest.mark.slow
def test_looking_four_times_does_not_make_chance_findings_more_likely() -> None:
    """500 tables of 8 equal variants with 3 to 12 seeds; findings at any look count."""
    rng, wrong, numbers = np.random.default_rng(0), 0, looks(3, 12)
    rule = Rule(margin=1.0, num_looks=len(numbers))
    for _ in range(500):
        found = at_each_look(by_seed(rng.normal(0, 1, (9, 12)) + rng.normal(0, 3, 12)), rule, numbers)
        wrong += any({Verdict.BETTER, Verdict.WORSE} & set(at_look.values()) for at_look in found)
    assert not_above(wrong, 500)
    assert wrong > 0


@pytest.mark.slow
def test_a_verdict_stands_at_all_later_looks() -> None:
    """Though Holm's correction depends on the other variants, which get more seeds. `equivalent` may become better or worse."""
    rng, numbers, changes = np.random.default_rng(0), looks(3, 12), set()
    rule = Rule(margin=1.0, num_looks=len(numbers))
    for _ in range(100):
        table = rng.normal(0, 1, (9, 12)) * rng.choice([0.3, 1.0], (9, 1)) + rng.normal(0, 2, (9, 1))
        found = at_each_look(by_seed(table), rule, numbers)
        for earlier, later in itertools.pairwise(found):
            changes |= {(earlier[name], later[name]) for name in earlier if earlier[name] != later[name]}
    different = {Verdict.BETTER, Verdict.WORSE}
    possible = {(Verdict.UNDECIDED, later) for later in (*different, Verdict.EQUIVALENT)}
    assert possible <= changes <= possible | {(Verdict.EQUIVALENT, later) for later in different}


@pytest.mark.slow
@pytest.mark.parametrize(("num_seeds", "bootstrap"), [(5, 0.84), (10, 0.90)])
def test_with_few_seeds_the_bootstrap_interval_is_too_narrow(num_seeds: int, bootstrap: float) -> None:
    """Over 600 samples of normal differences; the t-interval contains the truth in 95 %."""
    rng, by_bootstrap, by_t = np.random.default_rng(0), 0, 0
    for _ in range(600):
        row = compared(by_seed(np.array([np.zeros(num_seeds), rng.normal(0, 1, num_seeds)])))
        by_bootstrap += row.bootstrap_low < 0 < row.bootstrap_high
        by_t += row.difference_low < 0 < row.difference_high
    assert by_t / 600 == pytest.approx(0.95, abs=0.03)
    assert by_bootstrap / 600 == pytest.approx(bootstrap, abs=0.03)
