"""Every row of LOSSES against its paper's formula, written once more in numpy, class by class."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tasks import PLAIN, built, context, softmax, task
from torch import Tensor, nn
from torch.testing import assert_close

from trainables.classifier_config import SmallCNNConfig
from trainables.config import TrialConfig
from trainables.data.loader import Request
from trainables.export_model import read_model, write_model
from trainables.loss_config import (
    LOSS_SETTINGS,
    BalancedSoftmaxConfig,
    EqualizationConfig,
    FocalConfig,
    LabelAwareSmoothingConfig,
    LDAMConfig,
    LogitAdjustmentConfig,
    LossSettings,
)
from trainables.method_config import ClassBalancedConfig
from trainables.methods import LOSSES, METHODS, Context, LossAlone
from trainables.methods.losses import Loss, build_loss
from trainables.models.heads import build_head
from trainables.trial_run import TrialRun

FEW = [20, 5, 0]
"""Three classes, the last one absent from the training set."""
MANY = [int(500 * 0.994**c) for c in range(998)] + [1, 0]
SCALE = 30.0
"""The head's scale."""


class Image(NamedTuple):
    """What a formula may know of one image."""

    z: np.ndarray
    y: int
    n: np.ndarray
    """Training images of each class, as floating-point numbers."""
    drawn: np.ndarray
    """A random number for each class, in [0, 1)."""

    @property
    def p(self) -> np.ndarray:
        return softmax(self.z)


def focal(image: Image, gamma: float) -> float:
    p = image.p[image.y]
    return -((1 - p) ** gamma) * math.log(p)


def ldam(image: Image, max_margin: float) -> float:
    """The margins are made for cosines, so the head's scale multiplies them, too."""
    roots = [1 / max(n, 1) ** (1 / 4) for n in image.n]
    z = image.z.copy()
    z[image.y] -= SCALE * max_margin * roots[image.y] / max(roots)
    return -math.log(softmax(z)[image.y])


def equalization(image: Image, gamma: float, below: float) -> float:
    total = 0.0
    for k, z in enumerate(image.z):
        rare = image.n[k] / image.n.sum() < below
        ignored = image.drawn[k] < gamma
        total += (0 if rare and ignored and k != image.y else 1) * math.exp(z)
    return -math.log(math.exp(image.z[image.y]) / total)


def balanced_softmax(image: Image) -> float:
    n = [max(n, 1) for n in image.n]
    return -math.log(n[image.y] * math.exp(image.z[image.y]) / sum(n[k] * math.exp(z) for k, z in enumerate(image.z)))


def logit_adjustment(image: Image, tau: float) -> float:
    n = np.array([max(n, 1) for n in image.n])
    return -math.log(softmax(image.z + tau * np.log(n / n.sum()))[image.y])


def label_aware_smoothing(image: Image, head: float, tail: float) -> float:
    place = (image.n[image.y] - image.n.min()) / (image.n.max() - image.n.min())
    epsilon = tail + (head - tail) * math.sin(math.pi * place / 2)
    target = [epsilon / len(image.z) + (1 - epsilon) * (k == image.y) for k in range(len(image.z))]
    return sum(-share * math.log(p) for share, p in zip(target, image.p, strict=True))


Formula = Callable[[Image], float]
CASES: dict[str, tuple[LossSettings, Formula]] = {
    "cross_entropy": (PLAIN, lambda image: -math.log(image.p[image.y])),
    "focal": (FocalConfig(gamma=2.0), lambda image: focal(image, 2.0)),
    "focal, gamma 1/2": (FocalConfig(gamma=0.5), lambda image: focal(image, 0.5)),
    "focal, detached": (FocalConfig(gamma=2.0, detach_modulation=True), lambda image: focal(image, 2.0)),
    "ldam": (LDAMConfig(max_margin=0.3), lambda image: ldam(image, 0.3)),
    "equalization": (
        EqualizationConfig(ignore_probability=0.6, rare_below=0.3),
        lambda image: equalization(image, 0.6, 0.3),
    ),
    "equalization, default": (EqualizationConfig(), lambda image: equalization(image, 0.9, 0.005)),
    "balanced_softmax": (BalancedSoftmaxConfig(), balanced_softmax),
    "logit_adjustment": (LogitAdjustmentConfig(tau=1.7), lambda image: logit_adjustment(image, 1.7)),
    "logit_adjustment, post-hoc": (
        LogitAdjustmentConfig(tau=1.7, where="prediction"),
        lambda image: -math.log(image.p[image.y]),
    ),
    "label_aware_smoothing": (
        LabelAwareSmoothingConfig(head_smoothing=0.4, tail_smoothing=0.1),
        lambda image: label_aware_smoothing(image, 0.4, 0.1),
    ),
}


