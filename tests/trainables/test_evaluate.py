import math

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix

from trainables.evaluate import accuracy_metrics, class_accuracies, mistakes


def test_accuracies_and_mistakes_are_those_of_the_confusion_matrix() -> None:
    labels, predicted = torch.randint(6, (2, 200), generator=torch.Generator().manual_seed(0))
    labels[labels == 4] = 3  # no image of class 4, which others are still mistaken for
    expected = confusion_matrix(labels.numpy(), predicted.numpy(), labels=range(6))
    found = np.diag(expected.diagonal()) + [np.bincount(taken, minlength=6) for taken in mistakes(predicted, labels, 6)]
    assert found.tolist() == expected.tolist()
    accuracy = class_accuracies(predicted, labels, 6)
    assert accuracy.isnan().tolist() == [False] * 4 + [True, False]
    present = [0, 1, 2, 3, 5]
    shares = expected.diagonal()[present] / expected.sum(1)[present]
    assert accuracy[present].tolist() == pytest.approx(shares.tolist(), abs=1e-12)


def test_bands_follow_the_training_counts() -> None:
    counts = torch.tensor([500, 101, 100, 20, 19, 1])
    accuracy = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2, 0.0])
    metrics = accuracy_metrics("val", accuracy, counts)
    assert metrics == pytest.approx({"val/acc": 0.5, "val/acc_many": 0.9, "val/acc_medium": 0.5, "val/acc_few": 0.1})


def test_equal_hits_give_equal_metrics_whichever_classes_they_fell_on() -> None:
    counts = torch.full((10,), 5)
    hits = torch.tensor([17, 18, 19, 20, 21, 22, 23, 24, 12, 1])
    values = {accuracy_metrics("val", hits[torch.randperm(10)].double() / 24, counts)["val/acc"] for _ in range(20)}
    assert values == {round(int(hits.sum()) / 240, 9)}


def test_an_empty_band_has_no_accuracy_rather_than_zero() -> None:
    assert math.isnan(accuracy_metrics("val", torch.tensor([0.5]), torch.tensor([50]))["val/acc_few"])
