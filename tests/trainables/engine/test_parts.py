import copy
from typing import Any

import pytest
import torch
from tasks import moment, task
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.testing import assert_close

from trainables.config import BilevelConfig, ComputeConfig
from trainables.engine.bilevel import BilevelStep, Course
from trainables.engine.linearize import Linearizer
from trainables.engine.meta_gradient import META_GRADIENTS, Batch, Measured
from trainables.engine.parts import LinearizerInParts, parts, recomputed
from trainables.loss_config import BalancedSoftmaxConfig
from trainables.method_config import (
    CBDAConfig,
    DifficultyNetConfig,
    GDWConfig,
    L2RWConfig,
    MetaSamplerConfig,
    MetaWeightNetConfig,
    MethodConfig,
    MFRWMESConfig,
)
from trainables.methods import build_method
from trainables.models.classifier import Classifier

VARIANTS: dict[str, MethodConfig] = {
    "balanced softmax": BalancedSoftmaxConfig(),
    "difficulty_net, mean one, balanced softmax": DifficultyNetConfig(hidden_width=5, base_loss=BalancedSoftmaxConfig()),
    "difficulty_net, sample": DifficultyNetConfig(hidden_width=5, difficulty="sample"),
    "meta_weight_net, mean one": MetaWeightNetConfig(hidden_width=5, weight_scale="mean_one"),
    "l2rw": L2RWConfig(),
    "cb_da": CBDAConfig(beta=0.9, meta_from=0),
    "gdw": GDWConfig(hidden_width=5),
    "meta_sampler": MetaSamplerConfig(initial_power=0.5),
    "mfrw_mes": MFRWMESConfig(hidden_width=5, equalise_probability=0.5, detach_inputs=False),
}
PERTURBED = ("l2rw", "cb_da", "gdw")
"""TrialConfig refuses these without a meta-gradient."""
NUM_IMAGES, NUM_META = 7, 8


WHOLE, IN_THREES = Linearizer(), LinearizerInParts(3)
"""Shared by all tests with the classifier of `backbone`, so that it is traced once."""


def backbone() -> nn.Sequential:
    first = [nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Dropout(0.3), nn.Tanh()]
    return nn.Sequential(*first, nn.Conv2d(4, 3, 2), nn.Dropout2d(0.3), nn.Flatten())


class Trained:
    """Some steps of a small classifier in double precision; everything depends on the arguments only."""

    def __init__(self, variant: str, linearizer: Linearizer, steps: int = 3, **settings: Any) -> None:
        torch.manual_seed(5)
        layers = backbone()
        num_features = layers(torch.zeros(1, 1, 5, 5)).shape[1]
        self.classifier = Classifier(layers, nn.Linear(num_features, 4), num_features).double().train()
        self.method = build_method(
            VARIANTS[variant], task([9, 5, 3, 2], num_features=num_features, batch_size=NUM_IMAGES), 0
        ).double()
        self.method.refresh(torch.rand(4, dtype=torch.float64))
        optimizer = torch.optim.SGD(self.classifier.parameters(), lr=0.3, momentum=0.9)
        theta = list(self.method.parameters())
        course = Course(moment(), seed=3)
        config = BilevelConfig.model_validate(settings)
        meta_optimizer = torch.optim.Adam(theta, lr=0.01) if theta else None
        step = BilevelStep(self.classifier, self.method, optimizer, meta_optimizer, config, linearizer, course=course)
        self.measured: list[Measured] = []
        # Drawn before the first trace, because traces draw from torch's generator.
        images = torch.randn(steps, NUM_IMAGES + NUM_META, 1, 5, 5).double()
        labels = torch.randint(4, (steps, NUM_IMAGES))
        for number in range(steps):
            course.moment.set(number, 10, 100)
            batch = Batch(images[number, :NUM_IMAGES], labels[number])
            meta_batch = Batch(images[number, NUM_IMAGES:], torch.arange(NUM_META) % 4)
            self.measured.append(step(batch, meta_batch if step.needs_meta_batch(number) else None, number))

    def assert_equals(self, other: "Trained") -> None:
        """Up to rounding: parameters of the classifier and of the method, and everything that was measured."""
        for mine, theirs in ((self.classifier, other.classifier), (self.method, other.method)):
            assert_close(mine.state_dict(), theirs.state_dict(), rtol=1e-10, atol=1e-10)
        assert_close(self.measured, other.measured, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("variant", "mode"),
    [(variant, mode) for variant in VARIANTS for mode in (*META_GRADIENTS, "none") if mode != "none" or variant not in PERTURBED],
)
def test_a_step_in_parts_is_the_step_of_the_whole_batch(variant: str, mode: str) -> None:
    """With dropout, and with parts of 3, 2 and 2 images, and of 3, 3 and 2 in the meta batch."""
    settings = {"meta_gradient": mode, "check_interval": 1 if mode in ("exact", "finite_difference") else 0}
    whole = Trained(variant, WHOLE, **settings)
    Trained(variant, IN_THREES, **settings).assert_equals(whole)


