import numpy as np
import pytest

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.outcome.differences import counting_images, interval

COUNTS = [30, 30, 10, 4, 0, 2]
SPLIT = {"split": {"val": list(range(sum(COUNTS)))}}


def sweep(select_by: str = "val/acc", **data: object) -> SweepConfig:
    return SweepConfig.model_validate(
        {"trial": {"select_by": select_by, "data": {"source": "digits"} | data}, "search": {"trials": 1}}
    )


@pytest.mark.parametrize("accuracy", [0.5, 0.8])
def test_a_mean_over_classes_varies_as_a_share_of_so_many_images(accuracy: float) -> None:
    number = counting_images(sweep(), SPLIT | {"val_counts": COUNTS})
    rng = np.random.default_rng(0)
    means = np.mean([rng.binomial(count, accuracy, 100_000) / count for count in COUNTS if count], axis=0)
    assert means.var() == pytest.approx(accuracy * (1 - accuracy) / number, rel=0.02)
    assert number < sum(COUNTS) / 2  # the two images of the smallest class decide
    found = interval(number, accuracy)
    assert found is not None
    inside = (np.abs(means - accuracy) <= (found[1] - found[0]) / 2).mean()
    assert inside > 0.93


def test_where_all_classes_are_as_large_every_image_counts() -> None:
    assert counting_images(sweep(), SPLIT | {"val_counts": [12] * 5}) == pytest.approx(60)
    assert counting_images(sweep("val/plain_acc"), SPLIT | {"val_counts": COUNTS}) == sum(COUNTS)
    assert counting_images(sweep("val/acc_few"), SPLIT | {"val_counts": COUNTS}) == 0


def test_a_ledger_without_the_counts_has_an_interval_only_where_classes_must_be_as_large() -> None:
    assert counting_images(sweep(), SPLIT) == sum(COUNTS)
    assert counting_images(sweep(at_least_per_class=0), SPLIT) == 0
    assert counting_images(sweep(val_distribution="long_tailed"), SPLIT) == 0
    assert interval(0, 0.5) is None
    assert interval(10, 1.5) is None
