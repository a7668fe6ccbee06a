"""Backbones of the pre-trained kinds, in tiny sizes: what is trained, and the meta-gradient through it."""

import functools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torchvision.models import EfficientNet, MobileNetV3, VisionTransformer
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig

from trainables.classifier_config import ResNetConfig
from trainables.engine.draws import Key
from trainables.engine.linearize import Linearizer
from trainables.engine.meta_gradient import Batch, Problem, double_backward, exact, named_trained, trained
from trainables.method_config import DifficultyNetConfig
from trainables.methods import Task, build_method
from trainables.methods.context import Context, Moment
from trainables.models import Classifier
from trainables.models.adaptation import adapt, torchvision_blocks
from trainables.models.lora import LowRankLinear, SelfAttention


def vision_transformer(dropout: float) -> tuple[nn.Module, str]:
    return VisionTransformer(16, 8, 3, 2, 8, 12, dropout=dropout, attention_dropout=dropout), "heads.head"


def convnext(dropout: float) -> tuple[nn.Module, str]:
    blocks = [CNBlockConfig(4, 8, 1), CNBlockConfig(8, None, 2)]
    return ConvNeXt(blocks, stochastic_depth_prob=dropout, layer_scale=0.5), "classifier.2"


def efficientnet(dropout: float) -> tuple[nn.Module, str]:
    blocks = [MBConvConfig(2, 3, 1, 4, 6, 2, 1.0, 1.0)]
    return EfficientNet(blocks, dropout, stochastic_depth_prob=dropout, last_channel=8), "classifier.1"


def mobilenet(dropout: float) -> tuple[nn.Module, str]:
    row = functools.partial(InvertedResidualConfig, width_mult=1.0)
    blocks = [row(8, 3, 8, 8, True, "RE", 1, 1), row(8, 3, 16, 8, False, "HS", 1, 1)]
    return MobileNetV3(blocks, 8, dropout=dropout), "classifier.3"


BACKBONES: dict[str, Callable[[float], tuple[nn.Module, str]]] = {
    "vision_transformer": vision_transformer,
    "convnext": convnext,
    "efficientnet": efficientnet,
    "mobilenet": mobilenet,
}
PAIRS = [
    *(("vision_transformer", way) for way in ("all", "head", "last_blocks", "norm_bias", "lora")),
    *(("convnext", way) for way in ("all", "lora")),
    *(("efficientnet", way) for way in ("all", "last_blocks", "norm_bias")),
    *(("mobilenet", way) for way in ("all", "last_blocks")),
]
RANDOM = [("vision_transformer", "all"), ("convnext", "lora"), ("efficientnet", "last_blocks")]


