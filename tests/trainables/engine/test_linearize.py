import functools
import itertools
import random
import subprocess
import sys
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from trainables.classifier_config import (
    ClassifierConfig,
    LinearConfig,
    MLPAdapterConfig,
    ResNetCifar18Config,
    ResNetCifarConfig,
    ResNetConfig,
    SmallCNNConfig,
)
from trainables.engine.draws import META, TRAINING, Draws, Key, Share
from trainables.engine.linearize import Linearization, Linearizer, check_forward_mode
from trainables.models import CLASSIFIERS, build_classifier
from trainables.models.feature_heads import Adapter

CONFIGS: dict[str, ClassifierConfig] = {
    "small_cnn": SmallCNNConfig(),
    "resnet_cifar": ResNetCifarConfig(depth=20),
    "resnet_cifar18": ResNetCifar18Config(),
    "resnet": ResNetConfig(depth=10),
    "mlp_adapter": MLPAdapterConfig(bottleneck=3),
}
SIDES = {"small_cnn": 8, "resnet_cifar": 8, "resnet_cifar18": 18, "resnet": 18, "mlp_adapter": 3}
"""Of the images. Below 17 pixels the last convolution of a ResNet with a stride sees a single one, and there torch's bf16 kernel
for CPUs gives a gradient of uninitialised memory."""


