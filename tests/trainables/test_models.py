import pytest
import torch

from trainables.config import ClassifierConfig, ResNetCifarConfig, SmallCNNConfig
from trainables.models import CLASSIFIERS, build_classifier
from trainables.models.resnet_cifar import BasicBlock
from trainables.settings import names_of

CONFIGS = {"small_cnn": SmallCNNConfig(), "resnet_cifar": ResNetCifarConfig(depth=20)}


def test_the_table_and_the_settings_name_the_same_classifiers() -> None:
    assert sorted(CLASSIFIERS) == sorted(names_of(ClassifierConfig, "name")) == sorted(CONFIGS)


@pytest.mark.parametrize("image_shape", [(1, 8, 8), (3, 7, 9)])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_is_a_backbone_and_a_head(name: str, image_shape: tuple[int, int, int]) -> None:
    classifier = build_classifier(CONFIGS[name], image_shape, num_classes=5, seed=0).eval()
    images = torch.randn(4, *image_shape)
    features = classifier.backbone(images)
    assert features.shape == (4, classifier.num_features)
    assert classifier.head(features).shape == (4, 5)
    assert torch.equal(classifier(images), classifier.head(features))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_initial_phi_depends_on_the_seed_only(name: str) -> None:
    def phi(seed: int) -> list[torch.Tensor]:
        torch.rand(3)
        return list(build_classifier(CONFIGS[name], (1, 8, 8), 5, seed).state_dict().values())

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
