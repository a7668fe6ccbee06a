"""What all methods have in common before they train, and the advisor networks. test_weighting.py has the other methods."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tasks import PLAIN, built, context, loss_of, softmax, task
from torch import Tensor, nn
from torch.testing import assert_close

from trainables.config import TrialConfig
from trainables.loss_config import BalancedSoftmaxConfig
from trainables.method_config import METHOD_SETTINGS, MESConfig, MethodConfig, MFRWConfig, MFRWMESConfig
from trainables.methods import METHODS, Context, Method, build_method

COUNTS = [30, 8, 2]
LABELS = torch.tensor([0, 1, 2, 0, 1])


def test_the_table_and_the_settings_name_the_same_methods() -> None:
    assert list(METHODS) == list(METHOD_SETTINGS)


@pytest.mark.parametrize("name", METHODS)
def test_initial_theta_depends_on_the_seed_only(name: str) -> None:
    def theta(seed: int) -> list[Tensor]:
        torch.rand(3)
        return [
            parameter.detach() for parameter in build_method(METHOD_SETTINGS[name](name=name), task(COUNTS), seed).parameters()
        ]

    assert all(map(torch.equal, theta(1), theta(1)))
    draws = "hidden_width" in METHOD_SETTINGS[name].model_fields  # a network has random initial weights
    assert not draws or not all(map(torch.equal, theta(1), theta(2)))


@pytest.mark.parametrize("name", METHODS)
def test_building_a_method_leaves_torchs_generator_alone(name: str) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build_method(METHOD_SETTINGS[name](name=name), task(COUNTS), seed=1)
    assert torch.equal(torch.rand(3), expected)


# The advisor networks


def features() -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def head() -> nn.Linear:
    torch.manual_seed(2)
    return nn.Linear(4, 3).double()


def advisor(config: MethodConfig, **more: Any) -> tuple[Method, Context]:
    method = built(config, task(COUNTS))
    return method, context(method, features(), LABELS, head(), **more)


def advice(method: Method, around: Context, layer: str) -> np.ndarray:
    """The output of one of the advisor's heads, from its parameters alone."""
    theta = {name: parameter.detach().numpy() for name, parameter in method.named_parameters()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ theta[f"{name}.weight"].T + theta[f"{name}.bias"]

    of_features = np.maximum(0, linear("embed_features", around.features.numpy()))
    of_losses = np.maximum(0, linear("embed_loss", around.losses.numpy()[:, None]))
    return 1 / (1 + np.exp(-linear(layer, np.concatenate([of_features, of_losses], 1))))


def test_mfrw_masks_the_features_before_the_head() -> None:
    method, around = advisor(MFRWConfig(hidden_width=6))
    mask = advice(method, around, "to_mask")
    with torch.no_grad():
        z = around.head(torch.from_numpy(mask) * around.features).numpy()
    assert loss_of(method, around).item() == pytest.approx(-np.log(softmax(z)[np.arange(5), LABELS]).mean())


@pytest.mark.parametrize("draws", ["image", "batch", "entry"])
def test_mes_spares_the_logits_of_other_classes(draws: str) -> None:
    """p_j = e^{z_j} / sum_k w_k e^{z_k} with w_k = 1 - b s_k (1 - y_k)."""
    seen = set()
    for step in range(6):
        config = {"name": "mes", "hidden_width": 6, "equalise_probability": 0.6, "draws": draws}
        method, around = advisor(MESConfig.model_validate(config), step=step)
        s, z = advice(method, around, "to_softmax"), around.logits.numpy()
        shape = {"image": (5, 1), "batch": (1, 1), "entry": (5, 3)}[draws]
        b = np.broadcast_to(around.uniform(*shape).numpy() < 0.6, (5, 3))
        expected = []
        for i, y in enumerate(LABELS.tolist()):
            total = sum((1 - b[i, k] * s[i, k] * (k != y)) * math.exp(z[i, k]) for k in range(3))
            expected.append(-math.log(math.exp(z[i, y]) / total))
        assert loss_of(method, around).item() == pytest.approx(np.mean(expected))
        seen |= set(b.flatten().tolist())
    assert seen == {True, False}


@pytest.mark.parametrize("base", [PLAIN, BalancedSoftmaxConfig()], ids=lambda loss: loss.name)
def test_without_its_advice_an_advisor_is_the_loss_alone(base: Any) -> None:
    plain, around = advisor(base)
    expected = loss_of(plain, around)
    assert_close(loss_of(*advisor(MESConfig(hidden_width=6, equalise_probability=0.0, base_loss=base))), expected)
    masked, around = advisor(MFRWConfig(hidden_width=6, base_loss=base))
    nn.init.constant_(masked.to_mask.bias, 100.0)
    assert_close(loss_of(masked, around), expected)
    assert not torch.allclose(loss_of(*advisor(MFRWConfig(hidden_width=6, base_loss=base))), expected)
    assert not torch.allclose(loss_of(*advisor(MESConfig(hidden_width=6, equalise_probability=1.0, base_loss=base))), expected)


def test_both_advisors_in_one_become_each_of_them() -> None:
    """With the parameters of the network in common."""
    both, around = advisor(MFRWMESConfig(hidden_width=6, equalise_probability=1.0))
    equalises, mes_context = advisor(MESConfig(hidden_width=6, equalise_probability=1.0))
    masks, mfrw_context = advisor(MFRWConfig(hidden_width=6))
    for one in (equalises, masks):
        one.load_state_dict({name: value for name, value in both.state_dict().items() if name in one.state_dict()})
    together = loss_of(both, around)
    assert not torch.allclose(together, loss_of(equalises, mes_context))
    assert not torch.allclose(together, loss_of(masks, mfrw_context))
    both.equalise_probability = 0.0
    assert_close(loss_of(both, around), loss_of(masks, mfrw_context))
    both.equalise_probability = 1.0
    nn.init.constant_(both.to_mask.bias, 100.0)
    assert_close(loss_of(both, around), loss_of(equalises, mes_context))


def test_advice_of_zero_or_one_leaves_loss_and_gradients_finite() -> None:
    for config in (MFRWMESConfig(hidden_width=6, equalise_probability=1.0), MESConfig(hidden_width=6, equalise_probability=1.0)):
        for bias in (-1e4, 1e4):
            method, around = advisor(config)
            for name, layer in method.named_children():
                if name.startswith("to_"):
                    nn.init.constant_(layer.bias, bias)
            leaf = around.features.clone().requires_grad_()
            loss = method.train_loss(around.head, leaf, around, method.begin_batch(around))
            found = torch.autograd.grad(loss, [leaf, *method.parameters(), *around.head.parameters()], materialize_grads=True)
            assert all(gradient.isfinite().all() for gradient in (loss, *found))


def test_a_suppression_that_rounds_to_one_can_still_be_unlearned() -> None:
    method, around = advisor(MESConfig(hidden_width=6, equalise_probability=1.0))
    with torch.no_grad():
        method.to_softmax.bias[0] = 60.0
    assert (advice(method, around, "to_softmax")[:, 0] == 1).all()
    loss = method.train_loss(around.head, around.features, around, method.begin_batch(around))
    assert torch.autograd.grad(loss, method.to_softmax.bias)[0][0] != 0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 20),
        ({"equalise_probability": 1.0}, 20),
        ({"equalise_probability": 0.0}, None),
        ({"equalise_probability": 0.1, "draws": "batch"}, 197),
        ({"equalise_probability": 0.1, "draws": "image"}, 20),
        ({"equalise_probability": 0.001, "draws": "image"}, 324),
        ({"equalise_probability": 0.001, "draws": "entry"}, 108),
        ({"name": "mfrw_mes", "equalise_probability": 0.0}, 20),
    ],
)
def test_a_trial_does_not_fail_because_chance_left_the_advice_out(settings: dict[str, Any], expected: int | None) -> None:
    """All draws of so many batches are 0 with a probability of at most 1e-9, or 0.9^20 and so on would end healthy trials."""
    config = {"name": "mes", **settings}
    method = built(METHOD_SETTINGS[config["name"]].model_validate(config), replace(task(COUNTS), batch_size=64))
    assert method.dead_after == expected


