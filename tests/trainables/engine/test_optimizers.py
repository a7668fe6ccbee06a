import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector
from torch.optim import Optimizer

from trainables.checkpoint import pack, unpack
from trainables.config import ComputeConfig, OptimConfig, TrialConfig
from trainables.engine.optimizers import (
    build_meta_optimizer,
    build_optimizer,
    load_state,
    meta_schedule_factor,
    schedule_factor,
    set_step_size,
    step_sizes,
)
from trainables.method_config import DifficultyNetConfig, MetaSettings
from trainables.models import Classifier
from trainables.trial_run import TrialRun


def some_classifier() -> Classifier:
    """A backbone with a matrix, a bias and a norm, and a head: 3 numbers per image, 2 classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        return Classifier(backbone, nn.Linear(4, 2), 4).double()


def give_gradient(parameters: list[Any], step: int, size: float = 1.0) -> None:
    """Random gradients of normal numbers times `size`, the same in every call with the same step."""
    generator = torch.Generator().manual_seed(step)
    for parameter in parameters:
        parameter.grad = size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def trained(classifier: Classifier, optimizer: Optimizer, steps: range, factors: bool = False) -> Tensor:
    """phi as a vector after some steps; `factors` halves the step size from each step to the next."""
    phi = list(classifier.parameters())
    for step in steps:
        give_gradient(phi, step)
        if factors:
            set_step_size(optimizer, 0.5**step)
        optimizer.step()
    return parameters_to_vector(phi).detach()


# phi: the optimisers

SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
ADAMW = {"optimizer": "adamw", "lr": 0.1, "weight_decay": 0.01}
BY_HAND: list[tuple[dict[str, Any], Callable[[Classifier], Optimizer]]] = [
    (SGD, lambda it: torch.optim.SGD(it.parameters(), 0.1, 0.9, weight_decay=0.01)),
    (
        SGD | {"nesterov": True},
        lambda it: torch.optim.SGD(it.parameters(), 0.1, 0.9, weight_decay=0.01, nesterov=True),
    ),
    (
        SGD | {"head_lr": 0.3},
        lambda it: torch.optim.SGD(
            [{"params": it.backbone.parameters()}, {"params": it.head.parameters(), "lr": 0.3}], 0.1, 0.9, weight_decay=0.01
        ),
    ),
    (
        SGD | {"weight_decay_biases": False},
        lambda it: torch.optim.SGD(
            [
                {"params": [it.backbone[0].weight, it.head.weight]},
                {"params": [it.backbone[0].bias, it.backbone[1].weight, it.backbone[1].bias, it.head.bias], "weight_decay": 0},
            ],
            0.1,
            0.9,
            weight_decay=0.01,
        ),
    ),
    (ADAMW, lambda it: torch.optim.AdamW(it.parameters(), 0.1, (0.9, 0.999), weight_decay=0.01)),
    (
        ADAMW | {"head_lr": 0.3, "weight_decay_biases": False},
        lambda it: torch.optim.AdamW(
            [
                {"params": [it.backbone[0].weight]},
                {"params": [it.backbone[0].bias, it.backbone[1].weight, it.backbone[1].bias], "weight_decay": 0},
                {"params": [it.head.weight], "lr": 0.3},
                {"params": [it.head.bias], "lr": 0.3, "weight_decay": 0},
            ],
            0.1,
            (0.9, 0.999),
            weight_decay=0.01,
        ),
    ),
]
"""Settings, and torch's own optimiser with groups that are written out."""


@pytest.mark.parametrize(("settings", "by_hand"), BY_HAND, ids=[str(settings) for settings, _ in BY_HAND])
def test_phi_moves_as_under_torchs_own_optimizer(settings: dict[str, Any], by_hand: Callable[[Classifier], Optimizer]) -> None:
    mine, its = some_classifier(), some_classifier()
    found = trained(mine, build_optimizer(OptimConfig(**settings), mine, captured=False), range(4))
    assert torch.equal(found, trained(its, by_hand(its), range(4)))


