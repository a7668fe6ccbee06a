"""The context of a batch: random numbers, losses and phases."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from tasks import PLAIN, built, context, moment, task
from torch import Tensor
from torch.testing import assert_close

from trainables.loss_config import BalancedSoftmaxConfig
from trainables.method_config import METHOD_SETTINGS, CBDAConfig, GDWConfig, L2RWConfig, MetaWeightNetConfig
from trainables.methods import Context
from trainables.methods.weighted import effective_number_weights
from trainables.seeds import derive_seed

COUNTS = [20, 5, 2]


METHOD = built(PLAIN, task(COUNTS))


def around(step: int = 0, seed: int = 0) -> Context:
    return context(METHOD, torch.zeros(2, 3), torch.tensor([0, 1]), step=step, total=10**9, seed=seed)


def draw(*shape: int, step: int = 0, seed: int = 0, stream: int = 0) -> Tensor:
    return around(step, seed).uniform(*shape, stream=stream)


# Random numbers


def test_random_numbers_are_functions_of_seed_step_and_stream() -> None:
    again = draw(3, 4, step=5, seed=6, stream=2)
    torch.rand(7)
    assert torch.equal(draw(3, 4, step=5, seed=6, stream=2), again)
    assert again.shape == (3, 4)
    assert torch.equal(draw(12, step=5, seed=6, stream=2), again.flatten())


def test_both_phases_see_the_same_numbers_and_the_next_step_others() -> None:
    here = around(step=3, seed=4)
    virtual = here.virtual()
    assert torch.equal(virtual.uniform(50), here.uniform(50))
    assert torch.equal(virtual.actual().uniform(50), here.uniform(50))
    drawn = here.uniform(50)
    here.moment.set(4, 10, 100)  # in place, as a captured step sees it
    assert not (here.uniform(50) == drawn).any()


SEEDS = [0, 1, 2, 2**31, 2**32, 2**32 + 1, 2**62, derive_seed(0, "draws"), derive_seed(1, "draws")]


def test_another_seed_step_or_stream_gives_other_numbers() -> None:
    """Even where their sums are equal: step 1 of seed 0 is not step 0 of seed 1."""
    keys = [(seed, step, stream) for seed in SEEDS for step in (0, 1, 2, 1000, 2**31) for stream in (0, 1, 2)]
    rows = {tuple(draw(4, seed=seed, step=step, stream=stream).tolist()) for seed, step, stream in keys}
    assert len(rows) == len(keys)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("stream", [0, 1])
def test_random_numbers_are_uniform(seed: int, stream: int) -> None:
    within = draw(200_000, seed=seed, stream=stream).double().numpy()
    assert within.min() >= 0
    assert within.max() < 1
    assert stats.kstest(within, "uniform").pvalue > 1e-4
    # The first number of many steps is uniform, too.
    first = np.array([draw(1, seed=seed, step=step, stream=stream).item() for step in range(500)])
    assert stats.kstest(first, "uniform").pvalue > 1e-4


def test_neighbours_are_not_correlated() -> None:
    """Steps, seeds, streams, and the numbers of one draw. The standard error of a correlation is 1 / sqrt(n)."""
    n = 100_000
    base = draw(n, step=100, seed=17)
    neighbours = {
        "next step": draw(n, step=101, seed=17),
        "far step": draw(n, step=100 + 2**16, seed=17),
        "next seed": draw(n, step=100, seed=18),
        "seed with another upper word": draw(n, step=100, seed=17 + 2**32),
        "next stream": draw(n, step=100, seed=17, stream=1),
        "next step, previous seed": draw(n, step=101, seed=16),
        "next number": base.roll(1),
        "number in the next row": base.roll(1000),
    }
    for name, other in neighbours.items():
        for lag in (0, 1, 2):
            correlation = np.corrcoef(base.numpy(), other.roll(lag).numpy())[0, 1]
            if not (name == "next number" and lag == 1000):
                assert abs(correlation) < 5 / np.sqrt(n), (name, lag)
    steps = np.array([draw(1, step=step, seed=17).item() for step in range(3000)])
    assert abs(np.corrcoef(steps[:-1], steps[1:])[0, 1]) < 5 / np.sqrt(len(steps))


def test_each_bit_of_a_number_is_set_half_of_the_time() -> None:
    n = 100_000
    bits = (draw(n, step=3).double().numpy() * 2**24).astype(np.int64)
    shares = [(bits >> bit & 1).mean() for bit in range(24)]
    assert shares == pytest.approx([0.5] * 24, abs=5 * 0.5 / np.sqrt(n))


# Losses


def mixed(method_loss: object = PLAIN) -> tuple[Context, Tensor]:
    logits = torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 0.0], [3.0, -1.0, 0.2]], dtype=torch.float64)
    found = context(
        built(method_loss, task(COUNTS)),  # type: ignore[arg-type]
        logits,
        torch.tensor([0, 1, 2]),
        partners=torch.tensor([1, 1, 0]),
        label_weight=torch.tensor([0.7, 1.0, 0.25], dtype=torch.float64),
    )
    return found, logits


@pytest.mark.parametrize("loss", [PLAIN, BalancedSoftmaxConfig()], ids=["cross_entropy", "balanced_softmax"])
def test_the_loss_of_a_mixed_image_is_the_weighted_mean_over_both_labels(loss: object) -> None:
    found, logits = mixed(loss)
    z = logits.numpy() + (np.log(COUNTS) if loss is not PLAIN else 0)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    expected = [
        -0.7 * np.log(p[0, 0]) - 0.3 * np.log(p[0, 1]),
        -np.log(p[1, 1]),
        -0.25 * np.log(p[2, 2]) - 0.75 * np.log(p[2, 0]),
    ]
    assert_close(found.losses.numpy(), np.array(expected))
    assert_close(found.method.train_loss(found.head, found.features, found, None).item(), np.mean(expected))


def test_without_partners_the_loss_is_that_of_the_label() -> None:
    found, logits = mixed()
    plain = replace(found, partners=None, label_weight=None)
    assert_close(plain.losses, torch.nn.functional.cross_entropy(logits, plain.labels, reduction="none"))


def test_nothing_in_a_context_has_a_gradient_except_the_perturbation() -> None:
    head = torch.nn.Linear(4, 3).double()
    method = built(L2RWConfig(), task(COUNTS))
    found = context(method, torch.randn(2, 4).double(), torch.tensor([0, 1]), head)
    assert not found.logits.requires_grad
    assert not found.losses.requires_grad
    virtual = found.virtual()
    assert (found.phase, virtual.phase, virtual.actual().phase) == ("actual", "virtual", "actual")
    assert virtual.perturbation is not None
    assert virtual.perturbation.requires_grad
    assert virtual.perturbation.tolist() == [0, 0]
    actual = virtual.actual(torch.ones(2))
    assert actual.perturbation is None
    assert actual.perturbation_gradient is not None
    assert actual.perturbation_gradient.tolist() == [1, 1]


def test_a_perturbation_has_the_shape_that_the_method_asks_for() -> None:
    for config, shape in ((GDWConfig(), (2, 3)), (L2RWConfig(), (2,)), (PLAIN, None)):
        found = context(built(config, task(COUNTS)), torch.zeros(2, 3).double(), torch.tensor([0, 1])).virtual()
        assert (None if found.perturbation is None else found.perturbation.shape) == shape


def test_both_phases_compute_logits_and_losses_once() -> None:
    calls = []
    head = torch.nn.Linear(4, 3).double()
    head.register_forward_hook(lambda *_: calls.append(1))
    found = context(built(L2RWConfig(), task(COUNTS)), torch.randn(2, 4).double(), torch.tensor([0, 1]), head)
    virtual = found.virtual()
    assert torch.equal(virtual.losses, virtual.actual().losses)
    assert len(calls) == 1


# The moment


def test_a_moment_counts_complete_epochs_and_the_share_of_steps_that_lies_behind() -> None:
    assert [(m.step.item(), m.epoch.item(), m.progress.item()) for m in (moment(0), moment(19), moment(20), moment(99))] == [
        (0, 0, 0),
        (19, 1, 0.19),
        (20, 2, 0.2),
        (99, 9, 0.99),
    ]


@pytest.mark.parametrize("weighting", ["class_balanced", "cdb_ce", "difficulty_net", "cb_da"])
def test_the_weight_of_a_class_applies_to_its_share_of_a_mixed_image(weighting: str) -> None:
    """The sum of share, weight and loss over both labels; its sum of share and weight is what reports show."""
    settings: dict[str, Any] = {"class_balanced": {"beta": 0.9}, "cb_da": {"beta": 0.9, "meta_from": 0.0}}
    config = METHOD_SETTINGS[weighting].model_validate({"name": weighting, **settings.get(weighting, {})})
    found, logits = mixed(config)
    found.method.refresh(torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64))
    w = effective_number_weights(torch.tensor(COUNTS), 0.9) if weighting == "cb_da" else found.method.class_weights()
    if w is None:
        w = found.method.weights
    w, p = w.detach().numpy(), np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    shares = [(0, 0, 0.7), (0, 1, 0.3), (1, 1, 1.0), (2, 2, 0.25), (2, 0, 0.75)]
    expected = sum(-share * w[label] * np.log(p[image, label]) for image, label, share in shares) / 3
    state = found.method.begin_batch(found)
    assert_close(found.method.train_loss(found.head, found.features, found, state).item(), expected)
    of_images = [sum(share * w[label] for image, label, share in shares if image == i) for i in range(3)]
    assert_close(found.method.sample_weights(found, state).detach().numpy(), np.array(of_images))


def test_weights_of_images_apply_to_both_labels_of_a_mixed_image() -> None:
    found, _ = mixed(MetaWeightNetConfig())
    state = found.method.begin_batch(found)
    assert state.shape == (3,)
    loss = found.method.train_loss(found.head, found.features, found, state)
    assert_close(loss, (state * found.method.sample_losses(found.logits, found)).mean())


def test_a_perturbation_of_an_image_applies_to_both_labels_of_a_mixed_image() -> None:
    found, _ = mixed(CBDAConfig(beta=0.9, meta_from=0.0))
    virtual = found.virtual()
    loss = found.method.train_loss(found.head, found.features, virtual, found.method.begin_batch(virtual))
    (derivative,) = torch.autograd.grad(loss, virtual.perturbation)
    assert_close(derivative, found.losses / 3)
