"""What may be said of each variant in comparison with a reference variant that was trained on the same seeds.

Scores are given by variant and seed; a higher score is better. `Rule` tells how a verdict is reached.
"""

import bisect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests  # type: ignore[import-untyped]
from statsmodels.stats.power import TTestPower  # type: ignore[import-untyped]
from statsmodels.stats.weightstats import DescrStatsW, ttost_paired  # type: ignore[import-untyped]

from orchestrator.statistics.seeds import seeds_needed, smallest_p
from orchestrator.statistics.t_interval import half_width
from trainables.registry import lookup

Scores = Mapping[str, Mapping[int, float]]
"""The score of each variant on each of its seeds. Variants may have different seeds."""

CONFIDENCE = 0.95
"""Of each interval on its own, whatever the number of variants and looks."""
NUM_FLIPS = 99_999
"""The sign-flip test enumerates all 2^n signs if there are no more than this, so up to 16 seeds. Above, it draws as many at
random; the smallest p is then 2 / 100 000, about that of 16 seeds, 2 / 65 536."""
POWER = 0.8
"""Probability of finding a difference for which `further_seeds` plans."""
MOST_SEEDS = 10_000
"""No plan goes beyond so many seeds."""
ROUNDING = 1e-12
"""Differences smaller than this share of the largest score are rounding errors: 0.81 - 0.80 is not exactly 0.71 - 0.70."""


class PrimaryTest(StrEnum):
    """The test that decides, chosen before there are data."""

    PAIRED_T = "paired_t"
    """The paired t-test over seeds."""
    SIGN_FLIP = "sign_flip"
    """The exact permutation test that flips the signs of the paired differences."""


class Verdict(StrEnum):
    """What may be said of a variant in comparison with the reference; see `Rule`."""

    BETTER = "better"
    WORSE = "worse"
    EQUIVALENT = "equivalent"
    """A difference of the margin or more is excluded."""
    UNDECIDED = "undecided"
    """Neither a difference nor equivalence is shown: the number of seeds is too small."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How verdicts are reached. All tests are of the differences to the reference on common seeds.

    1. A variant is better or worse if the two-sided primary test finds a difference.
    2. Otherwise, it is equivalent if two one-sided t-tests show that the difference is above -margin and below margin.
    3. Otherwise, it is undecided.

    Both kinds of p-values are corrected for the number of variants (Holm) and of looks (Bonferroni) before they are compared with
    the level. So the probability of calling any variant different that is not is at most the level, whichever others are
    different; and the same holds for calling any variant equivalent that is not. A variant without two pairs counts as one with
    p = 1, so that the number of tests does not depend on which runs have failed.

    A verdict at one look stands at all later ones: a variant that is decided gets no more seeds, so its p-values stay as they
    are, and Holm's correction never takes back what it has rejected when other p-values fall or rise. Only `equivalent` may still
    turn into better or worse.

    If all differences are the same, the t-tests do not apply: their model has a positive variance. Scores are fractions of
    a finite number of images, so two or three equal differences are no rare chance, and p = 0 would be too bold. The sign-flip
    test takes their place, which has p = 2 / 2^n, or one-sided 1 / 2^n. If all differences are 0, the change had no effect on any
    run; this is equivalence, p = 0.

    Sources: Holm, Scand. J. Statist. 1979. Schuirmann, J. Pharmacokin. Biopharm. 1987, for the two one-sided tests. The tests
    take seeds as independent, because each seed draws its own split.
    """

    margin: float
    """Smallest difference that matters, above 0, in units of the score."""
    test: PrimaryTest = PrimaryTest.PAIRED_T
    level: float = 0.05
    num_looks: int = 1
    """How often the results are looked at while seeds may still be added, the last look included."""
    seed: int = 0
    """Of random signs and resamples."""

    def __post_init__(self) -> None:
        if not 0 < self.margin < math.inf:
            raise ValueError(f"margin is {self.margin}; allowed: a finite number above 0")
        if not 0 < self.level < 1:
            raise ValueError(f"level is {self.level}; allowed: a number between 0 and 1")
        if self.num_looks < 1:
            raise ValueError(f"num_looks is {self.num_looks}; allowed: a number from 1 on")


