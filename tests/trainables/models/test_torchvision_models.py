from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from trainables.classifier_config import BackboneSettings, ResNetConfig, TimmConfig, TorchvisionConfig
from trainables.config import TrialConfig
from trainables.data.framing import Framing
from trainables.data.loaded import load_data
from trainables.data.loader import Expected, Normalisation
from trainables.data_config import DigitsConfig, GeneratedConfig
from trainables.export_model import write_model
from trainables.models import build_classifier, expected_input
from trainables.models.pretrained import IMAGENET

CPU = torch.device("cpu")
HALF = Normalisation((0.5,) * 3, (0.5,) * 3)
needs_timm = pytest.mark.skipif(not find_spec("timm"), reason="timm is an optional package")


def their_features(model: nn.Module, head: str, images: torch.Tensor) -> torch.Tensor:
    """What the last layer of torchvision's own model is given."""
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(head).register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    model.eval()(images)
    handle.remove()
    return seen[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "head"),
    [("mobilenet_v3_small", "classifier.3"), ("efficientnet_b0", "classifier.1"), ("convnext_tiny", "classifier.2")],
)
def test_a_file_of_weights_gives_torchvisions_features(model: str, head: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs, images = torchvision.models.get_model(model), torch.randn(2, 3, 32, 32)
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    config = TorchvisionConfig(model=model, weights=str(tmp_path / "weights.safetensors"))
    classifier = build_classifier(config, (3, 32, 32), 5, seed=0).eval()
    features = classifier.backbone(images)
    assert features.shape == (2, classifier.num_features)
    assert_close(features, their_features(theirs, head, images))


@pytest.mark.slow
def test_a_vision_transformer_takes_weights_for_images_of_another_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs, images = torchvision.models.vit_b_32(image_size=64), torch.randn(1, 3, 64, 64)
    nn.init.normal_(theirs.encoder.pos_embedding)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    config = TorchvisionConfig(model="vit_b_32", weights=str(tmp_path / "weights.pth"))
    same = build_classifier(config, (3, 64, 64), 5, seed=0).eval()
    assert_close(same.backbone(images), their_features(theirs, "heads.head", images))
    larger = build_classifier(config, (3, 96, 96), 5, seed=0).backbone.encoder.pos_embedding
    given = theirs.encoder.pos_embedding
    assert larger.shape == (1, 10, 768)
    assert_close(larger[:, 0], given[:, 0])  # of the class token
    assert_close(larger[:, [1, 3, 7, 9]], given[:, 1:])  # corners of the grid


@pytest.mark.parametrize("shape", [(3, 40, 40), (3, 64, 32)])
def test_images_that_cannot_be_cut_into_patches_are_refused(shape: tuple[int, int, int]) -> None:
    said = r"vit_b_32, which cuts images into patches of 32x32 .*allowed: trial.data.image_size=(32|64) or another multiple of 32"
    with pytest.raises(ValueError, match=said):
        build_classifier(TorchvisionConfig(model="vit_b_32"), shape, 5, seed=0)


def test_weights_of_another_model_or_for_colours_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(torchvision.models.mobilenet_v3_small().state_dict(), file)
    with pytest.raises(ValueError, match=r"lacks .* is it of another model than mobilenet_v2\?"):
        build_classifier(TorchvisionConfig(model="mobilenet_v2", weights=str(file)), (3, 32, 32), 5, seed=0)
    with pytest.raises(ValueError, match=r"has features\.0\.0\.weight .* is it of another number of channels than 1\?"):
        build_classifier(TorchvisionConfig(model="mobilenet_v3_small", weights=str(file)), (1, 32, 32), 5, seed=0)


def test_settings_without_effect_are_refused() -> None:
    for settings, said in (
        ({"num_blocks": 2}, "num_blocks is 2, but train is all; allowed: train last_blocks"),
        ({"train": "head", "lora_rank": 4}, "lora_rank is 4, but train is head; allowed: train lora"),
    ):
        with pytest.raises(ValueError, match=said):
            TorchvisionConfig(model="mobilenet_v2", **settings)
    with pytest.raises(ValueError, match="pretrained is true, but weights is"):
        TimmConfig(model="test_vit", pretrained=True, weights="x.pth")
    assert ResNetConfig().model_dump().keys() == {"name", "head", "scale", "depth", "weights"}


FILE = "weights.safetensors"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (TorchvisionConfig(model="mobilenet_v2"), None),
        (TorchvisionConfig(model="mobilenet_v2", weights=FILE), Expected(IMAGENET, Framing(224 / 256, "bilinear"))),
        (TorchvisionConfig(model="mobilenet_v2", weights=FILE, normalisation="data"), None),
        (TorchvisionConfig(model="efficientnet_v2_l", weights=FILE), Expected(HALF, Framing(1.0, "bicubic"))),
        (ResNetConfig(weights=FILE), Expected(IMAGENET, Framing(224 / 256, "bilinear"))),
        (ResNetConfig(weights="a/resnet50-11ad3fa6.safetensors"), Expected(IMAGENET, Framing(224 / 232, "bilinear"))),
        (ResNetConfig(weights=FILE, depth=10), Expected(IMAGENET)),
        pytest.param(TimmConfig(model="test_vit", pretrained=True), Expected(HALF, Framing(0.95, "bicubic")), marks=needs_timm),
    ],
)
def test_images_are_as_the_weights_expect(config: BackboneSettings, expected: Expected | None) -> None:
    assert expected_input(config) == expected


