import copy

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from trainables.config import OptimConfig
from trainables.engine.optimizers import build_meta_optimizer, build_optimizer, learning_rate, load_state, set_step_size
from trainables.method_config import DifficultyNetConfig
from trainables.methods import Task, build_method
from trainables.models import Classifier


def test_the_cosine_starts_at_lr_and_falls_to_zero() -> None:
    config = OptimConfig(lr=0.2)
    rates = [learning_rate(config, step, 10) for step in range(11)]
    assert rates[0] == 0.2
    assert rates[5] == pytest.approx(0.1)
    assert rates[10] == pytest.approx(0)
    assert rates == sorted(rates, reverse=True)
    assert learning_rate(OptimConfig(lr=0.2, schedule="constant"), 7, 10) == 0.2


def test_a_step_size_that_is_a_tensor_is_changed_in_place() -> None:
    classifier = Classifier(torch.nn.Flatten(), torch.nn.Linear(2, 2), 2)
    plain = build_optimizer(OptimConfig(), copy.deepcopy(classifier), captured=False)
    captured = build_optimizer(OptimConfig(), classifier, captured=True)
    tensor = captured.param_groups[0]["lr"]
    for optimizer in (plain, captured):
        set_step_size(optimizer, 0.25)
        assert optimizer.param_groups[0]["lr"] == 0.25
    assert captured.param_groups[0]["lr"] is tensor


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)])
def test_theta_gets_the_optimizer_and_the_step_size_of_its_method(name: str, kind: type) -> None:
    method = build_method(DifficultyNetConfig(hidden_width=4, meta_optimizer=name, meta_lr=0.03), Task(3, 2), seed=0)
    optimizer = build_meta_optimizer(method, captured=False)
    assert type(optimizer) is kind
    assert optimizer.param_groups[0]["lr"] == 0.03


def updates(name: str, gradients: list[torch.Tensor], meta_lr: float = 0.03) -> list[torch.Tensor]:
    """What each step changes in theta, with these gradients."""
    method = build_method(DifficultyNetConfig(hidden_width=4, meta_optimizer=name, meta_lr=meta_lr), Task(3, 2), seed=0)
    theta = list(method.double().parameters())
    optimizer, found = build_meta_optimizer(method, captured=False), []
    for gradient in gradients:
        before = parameters_to_vector(theta).detach()
        for parameter, part in zip(theta, gradient.split([parameter.numel() for parameter in theta]), strict=True):
            parameter.grad = part.view_as(parameter)
        optimizer.step()
        found.append(parameters_to_vector(theta).detach() - before)
    return found


def some_gradients(count: int) -> list[torch.Tensor]:
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


def test_a_captured_trial_goes_on_as_a_plain_one() -> None:
    method = build_method(DifficultyNetConfig(hidden_width=4), Task(3, 2), seed=0)
    captured, plain = (build_meta_optimizer(method, captured=False) for _ in range(2))
    for parameter in method.parameters():
        parameter.grad = torch.ones_like(parameter)
    captured.step()
    saved = captured.state_dict()
    saved["param_groups"][0]["capturable"] = True
    load_state(plain, saved)
    assert not plain.param_groups[0]["capturable"]
    plain.step()  # would raise on the CPU
    assert all(state["step"] == 2 for state in plain.state.values())
