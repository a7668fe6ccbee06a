"""Images are seen as the libraries' own transforms for evaluation see them, pixel by pixel."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import get_model_weights
from torchvision.transforms import v2

from trainables.classifier_config import ResNetConfig, TimmConfig, TorchvisionConfig, TorchvisionModel
from trainables.data.framing import Framing, framed
from trainables.data.loaded import as_expected
from trainables.data.loader import Expected, ImageFormat, Normalisation
from trainables.models import expected_input

needs_timm = pytest.mark.skipif(not find_spec("timm"), reason="timm is an optional package")
EXTREME = (5, 400)
SHAPES = [(300, 200), (97, 331), (64, 64), (161, 160), EXTREME]
"""Widths and heights."""


def picture(shape: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """Noise over a gradient, so that no two ways of resizing agree."""
    width, height = shape
    noise = np.random.default_rng(width).integers(0, 128, (height, width, 3))
    return Image.fromarray((noise + np.linspace(0, 127, width)[:, None]).astype(np.uint8)).convert(mode)


def seen(expected: Expected | None, image: Image.Image, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (C, size, size), and the same normalised."""
    assert expected is not None
    pixels = torch.from_numpy(np.atleast_3d(framed(image, size, expected.framing)).transpose(2, 0, 1).copy())
    return pixels, as_expected(expected, (len(pixels), size, size), 255, True).normalisation(pixels[None])[0]


TIMM = {
    "test_vit": "0.95, bicubic",
    "resnet18.tv_in1k": "0.875, bilinear",
    "resnet50.a1_in1k": "0.95, bicubic",
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k": "0.9, bicubic",
    "mobilenetv3_small_100.lamb_in1k": "0.875, bicubic",
    "tf_efficientnet_b1.ns_jft_in1k": "0.882, bicubic",
    "vit_base_patch16_siglip_224": "0.9, squash",
}


@needs_timm
@pytest.mark.slow
@pytest.mark.parametrize("model", TIMM)
def test_images_are_what_timms_transform_makes_of_them(model: str) -> None:
    import timm

    theirs = timm.data.resolve_model_data_config(timm.create_model(model, pretrained=False))
    ours = expected_input(TimmConfig(model=model, pretrained=True))
    for size in (theirs["input_size"][-1], 100):  # the share of the crop stays when the size is another
        config: dict[str, Any] = theirs | {"input_size": (3, size, size)}
        raw, whole = (timm.data.create_transform(**config, is_training=False, normalize=normal) for normal in (False, True))
        for shape in SHAPES:
            pixels, normalised = seen(ours, picture(shape), size)
            assert torch.equal(pixels, raw(picture(shape)))
            torch.testing.assert_close(normalised, whole(picture(shape)))
            assert torch.equal(seen(ours, picture(shape, "L"), size)[0], raw(picture(shape, "L")))


@needs_timm
@pytest.mark.slow
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("crop_pct", [0.5, 0.9, 1.0, 1.15, 1.3])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_every_way_of_timm_is_known(crop_mode: Any, crop_pct: float, interpolation: Any) -> None:
    import timm

    mean, size = (0.5, 0.4, 0.3), 33
    theirs = timm.data.create_transform(
        (3, size, size), mean=mean, crop_pct=crop_pct, crop_mode=crop_mode, interpolation=interpolation, normalize=False
    )
    framing = Framing(crop_pct, interpolation, crop_mode, (128, 102, 76) if crop_mode == "border" else (0, 0, 0))
    for shape in SHAPES:
        pixels = framed(picture(shape), size, framing)
        if crop_mode == "border" and shape == EXTREME:  # timm would round its short side to 0 pixels
            assert pixels.size == (size, size)
            continue
        assert np.array_equal(np.asarray(pixels).transpose(2, 0, 1), theirs(picture(shape)).numpy())


@needs_timm
def test_the_border_has_the_mean_colour_where_timm_says_border() -> None:
    import timm

    bordered = "deepseek_vit_412m.deepseek_v4_flash_vision_exp"
    if not timm.list_pretrained(bordered):
        pytest.skip("this timm has no such model")
    expected = expected_input(TimmConfig(model=bordered, pretrained=True))
    assert expected is not None
    assert expected.framing == Framing(1.0, "bicubic", "border", (128, 128, 128))


PUBLISHED = [(name, weights) for name in get_args(TorchvisionModel) for weights in get_model_weights(name)]
OF_RESNETS = [(f"resnet{depth}", weights) for depth in (18, 34, 50, 101, 152) for weights in get_model_weights(f"resnet{depth}")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "weights"), PUBLISHED + OF_RESNETS, ids=str)
def test_images_are_what_torchvisions_transform_makes_of_them(name: str, weights: Any) -> None:
    transforms, file = weights.transforms(), str(Path("/there", weights.url.rpartition("/")[2]))
    config = TorchvisionConfig(model=name, weights=file) if name in get_args(TorchvisionModel) else None
    ours = expected_input(config or ResNetConfig(depth=int(name.removeprefix("resnet")), weights=file))
    (size,), (resize,) = transforms.crop_size, transforms.resize_size
    raw = v2.Compose([v2.Resize(resize, transforms.interpolation), v2.CenterCrop(size), v2.PILToTensor()])
    for shape in SHAPES[:3]:
        pixels, normalised = seen(ours, picture(shape), size)
        assert torch.equal(pixels, raw(picture(shape)))
        torch.testing.assert_close(normalised, transforms(picture(shape)))


@pytest.mark.parametrize("size", [5, 8, 64, 224, 299])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_without_expectations_images_are_seen_as_ever(size: int, mode: str) -> None:
    usual = v2.Compose([v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size)])
    for shape in SHAPES:
        assert np.array_equal(np.asarray(framed(picture(shape, mode), size, None)), np.asarray(usual(picture(shape, mode))))


def test_a_format_comes_back_from_metadata_and_from_a_state() -> None:
    normalisation = Normalisation((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    for framing in (None, Framing(0.9, "bicubic", "border", (1, 2, 3))):
        form = ImageFormat((3, 7, 7), normalisation, framing)
        assert ImageFormat.of(form.noted()) == form
        assert ImageFormat.of_state(form.stored()) == form
    earlier = {"image_shape": "[3, 7, 7]", "normalisation": '{"mean": [1, 2, 3], "std": [4, 5, 6]}'}
    assert ImageFormat.of(earlier) == ImageFormat((3, 7, 7), normalisation)
