"""`python tests/trainables/test_bilevel.py` records the golden trajectory anew; say so in CHANGELOG."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from trainables.config import BilevelConfig
from trainables.engine.bilevel import BilevelStep, cosine
from trainables.engine.linearize import Linearizer
from trainables.engine.meta_gradient import META_GRADIENTS, Batch, Measured, MetaGradient, Problem, exact
from trainables.method_config import CrossEntropyConfig, DifficultyNetConfig, MetaWeightNetConfig, MethodConfig, MFRWConfig
from trainables.methods import Task, build_method
from trainables.models import Classifier

ALPHA, BETA = 0.1, 0.01
GOLDEN = Path(__file__).parents[2] / "golden" / "bilevel_50_steps.json"
METHODS_WITH_THETA: dict[str, MethodConfig] = {
    "difficulty_net": DifficultyNetConfig(hidden_width=5, driver_weight=0.7),
    "meta_weight_net": MetaWeightNetConfig(hidden_width=5),
    "mfrw": MFRWConfig(hidden_width=5),
}


class Setup:
    """A tiny float64 classifier with BatchNorm, a method and two batches; everything depends on the arguments only."""

    def __init__(self, method: MethodConfig | None = None, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        torch.manual_seed(0)
        backbone = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten())
        self.classifier = Classifier(backbone, nn.Linear(3 * 16, 4), 3 * 16).double()
        self.method = build_method(
            method or METHODS_WITH_THETA["difficulty_net"], Task(4, 3 * 16, torch.tensor([9, 6, 3, 2])), seed=0
        ).double()
        self.method.refresh(torch.rand(4, dtype=torch.float64))
        self.batch = Batch(torch.randn(6, 1, 4, 4).double(), torch.randint(4, (6,)))
        self.meta_batch = Batch(torch.randn(8, 1, 4, 4).double(), torch.arange(8) % 4)
        phi, theta = self.classifier.parameters(), list(self.method.parameters())
        self.optimizer = torch.optim.SGD(phi, lr=ALPHA, momentum=momentum, weight_decay=weight_decay)
        self.meta_optimizer = torch.optim.SGD(theta, lr=BETA) if theta else None

    def stepper(self, **settings: object) -> BilevelStep:
        config = BilevelConfig.model_validate(settings)
        return BilevelStep(self.classifier, self.method, self.optimizer, self.meta_optimizer, config, Linearizer())

    def run(self, num_steps: int = 1, **settings: object) -> Measured:
        bilevel_step = self.stepper(**settings)
        for step in range(num_steps):
            meta_batch = self.meta_batch if bilevel_step.needs_meta_batch(step) else None
            measured = bilevel_step(self.batch, meta_batch, step)
        return measured

    def theta(self) -> Tensor:
        return flat(list(self.method.parameters()))

    def phi(self) -> Tensor:
        return flat(list(self.classifier.parameters()))


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).clone()


def weighted_loss(setup: Setup, features: Tensor, head: dict[str, Tensor]) -> Tensor:
    """Difficulty-Net's loss, from Eq. 9, with the head's parameters given."""
    difficulty = setup.method.network(setup.method.class_accuracy)
    weights = difficulty / difficulty.mean()
    losses = F.cross_entropy(F.linear(features, head["head.weight"], head["head.bias"]), setup.batch.labels, reduction="none")
    return (weights[setup.batch.labels] * losses).mean()


@pytest.mark.parametrize("memory", ["fast", "lean"])
@pytest.mark.parametrize("mode", ["exact", "double_backward"])
def test_one_iteration_is_equations_9_to_11(mode: str, memory: str) -> None:
    setup = Setup(momentum=0.9, weight_decay=0.01)
    by_hand = copy.deepcopy(setup)
    measured = [setup.run(meta_gradient=mode, memory=memory) for _ in range(2)][1]

    accuracy, theta = by_hand.method.class_accuracy, list(by_hand.method.parameters())
    phi, momentum = dict(by_hand.classifier.named_parameters()), dict[str, Tensor]()
    for _ in range(2):
        train = torch.func.functional_call(by_hand.classifier.backbone, inside(phi), (by_hand.batch.images,))
        gradients = torch.autograd.grad(weighted_loss(by_hand, train, phi), list(phi.values()), create_graph=True)
        phi_hat = {name: p - ALPHA * g for (name, p), g in zip(phi.items(), gradients, strict=True)}
        logits = torch.func.functional_call(by_hand.classifier, phi_hat, (by_hand.meta_batch.images,))
        meta_loss = F.cross_entropy(logits, by_hand.meta_batch.labels)
        difficulty = by_hand.method.network(accuracy)
        total = meta_loss + 0.7 * ((1 - accuracy / accuracy.sum() - difficulty) ** 2).mean()
        of_meta_loss = torch.autograd.grad(meta_loss, theta, retain_graph=True)
        with torch.no_grad():
            for parameter, gradient in zip(theta, torch.autograd.grad(total, theta), strict=True):
                parameter.sub_(BETA * gradient)
        train = torch.func.functional_call(by_hand.classifier.backbone, inside(phi), (by_hand.batch.images,))
        loss = weighted_loss(by_hand, train, phi)
        for (name, p), g in zip(phi.items(), torch.autograd.grad(loss, list(phi.values())), strict=True):
            momentum[name] = 0.9 * momentum.get(name, 0) + g + 0.01 * p.detach()
        phi = {name: (p.detach() - ALPHA * momentum[name]).requires_grad_() for name, p in phi.items()}

    assert_close(setup.theta(), flat(theta))
    assert_close(setup.phi(), flat(list(phi.values())))
    assert_close(measured["train/loss"], loss.detach())
    assert_close(measured["meta/loss"], meta_loss.detach())
    assert_close(measured["meta/grad_norm"], torch.linalg.vector_norm(flat(list(of_meta_loss))) / ALPHA)


@pytest.mark.parametrize("mode", ["exact", "finite_difference"])
@pytest.mark.parametrize("actual_step", ["fresh", "stale"])
def test_with_sgd_an_update_of_theta_is_linear_in_the_weight_of_the_driver_loss(mode: str, actual_step: str) -> None:
    def update(lam: float) -> Tensor:
        setup = Setup(DifficultyNetConfig(hidden_width=5, driver_weight=lam))
        before = setup.theta()
        setup.run(meta_gradient=mode, actual_step=actual_step)
        return setup.theta() - before

    nothing, small, large = (update(lam) for lam in (0.0, 0.3, 1.0))
    assert_close(large - nothing, (small - nothing) / 0.3)
    assert not torch.allclose(large, small)


def inside(phi: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("backbone."): p for name, p in phi.items() if name.startswith("backbone.")}


@pytest.mark.parametrize("method", METHODS_WITH_THETA)
def test_the_lean_profile_computes_the_same_bit_for_bit(method: str) -> None:
    fast, lean = Setup(METHODS_WITH_THETA[method], momentum=0.9), Setup(METHODS_WITH_THETA[method], momentum=0.9)
    fast.run(5, memory="fast")
    lean.run(5, memory="lean")
    assert torch.equal(fast.phi(), lean.phi())
    assert torch.equal(fast.theta(), lean.theta())
    assert all(map(torch.equal, fast.classifier.buffers(), lean.classifier.buffers()))


@pytest.mark.parametrize("mode", ["exact", "double_backward", "finite_difference", "none"])
@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_running_statistics_move_once_in_an_iteration(mode: str, memory: str) -> None:
    setup = Setup()
    once = copy.deepcopy(setup.classifier)
    setup.run(meta_gradient=mode, memory=memory)
    once(setup.batch.images)
    for name, buffer in once.named_buffers():
        assert torch.equal(dict(setup.classifier.named_buffers())[name], buffer), name


def test_cross_entropy_is_a_loop_over_sgd_bit_for_bit() -> None:
    setup = Setup(CrossEntropyConfig(), momentum=0.9, weight_decay=1e-3)
    by_hand = copy.deepcopy(setup.classifier)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=ALPHA, momentum=0.9, weight_decay=1e-3)
    bilevel_step = setup.stepper()
    for step in range(5):
        measured = bilevel_step(setup.batch, None, step)
        optimizer.zero_grad()
        loss = F.cross_entropy(by_hand(setup.batch.images), setup.batch.labels, reduction="none").mean()
        loss.backward()
        optimizer.step()
        assert torch.equal(measured["train/loss"], loss.detach())
        assert set(measured) == {"train/loss", "train/grad_norm"}
    assert torch.equal(setup.phi(), flat(list(by_hand.parameters())))
    assert all(map(torch.equal, setup.classifier.buffers(), by_hand.buffers()))


def test_without_a_meta_gradient_the_driver_loss_alone_trains_theta() -> None:
    setup = Setup()
    before = copy.deepcopy(setup.method)
    measured = setup.run(meta_gradient="none")
    assert measured["meta/grad_norm"] == 0
    assert "meta/loss" not in measured
    accuracy = before.class_accuracy
    loss = 0.7 * ((before.network(accuracy) - 1 + accuracy / accuracy.sum()) ** 2).mean()
    gradients = torch.autograd.grad(loss, list(before.parameters()))
    assert_close(setup.theta(), flat([p - BETA * g for p, g in zip(before.parameters(), gradients, strict=True)]))
    assert not torch.equal(setup.theta(), flat(list(before.parameters())))


def test_without_meta_gradient_and_driver_loss_theta_stays() -> None:
    setup = Setup(DifficultyNetConfig(hidden_width=5, driver_weight=0.0))
    before = setup.theta()
    setup.run(meta_gradient="none")
    assert torch.equal(setup.theta(), before)


def test_an_interval_of_three_updates_theta_at_every_third_step() -> None:
    setup = Setup()
    bilevel_step = setup.stepper(meta_interval=3)
    assert [bilevel_step.needs_meta_batch(step) for step in range(7)] == [True, False, False, True, False, False, True]
    moved = []
    for step in range(7):
        before = setup.theta()
        measured = bilevel_step(setup.batch, setup.meta_batch if bilevel_step.needs_meta_batch(step) else None, step)
        moved.append(not torch.equal(setup.theta(), before))
        assert ("meta/loss" in measured) is moved[-1]
    assert moved == [True, False, False, True, False, False, True]


def test_between_updates_theta_still_weighs_the_loss() -> None:
    setup = Setup()
    bilevel_step = setup.stepper(meta_interval=2)
    bilevel_step(setup.batch, setup.meta_batch, 0)
    by_hand = copy.deepcopy(setup)
    features = by_hand.classifier.backbone(by_hand.batch.images)
    expected = weighted_loss(by_hand, features, dict(by_hand.classifier.named_parameters()))
    assert_close(bilevel_step(setup.batch, None, 1)["train/loss"], expected.detach())


@pytest.mark.parametrize("mode", ["exact", "double_backward", "finite_difference", "none"])
def test_a_stale_actual_step_goes_along_the_virtual_gradient(mode: str) -> None:
    setup = Setup()
    by_hand = copy.deepcopy(setup)
    setup.run(meta_gradient=mode, actual_step="stale")
    features = by_hand.classifier.backbone(by_hand.batch.images)
    phi = dict(by_hand.classifier.named_parameters())
    gradients = torch.autograd.grad(weighted_loss(by_hand, features, phi), list(phi.values()))
    assert_close(setup.phi(), flat([p - ALPHA * g for p, g in zip(phi.values(), gradients, strict=True)]))
    fresh = Setup()
    fresh.run(meta_gradient=mode)
    assert torch.equal(setup.theta(), fresh.theta())  # theta gets the same update
    assert not torch.allclose(setup.phi(), fresh.phi(), atol=1e-7)


@pytest.mark.parametrize("method", METHODS_WITH_THETA)
@pytest.mark.parametrize("mode", ["exact", "finite_difference"])
def test_every_second_update_is_compared_with_double_backward(method: str, mode: str) -> None:
    setup = Setup(METHODS_WITH_THETA[method])
    bilevel_step = setup.stepper(meta_gradient=mode, meta_interval=2, check_interval=2)
    found = {}
    for step in range(9):
        measured = bilevel_step(setup.batch, setup.meta_batch if bilevel_step.needs_meta_batch(step) else None, step)
        if "meta/grad_cosine" in measured:
            found[step] = measured["meta/grad_cosine"].item()
    assert sorted(found) == [0, 4, 8]
    assert min(found.values()) > 1 - (1e-12 if mode == "exact" else 1e-4)


def test_the_cosine_tells_a_wrong_direction_and_a_dead_gradient() -> None:
    a, b = [torch.tensor([3.0]), torch.tensor([[4.0, 0.0]])], [torch.tensor([4.0]), torch.tensor([[-3.0, 0.0]])]
    assert cosine(a, a) == pytest.approx(1)
    assert cosine(a, b) == pytest.approx(0)
    assert cosine(a, [-x for x in a]) == pytest.approx(-1)
    assert cosine(a, [torch.zeros_like(x) for x in a]) == 0


def test_a_wrong_gradient_shows_in_the_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Setup().run(check_interval=1)["meta/grad_cosine"] == pytest.approx(1)

    def with_other_labels(problem: Problem) -> MetaGradient:
        return exact(replace(problem, meta_batch=Batch(problem.meta_batch.images, problem.meta_batch.labels.roll(1))))

    monkeypatch.setitem(META_GRADIENTS, "exact", with_other_labels)
    assert Setup().run(check_interval=1)["meta/grad_cosine"] < 0.9


def trajectory() -> dict[str, list[float]]:
    """50 iterations on changing batches with momentum: losses, ||theta|| and the class weights at the end."""
    setup = Setup(momentum=0.9, weight_decay=1e-4)
    bilevel_step = setup.stepper()
    generator = torch.Generator().manual_seed(1)
    train_losses, meta_losses, theta_norms = [], [], []
    for step in range(50):
        images = torch.randn(14, 1, 4, 4, generator=generator, dtype=torch.float64)
        labels = torch.randint(4, (14,), generator=generator)
        images = images + labels.reshape(-1, 1, 1, 1)  # something to learn
        measured = bilevel_step(Batch(images[:6], labels[:6]), Batch(images[6:], labels[6:]), step)
        train_losses.append(measured["train/loss"].item())
        meta_losses.append(measured["meta/loss"].item())
        theta_norms.append(torch.linalg.vector_norm(setup.theta()).item())
    weights = setup.method.class_weights()
    return {"train_loss": train_losses, "meta_loss": meta_losses, "theta_norm": theta_norms, "class_weights": weights.tolist()}


def test_fifty_iterations_are_those_on_record() -> None:
    found, expected = trajectory(), json.loads(GOLDEN.read_text())
    assert found["meta_loss"][-1] < found["meta_loss"][0]
    for name, values in expected.items():
        assert_close(torch.tensor(found[name], dtype=torch.float64), torch.tensor(values, dtype=torch.float64), rtol=1e-9, atol=0)


def test_fifty_iterations_are_the_same_bit_for_bit_on_this_machine() -> None:
    assert trajectory() == trajectory()


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(trajectory(), indent=1) + "\n")