@pytest.mark.parametrize(("settings", "micro_batch"), [({"actual_step": "stale"}, 1), ({"memory": "lean"}, 6)])
def test_so_it_is_with_parts_of_any_size(settings: dict[str, str], micro_batch: int) -> None:
    whole = Trained("meta_weight_net, mean one", WHOLE, **settings)
    Trained("meta_weight_net, mean one", LinearizerInParts(micro_batch), **settings).assert_equals(whole)


def test_a_batch_that_is_small_enough_runs_at_once() -> None:
    """Then its numbers are the same bit for bit."""
    whole, ours = (Trained("gdw", linearizer) for linearizer in (WHOLE, LinearizerInParts(8)))
    for name, tensor in whole.classifier.state_dict().items():
        assert torch.equal(ours.classifier.state_dict()[name], tensor)


@pytest.mark.parametrize("number", [0, 1, 7, 12])
@pytest.mark.parametrize("most", [1, 3, 4, 12])
def test_parts_are_few_and_as_equal_as_those_of_tensor_split(number: int, most: int) -> None:
    found = [torch.arange(number)[rows] for rows in parts(number, most)]
    assert max(len(part) for part in found) <= most
    assert len(found) == 1 or sum(len(part) for part in found) > (len(found) - 1) * most
    for ours, theirs in zip(found, torch.tensor_split(torch.arange(number), len(found)), strict=True):
        assert torch.equal(ours, theirs)


def test_batch_norm_normalises_each_part_by_itself_and_its_running_statistics_take_one_step() -> None:
    """Their step goes to the mean over the parts, as after the averaging over workers that have shares of the batch."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten()).double().train()
    frozen = torch.rand(5).double()  # no mean over parts may round a buffer that does not change
    layers.register_buffer("constant", frozen.clone())
    images, expected = torch.randn(7, 1, 4, 4).double(), copy.deepcopy(layers)
    values, buffers = [p.detach() for p in layers.parameters()], list(layers.buffers())
    here = LinearizerInParts(3)(layers, values, buffers, images)
    outputs, means, variances = [], [], []
    for part in torch.tensor_split(images, 3):
        maps = expected[0](part)
        outputs.append(expected[2](F.batch_norm(maps, None, None, expected[1].weight, expected[1].bias, training=True)))
        means.append(maps.mean((0, 2, 3)))
        variances.append(maps.var((0, 2, 3)))
    features = torch.cat(outputs)
    assert_close(here.features, features.detach(), rtol=1e-12, atol=1e-12)
    cotangent = torch.randn_like(features)
    for ours, theirs in zip(
        here.pullback(cotangent), torch.autograd.grad(features, expected.parameters(), cotangent), strict=True
    ):
        assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert_close(layers[1].running_mean, 0.1 * torch.stack(means).mean(0).detach())
    assert_close(layers[1].running_var, 0.9 + 0.1 * torch.stack(variances).mean(0).detach())
    assert layers[1].num_batches_tracked == 1
    assert torch.equal(layers.constant, frozen)


def test_a_part_of_a_single_value_in_each_channel_has_no_statistics_of_its_own() -> None:
    """As the share of a worker; its output is the bias. For a whole batch with a single value, torch's error is kept."""
    layers = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4)).double().train()
    layers[1].bias.data.fill_(0.25)
    values, buffers, images = [p.detach() for p in layers.parameters()], list(layers.buffers()), torch.randn(3, 1, 2, 2).double()
    linearizer = LinearizerInParts(2)
    assert_close(linearizer(layers, values, buffers, images).features[2], torch.full((4,), 0.25).double())
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        linearizer(layers, values, buffers, images[:1])


