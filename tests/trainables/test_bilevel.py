import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.testing import assert_close

from trainables.bilevel import Batch, StepLosses, exact_meta_gradient, training_step
from trainables.config import CrossEntropyConfig, DifficultyNetConfig
from trainables.methods.cross_entropy import CrossEntropy
from trainables.methods.difficulty_net import DifficultyNet, State, driver_loss
from trainables.models import Classifier

ALPHA = 0.1


class Problem:
    """A tiny float64 classifier with BatchNorm, a Difficulty-Net and two batches; everything depends on the seed only."""

    def __init__(
        self, seed: int = 0, num_classes: int = 4, batch_size: int = 6, scale: str = "mean_one", lam: float = 0.3
    ) -> None:
        torch.manual_seed(seed)
        backbone = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten())
        self.classifier = Classifier(backbone, nn.Linear(3 * 16, num_classes)).double()
        config = DifficultyNetConfig(hidden_width=5, weight_scale=scale, driver_weight=lam, meta_lr=0.01, meta_optimizer="sgd")
        self.method = DifficultyNet(config, num_classes).double()
        self.method.refresh(torch.rand(num_classes, dtype=torch.float64))
        self.batch = Batch(torch.randn(batch_size, 1, 4, 4).double(), torch.randint(num_classes, (batch_size,)))
        self.meta_batch = Batch(torch.randn(8, 1, 4, 4).double(), torch.arange(8) % num_classes)
        self.optimizer = torch.optim.SGD(self.classifier.parameters(), lr=ALPHA)
        self.meta_optimizer = torch.optim.SGD(self.method.parameters(), lr=0.01)

    def step(self, mode: str = "exact") -> StepLosses:
        return training_step(self.classifier, self.method, self.optimizer, self.meta_optimizer, self.batch, self.meta_batch, mode)

    def theta_gradient(self) -> list[Tensor]:
        features = self.classifier.backbone(self.batch.images)
        state = self.method.begin_batch(self.batch.labels, torch.zeros(len(self.batch.labels)))
        found = exact_meta_gradient(self.classifier, self.method, self.batch, features, state, self.meta_batch, ALPHA)
        return found.theta_gradient

    def meta_loss_after_virtual_step(self, create_graph: bool = False) -> Tensor:
        """Written down from Eq. 9 and 10 alone, without our code: weights, weighted loss, virtual step, meta loss."""
        difficulty = self.method.network(self.method.class_accuracy)
        weights = difficulty / difficulty.sum() * len(difficulty) if self.method.weight_scale == "mean_one" else difficulty
        phi = dict(self.classifier.named_parameters())
        losses = F.cross_entropy(
            functional_call(self.classifier, (phi, self.buffers()), (self.batch.images,)), self.batch.labels, reduction="none"
        )
        loss = (weights[self.batch.labels] * losses).sum() / len(losses)
        gradients = torch.autograd.grad(loss, list(phi.values()), create_graph=create_graph)
        phi_hat = {name: p - ALPHA * g for (name, p), g in zip(phi.items(), gradients, strict=True)}
        logits = functional_call(self.classifier, (phi_hat, self.buffers()), (self.meta_batch.images,))
        return F.cross_entropy(logits, self.meta_batch.labels)

    def buffers(self) -> dict[str, Tensor]:
        return {name: buffer.clone() for name, buffer in self.classifier.named_buffers()}


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


@pytest.mark.slow
@settings(max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    num_classes=st.integers(2, 7),
    batch_size=st.integers(1, 9),
    scale=st.sampled_from(["mean_one", "none"]),
)
def test_theta_gradient_equals_double_backward(seed: int, num_classes: int, batch_size: int, scale: str) -> None:
    problem = Problem(seed, num_classes, batch_size, scale)
    reference = torch.autograd.grad(problem.meta_loss_after_virtual_step(create_graph=True), list(problem.method.parameters()))
    found, expected = flat(problem.theta_gradient()), flat(list(reference))
    assert torch.linalg.vector_norm(found - expected) <= 1e-9 * torch.linalg.vector_norm(expected) + 1e-15


def test_theta_gradient_equals_central_differences_of_the_meta_loss() -> None:
    problem, eps = Problem(seed=3), 1e-5
    gradients = problem.theta_gradient()
    for parameter, gradient in zip(problem.method.parameters(), gradients, strict=True):
        direction = torch.randn_like(parameter)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * eps * direction)
            values.append(problem.meta_loss_after_virtual_step().item())
            with torch.no_grad():
                parameter.sub_(sign * eps * direction)
        assert_close((gradient * direction).sum().item(), (values[0] - values[1]) / (2 * eps), rtol=1e-5, atol=1e-11)