class Setup:
    """A backbone of the table with random weights, a batch, a cotangent and tangents."""

    def __init__(
        self,
        name: str = "small_cnn",
        dtype: torch.dtype = torch.float64,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        torch.manual_seed(0)
        shape = (3, SIDES[name], SIDES[name])
        self.backbone = build_classifier(CONFIGS[name], shape, 5, seed=0).backbone.to(dtype, memory_format=memory_format)
        for adapter in (module for module in self.backbone.modules() if isinstance(module, Adapter)):
            torch.nn.init.normal_(adapter.up.weight)  # which begins with zeros, so that nothing would depend on `down`
        self.images = torch.randn(6, *shape, dtype=dtype).contiguous(memory_format=memory_format)
        self.parameters = [parameter.detach() for parameter in self.backbone.parameters()]
        self.buffers = [buffer.clone() for buffer in self.backbone.buffers()]
        self.tangents = [torch.randn_like(parameter) for parameter in self.parameters]

    def linearization(self, linearizer: Linearizer | None = None) -> Linearization:
        return (linearizer or Linearizer())(self.backbone, self.parameters, self.buffers, self.images)

    def features(self, parameters: list[Tensor]) -> Tensor:
        names = [name for name, _ in self.backbone.named_parameters()]
        buffers = {name: buffer.clone() for name, buffer in self.backbone.named_buffers()}
        return functional_call(self.backbone, (dict(zip(names, parameters, strict=True)), buffers), (self.images,))


@functools.cache
def shared(name: str, autocast: torch.dtype | None = None) -> Linearizer:
    """Traces each backbone of the table once for each type and memory layout, for all tests that do not change the backbone."""
    return Linearizer(autocast)


def test_every_classifier_of_the_table_is_linearized_here() -> None:
    elsewhere = {"linear", "torchvision", "timm"}  # pre-trained kinds are in test_adaptation.py
    assert {*CONFIGS} | elsewhere == set(CLASSIFIERS)


def test_a_backbone_without_parameters_has_no_gradients_and_does_not_move() -> None:
    backbone, images = build_classifier(LinearConfig(), (5, 1, 1), 3, seed=0).backbone, torch.randn(4, 5, 1, 1)
    here = Linearizer()(backbone, [], [], images)
    assert torch.equal(here.features, images[:, :, 0, 0])
    assert here.pullback(torch.ones(4, 5)) == []
    assert torch.equal(here.pushforward([]), torch.zeros(4, 5))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", CONFIGS)
def test_features_gradients_and_running_statistics_are_those_of_autograd_bit_for_bit(
    name: str, memory_format: torch.memory_format
) -> None:
    setup = Setup(name, torch.float32, memory_format)
    here = setup.linearization(shared(name))
    expected = setup.backbone(setup.images)
    cotangent = torch.randn_like(expected)
    assert torch.equal(here.features, expected)
    assert not here.features.requires_grad
    assert all(
        map(torch.equal, here.pullback(cotangent), torch.autograd.grad(expected, list(setup.backbone.parameters()), cotangent))
    )
    assert all(map(torch.equal, setup.buffers, setup.backbone.buffers()))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_pushforward_is_that_of_torch_func(name: str, memory_format: torch.memory_format) -> None:
    setup = Setup(name, memory_format=memory_format)
    _, expected = jvp(lambda parameters: setup.features(parameters), (setup.parameters,), (setup.tangents,))
    assert_close(setup.linearization(shared(name)).pushforward(setup.tangents), expected, rtol=1e-10, atol=1e-12)


def test_released_activations_are_computed_again_and_move_no_statistics() -> None:
    setup = Setup()
    here = setup.linearization()
    cotangent = torch.randn_like(here.features)
    pulled, pushed, moved = here.pullback(cotangent), here.pushforward(setup.tangents), [b.clone() for b in setup.buffers]
    here.release()
    assert torch.equal(here.pushforward(setup.tangents), pushed)
    here.release()
    assert all(map(torch.equal, here.pullback(cotangent), pulled))
    assert all(map(torch.equal, setup.buffers, moved))


def test_a_second_forward_pass_of_the_same_shape_is_not_traced_again(monkeypatch: pytest.MonkeyPatch) -> None:
    setup, linearizer = Setup(), Linearizer()
    setup.linearization(linearizer)
    monkeypatch.setattr("trainables.engine.linearize.trace", lambda *given: pytest.fail("traced again"))
    other = [2 * parameter for parameter in setup.parameters]
    features = linearizer(setup.backbone, other, setup.buffers, setup.images).features
    assert torch.equal(features, setup.features(other))


def test_the_pushforward_computes_nothing_of_the_forward_pass_again() -> None:
    """Two convolutions for each one of the forward pass, but one for the first, whose input does not move."""
    setup = Setup("resnet_cifar")
    here = setup.linearization(shared("resnet_cifar"))
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        setup.backbone(setup.images)
    with FlopCounterMode(display=False) as pushforward:
        here.pushforward(setup.tangents)
    first = 2 * 6 * 64 * 16 * 3 * 9
    assert pushforward.get_total_flops() == 2 * forward.get_total_flops() - first


def test_a_frozen_batch_norm_is_differentiated_with_its_running_statistics() -> None:
    setup = Setup()
    setup.backbone.eval()
    setup.backbone[1].running_mean.fill_(0.3)
    setup.buffers = [buffer.clone() for buffer in setup.backbone.buffers()]
    here = setup.linearization()
    expected, along = jvp(lambda parameters: setup.features(parameters), (setup.parameters,), (setup.tangents,))
    assert_close(here.features, expected)
    assert_close(here.pushforward(setup.tangents), along)
    assert all(map(torch.equal, setup.buffers, setup.backbone.buffers()))


def test_a_backbone_without_parameters_has_no_gradients_and_no_tangent() -> None:
    images = torch.randn(2, 1, 3, 3)
    here = Linearizer()(nn.Flatten(), [], [], images)
    assert torch.equal(here.features, images.flatten(1))
    assert here.pullback(torch.ones(2, 9)) == []
    assert torch.equal(here.pushforward([]), torch.zeros(2, 9))


def test_a_parameter_that_is_not_used_gets_a_gradient_of_zero() -> None:
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(9, 2))
    backbone.register_parameter("unused", nn.Parameter(torch.ones(3)))
    here = Linearizer()(backbone, [p.detach() for p in backbone.parameters()], [], torch.randn(4, 1, 3, 3))
    assert torch.equal(here.pullback(torch.ones(4, 2))[0], torch.zeros(3))


