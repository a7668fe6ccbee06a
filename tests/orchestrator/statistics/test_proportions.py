import pytest
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from orchestrator.statistics.proportions import newcombe, wilson


@pytest.mark.parametrize(("hits", "number"), [(0, 5), (5, 5), (192, 240), (1, 1), (402, 500)])
def test_the_interval_of_an_accuracy_is_wilsons(hits: int, number: int) -> None:
    """Against statsmodels."""
    assert wilson(hits / number, number) == pytest.approx(proportion_confint(hits, number, method="wilson"), abs=1e-12)


@pytest.mark.parametrize(("first", "second", "number"), [(192, 188, 240), (24, 0, 24), (3, 3, 10), (240, 100, 240)])
def test_the_interval_of_a_difference_is_newcombes(first: int, second: int, number: int) -> None:
    """Against statsmodels."""
    expected = confint_proportions_2indep(first, number, second, number, method="newcomb", compare="diff")
    assert newcombe(first / number, second / number, number) == pytest.approx(expected, abs=1e-12)


def test_no_image_bounds_nothing() -> None:
    with pytest.raises(ValueError, match="number is 0; allowed: 1 and more"):
        wilson(0.5, 0)
