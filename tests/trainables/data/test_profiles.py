import numpy as np
import pytest

from trainables.data.profiles import BANDS, PROFILES, exponential, pareto, step

CIFAR10 = {
    10: [5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500],
    20: [5000, 3584, 2569, 1842, 1320, 946, 678, 486, 348, 250],
    50: [5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100],
    100: [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50],
    200: [5000, 2775, 1540, 854, 474, 263, 146, 81, 45, 25],
}
CIFAR100 = """
    500 477 455 434 415 396 378 361 344 328 314 299 286 273 260 248 237 226 216 206 197 188 179 171 163 156 149 142 135 129
    123 118 112 107 102 98 93 89 85 81 77 74 70 67 64 61 58 56 53 51 48 46 44 42 40 38 36 35 33 32 30 29 27 26 25 24 23 22
    21 20 19 18 17 16 15 15 14 13 13 12 12 11 11 10 10 9 9 8 8 7 7 7 6 6 6 6 5 5 5 5"""


@pytest.mark.parametrize(
    ("num_classes", "n_max", "totals"),
    [
        (100, 500, {10: (19573, 50), 20: (15907, 25), 50: (12608, 10), 100: (10847, 5), 200: (9502, 2)}),
        (100, 490, {10: (19183, 49), 20: (15594, 24), 50: (12354, 9), 100: (10626, 4), 200: (9304, 2)}),
        (100, 475, {10: (18591, 47), 20: (15111, 23), 50: (11975, 9), 100: (10302, 4), 200: (9022, 2)}),
        (10, 5000, {10: (20431, 500), 20: (17023, 250), 50: (13996, 100), 100: (12406, 50), 200: (11203, 25)}),
        (10, 4990, {10: (20391, 499), 20: (16989, 249), 50: (13967, 99), 100: (12380, 49), 200: (11177, 24)}),
        (10, 4900, {10: (20021, 490), 20: (16683, 245), 50: (13717, 98), 100: (12156, 49), 200: (10978, 24)}),
    ],
)
def test_exponential_profiles_have_the_published_totals_and_tails(
    num_classes: int, n_max: int, totals: dict[int, tuple[int, int]]
) -> None:
    for imbalance_factor, (total, tail) in totals.items():
        counts = exponential(num_classes, n_max, imbalance_factor)
        assert (sum(counts), counts[0], counts[-1]) == (total, n_max, tail), imbalance_factor


@pytest.mark.parametrize("imbalance_factor", CIFAR10)
def test_the_profiles_of_cifar10_are_the_published_ones_class_by_class(imbalance_factor: int) -> None:
    assert exponential(10, 5000, imbalance_factor) == CIFAR10[imbalance_factor]


def test_the_profile_of_cifar100_is_the_published_one_class_by_class() -> None:
    assert exponential(100, 500, 100) == [int(count) for count in CIFAR100.split()]


@pytest.mark.parametrize("num_classes", [10, 100])
@pytest.mark.parametrize("n_max", [475, 490, 500, 4900, 4990, 5000])
@pytest.mark.parametrize("imbalance_factor", [10, 20, 50, 100, 200])
def test_every_class_has_the_floor_of_the_formula(num_classes: int, n_max: int, imbalance_factor: int) -> None:
    """In whole numbers: the class has n images if and only if n^(C-1) IF^c <= n_max^(C-1) < (n+1)^(C-1) IF^c."""
    power = num_classes - 1
    for c, count in enumerate(exponential(num_classes, n_max, imbalance_factor)):
        assert count**power * imbalance_factor**c <= n_max**power < (count + 1) ** power * imbalance_factor**c


@pytest.mark.parametrize(
    ("imbalance_factor", "bands"),
    [(10, (69, 31, 0)), (20, (53, 47, 0)), (50, (41, 41, 18)), (100, (35, 35, 30)), (200, (30, 31, 39))],
)
def test_cifar100_has_the_published_numbers_of_many_medium_and_few_shot_classes(
    imbalance_factor: int, bands: tuple[int, int, int]
) -> None:
    counts = np.array(exponential(100, 500, imbalance_factor))
    assert tuple(int(BANDS[name](counts).sum()) for name in ("acc_many", "acc_medium", "acc_few")) == bands


def test_a_step_divides_the_classes_in_two_halves() -> None:
    assert step(10, 500, 100) == [500] * 5 + [5] * 5
    assert step(5, 500, 10) == [500] * 2 + [50] * 3


def test_a_pareto_profile_is_a_straight_line_in_logarithms() -> None:
    counts = pareto(100, 10**9, 1000)
    slopes = [np.log(counts[0] / counts[c]) / np.log(c + 1) for c in range(1, 100)]
    np.testing.assert_allclose(slopes, slopes[0], rtol=1e-6)
    assert counts[-1] == 10**6


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("num_classes", [10, 100, 365, 1000])
def test_every_profile_goes_from_n_max_to_n_max_over_the_imbalance_factor(name: str, num_classes: int) -> None:
    counts = PROFILES[name](num_classes, 5000, 250, "floor")
    assert (len(counts), counts[0], counts[-1]) == (num_classes, 5000, 20)
    assert counts == sorted(counts, reverse=True)
    assert PROFILES[name](num_classes, 5000, 1, "floor") == [5000] * num_classes


def test_a_whole_number_is_not_lost_to_rounding() -> None:
    assert pareto(1000, 500, 100)[-1] == 5  # 4.999999999999997 in floating point


def test_fractions_may_be_rounded_to_the_nearest_number() -> None:
    assert exponential(3, 10, 6, "floor") == [10, 4, 1]  # 10, 4.08, 1.67
    assert exponential(3, 10, 6, "nearest") == [10, 4, 2]


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_without_images_in_the_tail_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"imbalance_factor is 200 .* at most n_max = 90"):
        PROFILES[name](10, 90, 200, "floor")