def test_nothing_is_differentiated_before_the_first_trained_layer() -> None:
    """Each trained layer costs its forward pass twice, but the first one once: what comes before it does not move."""
    sizes = [12, 16, 16, 16, 5]
    layers = [module for size in itertools.pairwise(sizes) for module in (nn.Linear(*size), nn.Tanh())]
    backbone, images = nn.Sequential(nn.Flatten(), *layers), torch.randn(6, 3, 2, 2)
    backbone[1:5].requires_grad_(False)
    parameters = [parameter.detach() for parameter in backbone[5:].parameters()]
    here = Linearizer()(backbone, parameters, [], images)
    expected = backbone(images)
    cotangent, tangents = torch.randn_like(expected), [torch.randn_like(parameter) for parameter in parameters]
    with FlopCounterMode(display=False) as pullback:
        gradients = here.pullback(cotangent)
    with FlopCounterMode(display=False) as pushforward:
        along = here.pushforward(tangents)
    first, second = 2 * 6 * 16 * 16, 2 * 6 * 16 * 5
    assert pullback.get_total_flops() == pushforward.get_total_flops() == first + 2 * second
    assert {tuple(saved.shape) for saved in here._saved if saved.dim() == 2 and len(saved) == 6} == {(6, 16), (6, 5)}
    assert torch.equal(here.features, expected)
    assert all(map(torch.equal, gradients, torch.autograd.grad(expected, list(backbone[5:].parameters()), cotangent)))
    assert_close((along * cotangent).sum(), sum((a * b).sum() for a, b in zip(gradients, tangents, strict=True)))


FROZEN: dict[str, Callable[[], nn.Module]] = {
    "layer_norm": lambda: nn.LayerNorm([2, 4, 4]),
    "group_norm": lambda: nn.GroupNorm(1, 2),
    "instance_norm": lambda: nn.InstanceNorm2d(2, affine=True),
    "batch_norm": lambda: nn.BatchNorm2d(2),
    "batch_norm in eval mode": lambda: nn.BatchNorm2d(2).eval(),
    "rms_norm": lambda: nn.RMSNorm([2, 4, 4]),
    "conv": lambda: nn.Conv2d(2, 2, 1),
    "linear": lambda: nn.Linear(4, 4),
}
IN_PLACE: dict[str, Callable[[], nn.Module]] = {
    "hardswish": lambda: nn.Hardswish(inplace=True),
    "silu": lambda: nn.SiLU(inplace=True),
    "silu, through a view": lambda: nn.Sequential(nn.Flatten(), nn.SiLU(inplace=True), nn.Tanh()),
    "elu": lambda: nn.ELU(inplace=True),
    "mish": lambda: nn.Mish(inplace=True),
    "batch_norm, hardswish": lambda: nn.Sequential(nn.BatchNorm2d(2), nn.Hardswish(inplace=True)),
}
"""Activations that overwrite the input which their derivative needs."""


@pytest.mark.parametrize("pushforward", [True, False])
@pytest.mark.parametrize("kind", FROZEN | IN_PLACE)
def test_frozen_layers_and_activations_in_place_are_passed_by_both_modes(kind: str, pushforward: bool) -> None:
    torch.manual_seed(0)
    layer = (FROZEN | IN_PLACE)[kind]().requires_grad_(False)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    backbone = nn.Sequential(nn.Conv2d(1, 2, 1), layer, nn.Flatten()).double()
    images = torch.randn(4, 1, 4, 4, dtype=torch.float64)
    of_conv = [parameter.detach() for parameter in backbone[0].parameters()]
    buffers = [buffer.clone() for buffer in backbone.buffers()]
    here = Linearizer()(backbone, of_conv, buffers, images, pushforward=pushforward)
    expected = backbone(images)
    assert_close(here.features, expected)
    cotangent = torch.randn_like(here.features)
    gradients = torch.autograd.grad(expected, list(backbone[0].parameters()), cotangent)
    for _ in range(2):
        for ours, theirs in zip(here.pullback(cotangent), gradients, strict=True):
            assert_close(ours, theirs)
        here.release()
    if pushforward:
        tangents, size = [torch.randn_like(parameter) for parameter in of_conv], 1e-6
        moved = ([p + sign * size * t for p, t in zip(of_conv, tangents, strict=True)] for sign in (1, -1))
        ahead, behind = (functional_call(backbone, {"0.weight": weight, "0.bias": bias}, (images,)) for weight, bias in moved)
        assert_close(here.pushforward(tangents), (ahead - behind) / (2 * size), rtol=1e-6, atol=1e-8)