class Shifted(nn.Module):
    """With one image, the gradients of both shifts are the cotangent itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.zeros(1, 4)), nn.Parameter(torch.zeros(1, 4))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) + self.first + self.second


def test_gradients_that_share_memory_are_added_once() -> None:
    layers, cotangent = Shifted(), torch.randn(3, 4)
    values, given = [p.detach() for p in layers.parameters()], cotangent.clone()
    here = LinearizerInParts(1)(layers, values, [], torch.randn(3, 1, 2, 2))
    for gradient in here.pullback(cotangent):
        assert_close(gradient, given.sum(0, keepdim=True))
    assert torch.equal(cotangent, given)


@pytest.mark.parametrize("layer", [nn.Tanh(), nn.Identity()])
def test_what_is_recomputed_can_be_differentiated_twice(layer: nn.Module) -> None:
    """torch compares both derivatives with finite differences. The second input is not used at all."""
    x = torch.randn(3, 2).double()

    def function(weight: Tensor, _: Tensor, bias: Tensor) -> Tensor:
        return layer(x @ weight + bias)

    inputs = [torch.randn(*shape).double().requires_grad_() for shape in ((2, 4), (3,), (4,))]
    torch.autograd.gradcheck(lambda *values: recomputed(function, values), inputs)
    torch.autograd.gradgradcheck(lambda *values: recomputed(function, values), inputs)


def peak_of(mode: str, micro_batch: int | None) -> int:
    """The largest number of bytes that an iteration of the second kind has at one time beyond what there was before."""
    torch.manual_seed(0)
    layers = nn.Sequential(*(nn.Sequential(nn.Conv2d(1 if n == 0 else 4, 4, 3, padding=1), nn.Tanh()) for n in range(6)))
    classifier = Classifier(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(4, 4), 4)
    method = build_method(MetaWeightNetConfig(hidden_width=5), task([9, 5, 3, 2], batch_size=32), 0)
    optimizer, meta_optimizer = (torch.optim.SGD(module.parameters(), lr=0.1) for module in (classifier, method))
    config = BilevelConfig.model_validate({"meta_gradient": mode})
    step = BilevelStep(classifier, method, optimizer, meta_optimizer, config, LinearizerInParts(micro_batch))
    batch, meta_batch = (Batch(torch.randn(32, 1, 16, 16), torch.arange(32) % 4) for _ in range(2))
    step(batch, meta_batch, 0)  # traces the programs
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        step(batch, meta_batch, 1)
    assert watched.profiler is not None
    assert watched.profiler.kineto_results is not None
    now = peak = 0
    events = [event for event in watched.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("mode", [*META_GRADIENTS])
def test_an_iteration_in_eight_parts_needs_a_fraction_of_the_memory(mode: str) -> None:
    """Parameters are few here, so what is left is about one part's activations."""
    whole, in_parts = peak_of(mode, None), peak_of(mode, 4)
    assert in_parts < whole / 5


def test_the_statistics_of_the_whole_batch_and_captured_steps_are_refused() -> None:
    assert ComputeConfig(micro_batch=8).micro_batch == 8
    with pytest.raises(ValueError, match=r"micro_batch is 8, but batch_norm is 'sync'.*allowed: batch_norm local"):
        ComputeConfig(micro_batch=8, batch_norm="sync")
    with pytest.raises(ValueError, match=r"micro_batch is 8, but cuda_graphs is true.*allowed: cuda_graphs false"):
        ComputeConfig(micro_batch=8, cuda_graphs=True)
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        ComputeConfig(micro_batch=0)
