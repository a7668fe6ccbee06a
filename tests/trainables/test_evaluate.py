import math

import pytest
import torch

from trainables.evaluate import accuracy_metrics


def test_bands_follow_the_training_counts() -> None:
    counts = torch.tensor([500, 101, 100, 20, 19, 1])
    accuracy = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2, 0.0])
    metrics = accuracy_metrics("val", accuracy, counts)
    assert metrics == pytest.approx({"val/acc": 0.5, "val/acc_many": 0.9, "val/acc_medium": 0.5, "val/acc_few": 0.1})


def test_an_empty_band_has_no_accuracy_rather_than_zero() -> None:
    assert math.isnan(accuracy_metrics("val", torch.tensor([0.5]), torch.tensor([50]))["val/acc_few"])