def test_a_bias_alone_moves_what_follows() -> None:
    """Its tangent is that of all images, and the activation in place overwrites tangents, too."""
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(9, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)).double()
    backbone[1].weight.requires_grad_(False)
    parameters, images = [p.detach() for p in backbone.parameters() if p.requires_grad], torch.randn(5, 1, 3, 3).double()
    here = Linearizer()(backbone, parameters, [], images)
    tangents, cotangent = [torch.randn_like(p) for p in parameters], torch.randn(5, 2, dtype=torch.float64)
    expected = torch.autograd.grad(backbone(images), [p for p in backbone.parameters() if p.requires_grad], cotangent)
    total = sum((a * b).sum() for a, b in zip(expected, tangents, strict=True))
    assert_close((here.pushforward(tangents) * cotangent).sum(), total)


class Distances(nn.Module):
    """torch's operator has no forward mode."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x, x).flatten(1)


def test_an_operator_without_forward_mode_is_named_with_the_modes_that_are_left() -> None:
    backbone, images = nn.Sequential(nn.Conv2d(1, 2, 1), Distances()), torch.randn(4, 1, 4, 4)
    parameters = [parameter.detach() for parameter in backbone.parameters()]
    said = r"_cdist_forward .*allowed: bilevel.meta_gradient=finite_difference, double_backward or none"
    with pytest.raises(ValueError, match=said):
        Linearizer()(backbone, parameters, [], images)
    assert Linearizer()(backbone, parameters, [], images, pushforward=False).features.shape == (4, 32)


def test_it_is_found_without_tracing_in_the_same_words() -> None:
    backbone = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Dropout(), Distances())
    parameters = [parameter.detach() for parameter in backbone.parameters()]
    with pytest.raises(ValueError, match="_cdist_forward") as traced:
        Linearizer()(backbone, parameters, list(backbone.buffers()), torch.randn(4, 1, 4, 4))
    with pytest.raises(ValueError, match="_cdist_forward") as found:
        check_forward_mode(backbone, (1, 4, 4))
    assert str(found.value) == str(traced.value)


def test_a_frozen_operator_without_forward_mode_is_no_fault() -> None:
    backbone = nn.Sequential(nn.Conv2d(1, 2, 1).requires_grad_(False), Distances(), nn.Linear(32, 3))
    parameters = [parameter.detach() for parameter in backbone.parameters() if parameter.requires_grad]
    Linearizer()(backbone, parameters, [], torch.randn(4, 1, 4, 4))
    check_forward_mode(backbone, (1, 4, 4))


class Noisy(nn.Module):
    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        return x * self.draw(x)


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (torch.randn_like, "draws random numbers"),
        (lambda x: random.random(), "random numbers of Python or numpy"),
        (lambda x: np.random.rand(), "random numbers of Python or numpy"),
    ],
)
def test_a_backbone_that_draws_other_random_numbers_is_refused(draw: Callable[[Tensor], Tensor], said: str) -> None:
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(9, 2), Noisy(draw))
    with pytest.raises(ValueError, match=said):
        Linearizer()(backbone, [p.detach() for p in backbone.parameters()], [], torch.randn(4, 1, 3, 3))


def test_a_backbone_that_decides_by_its_values_is_refused() -> None:
    class Undecided(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    backbone = nn.Sequential(nn.Flatten(), nn.Linear(9, 2), Undecided())
    with pytest.raises(ValueError, match="backbone cannot be traced"):
        Linearizer()(backbone, [p.detach() for p in backbone.parameters()], [], torch.randn(4, 1, 3, 3))


def group_norm_resnet() -> nn.Module:
    backbone = torchvision.models.resnet18(norm_layer=functools.partial(nn.GroupNorm, 8))
    backbone.fc = nn.Identity()
    return backbone


def convnext() -> nn.Module:
    blocks = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)]
    backbone = ConvNeXt(blocks, stochastic_depth_prob=0.0, layer_scale=0.5)
    backbone.classifier = nn.Flatten()
    return backbone


def vision_transformer() -> nn.Module:
    backbone = torchvision.models.VisionTransformer(32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32)
    backbone.heads = nn.Identity()
    return backbone


def mixed_norms() -> nn.Module:
    """BatchNorm moves its statistics in place, and GroupNorm's derivative is written in place, too."""
    norms = (nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.InstanceNorm2d(8, affine=True))
    layers = [layer for norm in norms for layer in (nn.LazyConv2d(8, 3), norm, nn.GELU())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("build", [group_norm_resnet, convnext, vision_transformer, mixed_norms])
def test_other_architectures_are_linearized_too(build: Callable[[], nn.Module], memory_format: torch.memory_format) -> None:
    """Attention, and operators whose derivative torch writes into another tensor, against autograd and finite differences."""
    torch.manual_seed(0)
    backbone = build()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64).contiguous(memory_format=memory_format)
    backbone = backbone.double().train()
    backbone(images)  # shapes of lazy layers
    backbone.to(memory_format=memory_format)
    parameters, buffers = [p.detach() for p in backbone.parameters()], [b.clone() for b in backbone.buffers()]
    here = Linearizer()(backbone, parameters, buffers, images)
    expected = backbone(images)
    assert_close(here.features, expected, rtol=1e-10, atol=1e-12)
    assert all(map(torch.equal, buffers, backbone.buffers()))
    cotangent = torch.randn_like(expected)
    for ours, theirs in zip(
        here.pullback(cotangent), torch.autograd.grad(expected, list(backbone.parameters()), cotangent), strict=True
    ):
        assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    tangents = [torch.randn_like(parameter) for parameter in parameters]
    size = 1e-5 / torch.sqrt(sum(tangent.square().sum() for tangent in tangents))
    names = [name for name, _ in backbone.named_parameters()]
    ahead, behind = (
        functional_call(
            backbone, {name: p + sign * size * t for name, p, t in zip(names, parameters, tangents, strict=True)}, images
        )
        for sign in (1, -1)
    )
    assert_close(here.pushforward(tangents), (ahead - behind) / (2 * size), rtol=1e-5, atol=1e-6)