class PairedRow(NamedTuple):
    """A variant's scores, and its comparison with the reference. What cannot be computed is None.

    All of the comparison is None for the reference. With a single pair, only `difference` is known.
    """

    name: str
    num_seeds: int
    """The variant's own, of which `mean`, `sd`, `low` and `high` are taken."""
    mean: float
    sd: float | None
    """Sample standard deviation over seeds (n - 1 in the denominator)."""
    low: float | None
    """Of the 95 % t-interval of the mean."""
    high: float | None
    num_pairs: int | None = None
    """Seeds that variant and reference have in common; all that follows is of these."""
    difference: float | None = None
    """Mean paired difference, variant minus reference."""
    difference_low: float | None = None
    """Of the 95 % t-interval of `difference`. This and the next interval are not corrected for the number of variants."""
    difference_high: float | None = None
    bootstrap_low: float | None = None
    """Of the 95 % BCa bootstrap interval of `difference`, which takes no distribution for granted, but needs seeds: of 5 normal
    differences, it contains the truth in 84 % of all cases, of 10 in 90 % (tests/orchestrator/statistics/test_paired.py). Source:
    Efron, JASA 1987."""
    bootstrap_high: float | None = None
    p_t: float | None = None
    """Two-sided paired t-test."""
    p_sign_flip: float | None = None
    """Two-sided permutation test that flips the signs of differences; exact up to 16 seeds."""
    p_corrected: float | None = None
    """Of the primary test, corrected for variants and looks; the verdict compares it with the level."""
    p_equivalence: float | None = None
    """Of the two one-sided t-tests, corrected in the same way."""
    effect_size: float | None = None
    """Cohen's d_z: mean difference over the standard deviation of differences. None if the differences are all the same."""
    superiority: float | None = None
    """Share of seeds on which the variant has the higher score; ties count half."""
    verdict: Verdict | None = None
    further_seeds: int | None = None
    """For undecided variants: further seeds with which the primary test finds a difference in 80 % of all repetitions, if the
    true effect size is the observed one, at the level of Holm's first step. The observed one is uncertain, so this is a rough
    guide. None if the difference is 0 or more than 10 000 seeds would be needed."""


def paired_table(scores: Scores, reference: str, rule: Rule) -> list[PairedRow]:
    """Compares each variant with the reference.

    Returns: a row for each variant that has a score, in the order of `scores`. A variant without any still counts as a test.

    Raises:
        ValueError: when `scores` lacks the reference, or a score is not finite.
    """
    differences = paired_differences(scores, reference)
    decisions = _decide(differences, rule)
    num_tests = len(differences) * rule.num_looks
    rows = []
    for name, by_seed in ((name, by_seed) for name, by_seed in scores.items() if by_seed):
        values = np.array(list(by_seed.values()), dtype=float)
        row = PairedRow(name, len(values), float(values.mean()), _sd(values), *_t_interval(values))
        if name != reference:
            row = row._replace(num_pairs=len(differences[name]))
        if row.num_pairs:
            row = row._replace(difference=float(differences[name].mean()))
        if name in decisions:
            row = _compared(row, differences[name], decisions[name], num_tests, rule)
        rows.append(row)
    return rows


def verdicts(scores: Scores, reference: str, rule: Rule) -> dict[str, Verdict | None]:
    """The verdicts alone, of all variants but the reference; None for those without two pairs. Raises as `paired_table`."""
    differences = paired_differences(scores, reference)
    decisions = _decide(differences, rule)
    return {name: decisions[name].verdict if name in decisions else None for name in differences}


def undecided(scores: Scores, reference: str, rule: Rule) -> list[str]:
    """The variants that need more seeds after a look. While there are any, the reference needs the same seeds."""
    return [name for name, verdict in verdicts(scores, reference, rule).items() if verdict in (None, Verdict.UNDECIDED)]


def paired_differences(scores: Scores, reference: str) -> dict[str, NDArray[np.float64]]:
    """The differences of each variant to the reference on common seeds, in the order of seeds, cleaned of rounding errors."""
    base = lookup(scores, reference, "reference")
    for name, by_seed in scores.items():
        for seed, score in by_seed.items():
            if not math.isfinite(score):
                raise ValueError(f"the score of {name!r} on seed {seed} is {score}; allowed: finite numbers")
    found = {}
    for name in (name for name in scores if name != reference):
        common = sorted(base.keys() & scores[name].keys())
        pairs = np.array([(scores[name][seed], base[seed]) for seed in common], dtype=float).reshape(-1, 2)
        differences, resolution = pairs[:, 0] - pairs[:, 1], ROUNDING * np.abs(pairs).max(initial=0)
        differences[np.abs(differences) <= resolution] = 0
        if len(differences) and np.ptp(differences) <= resolution:
            differences[:] = differences[0]
        found[name] = differences
    return found


class _Decision(NamedTuple):
    p_corrected: float
    p_equivalence: float
    verdict: Verdict


def _decide(differences: Mapping[str, NDArray[np.float64]], rule: Rule) -> dict[str, _Decision]:
    """Decides on the variants that have two pairs or more, as `Rule` says."""
    tested = {name: values for name, values in differences.items() if len(values) >= 2}
    if not tested:
        return {}
    untested = [1.0] * (len(differences) - len(tested))
    p_different = _corrected([_p_primary(values, rule) for values in tested.values()] + untested, rule.num_looks)
    p_equivalent = _corrected([_p_equivalence(values, rule.margin) for values in tested.values()] + untested, rule.num_looks)
    found = {}
    for (name, values), p_value, p_equal in zip(tested.items(), p_different, p_equivalent, strict=False):
        verdict = Verdict.EQUIVALENT if p_equal <= rule.level else Verdict.UNDECIDED
        if p_value <= rule.level:
            verdict = Verdict.BETTER if values.mean() > 0 else Verdict.WORSE
        found[name] = _Decision(p_value, p_equal, verdict)
    return found


