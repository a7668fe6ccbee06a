"""A trial whose weights expect a framing: all sets, exports, predictions, vectors and the next trial see images alike."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exports import export_of
from miniatures import own_images
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.transforms import v2

from trainables import features
from trainables.classifier_config import ClassifierConfig, ResNetConfig, TimmConfig
from trainables.config import TrialConfig
from trainables.config_file import dump_yaml
from trainables.data.decode import channels_first, open_image
from trainables.data.framing import Framing, framed
from trainables.data.image_files import save_images
from trainables.data.large_augment import augment_image, crop_box, num_draws, uniform
from trainables.data.loaded import LoadedData, load_data
from trainables.data.loader import IN_READERS, Expected, ImageFormat, LoadedSet, Normalisation, OnDevice, Request
from trainables.data.source import EncodedImages
from trainables.data.stream import IMAGENET, StreamSet
from trainables.data_config import ImageFolderConfig
from trainables.export_model import read_test
from trainables.extraction import PLAN
from trainables.inference import load_model
from trainables.model_folder import MODEL
from trainables.models import build_classifier, expected_input
from trainables.trial_run import TrialRun

CPU, SIZE = torch.device("cpu"), 8
HALF = Normalisation((0.5,) * 3, (0.5,) * 3)
TIGHT, WHOLE = (Expected(HALF, Framing(share, "bicubic")) for share in (0.6, 1.0))
needs_timm = pytest.mark.skipif(not find_spec("timm"), reason="timm is an optional package")


def loaded(
    root: Path,
    expected: Expected | None,
    kept: LoadedData | None = None,
    readers: int = 0,
    moved: OnDevice = IN_READERS,
    **settings: Any,
) -> LoadedData:
    counts = own_images(root, endings=(".png",)) if kept is None else {}
    settings = {"root": str(root), "image_size": SIZE, "augment": ["resized_crop"]} | counts | settings
    config = ImageFolderConfig(**settings) if kept is None else kept.key[0]
    return load_data(config, 0, CPU, readers, kept, 2**20, expected, moved)


def pixels_of(part: LoadedSet, draws: tuple[int, ...] = ()) -> Tensor:
    """The normalised images of a set, in its order."""
    ((images, *_),) = part.batches([Request(torch.arange(len(part)), draws)])
    return images


def expected_pixels(data: LoadedData, name: str, framing: Framing | None) -> Tensor:
    images = data.data.source.images
    assert isinstance(images, EncodedImages)
    opened = [open_image(images, image, grey=False) for image in getattr(data.data, name).ids.tolist()]
    return torch.from_numpy(np.stack([channels_first(framed(image, SIZE, framing)) for image in opened]))


@pytest.mark.slow
@pytest.mark.parametrize("readers", [0, 1])
def test_sets_without_augmentation_are_framed_as_expected(readers: int, tmp_path: Path) -> None:
    data = loaded(tmp_path / "pets", TIGHT, readers=readers, augment=[])
    for name in ("train", "meta", "val"):
        framing = TIGHT.framing
        assert torch.equal(pixels_of(getattr(data, name)), data.format.normalisation(expected_pixels(data, name, framing)))
        assert not torch.equal(expected_pixels(data, name, framing), expected_pixels(data, name, None))


def test_the_next_trial_sees_images_as_its_own_weights_expect_them(tmp_path: Path) -> None:
    """Images that were kept for one framing are not used for another."""
    first = loaded(tmp_path / "pets", TIGHT)
    pixels_of(first.val)
    for expected in (WHOLE, None, TIGHT):
        following = loaded(tmp_path / "pets", expected, first)
        assert following.store is first.store
        framing = None if expected is None else expected.framing
        wanted = following.format.normalisation(expected_pixels(following, "val", framing))
        assert torch.equal(pixels_of(following.val), wanted)
        assert torch.equal(pixels_of(following.val), wanted)  # now it is kept
        first = following


def test_training_crops_are_interpolated_as_expected() -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 40, 30), dtype=np.uint8))

    draws = uniform(np.arange(1, dtype=np.uint64), num_draws(("resized_crop",)))[0]
    box = crop_box(draws.tolist(), 40, 30)

    def cropped(framing: Framing | None) -> Tensor:
        return augment_image(("resized_crop",), image, draws, SIZE, framing)

    for interpolation in ("bilinear", "bicubic"):
        way = v2.InterpolationMode(interpolation)
        expected = v2.functional.resized_crop(image, *box, size=[SIZE, SIZE], interpolation=way, antialias=True)
        assert torch.equal(cropped(Framing(0.9, interpolation)), expected)
    assert torch.equal(cropped(Framing(0.9, "bilinear")), cropped(None))


@pytest.mark.parametrize("moved", [OnDevice(augment=True, decode=False), OnDevice(augment=True, decode=True)])
@pytest.mark.parametrize("augment", [["flip"], ["resized_crop", "flip"]], ids=str)
def test_where_images_are_augmented_and_decoded_changes_no_framing(tmp_path: Path, moved: OnDevice, augment: list[str]) -> None:
    """The images are PNG, which the readers decode in either case."""
    here, there = (loaded(tmp_path / "pets", TIGHT, augment=augment, moved=one) for one in (IN_READERS, moved))
    assert torch.equal(pixels_of(here.train, draws=(3,)), pixels_of(there.train, draws=(3,)))


def test_augmented_images_that_are_not_cropped_are_framed_first(tmp_path: Path) -> None:
    data = loaded(tmp_path / "pets", TIGHT, augment=["flip"])
    framed_ones = data.format.normalisation(expected_pixels(data, "train", TIGHT.framing))
    seen, mirrored = pixels_of(data.train, draws=(3,)), framed_ones.flip(-1)
    straight, turned = ((seen == some).flatten(1).all(1) for some in (framed_ones, mirrored))
    assert (straight | turned).all()
    assert straight.any()
    assert turned.any()


def pretrained(folder: Path) -> TimmConfig:
    """timm's smallest vision transformer, with a file of random weights."""
    config = TimmConfig(model="test_vit")
    backbone = build_classifier(config, (3, 32, 32), 2, seed=5).backbone
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in backbone.state_dict().items()}, folder / "weights.safetensors")
    return TimmConfig(model="test_vit", weights=str(folder / "weights.safetensors"))