def test_constants_inside_the_forward_pass_are_kept() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.tensor([2.0, 3.0])

    backbone, images = nn.Sequential(nn.Flatten(), nn.Linear(9, 2), Scaled()), torch.randn(4, 1, 3, 3)
    here = Linearizer()(backbone, [p.detach() for p in backbone.parameters()], [], images)
    assert torch.equal(here.features, backbone(images))
    gradients = torch.autograd.grad(backbone(images).sum(), list(backbone.parameters()))
    assert all(map(torch.equal, here.pullback(torch.ones(4, 2)), gradients))


def test_a_tensor_that_is_no_buffer_is_refused_by_name() -> None:
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(9, 2))
    backbone[0].scale = torch.ones(1)
    with pytest.raises(ValueError, match=r"0\.scale is a tensor, but neither parameter nor buffer"):
        Linearizer()(backbone, [p.detach() for p in backbone.parameters()], [], torch.randn(4, 1, 3, 3))


def test_one_value_per_channel_is_refused_as_torch_does() -> None:
    backbone = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten())
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        Linearizer()(backbone, [p.detach() for p in backbone.parameters()], list(backbone.buffers()), torch.randn(1, 1, 3, 3))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_lie_in_memory_as_their_parameters_do(name: str, memory_format: torch.memory_format) -> None:
    """A fused optimiser asks for that."""
    setup = Setup(name, torch.float32, memory_format)
    here = setup.linearization(shared(name))
    for parameter, gradient in zip(setup.parameters, here.pullback(torch.ones_like(here.features)), strict=True):
        assert gradient.stride() == parameter.stride()