def loss_and_context(config: LossSettings, counts: list[int], **changed: Any) -> tuple[Loss, Context]:
    """A loss in double precision, and a context that gives it random numbers."""
    one = task(counts, **changed)
    plain = built(PLAIN, one)
    return build_loss(config, one).double(), context(plain, torch.zeros(1, len(counts)), torch.tensor([0]), step=7, seed=11)


def losses(config: LossSettings, logits: Tensor, labels: Tensor, counts: list[int], **changed: Any) -> Tensor:
    loss, around = loss_and_context(config, counts, **changed)
    found: Tensor = loss(logits, labels, around)
    return found


def random_batch(number: int, num_classes: int, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """Logits and labels; the labels begin at the last class, which is absent from the training set."""
    generator = torch.Generator().manual_seed(number)
    logits = scale * torch.randn(number, num_classes, generator=generator, dtype=torch.float64)
    return logits, (num_classes - 1 - torch.arange(number)) % num_classes


def test_every_loss_has_a_formula_here_and_is_a_method() -> None:
    assert {name.split(",")[0] for name in CASES} == set(LOSSES) == set(LOSS_SETTINGS)
    assert all(METHODS[name] is LossAlone for name in LOSSES)


@pytest.mark.parametrize("counts", [FEW, MANY], ids=["3 classes", "1000 classes"])
@pytest.mark.parametrize("number", [1, 6])
@pytest.mark.parametrize("case", CASES)
def test_a_loss_is_its_papers_formula(case: str, number: int, counts: list[int]) -> None:
    config, formula = CASES[case]
    logits, labels = random_batch(number, len(counts))
    loss, around = loss_and_context(config, counts, head_scale=SCALE)
    drawn = around.uniform(*logits.shape, stream=1).double().numpy()
    n = np.array(counts, dtype=float)
    expected = [formula(Image(*row)) for row in zip(logits.numpy(), labels.tolist(), [n] * number, drawn, strict=True)]
    assert_close(loss(logits, labels, around), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_equalization_may_draw_once_for_the_whole_batch() -> None:
    logits, labels = random_batch(8, 3)
    config = EqualizationConfig(ignore_probability=0.5, rare_below=0.3, draws="batch")
    seen = set()
    for step in range(20):
        loss, _ = loss_and_context(config, FEW)
        around = context(built(PLAIN, task(FEW)), torch.zeros(1, 3), torch.tensor([0]), step=step)
        drawn = around.uniform(1, 1, stream=1).item()
        expected = [
            equalization(Image(z, y, np.array(FEW, dtype=float), np.full(3, drawn)), 0.5, 0.3)
            for z, y in zip(logits.numpy(), labels.tolist(), strict=True)
        ]
        assert_close(loss(logits, labels, around), torch.tensor(expected, dtype=torch.float64))
        seen.add(drawn < 0.5)
    assert seen == {True, False}


EQUAL = [7, 7, 7]
LIMITS: dict[str, tuple[LossSettings, list[int], LossSettings]] = {
    "focal without gamma": (FocalConfig(gamma=0.0), FEW, PLAIN),
    "balanced softmax of equal counts": (BalancedSoftmaxConfig(), EQUAL, PLAIN),
    "logit adjustment without tau": (LogitAdjustmentConfig(tau=0.0), FEW, PLAIN),
    "logit adjustment with tau 1": (LogitAdjustmentConfig(tau=1.0), FEW, BalancedSoftmaxConfig()),
    "logit adjustment in the prediction": (LogitAdjustmentConfig(where="prediction"), FEW, PLAIN),
    "ldam without margin": (LDAMConfig(max_margin=0.0), FEW, PLAIN),
    "equalization that never ignores": (EqualizationConfig(ignore_probability=0.0, rare_below=1.0), FEW, PLAIN),
    "equalization without rare classes": (EqualizationConfig(ignore_probability=1.0, rare_below=0.0), FEW, PLAIN),
    "no smoothing": (LabelAwareSmoothingConfig(head_smoothing=0.0, tail_smoothing=0.0), FEW, PLAIN),
}


@pytest.mark.parametrize("case", LIMITS)
def test_in_its_limit_a_loss_is_another_one(case: str) -> None:
    config, counts, other = LIMITS[case]
    logits, labels = random_batch(6, 3)
    assert_close(losses(config, logits, labels, counts, head_scale=SCALE), losses(other, logits, labels, counts))


@pytest.mark.parametrize("case", [case for case in CASES if not case.endswith("detached")])
def test_the_gradient_is_that_of_the_value(case: str) -> None:
    config, _ = CASES[case]
    logits, labels = random_batch(3, 3)
    loss, around = loss_and_context(config, FEW, head_scale=3.0)
    assert torch.autograd.gradcheck(lambda z: loss(z, labels, around), logits.requires_grad_())
    assert torch.autograd.gradgradcheck(lambda z: loss(z, labels, around), logits)


def test_a_detached_modulation_is_a_constant_factor_of_the_gradient() -> None:
    logits, labels = random_batch(4, 3)
    logits.requires_grad_()

    def gradient(config: LossSettings) -> Tensor:
        return torch.autograd.grad(losses(config, logits, labels, FEW).sum(), logits)[0]

    p = logits.softmax(1)[torch.arange(4), labels].detach()
    detached = gradient(FocalConfig(gamma=2.0, detach_modulation=True))
    assert_close(detached, (1 - p[:, None]) ** 2 * gradient(PLAIN))
    assert not torch.allclose(detached, gradient(FocalConfig(gamma=2.0)))


@pytest.mark.parametrize("case", CASES)
def test_extreme_logits_and_absent_classes_leave_all_derivatives_finite(case: str) -> None:
    """In single precision, as in training; methods that mask features need second derivatives, too."""
    config, _ = CASES[case]
    rows = [[80.0, -80, -80], [-80, 80, -80], [-80, -80, 80], [80, 80, 80], [-80, -80, -80], [0, 0, 0], [80, 0, -80]]
    logits = torch.tensor([row for row in rows for _ in range(3)], requires_grad=True)
    labels = torch.arange(3).repeat(len(rows))
    loss, around = loss_and_context(config, FEW)
    found = loss.float()(logits, labels, around)
    gradient = torch.autograd.grad(found.sum(), logits, create_graph=True)[0]
    assert found.isfinite().all()
    assert (found >= 0).all()
    assert gradient.isfinite().all()
    if gradient.requires_grad:
        torch.manual_seed(0)
        assert torch.autograd.grad((gradient * torch.randn_like(gradient)).sum(), logits)[0].isfinite().all()


def test_with_the_cosine_head_ldam_lowers_the_labels_cosine_by_its_margin() -> None:
    head = build_head(SmallCNNConfig(head="cosine", scale=SCALE), 4, 3).double()
    features, labels = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0])
    cosines = head(features) / SCALE
    assert cosines.abs().max() <= 1
    margins = torch.tensor([20.0, 5, 1], dtype=torch.float64) ** -0.25 * 0.5
    lowered = cosines - margins * nn.functional.one_hot(labels, 3)
    expected = nn.functional.cross_entropy(SCALE * lowered, labels, reduction="none")
    found = losses(LDAMConfig(), head(features), labels, FEW, head_scale=SCALE)
    assert_close(found, expected)
    assert (found > losses(PLAIN, head(features), labels, FEW)).all()