@pytest.mark.parametrize("detach_inputs", [True, False])
def test_features_get_a_gradient_through_the_advice_only_where_that_is_wanted(detach_inputs: bool) -> None:
    """The logits of MES depend on the features through the head and through the advice. Here the head is blind."""
    method, around = advisor(MESConfig(hidden_width=6, equalise_probability=1.0, detach_inputs=detach_inputs))
    leaf = around.features.clone().requires_grad_()
    loss = method.train_loss(lambda x: 0 * x[:, :3], leaf, around, method.begin_batch(around))
    through_advice = torch.autograd.grad(loss, leaf)[0]
    assert bool(through_advice.abs().max() == 0) is detach_inputs


def test_a_mixed_image_spares_neither_of_its_labels() -> None:
    """Advice about its two labels changes nothing; advice about the third does."""
    config = MESConfig(hidden_width=6, equalise_probability=1.0)
    mix = {"partners": torch.tensor([1, 1, 0, 0, 2]), "label_weight": torch.full((5,), 0.6, dtype=torch.float64)}
    method, around = advisor(config, **mix)
    before = method.sample_losses(around.logits, around)
    third = [({0, 1, 2} - {y, k}) for y, k in zip(LABELS.tolist(), mix["partners"].tolist(), strict=True)]
    s, z = advice(method, around, "to_softmax"), around.logits.numpy()
    expected = []
    for i, (y, k) in enumerate(zip(LABELS.tolist(), mix["partners"].tolist(), strict=True)):
        e = np.exp(z[i]) * [1 - s[i, c] * (c in third[i]) for c in range(3)]
        p = np.exp(z[i, [y, k]]) / e.sum()
        expected.append(-0.6 * math.log(p[0]) - 0.4 * math.log(p[1]))
    assert loss_of(method, around).item() == pytest.approx(np.mean(expected))
    assert loss_of(method, around) < before.mean()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("bilevel", [{"actual_step": "stale"}, {"meta_gradient": "none"}])
def test_only_methods_that_take_their_weights_from_the_meta_gradient_need_a_fresh_one(name: str, bilevel: dict[str, str]) -> None:
    perturbs = built(METHOD_SETTINGS[name](name=name), task(COUNTS)).perturbation_shape(1) is not None
    tree = {"method": {"name": name}, "bilevel": bilevel}
    if not perturbs:
        TrialConfig.model_validate(tree)
        return
    with pytest.raises(ValueError, match=f"method.name is '{name}', wh.*; allowed: "):
        TrialConfig.model_validate(tree)