def classifier_of(name: str, way: str, dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> Classifier:
    torch.manual_seed(0)
    backbone, head = BACKBONES[name](dropout)
    num_features = backbone.get_submodule(head).in_features
    backbone.set_submodule(head, nn.Identity())
    for module in backbone.modules():  # statistics that evaluation mode can be told by
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    classifier = Classifier(backbone, nn.Linear(num_features, 4), num_features).train()
    adapt(classifier, ResNetConfig(train=way, **({"lora_rank": 2} if way == "lora" else {})), torchvision_blocks(backbone), 3)
    for module in backbone.modules():
        if isinstance(module, LowRankLinear):
            nn.init.normal_(module.up, std=0.3)  # which begins with zeros, so that nothing would depend on `down`
    return classifier.to(dtype)


def problem_of(classifier: Classifier, key: Key | None = None, memory: str = "fast") -> Problem:
    task = Task(4, classifier.num_features, torch.arange(10, 6, -1))
    method = build_method(DifficultyNetConfig(hidden_width=5), task, 0).double()
    method.refresh(torch.linspace(0.2, 0.8, 4, dtype=torch.float64))
    generator = torch.Generator().manual_seed(1)
    batch, meta_batch = (
        Batch(torch.randn(number, 3, 16, 16, generator=generator).double(), torch.arange(number) % 4) for number in (6, 8)
    )
    backbone, linearizer = classifier.backbone, Linearizer()
    buffers = [buffer.clone() for buffer in backbone.buffers()]
    here = linearizer(backbone, [parameter.detach() for parameter in trained(backbone)], buffers, batch.images, key=key)
    context = Context(method, classifier.head, here.features, batch.labels, torch.arange(6), Moment.zero()).virtual()
    alpha = torch.tensor(0.1, dtype=torch.float64)
    steps = [alpha * (1 + number % 3) for number in range(len(trained(classifier)))]
    state = method.begin_batch(context)
    return Problem(classifier, method, state, context, batch, meta_batch, steps, here, linearizer, key=key, memory=memory)


def by_hand(problem: Problem) -> list[Tensor]:
    """Difficulty-Net's loss and the virtual step, written down with plain autograd, without our engine."""
    classifier, method = problem.classifier, problem.method
    phi = named_trained(classifier)

    def losses(parameters: dict[str, Tensor], batch: Batch) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in classifier.named_buffers()}
        logits = functional_call(classifier, parameters | buffers, (batch.images,))
        return F.cross_entropy(logits, batch.labels, reduction="none")

    weights = method.network(method.class_accuracy)
    weights = weights / weights.sum() * 4
    loss = (weights[problem.batch.labels] * losses(phi, problem.batch)).mean()
    gradients = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
    stepped = {
        name: p - alpha * gradient for (name, p), gradient, alpha in zip(phi.items(), gradients, problem.step_sizes, strict=True)
    }
    return list(torch.autograd.grad(losses(stepped, problem.meta_batch).mean(), list(method.parameters())))


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def differentiable_hard_sigmoid(module: nn.Module, x: Tensor) -> Tensor:
    """torch's own hardsigmoid cannot be differentiated twice."""
    return F.relu6(x + 3) / 6


@pytest.mark.slow
@pytest.mark.parametrize(("name", "way"), PAIRS)
def test_the_meta_gradient_is_that_of_double_backward_whatever_is_trained(
    name: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problem_of(classifier_of(name, way))
    found = [flat(exact(problem).theta)]
    if (name, way) == ("mobilenet", "all"):
        said = r"cannot be differentiated twice: .*hardsigmoid.*allowed: bilevel.meta_gradient=exact"
        with pytest.raises(ValueError, match=said):
            double_backward(problem)
    else:
        found.append(flat(double_backward(problem).theta))
    monkeypatch.setattr(nn.Hardsigmoid, "forward", differentiable_hard_sigmoid)
    with sdpa_kernel(SDPBackend.MATH):  # the only kernel of attention that torch can differentiate twice
        expected = flat(by_hand(problem))
    assert expected.abs().max() > 0
    for gradient in found:
        assert torch.linalg.vector_norm(gradient - expected) <= 1e-9 * torch.linalg.vector_norm(expected)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "way"), RANDOM)
def test_so_it_is_with_dropout_and_drop_path(name: str, way: str) -> None:
    """The exact gradient runs traced programs, double backward runs the module; another step leaves out other values."""
    classifier = classifier_of(name, way, dropout=0.4)
    first, second = (Key(torch.tensor(step), torch.tensor(7)) for step in (3, 4))
    problem = problem_of(classifier, first, "lean")
    found, expected = (flat(mode(problem).theta) for mode in (exact, double_backward))
    assert torch.linalg.vector_norm(found - expected) <= 1e-9 * torch.linalg.vector_norm(expected)
    other = flat(double_backward(replace(problem_of(classifier, second), at_phi=problem.at_phi)).theta)
    assert torch.linalg.vector_norm(other - expected) > 1e-3 * torch.linalg.vector_norm(expected)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_head_alone_leaves_the_whole_backbone_as_in_evaluation(name: str) -> None:
    classifier, images = classifier_of(name, "head", dropout=0.5), torch.randn(6, 3, 16, 16, dtype=torch.float64)
    assert trained(classifier) == list(classifier.head.parameters())
    before = [buffer.clone() for buffer in classifier.buffers()]
    in_training = classifier.train()(images)
    assert all(map(torch.equal, before, classifier.buffers()))
    assert_close(classifier.eval()(images), in_training)


