import pytest
import torch

from trainables.config import ClassifierConfig, SmallCNNConfig, names_of
from trainables.models import CLASSIFIERS, build_classifier

CONFIGS = {"small_cnn": SmallCNNConfig()}


def test_the_table_and_the_settings_name_the_same_classifiers() -> None:
    assert sorted(CLASSIFIERS) == sorted(names_of(ClassifierConfig, "name")) == sorted(CONFIGS)


@pytest.mark.parametrize("image_shape", [(1, 8, 8), (3, 7, 9)])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_is_a_backbone_and_a_head(name: str, image_shape: tuple[int, int, int]) -> None:
    classifier = build_classifier(CONFIGS[name], image_shape, num_classes=5, seed=0).eval()
    images = torch.randn(4, *image_shape)
    features = classifier.backbone(images)
    assert features.ndim == 2
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
