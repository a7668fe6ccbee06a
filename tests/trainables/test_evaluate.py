import contextlib
import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix
from torch import Tensor

from trainables.config import TrialConfig
from trainables.data.loader import LoadedSet, Request
from trainables.evaluate import accuracy_metrics, all_features, class_accuracies, mistakes, predicted_classes, training_pass
from trainables.export_model import read_model, write_model
from trainables.models import Classifier
from trainables.trial_run import TrialRun


def one_epoch(precision: str, stages: list[dict[str, str]]) -> TrialRun:
    run, method = TrialRun(), {"name": "cross_entropy"}
    settings = {"epochs": 2, "method": method, "stages": stages, "compute": {"precision": precision}}
    run.start(TrialConfig.model_validate(settings))
    run.run_epoch()
    return run


def by_hand(classifier: Classifier, images: LoadedSet, precision: str) -> tuple[Tensor, Tensor]:
    """Features and logits of a set, with the backbone alone under autocast if the precision is bf16."""
    backbone, head = copy.deepcopy(classifier.backbone).eval(), classifier.head
    pixels = next(images.batches([Request(torch.arange(len(images)))])).images.to(head.weight.dtype)
    rounded = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
    with torch.no_grad():
        with rounded:
            features = backbone(pixels)
        assert features.dtype == (torch.bfloat16 if precision == "bf16" else pixels.dtype)
        features = features.to(pixels.dtype)
        return features, head(features)


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


@pytest.mark.parametrize("precision", ["float32", "float64", "bf16"])
def test_evaluations_compute_as_training_does_bit_for_bit(precision: str) -> None:
    run = one_epoch(precision, [{"name": "representation"}, {"name": "tau_norm"}])
    val = run.loaded.val
    features, logits = by_hand(run.classifier, val, precision)
    assert torch.equal(all_features(run.classifier, val), features)
    seen = training_pass(run.classifier, val)
    assert torch.equal(seen.features, features)
    assert torch.equal(seen.logits, logits)
    predicted = predicted_classes(run.classifier, val)
    assert torch.equal(predicted, logits.argmax(1))
    assert run.report is not None
    accuracy = class_accuracies(predicted, val.labels, 10).mean().item()
    assert run.report["metrics"]["val/acc"] == pytest.approx(accuracy)
    run.run_epoch()  # the stage on frozen features
    frozen = next(run.stage.sets.val.batches([Request(torch.arange(len(val)))])).images
    assert torch.equal(frozen, features)


def test_the_precisions_differ_and_all_have_logits_without_bf16() -> None:
    run = one_epoch("bf16", [{"name": "representation"}])
    (in_bf16, logits), (plain, _) = (by_hand(run.classifier, run.loaded.val, precision) for precision in ("bf16", "float32"))
    assert not torch.equal(in_bf16, plain)
    torch.testing.assert_close(in_bf16, plain, rtol=0.05, atol=0.05)
    assert not torch.equal(logits, logits.bfloat16().float())


def test_an_exported_classifier_is_evaluated_in_its_precision_and_computes_in_float32(tmp_path: Path) -> None:
    run, file = one_epoch("bf16", [{"name": "representation"}]), tmp_path / "model.safetensors"
    assert run.best is not None
    write_model(file, run.best.phi, run.config, run.loaded.data, run.loaded.format)
    model, val = read_model(file)[0], run.loaded.val
    assert torch.equal(all_features(model, val), by_hand(model, val, "bf16")[0])
    pixels = next(val.batches([Request(torch.arange(len(val)))])).images
    with torch.no_grad():
        assert torch.equal(model(pixels), by_hand(model, val, "float32")[1])