@pytest.mark.parametrize("name", BACKBONES)
def test_of_the_last_block_everything_is_trained_and_of_those_before_nothing(name: str) -> None:
    backbone = classifier_of(name, "last_blocks", dropout=0.5).backbone
    *_, before, last = torchvision_blocks(backbone)
    assert all(parameter.requires_grad for parameter in backbone.get_submodule(last).parameters())
    assert backbone.get_submodule(last).training
    names = [name for name, parameter in backbone.named_parameters() if not parameter.requires_grad]
    assert names == list(dict(backbone.named_parameters()))[: len(names)]
    assert not any(parameter.requires_grad for parameter in backbone.get_submodule(before).parameters())
    assert not any(module.training for module in backbone.get_submodule(before).modules())


def test_more_blocks_than_there_are_are_refused() -> None:
    classifier = Classifier(*convnext(0.0)[:1], nn.Identity(), 8)
    with pytest.raises(ValueError, match=r"classifier.num_blocks is 4, but the backbone has 3; allowed: 1 to 3"):
        adapt(classifier, ResNetConfig(train="last_blocks", num_blocks=4), torchvision_blocks(classifier.backbone), 0)


@pytest.mark.parametrize("name", BACKBONES)
def test_norms_and_biases_are_what_it_says(name: str) -> None:
    backbone = classifier_of(name, "norm_bias").backbone
    for module_name, module in backbone.named_modules():
        for parameter_name, parameter in module.named_parameters(recurse=False):
            is_norm = isinstance(module, nn.LayerNorm | nn.BatchNorm2d)
            assert parameter.requires_grad == (is_norm or "bias" in parameter_name), (module_name, parameter_name)


@pytest.mark.parametrize("name", ["vision_transformer", "convnext"])
def test_updates_of_low_rank_begin_with_nothing_and_are_all_that_is_trained(name: str) -> None:
    torch.manual_seed(0)
    backbone, head = BACKBONES[name](0.0)
    backbone.set_submodule(head, nn.Identity())
    images = torch.randn(2, 3, 16, 16)
    expected = backbone.eval()(images)
    linear = [module for module in backbone.modules() if isinstance(module, nn.Linear)]
    attentions = [module for module in backbone.modules() if isinstance(module, nn.MultiheadAttention)]
    classifier = Classifier(backbone, nn.Linear(8, 4), 8)
    adapt(classifier, ResNetConfig(train="lora", lora_rank=3), (), 5)
    assert_close(backbone.eval()(images), expected)
    assert sum(isinstance(module, LowRankLinear) for module in backbone.modules()) == len(linear) + len(attentions)
    assert {name.rpartition(".")[2] for name in named_trained(backbone)} == {"down", "up"}
    ranks = {len(parameter) for name, parameter in named_trained(backbone).items() if name.endswith("down")}
    assert ranks == {3}


def test_an_update_is_alpha_through_rank_times_the_product() -> None:
    layer = LowRankLinear(nn.Linear(5, 4), rank=2, alpha=6.0)
    nn.init.normal_(layer.up)
    x, merged = torch.randn(7, 5), layer.linear.weight + 3 * layer.up @ layer.down
    assert_close(layer(x), F.linear(x, merged, layer.linear.bias))
    assert_close(layer.weight, merged)
    assert not layer.linear.weight.requires_grad


def test_the_split_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    attention, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(3, 5, 8)
    nn.init.normal_(attention.in_proj_bias)
    expected, _ = attention(x, x, x, need_weights=False)
    assert_close(SelfAttention(attention)(x, x, x)[0], expected)


def test_a_backbone_without_linear_layers_has_no_updates() -> None:
    classifier = Classifier(nn.Conv2d(3, 3, 1), nn.Identity(), 3)
    with pytest.raises(ValueError, match=r"classifier.train is lora, but the backbone has no linear layers; allowed: all, head"):
        adapt(classifier, ResNetConfig(train="lora"), (), 0)


@pytest.mark.slow
def test_a_vision_transformer_with_updates_is_exported_as_a_program() -> None:
    classifier = classifier_of("vision_transformer", "lora", dtype=torch.float32).eval().requires_grad_(False)
    images = torch.randn(5, 3, 16, 16)
    batch = torch.export.Dim("batch")
    program = torch.export.export(classifier, (images,), dynamic_shapes=({0: batch},))
    for number in (1, 5, 9):
        more = torch.randn(number, 3, 16, 16)
        assert_close(program.module()(more), classifier(more))