def test_a_trial_gives_ldam_the_scale_of_its_head() -> None:
    def margins(**classifier: Any) -> Tensor:
        run = TrialRun()
        run.start(TrialConfig(method=LDAMConfig(), classifier=SmallCNNConfig(widths=[2, 2], **classifier)))
        found: Tensor = run.method.base_loss.margins
        return found

    linear, cosine = margins(), margins(head="cosine", scale=16.0)
    assert linear.max() == 0.5
    assert_close(cosine, 16 * linear)


# Predictions


@pytest.mark.parametrize("method", ["alone", "base_loss"])
def test_post_hoc_adjustment_reaches_every_prediction_and_no_training_loss(method: str, tmp_path: Path) -> None:
    """As a method of its own, and as the loss that another method weighs."""
    adjustment = LogitAdjustmentConfig(tau=1.5, where="prediction")
    run, plain = TrialRun(), TrialRun()
    for one, loss in ((run, adjustment), (plain, PLAIN)):
        one.start(TrialConfig(epochs=2, method=loss if method == "alone" else ClassBalancedConfig(base_loss=loss)))
    metrics, plain_metrics = ([one.run_epoch() for _ in range(2)][-1] for one in (run, plain))
    assert metrics["train/loss"] == plain_metrics["train/loss"]
    assert all(map(torch.equal, run.classifier.parameters(), plain.classifier.parameters()))

    run.classifier.eval()
    val = run.loaded.val
    images, labels, *_ = next(iter(val.batches([Request(torch.arange(len(val)))])))
    counts = torch.from_numpy(run.loaded.data.class_counts).double()
    with torch.no_grad():
        logits = run.classifier.head(run.classifier.backbone(images))
    adjusted = logits - 1.5 * torch.log(counts / counts.sum())
    hits = [(adjusted.argmax(1) == labels)[labels == c].double().mean().item() for c in range(10)]
    assert metrics["val/acc"] == pytest.approx(np.mean(hits))
    assert metrics["val/acc"] != plain_metrics["val/acc"]

    write_model(tmp_path / "model", run.best.phi, run.config, run.loaded.data, run.loaded.format)
    exported = read_model(tmp_path / "model")[0]
    run.classifier.load_state_dict(run.best.phi)
    with torch.no_grad():
        logits = run.classifier.head(run.classifier.backbone(images))
        assert_close(exported(images).double(), (logits - 1.5 * torch.log(counts / counts.sum())).double())
    assert_close(run.method.predict(logits).double(), exported(images).detach().double())


