import copy

import pytest
import torch

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