def trial(root: Path, classifier: ClassifierConfig) -> dict[str, Any]:
    counts = own_images(root, endings=(".png",))
    data = {"source": "image_folder", "root": str(root), "image_size": 32, "augment": ["resized_crop"], **counts}
    return {
        "epochs": 1,
        "method": {"name": "cross_entropy"},
        "classifier": classifier.model_dump(),
        "data": data,
        "device": "cpu",
    }


@needs_timm
@pytest.mark.slow
def test_from_a_file_of_weights_to_predictions_vectors_and_the_next_trial(tmp_path: Path) -> None:
    import timm

    classifier = pretrained(tmp_path)
    run, accuracy = export_of(tmp_path / "best", trial(tmp_path / "pets", classifier))
    theirs = timm.data.resolve_model_data_config(timm.create_model("test_vit"), args={"img_size": 32})
    transform = timm.data.create_transform(**theirs, is_training=False)
    # A file of the validation set is, for predictions, what timm makes of it and what the trial's evaluation saw.
    model, data = load_model(tmp_path / "best"), run.loaded.data
    files = save_images(data.source, data.val, tmp_path / "val")
    images = torch.stack([model.transform(file) for file in files])
    normalised = run.loaded.format.normalisation(images)
    torch.testing.assert_close(normalised, torch.stack([transform(Image.open(file).convert("RGB")) for file in files]))
    assert torch.equal(normalised, pixels_of(run.loaded.val))
    labels = torch.from_numpy(data.val.labels)
    assert (model.module(images).argmax(1) == labels).double().mean().item() == pytest.approx(accuracy)
    assert "95.0% of the short side, bicubic" in model.transform.words()
    assert 0 <= read_test(tmp_path / "best" / MODEL)["test/acc"] <= 1
    # The model that goes on from this one sees images alike.
    again = expected_input(TimmConfig(model="test_vit", weights=str(tmp_path / "best" / MODEL)))
    assert again is not None
    assert again.framing == run.loaded.format.framing == Framing(0.95, "bicubic")
    # Vectors are computed from these images, and a head on them takes image files in the same way.
    (tmp_path / "trial.yaml").write_text(dump_yaml(run.config.model_dump()))
    words = [str(tmp_path / "trial.yaml"), "--model", str(tmp_path / "best"), "--out", str(tmp_path / "vectors")]
    assert features.main(words) == 0
    settings = {"source": "features", "root": str(tmp_path / "vectors"), "profile": "natural", "meta_per_class": 1}
    settings |= {"val_per_class": 1, "test_per_class": 1}
    head = {"epochs": 1, "method": {"name": "cross_entropy"}, "classifier": {"name": "linear"}, "data": settings}
    export_of(tmp_path / "head", head)
    assert load_model(tmp_path / "head").transform == model.transform