@pytest.mark.parametrize("case", CASES)
def test_a_loss_either_adjusts_predictions_by_the_shares_or_leaves_them_alone(case: str) -> None:
    logits, _ = random_batch(2, 3)
    shift = 1.7 * torch.tensor([20 / 26, 5 / 26, 1 / 26], dtype=torch.float64).log()
    expected = logits - shift if case.endswith("post-hoc") else logits
    assert_close(loss_and_context(CASES[case][0], FEW)[0].predict(logits), expected)


# What users get


@pytest.mark.slow
def test_losses_that_know_the_class_counts_lift_the_few_shot_classes() -> None:
    """Against cross-entropy, the mean over three seeds on the digits with a tail of 90 .. 1 images."""

    def few(loss: LossSettings) -> float:
        found, run = [], TrialRun()
        for seed in range(3):
            run.start(TrialConfig(seed=seed, epochs=10, method=loss))
            found.append([run.run_epoch() for _ in range(10)][-1]["val/acc_few"])
        return float(np.mean(found))

    plain = few(PLAIN)
    for loss in (BalancedSoftmaxConfig(), LogitAdjustmentConfig(where="prediction")):
        assert few(loss) > plain + 0.05, loss


# Settings


WRONG: dict[str, dict[str, Any]] = {
    "cross_entropy": {"gamma": 1.0},
    "focal": {"gamma": -0.1, "detach_modulation": "perhaps"},
    "ldam": {"max_margin": -0.5},
    "equalization": {"ignore_probability": 1.1, "rare_below": -0.1, "draws": "image"},
    "balanced_softmax": {"tau": 1.0},
    "logit_adjustment": {"tau": -1.0, "where": "everywhere"},
    "label_aware_smoothing": {"head_smoothing": 1.0, "tail_smoothing": -0.1},
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("place", ["method", "base_loss", "meta_loss"])
def test_wrong_settings_of_a_loss_are_named_where_they_stand(name: str, place: str) -> None:
    for field, value in WRONG[name].items():
        loss = {"name": name, field: value}
        method = loss if place == "method" else {"name": "difficulty_net", place: loss}
        with pytest.raises(ValidationError) as error:
            TrialConfig.model_validate({"method": method})
        where = ("method", field) if place == "method" else ("method", place, field)
        assert [one["loc"] for one in error.value.errors()] == [where]


def test_a_loss_that_does_not_exist_is_answered_with_those_that_do() -> None:
    with pytest.raises(ValidationError, match="'cross_entropy', 'focal'") as error:
        TrialConfig.model_validate({"method": {"name": "l2rw", "base_loss": {"name": "focl"}}})
    assert error.value.errors()[0]["loc"] == ("method", "base_loss")