def test_theta_gradient_depends_on_the_meta_labels() -> None:
    problem, other = Problem(), Problem()
    other.meta_batch = Batch(other.meta_batch.images, other.meta_batch.labels.roll(1))
    assert problem.step().meta_grad_norm != other.step().meta_grad_norm
    assert not torch.allclose(flat(list(problem.method.parameters())), flat(list(other.method.parameters())))


def test_detached_weights_show_as_a_gradient_of_exactly_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """The released code's mistake: with the weights cut off from theta, the meta loss trains nothing."""
    problem = Problem()
    alive = problem.theta_gradient()

    def begin_batch(labels: Tensor, losses: Tensor) -> State:
        difficulty = problem.method.network(problem.method.class_accuracy)
        return State(difficulty, (difficulty / difficulty.mean()).detach() + 0 * difficulty)

    monkeypatch.setattr(problem.method, "begin_batch", begin_batch)
    assert flat(alive).abs().max() > 0
    assert flat(problem.theta_gradient()).abs().max() == 0


def test_without_a_meta_gradient_the_driver_loss_alone_trains_theta() -> None:
    problem = Problem(lam=0.3)
    before = copy.deepcopy(problem.method)
    losses = problem.step("none")
    assert losses.meta_grad_norm == 0
    assert losses.meta_loss is None
    loss = 0.3 * driver_loss(before.network(before.class_accuracy), before.class_accuracy)
    gradients = torch.autograd.grad(loss, list(before.parameters()))
    expected = [p - 0.01 * g for p, g in zip(before.parameters(), gradients, strict=True)]
    assert_close(flat(list(problem.method.parameters())), flat(expected))
    assert not torch.equal(flat(list(problem.method.parameters())), flat(list(before.parameters())))


def test_without_meta_gradient_and_driver_loss_theta_stays() -> None:
    problem = Problem(lam=0.0)
    before = flat(list(problem.method.parameters())).clone()
    problem.step("none")
    assert torch.equal(flat(list(problem.method.parameters())), before)


def test_one_iteration_is_equations_9_to_11() -> None:
    problem = Problem(seed=5, lam=0.7)
    by_hand = copy.deepcopy(problem)
    losses = problem.step()

    theta = list(by_hand.method.parameters())
    accuracy = by_hand.method.class_accuracy
    meta_loss = by_hand.meta_loss_after_virtual_step(create_graph=True)
    of_meta_loss = torch.autograd.grad(meta_loss, theta)
    total = by_hand.meta_loss_after_virtual_step(create_graph=True)
    total = total + 0.7 * ((1 - accuracy / accuracy.sum() - by_hand.method.network(accuracy)) ** 2).mean()
    with torch.no_grad():
        for parameter, gradient in zip(theta, torch.autograd.grad(total, theta), strict=True):
            parameter.sub_(0.01 * gradient)
    difficulty = by_hand.method.network(accuracy).detach()
    weights = difficulty / difficulty.mean()
    train_losses = F.cross_entropy(by_hand.classifier(by_hand.batch.images), by_hand.batch.labels, reduction="none")
    train_loss = (weights[by_hand.batch.labels] * train_losses).mean()
    phi = list(by_hand.classifier.parameters())
    expected_phi = [p - ALPHA * g for p, g in zip(phi, torch.autograd.grad(train_loss, phi), strict=True)]

    assert_close(flat(list(problem.method.parameters())), flat(theta))
    assert_close(flat(list(problem.classifier.parameters())), flat(expected_phi))
    assert_close(losses.train_loss, train_loss.detach())
    assert_close(losses.meta_loss, meta_loss.detach())
    assert_close(losses.meta_grad_norm, torch.linalg.vector_norm(flat(list(of_meta_loss))) / ALPHA)


def test_running_statistics_move_once_in_an_iteration() -> None:
    problem = Problem()
    once = copy.deepcopy(problem.classifier)
    problem.step()
    once(problem.batch.images)
    for name, buffer in once.named_buffers():
        assert torch.equal(dict(problem.classifier.named_buffers())[name], buffer), name


def test_cross_entropy_equals_a_hand_written_loop_bit_for_bit() -> None:
    problem = Problem()
    by_hand = copy.deepcopy(problem.classifier)
    method = CrossEntropy(CrossEntropyConfig(), 4)
    ours = torch.optim.SGD(problem.classifier.parameters(), lr=ALPHA, momentum=0.9, weight_decay=1e-3)
    theirs = torch.optim.SGD(by_hand.parameters(), lr=ALPHA, momentum=0.9, weight_decay=1e-3)
    for _ in range(5):
        losses = training_step(problem.classifier, method, ours, None, problem.batch, None, "exact")
        theirs.zero_grad()
        loss = F.cross_entropy(by_hand(problem.batch.images), problem.batch.labels)
        loss.backward()
        theirs.step()
        assert torch.equal(losses.train_loss, loss.detach())
        assert losses.meta_grad_norm is None
    assert torch.equal(flat(list(problem.classifier.parameters())), flat(list(by_hand.parameters())))