def _corrected(p_values: list[float], num_looks: int) -> list[float]:
    """Corrected for their number (Holm) and for the number of looks (Bonferroni)."""
    holm: list[float] = multipletests(p_values, method="holm")[1].tolist()
    return [min(1.0, p_value * num_looks) for p_value in holm]


def _p_primary(differences: NDArray[np.float64], rule: Rule) -> float:
    return _p_t(differences) if rule.test == PrimaryTest.PAIRED_T else _p_sign_flip(differences, rule.seed)


def _p_t(differences: NDArray[np.float64]) -> float:
    if _all_the_same(differences):
        return smallest_p(len(differences), 1) if differences[0] else 1.0
    return float(DescrStatsW(differences).ttest_mean(0.0)[1])


def _p_sign_flip(differences: NDArray[np.float64], seed: int) -> float:
    """Means that differ by a rounding error tie with the observed one: they are compared as shares of the largest difference."""
    scaled = differences / (np.abs(differences).max() or 1)
    found = stats.permutation_test(
        (scaled,),
        lambda values, axis: np.mean(values, axis=axis).round(10),
        permutation_type="samples",
        vectorized=True,
        n_resamples=NUM_FLIPS,
        batch=2**13,  # keeps the memory at a few MiB
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def _p_equivalence(differences: NDArray[np.float64], margin: float) -> float:
    if _all_the_same(differences):
        within = abs(differences[0]) < margin
        return (0.5 ** len(differences) if differences[0] else 0.0) if within else 1.0
    return float(ttost_paired(differences, np.zeros_like(differences), -margin, margin)[0])


def _all_the_same(differences: NDArray[np.float64]) -> bool:
    return bool((differences == differences[0]).all())


def _compared(row: PairedRow, differences: NDArray[np.float64], decision: _Decision, num_tests: int, rule: Rule) -> PairedRow:
    difference_low, difference_high = _t_interval(differences)
    bootstrap_low, bootstrap_high = _bootstrap_interval(differences, rule.seed)
    return row._replace(
        difference_low=difference_low,
        difference_high=difference_high,
        bootstrap_low=bootstrap_low,
        bootstrap_high=bootstrap_high,
        p_t=_p_t(differences),
        p_sign_flip=_p_sign_flip(differences, rule.seed),
        p_corrected=decision.p_corrected,
        p_equivalence=decision.p_equivalence,
        effect_size=None if _all_the_same(differences) else float(differences.mean() / differences.std(ddof=1)),
        superiority=float(np.mean(np.sign(differences) / 2 + 0.5)),
        verdict=decision.verdict,
        further_seeds=_further_seeds(differences, num_tests, rule) if decision.verdict is Verdict.UNDECIDED else None,
    )


def _sd(values: NDArray[np.float64]) -> float | None:
    return float(values.std(ddof=1)) if len(values) >= 2 else None


def _t_interval(values: NDArray[np.float64]) -> tuple[float | None, float | None]:
    if (sd := _sd(values)) is None:
        return None, None
    mean, half = float(values.mean()), half_width(sd, len(values), CONFIDENCE)
    return mean - half, mean + half


def _bootstrap_interval(differences: NDArray[np.float64], seed: int) -> tuple[float, float]:
    """To resample seeds is to resample pairs, so the differences are one sample."""
    if _all_the_same(differences):
        return float(differences[0]), float(differences[0])
    rng = np.random.default_rng(seed)
    found = stats.bootstrap((differences,), np.mean, confidence_level=CONFIDENCE, method="BCa", rng=rng).confidence_interval
    return float(found.low), float(found.high)


def _further_seeds(differences: NDArray[np.float64], num_tests: int, rule: Rule) -> int | None:
    level, needed = rule.level / num_tests, 2
    if rule.test == PrimaryTest.SIGN_FLIP or _all_the_same(differences):
        needed = seeds_needed(num_tests, rule.level)  # below, no difference is large enough
    if not _all_the_same(differences):
        effect_size, power = abs(differences.mean() / differences.std(ddof=1)), TTestPower().power

        def power_of(number: int) -> float:
            # One-sided at half the level: the other side adds nothing, and its non-central t is not a number for some arguments.
            return float(power(effect_size, number, level / 2, alternative="larger"))

        needed = bisect.bisect_left(range(MOST_SEEDS + 1), POWER, lo=needed, key=power_of)
    return max(1, needed - len(differences)) if needed <= MOST_SEEDS else None