def test_each_of_these_settings_makes_a_difference() -> None:
    ends = []
    for settings, _ in BY_HAND:
        classifier = some_classifier()
        ends.append(trained(classifier, build_optimizer(OptimConfig(**settings), classifier, captured=False), range(4)))
    assert not any(torch.equal(ends[i], ends[j]) for i in range(len(ends)) for j in range(i))


def test_by_default_phi_is_one_group_in_the_order_of_the_classifier() -> None:
    """So that states from before there were groups still fit."""
    classifier = some_classifier()
    (group,) = build_optimizer(OptimConfig(), classifier, captured=False).param_groups
    assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in classifier.parameters()]


def test_adamw_decays_weights_apart_from_the_gradient() -> None:
    """Loshchilov & Hutter, Alg. 2: in the first step, Adam's part is -lr * sign(gradient), whatever the weight decay."""
    classifier = some_classifier()
    before = parameters_to_vector(classifier.parameters()).detach()
    optimizer = build_optimizer(OptimConfig(optimizer="adamw", lr=0.1, weight_decay=0.5), classifier, captured=False)
    after = trained(classifier, optimizer, range(1))
    gradient = torch.cat([parameter.grad.flatten() for parameter in classifier.parameters()])
    torch.testing.assert_close(after, before * (1 - 0.1 * 0.5) - 0.1 * gradient.sign(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("head_lr", [None, 1.0])
@pytest.mark.parametrize("size", [1e-3, 1.0, 100.0])
def test_the_gradient_is_clipped_as_a_whole(size: float, head_lr: float | None) -> None:
    """With groups of one step size and without: the norm is that over all groups."""
    mine, its = some_classifier(), some_classifier()
    before = parameters_to_vector(mine.parameters()).detach()
    optimizer = build_optimizer(OptimConfig(lr=1, momentum=0, head_lr=head_lr, clip_norm=0.5), mine, captured=False)
    give_gradient(list(mine.parameters()), 0, size)
    gradient = torch.cat([parameter.grad.flatten() for parameter in mine.parameters()])
    optimizer.step()
    update = parameters_to_vector(mine.parameters()).detach() - before
    torch.testing.assert_close(update, -gradient * min(1, 0.5 / gradient.norm().item()), rtol=1e-5, atol=1e-12)
    give_gradient(list(its.parameters()), 0, size)
    torch.nn.utils.clip_grad_norm_(its.parameters(), 0.5)
    torch.optim.SGD(its.parameters(), 1.0).step()
    assert torch.equal(parameters_to_vector(mine.parameters()), parameters_to_vector(its.parameters()))


def test_a_tensor_that_is_the_gradient_of_two_parameters_is_clipped_once() -> None:
    classifier = some_classifier()
    norm = classifier.backbone[1]
    optimizer = build_optimizer(OptimConfig(lr=1, momentum=0, clip_norm=1.0), classifier, captured=False)
    before = parameters_to_vector(norm.parameters()).detach()
    norm.weight.grad = norm.bias.grad = torch.full((4,), 5.0, dtype=torch.float64)
    optimizer.step()
    torch.testing.assert_close(parameters_to_vector(norm.parameters()).detach(), before - 1 / math.sqrt(8))


@pytest.mark.parametrize("settings", [SGD, ADAMW | {"head_lr": 0.3, "weight_decay_biases": False}])
def test_a_frozen_backbone_neither_moves_nor_counts_in_clipping(settings: dict[str, Any]) -> None:
    frozen, alone = some_classifier(), some_classifier()
    frozen.backbone.requires_grad_(False)
    before = parameters_to_vector(frozen.backbone.parameters()).clone()
    optimizer = build_optimizer(OptimConfig(**settings, clip_norm=0.5), frozen, captured=False)
    only_head = build_optimizer(OptimConfig(**settings, clip_norm=0.5), alone, captured=False)
    for step in range(3):
        give_gradient(list(frozen.parameters()), step)
        for parameter, its in zip(alone.head.parameters(), frozen.head.parameters(), strict=True):
            parameter.grad = its.grad.clone()  # the backbone of `alone` has no gradient
        optimizer.step()
        only_head.step()
    assert torch.equal(parameters_to_vector(frozen.backbone.parameters()), before)
    assert torch.equal(parameters_to_vector(frozen.head.parameters()), parameters_to_vector(alone.head.parameters()))
    assert not torch.equal(frozen.head.weight, some_classifier().head.weight)


# alpha and its schedule


def test_the_cosine_starts_at_lr_and_falls_to_zero() -> None:
    factors = [schedule_factor(OptimConfig(), step, 10, 5) for step in range(11)]
    assert factors[0] == 1
    assert factors[5] == pytest.approx(0.5)
    assert factors[10] == pytest.approx(0)
    assert factors == sorted(factors, reverse=True)
    assert schedule_factor(OptimConfig(schedule="constant"), 7, 10, 5) == 1


def ldam_rate(epoch: int) -> float:
    """`adjust_learning_rate` of LDAM's code, for an initial rate of 1; `epoch` counts from 0."""
    epoch = epoch + 1
    if epoch <= 5:
        return epoch / 5
    if epoch > 180:
        return 0.0001
    return 0.01 if epoch > 160 else 1.0


def test_warm_up_and_milestones_are_those_of_ldams_code() -> None:
    config = OptimConfig(schedule="multistep", milestones=[160, 180], decay=0.01, warmup_epochs=5)
    found = [schedule_factor(config, epoch, 200, 1) for epoch in range(200)]
    assert found == pytest.approx([ldam_rate(epoch) for epoch in range(200)], rel=1e-12)


def test_milestones_are_epochs_also_with_fractions() -> None:
    config = OptimConfig(schedule="multistep", milestones=[1, 2.5], decay=0.5)
    assert [schedule_factor(config, step, 12, 4) for step in range(12)] == [1] * 4 + [0.5] * 6 + [0.25] * 2


@pytest.mark.parametrize(
    ("schedule", "after"),
    [("constant", [1.0] * 6), ("cosine", [(1 + math.cos(math.pi * done / 6)) / 2 for done in range(6)])],
)
def test_the_step_size_rises_linearly_to_lr_and_the_schedule_has_the_steps_that_remain(schedule: Any, after: list[float]) -> None:
    config = OptimConfig(schedule=schedule, warmup_epochs=2)
    assert [schedule_factor(config, step, 10, 2) for step in range(10)] == pytest.approx([0.25, 0.5, 0.75, 1, *after])


def test_every_group_has_its_own_share_of_the_schedule() -> None:
    classifier = some_classifier()
    optimizer = build_optimizer(OptimConfig(lr=0.1, head_lr=0.4), classifier, captured=False)
    for factor in (0.5, 0.25, 1.0):  # each is a factor of the first step size, not of the one before
        set_step_size(optimizer, factor)
        assert [group["lr"] for group in optimizer.param_groups] == [0.1 * factor, 0.4 * factor]


@pytest.mark.parametrize("settings", [{}, {"optimizer": "adamw"}])
def test_a_step_size_that_is_a_tensor_is_changed_in_place(settings: dict[str, Any]) -> None:
    plain, captured = (build_optimizer(OptimConfig(**settings), some_classifier(), captured) for captured in (False, True))
    tensor = captured.param_groups[0]["lr"]
    for optimizer in (plain, captured):
        set_step_size(optimizer, 5)
        assert optimizer.param_groups[0]["lr"] == 0.25
    assert captured.param_groups[0]["lr"] is tensor


@pytest.mark.parametrize("captured", [False, True])
def test_step_sizes_are_those_of_each_trained_parameter(captured: bool) -> None:
    classifier = some_classifier()
    classifier.backbone[0].bias.requires_grad_(False)
    config = OptimConfig(lr=0.1, head_lr=0.3, weight_decay=0.01, weight_decay_biases=False)
    optimizer = build_optimizer(config, classifier, captured)
    set_step_size(optimizer, 0.7)
    found = step_sizes(optimizer, classifier)
    assert all(size.shape == () and size.dtype == torch.float64 for size in found)
    exact = [0.1 * 0.7, 0.1 * 0.7, 0.1 * 0.7, 0.3 * 0.7, 0.3 * 0.7]
    # A captured step reads a float32.
    assert [size.item() for size in found] == (torch.tensor(exact).tolist() if captured else exact)


# States


@pytest.mark.parametrize("settings", [settings for settings, _ in BY_HAND], ids=str)
@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_phi_goes_on_from_a_state_bit_for_bit(settings: dict[str, Any], clip_norm: float | None) -> None:
    config = OptimConfig(**settings, clip_norm=clip_norm)
    classifier = some_classifier()
    optimizer = build_optimizer(config, classifier, captured=False)
    trained(classifier, optimizer, range(3), factors=True)
    saved = unpack(pack({"phi": classifier.state_dict(), "optimizer": optimizer.state_dict()}))
    resumed = some_classifier()
    resumed.load_state_dict(saved["phi"])
    its = build_optimizer(config, resumed, captured=False)
    load_state(its, saved["optimizer"])
    steps = range(3, 6)
    assert torch.equal(trained(resumed, its, steps, factors=True), trained(classifier, optimizer, steps, factors=True))


def test_a_captured_trial_goes_on_as_a_plain_one() -> None:
    method = Theta(DifficultyNetConfig())
    captured, plain = (build_meta_optimizer(method, captured=False) for _ in range(2))
    give_gradient(list(method.parameters()), 0)
    captured.step()
    saved = captured.state_dict()
    saved["param_groups"][0]["capturable"] = True
    load_state(plain, saved)
    assert not plain.param_groups[0]["capturable"]
    plain.step()  # would raise on the CPU
    assert all(state["step"] == 2 for state in plain.state.values())


# theta


class Theta(nn.Module):
    """As much of a method as its optimiser needs: parameters, and how they are trained."""

    def __init__(self, meta: MetaSettings | None) -> None:
        super().__init__()
        self.meta = meta
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).double()


THETA: list[tuple[dict[str, Any], Callable[[Theta], Optimizer]]] = [
    ({}, lambda it: torch.optim.Adam(it.parameters(), 0.03)),
    ({"meta_weight_decay": 0.1}, lambda it: torch.optim.Adam(it.parameters(), 0.03, weight_decay=0.1)),
    ({"meta_optimizer": "sgd"}, lambda it: torch.optim.SGD(it.parameters(), 0.03)),
    (
        {"meta_optimizer": "sgd", "meta_momentum": 0.9, "meta_weight_decay": 0.1},
        lambda it: torch.optim.SGD(it.parameters(), 0.03, 0.9, weight_decay=0.1),
    ),
]
"""Settings of theta, and torch's own optimiser."""


def theta_after(method: Theta, optimizer: Optimizer, steps: range) -> Tensor:
    for step in steps:
        give_gradient(list(method.parameters()), step)
        optimizer.step()
    return parameters_to_vector(method.parameters()).detach()


@pytest.mark.parametrize(("settings", "by_hand"), THETA, ids=[str(settings) for settings, _ in THETA])
def test_theta_moves_as_under_torchs_own_optimizer_and_goes_on_from_a_state_bit_for_bit(
    settings: dict[str, Any], by_hand: Callable[[Theta], Optimizer]
) -> None:
    method, its = (Theta(DifficultyNetConfig(meta_lr=0.03, **settings)) for _ in range(2))
    optimizer, other = build_meta_optimizer(method, captured=False), by_hand(its)
    assert type(optimizer) is type(other)
    assert torch.equal(theta_after(method, optimizer, range(3)), theta_after(its, other, range(3)))
    saved = unpack(pack({"theta": method.state_dict(), "meta_optimizer": optimizer.state_dict()}))
    resumed = Theta(method.meta)
    resumed.load_state_dict(saved["theta"])
    load_state(again := build_meta_optimizer(resumed, captured=False), saved["meta_optimizer"])
    assert torch.equal(theta_after(resumed, again, range(3, 6)), theta_after(its, other, range(3, 6)))


def test_a_state_goes_on_with_another_step_size_of_theta() -> None:
    """As a fork does; the momenta are those of the state."""
    donor, fork = (Theta(DifficultyNetConfig(meta_lr=beta, meta_optimizer="sgd", meta_momentum=0.5)) for beta in (0.1, 0.4))
    theirs, mine = build_meta_optimizer(donor, captured=False), build_meta_optimizer(fork, captured=False)
    before = theta_after(donor, theirs, range(1))
    load_state(mine, theirs.state_dict())
    set_step_size(mine, 1.0)
    moved = theta_after(fork, mine, range(1, 2)) - parameters_to_vector(Theta(None).parameters()).detach()
    torch.testing.assert_close(moved / 0.4, (theta_after(donor, theirs, range(1, 2)) - before) / 0.1)


def test_a_method_with_parameters_has_to_say_how_they_are_trained() -> None:
    method = Theta(None)
    with pytest.raises(ValueError, match=r"^Theta.meta is None, but .* allowed: settings that inherit from MetaSettings"):
        build_meta_optimizer(method, captured=False)
    del method.network
    assert build_meta_optimizer(method, captured=False) is None


def test_theta_has_a_schedule_of_its_own_or_follows_that_of_phi() -> None:
    def factors(kind: Any) -> list[float]:
        return [meta_schedule_factor(DifficultyNetConfig(meta_schedule=kind), step, 4, of_phi=0.1 * step) for step in range(4)]

    assert factors("constant") == [1] * 4
    assert factors("cosine") == pytest.approx([(1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)])
    assert factors("follow") == [0.1 * step for step in range(4)]


@pytest.mark.parametrize(("schedule", "is_tensor"), [("constant", False), ("cosine", True), ("follow", True)])
def test_a_captured_step_reads_a_step_size_of_theta_that_changes(schedule: Any, is_tensor: bool) -> None:
    """Also with gradients that are transposed in memory, which torch's fused SGD takes for plain ones."""
    method = Theta(DifficultyNetConfig(meta_lr=0.5, meta_optimizer="sgd", meta_schedule=schedule))
    theta = list(method.parameters())
    optimizer = build_meta_optimizer(method, captured=True)
    assert isinstance(optimizer.param_groups[0]["lr"], Tensor) is is_tensor
    before = parameters_to_vector(theta).detach()
    give_gradient(theta, 0)
    gradient = torch.cat([parameter.grad.flatten() for parameter in theta])
    for weight in (parameter for parameter in theta if parameter.ndim == 2):
        weight.grad = weight.grad.t().contiguous().t()
    set_step_size(optimizer, 0.5)
    optimizer.step()
    torch.testing.assert_close(parameters_to_vector(theta).detach(), before - 0.25 * gradient)


def updates(name: Any, gradients: list[Tensor], meta_lr: float = 0.03) -> list[Tensor]:
    """What each step changes in theta, with these gradients."""
    method = Theta(DifficultyNetConfig(meta_optimizer=name, meta_lr=meta_lr))
    theta = list(method.parameters())
    optimizer, found = build_meta_optimizer(method, captured=False), []
    for gradient in gradients:
        before = parameters_to_vector(theta).detach()
        for parameter, part in zip(theta, gradient.split([parameter.numel() for parameter in theta]), strict=True):
            parameter.grad = part.view_as(parameter)
        optimizer.step()
        found.append(parameters_to_vector(theta).detach() - before)
    return found


def some_gradients(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    size = 3 * 4 + 4 + 4 * 4 + 4 + 4 * 3 + 3
    return [torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(count)]


def test_sgd_of_theta_is_a_step_down_the_gradient_without_memory() -> None:
    """Eq. 10: theta <- theta - beta * gradient."""
    gradients = some_gradients(3)
    for update, gradient in zip(updates("sgd", gradients), gradients, strict=True):
        torch.testing.assert_close(update, -0.03 * gradient)


def test_the_weight_of_the_driver_loss_counts_continuously_with_sgd_and_hardly_with_adam() -> None:
    """A driver loss whose gradient is 26 times as large as the meta loss's at lambda 0.3, as on the digits."""
    of_meta_loss, direction = some_gradients(2)
    of_driver_loss = 26 / 0.3 * direction * of_meta_loss.norm() / direction.norm()
    total = {lam: of_meta_loss + lam * of_driver_loss for lam in (0, 0.3, 1)}
    sgd, adam = ({lam: updates(name, [total[lam]])[0] for lam in total} for name in ("sgd", "adam"))
    torch.testing.assert_close(sgd[1] - sgd[0], (sgd[0.3] - sgd[0]) / 0.3)
    assert sgd[1].norm() / sgd[0.3].norm() == pytest.approx(1 / 0.3, rel=0.05)
    assert torch.cosine_similarity(sgd[1], sgd[0.3], dim=0) > 0.999  # the same direction, so only the size tells them apart
    unequal = adam[1].sign() != adam[0.3].sign()  # where the gradient of the driver loss is nearly 0
    assert unequal.double().mean() < 0.05
    torch.testing.assert_close(adam[1][~unequal], adam[0.3][~unequal], rtol=1e-4, atol=0)


# Whole trials

RICH = OptimConfig(
    optimizer="adamw",
    lr=3e-3,
    head_lr=1e-2,
    weight_decay=0.01,
    weight_decay_biases=False,
    clip_norm=1.0,
    schedule="multistep",
    milestones=[2],
    warmup_epochs=0.5,
)


def started(optim: OptimConfig, **compute: bool) -> TrialRun:
    method = DifficultyNetConfig(hidden_width=8, meta_optimizer="sgd", meta_lr=0.3, meta_momentum=0.5, meta_schedule="follow")
    run = TrialRun()
    run.start(TrialConfig(epochs=3, method=method, optim=optim, compute=ComputeConfig.model_validate(compute)))
    return run


@pytest.mark.slow
def test_a_trial_with_adamw_groups_and_a_momentum_of_theta_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole, first, resumed = started(RICH), started(RICH), TrialRun()
    accuracies = [whole.run_epoch()["val/acc"] for _ in range(3)]
    assert accuracies[-1] > 0.3  # guessing gives 0.1
    first.run_epoch()
    first.save(tmp_path)
    resumed.load(tmp_path, first.config)
    for _ in range(2):
        resumed.run_epoch()
    for mine, its in ((resumed.classifier, whole.classifier), (resumed.method, whole.method)):
        assert all(map(torch.equal, mine.state_dict().values(), its.state_dict().values()))


def test_a_trial_sets_the_step_sizes_of_phi_and_theta_before_each_step() -> None:
    run = started(RICH)
    groups = [*run.optimizer.param_groups, *run.meta_optimizer.param_groups]
    seen: list[list[float]] = []
    step = run._run_step
    run._run_step = lambda *batch: (seen.append([group["lr"] for group in groups]), step(*batch))[1]
    for _ in range(3):
        run.run_epoch()
    per_epoch = run.steps_per_epoch
    half = round(per_epoch / 2)
    factors = [(i + 1) / half for i in range(half)] + [1.0] * (2 * per_epoch - half) + [0.1] * per_epoch
    assert seen == [pytest.approx([factor * group["initial_lr"] for group in groups]) for factor in factors]
    assert [group["initial_lr"] for group in groups] == [3e-3, 3e-3, 1e-2, 1e-2, 0.3]


@pytest.mark.gpu
@pytest.mark.parametrize(
    "optim",
    [
        RICH,
        OptimConfig(nesterov=True, weight_decay=1e-3, weight_decay_biases=False, head_lr=0.1, clip_norm=0.5),
        OptimConfig(optimizer="adamw", lr=3e-3, weight_decay=0.01),
    ],
)
def test_on_a_gpu_captured_steps_are_plain_ones_with_every_optimizer(optim: OptimConfig) -> None:
    plain, captured = started(optim), started(optim, cuda_graphs=True)
    for _ in range(3):
        expected, found = plain.run_epoch(), captured.run_epoch()
        for name in ("train/loss", "meta/loss", "meta/grad_norm"):
            assert found[name] == pytest.approx(expected[name], rel=1e-3)
    assert captured._run_step._graphs  # the capture did not fail
