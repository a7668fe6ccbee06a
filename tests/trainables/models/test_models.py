from importlib.util import find_spec

import pytest
import torch
import torchvision

from trainables.classifier_config import (
    CLASSIFIER_SETTINGS,
    ClassifierConfig,
    LinearConfig,
    MLPAdapterConfig,
    ResNetCifar18Config,
    ResNetCifarConfig,
    ResNetConfig,
    SmallCNNConfig,
    TimmConfig,
    TorchvisionConfig,
)
from trainables.engine.linearize import Linearizer
from trainables.models import CLASSIFIERS, build_classifier
from trainables.models.heads import HEADS
from trainables.models.resnet_cifar import BasicBlock

CONFIGS = {
    "small_cnn": SmallCNNConfig(),
    "resnet_cifar": ResNetCifarConfig(depth=20),
    "resnet_cifar18": ResNetCifar18Config(),
    "resnet": ResNetConfig(depth=10),
    "torchvision": TorchvisionConfig(model="mobilenet_v3_small"),
    "timm": TimmConfig(model="test_resnet"),
    "linear": LinearConfig(),
    "mlp_adapter": MLPAdapterConfig(bottleneck=3),
}


BUILDABLE = [name for name in CLASSIFIERS if name != "timm" or find_spec("timm")]
"""timm is an optional package."""


def config_of(name: str, head: str) -> ClassifierConfig:
    return CONFIGS[name].model_copy(update={"head": head})


def test_the_table_and_the_settings_name_the_same_classifiers() -> None:
    assert sorted(CLASSIFIERS) == sorted(CLASSIFIER_SETTINGS) == sorted(CONFIGS)


@pytest.mark.parametrize("image_shape", [(1, 8, 8), (3, 7, 9)])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", BUILDABLE)
def test_every_classifier_is_a_backbone_and_a_head(name: str, head: str, image_shape: tuple[int, int, int]) -> None:
    classifier = build_classifier(config_of(name, head), image_shape, num_classes=5, seed=0).eval()
    images = torch.randn(4, *image_shape)
    features = classifier.backbone(images)
    assert features.shape == (4, classifier.num_features)
    assert classifier.head(features).shape == (4, 5)
    assert torch.equal(classifier(images), classifier.head(features))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", BUILDABLE)
def test_initial_phi_depends_on_the_seed_only(name: str, head: str) -> None:
    def phi(seed: int) -> list[torch.Tensor]:
        torch.rand(3)
        return list(build_classifier(config_of(name, head), (1, 8, 8), 5, seed).state_dict().values())

    assert all(map(torch.equal, phi(1), phi(1)))
    assert not all(map(torch.equal, phi(1), phi(2)))


def test_the_small_cnn_has_the_parameters_it_should() -> None:
    classifier = build_classifier(SmallCNNConfig(widths=[16, 32]), (1, 8, 8), 10, seed=0)
    convolutions, batch_norms, head = 16 * 9 + 32 * 16 * 9, 2 * 16 + 2 * 32, 32 * 16 * 10 + 10
    assert sum(parameter.numel() for parameter in classifier.parameters()) == convolutions + batch_norms + head


@pytest.mark.parametrize(("depth", "num_parameters"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018)])
def test_the_cifar_resnets_have_the_published_number_of_parameters(depth: int, num_parameters: int) -> None:
    """0.27, 0.46, 0.66 and 0.85 million for 10 classes: He et al., Table 6; to the digit in Idelbayev's table for option A."""
    classifier = build_classifier(ResNetCifarConfig(depth=depth), (3, 32, 32), 10, seed=0)
    assert sum(parameter.numel() for parameter in classifier.parameters()) == num_parameters


def test_a_shortcut_of_option_a_takes_every_second_pixel_and_fills_with_zeros() -> None:
    block = BasicBlock(2, 4, stride=2).eval()
    torch.nn.init.zeros_(block.conv2.weight)  # nothing is left of the block but its shortcut
    x = torch.rand(1, 2, 5, 5)
    y = block(x)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert y[:, [0, 3]].abs().max() == 0


@pytest.mark.parametrize(("num_classes", "num_parameters"), [(10, 11_173_962), (100, 11_220_132)])
def test_the_resnet18_for_cifar_has_the_published_number_of_parameters(num_classes: int, num_parameters: int) -> None:
    """11.17 million for 10 classes, as in the usual CIFAR code (kuangliu's pytorch-cifar): 9 408 - 1 728 fewer than torchvision's
    before the blocks, and the head.
    """
    classifier = build_classifier(ResNetCifar18Config(), (3, 32, 32), num_classes, seed=0)
    assert sum(parameter.numel() for parameter in classifier.parameters()) == num_parameters