def test_channels_last_computes_the_same() -> None:
    setup = Setup()
    expected = setup.linearization().pushforward(setup.tangents)
    setup.backbone.to(memory_format=torch.channels_last)
    setup.parameters = [parameter.detach() for parameter in setup.backbone.parameters()]
    setup.images = setup.images.contiguous(memory_format=torch.channels_last)
    assert_close(setup.linearization().pushforward(setup.tangents), expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_in_bf16_features_and_gradients_are_those_of_autocast_bit_for_bit(name: str) -> None:
    setup = Setup(name, torch.float32)
    here = setup.linearization(shared(name, torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        expected = setup.backbone(setup.images).float()
    cotangent = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, list(setup.backbone.parameters()), cotangent)
    assert torch.equal(here.features, expected)
    assert all(map(torch.equal, here.pullback(cotangent), gradients))
    assert not torch.equal(here.features, setup.linearization(shared(name)).features)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_pullback_and_pushforward_are_transposed(name: str, dtype: torch.dtype) -> None:
    """<cotangent, pushforward(tangents)> = <pullback(cotangent), tangents>; in bf16 to three digits, in float32."""
    in_bf16 = dtype == torch.bfloat16
    setup = Setup(name, torch.float32 if in_bf16 else dtype)
    here = setup.linearization(shared(name, dtype if in_bf16 else None))
    along = here.pushforward(setup.tangents)
    assert along.dtype == setup.images.dtype
    pulled = here.pullback(along)  # the cotangent for which neither side is a difference of large numbers
    right = sum((a * b).sum() for a, b in zip(pulled, setup.tangents, strict=True))
    assert_close(right, (along * along).sum(), rtol=0.05 if in_bf16 else 1e-10, atol=0)


@pytest.mark.slow
def test_compiled_programs_compute_the_same() -> None:
    setup = Setup(dtype=torch.float32)
    plain = setup.linearization()
    cotangent = torch.randn_like(plain.features)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler has its own,
        warnings.filterwarnings("error", "compute.compile")  # but it must not be missing
        compiled = setup.linearization(Linearizer(compiled_batch_sizes=[6]))
        found, expected = (
            [here.features, *here.pullback(cotangent), here.pushforward(setup.tangents)] for here in (compiled, plain)
        )
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_without_a_compiler_there_is_one_warning_and_the_same_result() -> None:
    """In a process of its own, whose compiler is /bin/false and whose cache is empty."""
    program = """
import os, sys, tempfile, warnings
os.environ["CXX"] = "/bin/false"
os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp()
import torch
from trainables.engine.linearize import Linearizer
from trainables.models import build_classifier
from trainables.classifier_config import SmallCNNConfig
backbone = build_classifier(SmallCNNConfig(), (1, 8, 8), 5, seed=0).backbone
parameters, buffers = [p.detach() for p in backbone.parameters()], list(backbone.buffers())
images = torch.randn(6, 1, 8, 8)
linearizer = Linearizer(compiled_batch_sizes=[6, 4])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", UserWarning)
    here = linearizer(backbone, parameters, buffers, images)
    here.pullback(torch.ones_like(here.features))
    linearizer(backbone, parameters, buffers, images[:4]).pullback(torch.ones_like(here.features[:4]))
ours = [str(warning.message) for warning in caught if "compute.compile" in str(warning.message)]
assert len(ours) == 1, ours
assert torch.equal(here.features, Linearizer()(backbone, parameters, buffers, images).features)
print(ours[0])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "going on without a compiler" in done.stdout


class DropPath(nn.Module):
    """As in timm and torchvision."""

    def forward(self, x: Tensor) -> Tensor:
        keep = x.new_empty((len(x), *[1] * (x.dim() - 1))).bernoulli_(0.7)
        return x * keep / 0.7


def dropout_net() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(12, 16), nn.Dropout(0.4), nn.ReLU(), DropPath(), nn.Linear(16, 16), nn.Dropout(0.2)
    )


def keyed(step: int, seed: int = 5) -> Key:
    return Key(torch.tensor(step), torch.tensor(seed))


def test_random_numbers_are_functions_of_seed_step_and_stream() -> None:
    backbone, images = dropout_net().double(), torch.randn(64, 3, 2, 2, dtype=torch.float64)
    parameters = [parameter.detach() for parameter in backbone.parameters()]
    linearizer = Linearizer()

    def features(step: int, seed: int = 5, stream: int = TRAINING) -> Tensor:
        return linearizer(backbone, parameters, [], images, key=keyed(step, seed), stream=stream).features

    first = features(3)
    torch.rand(7)  # torch's own generator does not matter
    assert torch.equal(features(3), first)
    assert all(not torch.equal(other, first) for other in (features(4), features(3, 6), features(3, stream=META)))
    zero = torch.stack([features(step) == 0 for step in range(50)]).double()
    assert_close(zero.mean().item(), 0.2, atol=0.01, rtol=0)  # of the last dropout
    assert len({tuple(row) for row in zero[:, 0].int().tolist()}) > 40  # another mask in each step


@pytest.mark.parametrize("release", [False, True])
def test_derivatives_are_those_at_the_same_random_numbers(release: bool) -> None:
    backbone, images = dropout_net().double(), torch.randn(8, 3, 2, 2, dtype=torch.float64)
    parameters, names = [p.detach() for p in backbone.parameters()], [name for name, _ in backbone.named_parameters()]
    linearizer = Linearizer()
    here = linearizer(backbone, parameters, [], images, key=keyed(3))
    if release:
        here.release()

    def features(values: list[Tensor]) -> Tensor:
        state = dict(zip(names, values, strict=True))
        return linearizer.features(backbone, state, {}, images, len(images), None, keyed(3))

    leaves = [parameter.clone().requires_grad_() for parameter in parameters]
    expected = features(leaves)
    assert_close(here.features, expected.detach(), rtol=1e-12, atol=1e-14)
    cotangent = torch.randn_like(expected)
    for ours, theirs in zip(here.pullback(cotangent), torch.autograd.grad(expected, leaves, cotangent), strict=True):
        assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    tangents = [torch.randn_like(parameter) for parameter in parameters]
    ahead, behind = (features([p + sign * 1e-6 * t for p, t in zip(parameters, tangents, strict=True)]) for sign in (1, -1))
    assert_close(here.pushforward(tangents), (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-8)


def test_a_share_of_the_images_gets_its_part_of_the_random_numbers() -> None:
    whole = Draws(keyed(1), TRAINING, Share(0, 6, 6)).uniform(torch.empty(12, 5))
    parts = [
        Draws(keyed(1), TRAINING, Share(first, number, 6)).uniform(torch.empty(2 * number, 5))
        for first, number in ((0, 4), (4, 2))
    ]
    assert torch.equal(torch.cat(parts), whole)
    with pytest.raises(ValueError, match=r"draws random numbers of shape \(3, 5\), which are not those of 2 images"):
        Draws(keyed(1), TRAINING, Share(0, 2, 6)).uniform(torch.empty(3, 5))