def test_the_data_are_normalised_so_in_units_of_their_pixels() -> None:
    colours = load_data(GeneratedConfig(), 0, CPU, 0, expected=Expected(IMAGENET, Framing(0.5)))
    assert colours.format.framing is None  # images that are not streamed have their size already
    assert colours.format.normalisation == Normalisation(
        tuple(255 * mean for mean in IMAGENET.mean), tuple(255 * std for std in IMAGENET.std)
    )
    grey = load_data(DigitsConfig(), 0, CPU, 0, expected=Expected(HALF))
    assert grey.format.normalisation == Normalisation((8.0,), (8.0,))  # white is 16
    assert load_data(DigitsConfig(), 0, CPU, 0, kept=grey).format != grey.format


def test_an_exported_model_expects_what_it_was_trained_with(tmp_path: Path) -> None:
    digits, config = load_data(DigitsConfig(), 0, CPU, 0), ResNetConfig(depth=10)
    classifier = build_classifier(config, (1, 8, 8), 10, seed=7)
    write_model(tmp_path / FILE, classifier.state_dict(), TrialConfig(), digits.data, digits.format)
    expected = expected_input(ResNetConfig(depth=10, weights=str(tmp_path / FILE)))
    again = load_data(DigitsConfig(), 0, CPU, 0, expected=expected)
    for found, before in zip(again.format.normalisation, digits.format.normalisation, strict=True):
        assert found == pytest.approx(before)


@needs_timm
@pytest.mark.parametrize(
    ("settings", "shape", "said"),
    [
        ({"model": "vit_smal_patch16_224"}, (3, 32, 32), "which timm .* has not; near: vit_small_patch16_224"),
        ({"model": "test_vit.nothing"}, (3, 32, 32), "test_vit has no weights 'nothing'; allowed: test_vit, test_vit.r160_in1k"),
        ({"model": "test_vit"}, (3, 30, 30), r"cannot have images of 30x30 .*allowed: trial.data.image_size=160"),
    ],
)
def test_models_that_timm_has_not_and_images_that_they_cannot_have_are_refused(
    settings: dict[str, Any], shape: tuple[int, int, int], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        build_classifier(TimmConfig(**settings), shape, 5, seed=0)


@needs_timm
@pytest.mark.parametrize("model", ["test_vit", "test_convnext", "test_efficientnet"])
def test_a_file_of_weights_gives_timms_features(model: str, tmp_path: Path) -> None:
    import timm

    theirs, images = timm.create_model(model), torch.randn(2, 3, 160, 160)
    save_file(theirs.state_dict(), tmp_path / FILE)
    config = TimmConfig(model=model, weights=str(tmp_path / FILE))
    ours = build_classifier(config, (3, 160, 160), 5, seed=0).eval()
    expected = theirs.eval().forward_head(theirs.forward_features(images), pre_logits=True)
    assert_close(ours.backbone(images), expected)
    build_classifier(config, (3, 96, 96), 5, seed=0).eval()(images[..., :96, :96])


def test_without_timm_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ValueError, match=r"package timm is not installed .*pip install 'tailtune\[backbones\]'"):
        build_classifier(TimmConfig(model="test_vit"), (3, 32, 32), 5, seed=0)


@needs_timm
def test_a_model_whose_groups_are_a_function_has_no_blocks() -> None:
    """As timm's CaiT."""
    with pytest.raises(ValueError, match="the blocks of this model are not known"):
        build_classifier(TimmConfig(model="cait_xxs24_224", train="last_blocks"), (3, 224, 224), 2, seed=0)
    assert build_classifier(TimmConfig(model="cait_xxs24_224"), (3, 224, 224), 2, seed=0).num_features == 192