def test_the_resnet18_for_cifar_halves_the_side_of_an_image_three_times() -> None:
    backbone = build_classifier(ResNetCifar18Config(), (3, 32, 32), 10, seed=0).backbone
    shapes = []
    for stage in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
        stage.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape[1:])))
    backbone(torch.randn(2, 3, 32, 32))
    assert shapes == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
    assert [module.bias for module in backbone.modules() if isinstance(module, torch.nn.Conv2d)] == [None] * 20


@pytest.mark.parametrize(
    ("depth", "num_parameters"),
    [(10, 5_418_792), (18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160), (152, 60_192_808)],
)
def test_the_resnets_have_the_published_number_of_parameters(depth: int, num_parameters: int) -> None:
    """torchvision's tables, for 1000 classes. Of OLTR's ResNet-10, counted by hand: 9 536 before the blocks, 73 984 + 230 144 +
    919 040 + 3 673 088 in them and 513 000 in the head.
    """
    classifier = build_classifier(ResNetConfig(depth=depth), (3, 224, 224), 1000, seed=0)
    assert sum(parameter.numel() for parameter in classifier.parameters()) == num_parameters


@pytest.mark.parametrize(("depth", "num_features"), [(18, 512), (50, 2048)])
def test_a_resnet_computes_torchvisions_features(depth: int, num_features: int) -> None:
    theirs = torchvision.models.get_model(f"resnet{depth}")
    classifier = build_classifier(ResNetConfig(depth=depth), (3, 33, 40), 5, seed=0)
    classifier.backbone.load_state_dict({n: value for n, value in theirs.state_dict().items() if not n.startswith("fc.")})
    theirs.fc = torch.nn.Identity()
    images = torch.randn(4, 3, 33, 40)
    for ours in (classifier.backbone, classifier.backbone.eval()):
        features = theirs.train(ours.training)(images)
        assert features.shape == (4, num_features)
        assert torch.equal(ours(images), features)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_first_convolution_of_a_resnet_is_drawn_as_torchvisions_for_any_number_of_channels(channels: int) -> None:
    weight = build_classifier(ResNetConfig(depth=10), (channels, 64, 64), 5, seed=0).backbone.conv1.weight
    assert weight.shape == (64, channels, 7, 7)
    torch.testing.assert_close(weight.std().item(), (2 / (64 * 7 * 7)) ** 0.5, rtol=0.03, atol=0)


def test_a_linear_head_of_a_cifar_resnet_is_drawn_after_kaiming_and_a_cosine_head_is_not() -> None:
    linear, cosine = (build_classifier(config_of("resnet_cifar", head), (3, 8, 8), 500, seed=0).head for head in HEADS)
    torch.testing.assert_close(linear.weight.std().item(), (2 / 64) ** 0.5, rtol=0.03, atol=0)
    torch.testing.assert_close(cosine.weight.norm(dim=1), torch.ones(500))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BUILDABLE if name != "torchvision"])  # has dropout: test_adaptation.py
def test_every_backbone_is_traced_into_programs_with_the_derivatives_of_autograd(name: str) -> None:
    """The meta-gradient in weights w of L = sum_i w_i CE_i / B is d/dw <v, dL/dphi>. Double backward computes it for the whole
    classifier; the traced backbone gives it from the tangent of its features, and needs two derivatives of the head alone.
    """
    torch.manual_seed(0)
    classifier = build_classifier(config_of(name, "linear"), (3, 16, 16), 5, seed=0).double()
    images, labels = torch.randn(4, 3, 16, 16, dtype=torch.float64), torch.arange(4)
    weights = torch.rand(4, dtype=torch.float64, requires_grad=True)
    of_backbone, of_head = (list(part.parameters()) for part in (classifier.backbone, classifier.head))
    along, along_head = ([torch.randn_like(parameter) for parameter in part] for part in (of_backbone, of_head))

    def loss(features: torch.Tensor) -> torch.Tensor:
        losses = torch.nn.functional.cross_entropy(classifier.head(features), labels, reduction="none")
        return (weights * losses).mean()

    buffers = [buffer.clone() for buffer in classifier.backbone.buffers()]
    here = Linearizer()(classifier.backbone, [parameter.detach() for parameter in of_backbone], buffers, images)
    features = here.features.detach().requires_grad_()
    first = torch.autograd.grad(loss(features), [features, *of_head], create_graph=True)
    moved = sum((gradient * v).sum() for gradient, v in zip(first, [here.pushforward(along), *along_head], strict=True))
    (found,) = torch.autograd.grad(moved, weights)

    pulled = torch.autograd.grad(loss(classifier.backbone(images)), [*of_backbone, *of_head], create_graph=True)
    total = sum((gradient * v).sum() for gradient, v in zip(pulled, [*along, *along_head], strict=True))
    (expected,) = torch.autograd.grad(total, weights)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    for ours, theirs in zip(here.pullback(first[0].detach()), pulled, strict=False):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
