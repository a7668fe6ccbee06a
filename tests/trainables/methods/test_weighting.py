"""Methods that weigh images: their weights against formulas from the papers, by hand and in numpy."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from tasks import PLAIN, Linear, built, context, image_gradients, loss_of, residuals, softmax, task, with_one
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from trainables.classifier_config import SmallCNNConfig
from trainables.config import OptimConfig, TrialConfig
from trainables.data.loader import Request
from trainables.data_config import DigitsConfig, NoiseConfig
from trainables.loss_config import (
    BalancedSoftmaxConfig,
    FocalConfig,
    LabelAwareSmoothingConfig,
    LDAMConfig,
    LogitAdjustmentConfig,
)
from trainables.method_config import (
    CBDAConfig,
    CDBConfig,
    ClassBalancedConfig,
    DifficultyNetConfig,
    GDWConfig,
    L2RWConfig,
    LDAMDRWConfig,
    MetaSamplerConfig,
    MetaWeightNetConfig,
    MethodConfig,
)
from trainables.methods import Context, Method
from trainables.methods.base import TrainingPass
from trainables.methods.difficulty_net import scale_weights
from trainables.methods.weighted import kl_from_uniform, weights_in
from trainables.trial_run import TrialRun

COUNTS = [30, 8, 0]
LABELS = torch.tensor([0, 0, 1, 2, 1, 0])


def logits_of_batch() -> Tensor:
    return 2 * torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def effective_number(counts: list[int], beta: float) -> list[float]:
    """Cui et al., Eq. 12, with mean 1."""
    weights = [(1 - beta) / (1 - beta ** max(n, 1)) for n in counts]
    return [weight * len(counts) / sum(weights) for weight in weights]


def recorded(run: TrialRun) -> list[Tensor]:
    """The weights of the batches that follow, as the actual step uses them."""
    found, original = [], run.method.sample_weights

    def watched(context: Any, state: Any) -> Tensor | None:
        found.append(weights_in(state).detach().clone())
        return original(context, state)

    run.method.sample_weights = watched  # type: ignore[method-assign]
    return found


# Class weights by the effective number


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.9999])
def test_class_balanced_weighs_by_the_effective_number(beta: float) -> None:
    method, logits = built(ClassBalancedConfig(beta=beta), task(COUNTS)), logits_of_batch()
    weights = effective_number(COUNTS, beta)
    losses = -np.log(softmax(logits.numpy()))[np.arange(6), LABELS]
    expected = sum(weights[y] * loss for y, loss in zip(LABELS.tolist(), losses, strict=True)) / 6
    assert loss_of(method, context(method, logits, LABELS)).item() == pytest.approx(expected)
    assert weights[0] < weights[1] < weights[2]  # an absent class counts as one with an image


def test_the_limits_of_the_effective_number_are_equal_weights_and_the_inverse_frequency() -> None:
    logits = logits_of_batch()

    def loss(config: MethodConfig) -> Tensor:
        method = built(config, task(COUNTS))
        return loss_of(method, context(method, logits, LABELS))

    assert_close(loss(ClassBalancedConfig(beta=0.0)), loss(PLAIN))
    assert_close(loss(LDAMDRWConfig(defer_until=1.0)), loss(LDAMConfig()))
    inverse = built(ClassBalancedConfig(beta=1 - 1e-9), task([30, 8, 2]))
    weights = inverse.weights
    assert_close(weights / weights[0], torch.tensor([1, 30 / 8, 15.0], dtype=torch.float64), rtol=1e-6, atol=0)


def test_any_loss_can_be_weighed() -> None:
    method, logits = built(ClassBalancedConfig(beta=0.9, base_loss=FocalConfig(gamma=2.0)), task(COUNTS)), logits_of_batch()
    p = softmax(logits.numpy())[np.arange(6), LABELS]
    expected = np.mean([effective_number(COUNTS, 0.9)[y] * -((1 - q) ** 2) * np.log(q) for y, q in zip(LABELS, p, strict=True)])
    assert loss_of(method, context(method, logits, LABELS)).item() == pytest.approx(expected)


@pytest.mark.parametrize("first", [0, 1, 80, 99])
def test_deferred_weights_begin_exactly_at_their_step(first: int) -> None:
    method = built(LDAMDRWConfig(defer_until=first / 100), task(COUNTS))
    full = torch.tensor(effective_number(COUNTS, 0.9999), dtype=torch.float64)[LABELS]
    for step in range(100):
        weights = method.begin_batch(context(method, logits_of_batch(), LABELS, step=step))
        assert_close(weights, full if step >= first else torch.ones_like(full))


def test_a_trial_defers_weights_by_the_share_of_its_steps() -> None:
    """2.5 epochs of 8 steps without weights, then weights: the first half of the third epoch is without."""
    run = TrialRun()
    run.start(TrialConfig(epochs=4, method=LDAMDRWConfig(defer_until=0.625), classifier=SmallCNNConfig(widths=[2, 2])))
    weights = recorded(run)
    assert run.steps_per_epoch == 8
    run.run_epoch()
    assert run.class_table()["weight"] == [1.0] * 10
    for _ in range(3):
        run.run_epoch()
    assert [bool((batch == 1).all()) for batch in weights] == [True] * 20 + [False] * 12
    expected = effective_number(run.loaded.data.class_counts.tolist(), 0.9999)
    assert run.class_table()["weight"] == pytest.approx(expected, rel=1e-5)


# Difficulty from accuracies: CDB-CE


ACCURACY = [0.9, 0.5, 0.0]
DIFFICULTIES = {
    "linear": [0.1, 0.5, 1.0],
    "logarithm": [-math.log(0.9), -math.log(0.5), -math.log(0.01)],
    "inverse": [1 / 0.9 - 1, 1.0, 99.0],
    "exponential": [math.exp(-0.9), math.exp(-0.5), 1.0],
}


@pytest.mark.parametrize("tau", [0.0, 0.5, 2.0, None])
@pytest.mark.parametrize("kind", DIFFICULTIES)
def test_cdb_weighs_by_a_power_of_the_difficulty(kind: str, tau: float | None) -> None:
    dynamic: dict[str, Any] = {"exponent": "dynamic"} if tau is None else {"tau": tau}
    method = built(CDBConfig.model_validate({"name": "cdb_ce", "difficulty": kind, **dynamic}), task(COUNTS))
    method.refresh(torch.tensor(ACCURACY))
    exponent = 2 / (1 + math.exp(-(0.9 / (0.0 + 0.01) - 1))) if tau is None else tau
    powers = np.array(DIFFICULTIES[kind]) ** exponent
    assert_close(method.difficulty().numpy(), np.array(DIFFICULTIES[kind]), rtol=1e-6, atol=0)
    weights = method.begin_batch(context(method, logits_of_batch(), LABELS))
    assert_close(weights.numpy(), (powers / powers.mean())[LABELS], rtol=1e-6, atol=0)


def test_the_dynamic_exponent_follows_the_gap_between_the_classes() -> None:
    method = built(CDBConfig(exponent="dynamic"), task(COUNTS))

    def exponent(best: float, worst: float) -> float:
        method.refresh(torch.tensor([best, worst, worst]))
        weights = method.class_weights()
        return float((weights[0] / weights[1]).log() / math.log((1 - best) / (1 - worst)))

    for best, worst in ((0.9, 0.8), (0.6, 0.3), (0.9, 0.1)):
        assert exponent(best, worst) == pytest.approx(2 / (1 + math.exp(1 - best / (worst + 0.01))), rel=1e-5)
    assert exponent(0.8, 0.79999) == pytest.approx(1, abs=0.01)
    assert exponent(0.9, 0.1) == pytest.approx(2, abs=0.01)


@pytest.mark.parametrize("accuracy", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", DIFFICULTIES)
def test_equal_accuracies_give_equal_weights(kind: str, accuracy: float) -> None:
    method = built(CDBConfig.model_validate({"name": "cdb_ce", "difficulty": kind}), task(COUNTS))
    method.refresh(torch.full((3,), accuracy))
    assert_close(method.class_weights(), torch.ones(3, dtype=torch.float64))


def test_an_epoch_has_the_weights_of_the_training_accuracies_before_it() -> None:
    """With post-hoc adjustment as the loss, so that accuracies are those of predictions, not of raw logits."""
    adjustment = LogitAdjustmentConfig(tau=1.0, where="prediction")
    run = TrialRun()
    run.start(TrialConfig(epochs=2, method=CDBConfig(accuracy_from="train", base_loss=adjustment)))
    run.run_epoch()
    train = run.loaded.train
    run.classifier.eval()
    images, labels, *_ = next(iter(train.batches([Request(torch.arange(len(train)))])))
    with torch.no_grad():
        logits = run.classifier(images)
    run.classifier.train()
    shares = run.class_counts / run.class_counts.sum()
    hits = (logits - shares.log()).argmax(1) == labels
    accuracy = [hits[labels == c].double().mean().item() for c in range(10)]
    assert accuracy != [(logits.argmax(1) == labels)[labels == c].double().mean().item() for c in range(10)]
    run.run_epoch()
    table = run.class_table()
    assert table["meta_accuracy"] == pytest.approx(accuracy)
    difficulty = 1 - np.array(accuracy)
    assert table["weight"] == pytest.approx((difficulty / difficulty.mean()).tolist(), rel=1e-5)


def test_a_class_without_a_training_image_has_the_mean_accuracy_of_the_others() -> None:
    method = built(CDBConfig(accuracy_from="train"), task(COUNTS))
    logits, labels = torch.eye(3)[[0, 1, 1, 0, 1]], torch.tensor([0, 0, 1, 1, 1])
    method.observe(TrainingPass(torch.zeros(5, 4), logits, labels))
    assert_close(method.class_accuracy, torch.tensor([1 / 2, 2 / 3, (1 / 2 + 2 / 3) / 2], dtype=torch.float64))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exponent": "dynamic", "tau": 2.0}, "tau is 2, but exponent is dynamic"),
        ({"accuracy_from": "train", "refresh_interval": 0.5}, "refresh_interval is 0.5, but accuracy_from is train"),
    ],
)
def test_settings_of_cdb_that_would_have_no_effect_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CDBConfig.model_validate({"name": "cdb_ce", **settings})


# Weights from a perturbation: L2RW and CB-DA


def of_meta_loss(problem: Linear, phi: np.ndarray) -> np.ndarray:
    """The gradient of the meta loss at phi, (num_classes, 5)."""
    gradient: np.ndarray = image_gradients(phi, problem.meta_batch).mean(0)
    return gradient


def derivative_by_weights(problem: Linear, phi: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """d L_meta / d w_i after a virtual step with these weights, (B,): -(alpha / B) <grad L_meta(phi_hat), grad L_i(phi)>."""
    g = image_gradients(phi, problem.batch)
    phi_hat = phi - problem.alpha * (weights[:, None, None] * g).mean(0)
    found: np.ndarray = -problem.alpha / len(g) * (of_meta_loss(problem, phi_hat) * g).sum((1, 2))
    return found


def test_l2rw_weighs_an_image_by_how_much_it_helps() -> None:
    """For a linear classifier everything is an inner product of (p - y) x^T."""
    problem = Linear(L2RWConfig(), [5, 3, 2], labels=[0, 1, 2, 0, 1, 2], meta_labels=[0, 1, 2, 0])
    phi = problem.phi()
    helps = np.maximum(0, -derivative_by_weights(problem, phi, np.zeros(6)))
    weights = helps / helps.mean()
    assert 0 < (weights > 0).sum() < 6  # some help and some do not, so that the test says something
    measured = problem.run(meta_gradient="exact", check_interval=1)
    assert problem.phi() == pytest.approx(
        phi - problem.alpha * (weights[:, None, None] * image_gradients(phi, problem.batch)).mean(0)
    )
    assert measured["meta/grad_cosine"] == pytest.approx(1)
    labels = problem.batch.labels
    assert problem.method.sample_weights is not None
    losses = -np.log(softmax(with_one(problem.batch) @ phi.T))[np.arange(6), labels]
    assert measured["train/loss"].item() == pytest.approx((weights * losses).mean())


def test_if_no_image_helps_l2rw_does_not_move_the_classifier() -> None:
    problem = Linear(L2RWConfig(), [5, 3], labels=[0], meta_labels=[1])
    problem.meta_batch.images.copy_(problem.batch.images)  # the same image with the other label
    before = problem.phi()
    measured = problem.run()
    assert (problem.phi() == before).all()
    assert measured["train/loss"] == 0
    assert measured["meta/grad_norm"] > 0


def test_a_step_of_l2rw_without_a_meta_step_is_cross_entropy() -> None:
    problem = Linear(L2RWConfig(), [5, 3, 2], labels=[0, 1, 2, 0], meta_labels=[0, 1, 2])
    phi = problem.phi()
    problem.run(step=1, meta_interval=2)
    assert problem.phi() == pytest.approx(phi - problem.alpha * image_gradients(phi, problem.batch).mean(0))


def test_cb_da_adds_a_step_along_the_meta_gradient_to_the_class_weights() -> None:
    config = CBDAConfig(beta=0.9, weight_lr=5.0, meta_from=0.8)
    problem = Linear(config, [9, 4, 1], labels=[0, 1, 2, 0, 1, 2], meta_labels=[0, 1, 2, 0])
    phi, of_class = problem.phi(), np.array(effective_number([9, 4, 1], 0.9))[problem.batch.labels]
    weights = of_class - 5.0 * 6 * derivative_by_weights(problem, phi, of_class)
    assert np.abs(weights - of_class).max() > 0.05
    problem.run(step=80)
    assert problem.phi() == pytest.approx(
        phi - problem.alpha * (weights[:, None, None] * image_gradients(phi, problem.batch)).mean(0)
    )


def test_cb_da_begins_as_cross_entropy_and_without_its_step_is_class_balanced() -> None:
    def moved(config: MethodConfig, step: int) -> np.ndarray:
        problem = Linear(config, [9, 4, 1], labels=[0, 1, 2, 0, 1, 2], meta_labels=[0, 1, 2, 0])
        problem.run(step=step, first_meta_step=80)
        return problem.phi()

    assert moved(CBDAConfig(), 79) == pytest.approx(moved(PLAIN, 79))
    assert moved(CBDAConfig(weight_lr=0.0), 80) == pytest.approx(moved(ClassBalancedConfig(), 80))
    assert np.abs(moved(CBDAConfig(weight_lr=1.0), 80) - moved(ClassBalancedConfig(), 80)).max() > 1e-3


def test_a_trial_of_cb_da_has_no_meta_step_before_its_time() -> None:
    run = TrialRun()
    run.start(TrialConfig(epochs=4, method=CBDAConfig(meta_from=0.5), classifier=SmallCNNConfig(widths=[2, 2])))
    weights = recorded(run)
    metrics = [run.run_epoch() for _ in range(4)]
    assert ["meta/grad_norm" in one for one in metrics] == [False, False, True, True]
    assert [bool((batch == 1).all()) for batch in weights] == [True] * 16 + [False] * 16


# GDW


def weight_network(network: nn.Module, inputs: np.ndarray) -> np.ndarray:
    """V with one hidden layer, of inputs (B,), with its parameters as they are now."""
    w1, b1, w2, b2 = (parameter.detach().numpy() for parameter in network.parameters())
    hidden = np.maximum(0, inputs[:, None] @ w1.T + b1)
    return 1 / (1 + np.exp(-(hidden @ w2.T + b2)[:, 0]))


@pytest.mark.parametrize(("weight_lr", "max_change"), [(0.05, 0.2), (1.0, 0.2), (1.0, 5.0)])
def test_gdw_moves_the_weights_of_classes_against_the_meta_gradient_and_balances_them(
    weight_lr: float, max_change: float
) -> None:
    """A small step; one that is cut off at the largest change; one that would make weights negative."""
    config = GDWConfig(hidden_width=7, weight_lr=weight_lr, max_change=max_change)
    problem = Linear(config, [5, 3, 2], labels=[0, 1, 2, 0, 1], meta_labels=[0, 1, 2, 0])
    phi, x, y = problem.phi(), with_one(problem.batch), problem.batch.labels.numpy()
    p = softmax(x @ phi.T)
    r = residuals(phi, problem.batch)
    losses = -np.log(p[np.arange(5), y])
    first = weight_network(problem.method.network, losses)
    phi_hat = phi - problem.alpha * ((first[:, None] * r)[:, :, None] * x[:, None, :]).mean(0)
    # d L_meta / d omega_ik = -(alpha / B) (p - y)_ik <grad L_meta at phi_hat of class k, x_i>
    G = -problem.alpha / 5 * r * (x @ of_meta_loss(problem, phi_hat).T)

    problem.run(check_interval=1)

    second = weight_network(problem.method.network, losses)  # theta has moved; the losses are those at phi
    assert np.abs(second - first).max() > 0
    step = weight_lr * G / np.abs(G).mean()
    assert (np.abs(step).max() > 0.2) == (weight_lr == 1.0)
    omega = second[:, None] - np.clip(step, -max_change, max_change)
    assert (omega.min() < 0) == (max_change == 5.0)
    omega = np.clip(omega, 1e-6, None)
    for i in range(5):
        omega[i, y[i]] = sum(omega[i, k] * p[i, k] for k in range(3) if k != y[i]) / (1 - p[i, y[i]])
    assert problem.phi() == pytest.approx(phi - problem.alpha * ((omega * r)[:, :, None] * x[:, None, :]).mean(0))


def test_gdw_without_a_step_of_its_own_is_meta_weight_net() -> None:
    def moved(config: MethodConfig) -> np.ndarray:
        problem = Linear(config, [5, 3, 2], labels=[0, 1, 2, 0, 1], meta_labels=[0, 1, 2, 0])
        for _ in range(3):
            problem.run()
        return problem.phi()

    assert moved(GDWConfig(hidden_width=7, weight_lr=0.0)) == pytest.approx(moved(MetaWeightNetConfig(hidden_width=7)))


@pytest.mark.parametrize(
    "base", [PLAIN, BalancedSoftmaxConfig(), FocalConfig(gamma=2.0), LabelAwareSmoothingConfig()], ids=lambda loss: loss.name
)
def test_the_weighted_derivatives_of_gdw_add_up_to_zero_for_any_loss(base: Any) -> None:
    method = built(GDWConfig(hidden_width=7, base_loss=base), task([5, 3, 2]))
    logits = logits_of_batch()
    actual = context(method, logits, LABELS).virtual().actual(torch.randn(6, 3).double())
    leaf = logits.clone().requires_grad_()
    state = method.begin_batch(actual)
    loss = method.train_loss(nn.Identity(), leaf, actual, state)
    gradient = torch.autograd.grad(loss, leaf)[0]
    assert gradient.abs().max() > 1e-3
    assert_close(gradient.sum(1), torch.zeros(6, dtype=torch.float64))
    assert_close(loss, actual.losses.mean())


# Learned class weights: Difficulty-Net and the arms of its Table 4


ARMS = ("relative", "absolute", "fixed")


def difficulty_net(arm: str, counts: int = 3, **more: Any) -> Method:
    config = {"name": "difficulty_net", "hidden_width": 8, "difficulty": arm, **more}
    return built(DifficultyNetConfig.model_validate(config), task([9] * counts, batch_size=6))


def test_the_fixed_difficulty_is_one_minus_relative_accuracy() -> None:
    method = difficulty_net("fixed")
    assert not list(method.parameters())
    method.refresh(torch.tensor([0.6, 0.3, 0.1]))
    assert_close(method.difficulty(), torch.tensor([0.4, 0.7, 0.9], dtype=torch.float64), rtol=1e-6, atol=0)
    weights = method.begin_batch(context(method, logits_of_batch(), LABELS)).weights
    assert_close(weights, torch.tensor([0.6, 1.05, 1.35], dtype=torch.float64)[LABELS], rtol=1e-6, atol=0)


def test_the_absolute_arm_has_one_network_for_all_classes() -> None:
    """Classes that change places take their difficulties with them; with the relative arm they do not."""
    accuracy, order = torch.tensor([0.9, 0.4, 0.1]), [2, 0, 1]

    def difficulties(arm: str) -> tuple[Tensor, Tensor]:
        method = difficulty_net(arm)
        found = []
        for given in (accuracy, accuracy[order]):
            method.refresh(given)
            found.append(method.difficulty())
        return found[0][order], found[1]

    assert_close(*difficulties("absolute"))
    assert not torch.allclose(*difficulties("relative"))
    alone, together = difficulty_net("absolute", counts=3), difficulty_net("absolute", counts=1)
    assert [p.shape for p in alone.parameters()] == [p.shape for p in together.parameters()]
    alone.refresh(accuracy)
    by_hand = torch.cat([alone.network(a.double()[None]) for a in accuracy])
    assert_close(alone.difficulty(), by_hand.detach())


def test_the_arm_of_samples_learns_from_the_losses_of_the_batch() -> None:
    method = difficulty_net("sample")
    found = context(method, logits_of_batch(), LABELS)
    state = method.begin_batch(found)
    by_hand = method.network(found.losses)
    assert_close(state.difficulty, by_hand)
    assert_close(state.weights, by_hand / by_hand.mean())
    assert_close(state.target, found.losses / found.losses.max())
    assert method.difficulty() is None
    assert method.metrics() == {}


@pytest.mark.parametrize("number", [1, 4, 5])
def test_the_arm_of_samples_takes_a_smaller_last_batch(number: int) -> None:
    """It is repeated up to the size of a full one."""
    method, logits = difficulty_net("sample"), logits_of_batch()[:number]
    found = context(method, logits, LABELS[:number])
    difficulty = method.begin_batch(found).difficulty
    assert difficulty.shape == (number,)
    full = torch.cat([found.losses] * 6)[:6]
    assert_close(difficulty, method.network(full)[:number])


@pytest.mark.parametrize(
    ("arm", "target"), [("relative", [0.4, 0.7, 0.9]), ("absolute", [0.4, 0.7, 0.9]), ("fixed", [0.4, 0.7, 0.9])]
)
def test_the_driver_loss_pulls_unscaled_difficulties_towards_the_target(arm: str, target: list[float]) -> None:
    """The accuracies add up to 1, so that absolute and relative ones agree."""
    method = difficulty_net(arm, driver_weight=2.0)
    method.refresh(torch.tensor([0.6, 0.3, 0.1]))
    state = method.begin_batch(context(method, logits_of_batch(), LABELS))
    expected = 2 * np.mean((method.difficulty().numpy() - np.array(target)) ** 2)
    assert method.meta_regularizer(state).item() == pytest.approx(expected, rel=1e-5, abs=1e-12)
    assert method.metrics()["meta/driver_loss"] == pytest.approx(expected / 2, rel=1e-5, abs=1e-12)


def test_the_target_is_relative_or_absolute_and_stands_all_zero_accuracies() -> None:
    targets = {}
    for arm in ARMS:
        method = difficulty_net(arm)
        method.refresh(torch.tensor([0.8, 0.8, 0.4]))
        targets[arm] = method.begin_batch(context(method, logits_of_batch(), LABELS)).target.tolist()
        method.refresh(torch.zeros(3))
        assert method.begin_batch(context(method, logits_of_batch(), LABELS)).target.tolist() == [1, 1, 1]
    assert targets["relative"] == targets["fixed"] == pytest.approx([0.6, 0.6, 0.8])
    assert targets["absolute"] == pytest.approx([0.2, 0.2, 0.6])


def test_the_batch_loss_is_divided_by_the_batch_size() -> None:
    method, logits = difficulty_net("relative"), logits_of_batch()
    method.refresh(torch.tensor([0.6, 0.3, 0.1]))
    weights = method.class_weights().numpy()
    losses = -np.log(softmax(logits.numpy()))[np.arange(6), LABELS]
    assert loss_of(method, context(method, logits, LABELS)).item() == pytest.approx((weights[LABELS] * losses).sum() / 6)


def test_weights_have_mean_one_or_stay_as_they_are() -> None:
    difficulty = torch.tensor([0.2, 0.4, 0.6])
    assert_close(scale_weights(difficulty, "mean_one"), torch.tensor([0.5, 1.0, 1.5]))
    assert scale_weights(difficulty, "none") is difficulty


def test_kl_from_uniform_is_zero_only_when_uniform() -> None:
    assert_close(kl_from_uniform(torch.full((5,), 0.3)), torch.tensor(0.0))
    p = torch.tensor([0.5, 0.25, 0.25])
    assert_close(kl_from_uniform(0.8 * p), (1 / 3 * torch.log((1 / 3) / p)).sum())


def test_refresh_takes_no_gradient_in() -> None:
    method = difficulty_net("relative")
    method.refresh(torch.tensor([0.1, 0.2, 0.3], requires_grad=True))
    assert not method.class_accuracy.requires_grad


# Learned sample weights: Meta-Weight-Net


def test_the_weight_of_an_image_is_a_function_of_its_loss() -> None:
    config = {"name": "meta_weight_net", "hidden_width": 8}
    raw, scaled = (
        built(MetaWeightNetConfig.model_validate({**config, "weight_scale": scale}), task(COUNTS))
        for scale in ("none", "mean_one")
    )
    logits = torch.tensor([[2.0, 0, 0], [0, 0, 0], [0, 2.0, 0], [0, 0, 3.0]], dtype=torch.float64)
    found = context(raw, logits, torch.tensor([0, 0, 1, 1]))
    weights = raw.begin_batch(found)
    assert weights[0] == weights[2] != weights[1]  # images 0 and 2 have equal losses and different labels
    assert_close(weights.detach().numpy(), weight_network(raw.network, found.losses.numpy()))
    of_scaled = scaled.begin_batch(context(scaled, logits, torch.tensor([0, 0, 1, 1])))
    assert_close(of_scaled, weights / weights.mean())
    losses = F.cross_entropy(logits, found.labels, reduction="none")
    assert_close(loss_of(raw, found), (weights * losses).mean())


# Learned sampling rates: BALMS' meta sampler


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_meta_sampler_draws_each_class_in_proportion_to_its_rate(power: float) -> None:
    """The rates start in proportion to n_c^-power. 600 batches of 6 images are drawn."""
    method = built(MetaSamplerConfig(initial_power=power), task([30, 8, 2]))
    rates = torch.sigmoid(method.rates).detach().numpy()
    assert rates / rates[2] == pytest.approx((np.array([30, 8, 2]) / 2) ** -power, rel=1e-6)
    draws = np.zeros(6)
    for step in range(600):
        weights = method.begin_batch(context(method, logits_of_batch(), LABELS, step=step)).weights.detach().numpy()
        assert weights.sum() == pytest.approx(6)
        assert weights == pytest.approx(weights.round())
        draws += weights
    expected = rates[LABELS] / rates[LABELS].sum() * draws.sum()
    assert stats.chisquare(draws, expected).pvalue > 1e-3


def test_the_meta_sampler_has_the_gradient_of_the_soft_draws() -> None:
    """Straight through: sum_j softmax_i(log rate_i + gumbel_ji), by hand from the same uniform numbers."""
    method = built(MetaSamplerConfig(initial_power=0.5), task([30, 8, 2]))
    found = context(method, logits_of_batch(), LABELS, step=4)
    coefficients = torch.arange(6.0).double() ** 2
    ours = torch.autograd.grad((method.begin_batch(found).weights * coefficients).sum(), method.rates)[0]
    z = method.rates.detach().clone().requires_grad_()
    gumbel = -torch.log(-torch.log(found.uniform(6, 6).double()))
    chances = torch.sigmoid(z)[LABELS] * gumbel.exp()
    soft = chances / chances.sum(1, keepdim=True)
    assert_close(ours, torch.autograd.grad((soft.sum(0) * coefficients).sum(), z)[0])


def test_the_meta_sampler_survives_the_smallest_and_the_largest_random_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """In single precision, as in training: one in 2^24 numbers is 0, another one is 1 - 2^-24."""
    method = built(MetaSamplerConfig(), task([30, 8, 2])).float()
    edges = torch.tensor([0.0, 1 - 2**-24] * 18).view(6, 6)
    monkeypatch.setattr(Context, "uniform", lambda *_: edges)
    weights = method.begin_batch(context(method, logits_of_batch().float(), LABELS)).weights
    assert weights.tolist() == pytest.approx([0, 6, 0, 0, 0, 0])
    assert torch.autograd.grad(weights[1], method.rates)[0].isfinite().all()


# What users get


def trained_with_wrong_labels(method: MethodConfig) -> TrialRun:
    """On the digits, balanced, with half of the labels drawn again."""
    run = TrialRun()
    run.start(
        TrialConfig(
            epochs=40,
            method=method,
            data=DigitsConfig(imbalance_factor=1.0, noise=NoiseConfig(kind="symmetric", rate=0.5)),
            optim=OptimConfig(batch_size=100, lr=0.1, momentum=0.0, schedule="constant"),
        )
    )
    for _ in range(39):
        run.run_epoch()
    return run


@pytest.mark.slow
def test_images_with_a_wrong_label_get_small_weights_and_that_helps() -> None:
    """L2RW and Meta-Weight-Net against cross-entropy, which weighs all alike."""
    plain = trained_with_wrong_labels(PLAIN).run_epoch()["val/acc"]
    for method in (L2RWConfig(), MetaWeightNetConfig(hidden_width=16)):
        run = trained_with_wrong_labels(method)
        weights, ids, step = recorded(run), list[Tensor](), run._step

        def watched(batch: Any, *rest: Any, ids: list[Tensor] = ids, step: Any = step) -> None:
            ids.append(batch.ids)
            step(batch, *rest)

        run._step = watched  # type: ignore[method-assign]
        metrics, data = run.run_epoch(), run.loaded.data
        of_image = torch.zeros(len(run.loaded.train))
        of_image[torch.cat(ids)] = torch.cat(weights)
        wrong = torch.from_numpy(data.train.labels != data.source.labels[data.train.ids])
        assert 300 < wrong.sum() < 500
        assert of_image[wrong].mean() < 0.5 * of_image[~wrong].mean(), method.name
        assert metrics["val/acc"] > plain + 0.05, method.name
