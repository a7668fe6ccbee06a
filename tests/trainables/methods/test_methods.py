import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from trainables.method_config import METHOD_SETTINGS, CrossEntropyConfig, DifficultyNetConfig, MetaWeightNetConfig, MFRWConfig
from trainables.methods import METHODS, Task, build_method
from trainables.methods.difficulty_net import DifficultyNet, driver_loss, kl_from_uniform, scale_weights

TASK = Task(num_classes=3, num_features=4)
CONFIGS = {
    "cross_entropy": CrossEntropyConfig(),
    "difficulty_net": DifficultyNetConfig(hidden_width=8),
    "meta_weight_net": MetaWeightNetConfig(hidden_width=8),
    "mfrw": MFRWConfig(hidden_width=8),
}


def test_the_table_and_the_settings_name_the_same_methods() -> None:
    assert sorted(METHODS) == sorted(METHOD_SETTINGS) == sorted(CONFIGS)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_the_contract(name: str) -> None:
    torch.manual_seed(0)
    method = build_method(CONFIGS[name], TASK, seed=0)
    method.refresh(torch.tensor([0.9, 0.5, 0.1]))
    head = torch.nn.Linear(4, 3)
    features, labels = torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 2, 2])
    losses = F.cross_entropy(head(features), labels, reduction="none").detach()
    state = method.begin_batch(labels, losses)
    loss = method.train_loss(head, features, labels, state)
    assert loss.shape == ()
    assert loss.item() > 0
    assert method.meta_regularizer(state).shape == ()
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(loss, list(head.parameters())))
    for values in (method.class_weights(), method.difficulty()):
        assert values is None or values.shape == (3,)
    assert all(isinstance(value, float) for value in method.metrics().values())


@pytest.mark.parametrize("name", METHODS)
def test_initial_theta_depends_on_the_seed_only(name: str) -> None:
    def theta(seed: int) -> list[torch.Tensor]:
        torch.rand(3)
        return [parameter.detach() for parameter in build_method(CONFIGS[name], TASK, seed).parameters()]

    assert all(map(torch.equal, theta(1), theta(1)))
    assert not theta(1) or not all(map(torch.equal, theta(1), theta(2)))


def test_driver_loss_is_zero_at_one_minus_relative_accuracy() -> None:
    accuracy = torch.tensor([0.6, 0.3, 0.1])
    assert_close(driver_loss(torch.tensor([0.4, 0.7, 0.9]), accuracy), torch.tensor(0.0))
    assert_close(driver_loss(torch.tensor([0.5, 0.7, 0.9]), accuracy), torch.tensor(0.01 / 3))


def test_driver_loss_takes_accuracies_that_are_all_zero() -> None:
    assert_close(driver_loss(torch.full((3,), 0.75), torch.zeros(3)), torch.tensor(0.0625))


def test_driver_loss_looks_at_difficulties_that_are_not_scaled() -> None:
    method = DifficultyNet(DifficultyNetConfig(hidden_width=4, driver_weight=2.0), TASK)
    method.refresh(torch.tensor([0.6, 0.3, 0.1]))
    state = method.begin_batch(torch.tensor([0]), torch.zeros(1))
    target = 1 - method.class_accuracy / method.class_accuracy.sum()
    assert_close(method.meta_regularizer(state), 2 * ((state.difficulty - target) ** 2).mean())


def test_weights_have_mean_one_or_stay_as_they_are() -> None:
    difficulty = torch.tensor([0.2, 0.4, 0.6])
    assert_close(scale_weights(difficulty, "mean_one"), torch.tensor([0.5, 1.0, 1.5]))
    assert scale_weights(difficulty, "none") is difficulty


def test_the_batch_loss_is_divided_by_the_batch_size() -> None:
    method = DifficultyNet(DifficultyNetConfig(hidden_width=4), Task(2, 2))
    state = method.begin_batch(torch.tensor([0]), torch.zeros(1))
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 0.0], [1.0, 3.0]]), torch.tensor([0, 1, 1])
    losses = -F.log_softmax(logits, 1)[torch.arange(3), labels]
    weights = state.class_weights.detach()
    expected = (weights[0] * losses[0] + weights[1] * losses[1] + weights[1] * losses[2]) / 3
    assert_close(method.train_loss(lambda features: features, logits, labels, state), expected)


def test_kl_from_uniform_is_zero_only_when_uniform() -> None:
    assert_close(kl_from_uniform(torch.full((5,), 0.3)), torch.tensor(0.0))
    p = torch.tensor([0.5, 0.25, 0.25])
    assert_close(kl_from_uniform(0.8 * p), (1 / 3 * torch.log((1 / 3) / p)).sum())


def test_refresh_takes_no_gradient_in() -> None:
    method = DifficultyNet(DifficultyNetConfig(hidden_width=4), Task(2, 2))
    method.refresh(torch.tensor([0.1, 0.2], requires_grad=True))
    assert not method.class_accuracy.requires_grad


def test_sample_weights_look_at_losses_alone_and_can_be_scaled_to_mean_one() -> None:
    raw = build_method(MetaWeightNetConfig(hidden_width=8), TASK, seed=0)
    scaled = build_method(MetaWeightNetConfig(hidden_width=8, weight_scale="mean_one"), TASK, seed=0)
    losses = torch.tensor([0.1, 2.0, 0.1, 5.0])
    weights = raw.begin_batch(torch.tensor([0, 0, 1, 2]), losses)
    assert weights[0] == weights[2] != weights[1]
    assert ((weights > 0) & (weights < 1)).all()
    assert_close(scaled.begin_batch(torch.tensor([0, 0, 1, 2]), losses), weights / weights.mean())


def test_a_mask_of_ones_is_plain_cross_entropy() -> None:
    method = build_method(MFRWConfig(hidden_width=8), TASK, seed=0)
    torch.nn.init.constant_(method.to_mask.bias, 100.0)
    head, features, labels = torch.nn.Linear(4, 3), torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    state = method.begin_batch(labels, torch.ones(5))
    assert_close(method.train_loss(head, features, labels, state), F.cross_entropy(head(features), labels))


@pytest.mark.parametrize("detach_inputs", [True, False])
def test_features_get_a_gradient_through_the_mask_only_where_that_is_wanted(detach_inputs: bool) -> None:
    method = build_method(MFRWConfig(hidden_width=8, detach_inputs=detach_inputs), TASK, seed=0)
    features = torch.randn(5, 4, requires_grad=True)
    mask = method.mask(features, method.begin_batch(torch.zeros(5, dtype=torch.long), torch.ones(5)))
    through_mask = torch.autograd.grad(mask.sum(), features, materialize_grads=True, allow_unused=True)[0]
    assert bool(through_mask.abs().max() == 0) is detach_inputs