@needs_timm
@pytest.mark.slow
def test_vectors_of_images_that_are_framed_otherwise_are_other_vectors(tmp_path: Path) -> None:
    run, _ = export_of(tmp_path / "best", trial(tmp_path / "pets", pretrained(tmp_path)))
    before = tmp_path / "before"
    without_framing(tmp_path / "best" / MODEL, before / MODEL)
    (tmp_path / "trial.yaml").write_text(dump_yaml(run.config.model_dump()))
    plans = []
    for model in (tmp_path / "best", before):
        words = [str(tmp_path / "trial.yaml"), "--model", str(model), "--out", str(tmp_path / "vectors" / model.name)]
        assert features.main(words) == 0
        plans.append(json.loads((tmp_path / "vectors" / model.name / PLAN).read_text()))
    assert [key for key in plans[0] if plans[0][key] != plans[1][key]] == ["preprocessing"]


def without_framing(model: Path, old: Path) -> None:
    """The file as versions wrote it that knew no framing."""
    with safe_open(model, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata.pop("framing"))["crop_pct"] == 0.95
    old.parent.mkdir()
    save_file(load_file(model), old, metadata)


@needs_timm
@pytest.mark.slow
def test_an_export_of_an_earlier_version_sees_images_as_it_was_trained_to(tmp_path: Path) -> None:
    run, _ = export_of(tmp_path / "best", trial(tmp_path / "pets", pretrained(tmp_path)))
    without_framing(tmp_path / "best" / MODEL, tmp_path / "old" / MODEL)
    transform, file = load_model(tmp_path / "old").transform, next((tmp_path / "pets").rglob("*.png"))
    assert transform.framing is None
    expected = framed(Image.open(file).convert("RGB"), 32, None)
    assert np.array_equal(transform(file).numpy(), channels_first(expected))
    assert read_test(tmp_path / "old" / MODEL).keys() == read_test(tmp_path / "best" / MODEL).keys()
    assert run.loaded.format.framing is not None


@needs_timm
@pytest.mark.slow
def test_a_state_of_images_that_were_framed_otherwise_is_refused(tmp_path: Path) -> None:
    config = TrialConfig.model_validate(trial(tmp_path / "pets", pretrained(tmp_path)))
    run = TrialRun()
    run.start(config)
    state = run.state()
    run.resume(state, config, "checkpoint")
    with pytest.raises(ValueError, match=r"checkpoint belongs to images .* seen: 256/224 .*; .* expect 95.0% of the short side"):
        run.resume(state | {"format": state["format"][:3]}, config, "checkpoint")


def test_a_classifier_without_weights_leaves_images_as_they_were(tmp_path: Path) -> None:
    assert expected_input(ResNetConfig()) is None
    data = loaded(tmp_path / "pets", None)
    assert data.format == ImageFormat((3, SIZE, SIZE), IMAGENET)
    assert "framing" not in data.format.noted()
    assert isinstance(data.val, StreamSet)
    assert torch.equal(pixels_of(data.val), IMAGENET(expected_pixels(data, "val", None)))
