"""Work on training images that is moved from the readers to the device: the images stay what they are."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from trainables.classifier_config import SmallCNNConfig
from trainables.collectives import Collectives
from trainables.config import BilevelConfig, ComputeConfig, OptimConfig, TrialConfig
from trainables.data.decode import encoded_or_pixels
from trainables.data.device_decode import check_decoder, decode_each, decode_jpegs
from trainables.data.large_augment import augment
from trainables.data.loaded import LoadedData, load_data
from trainables.data.loader import IN_READERS, ImageBatch, OnDevice, Request, training_order, training_requests
from trainables.data.mix import Mixing
from trainables.data.source import FileImages, UnreadableImage
from trainables.data_config import DataConfig, DigitsConfig, ImageFolderConfig
from trainables.method_config import DifficultyNetConfig
from trainables.trial_run import TrialRun

CPU = torch.device("cpu")
AUGMENT, DECODE = OnDevice(augment=True), OnDevice(augment=True, decode=True)
EVERYTHING = ["resized_crop", "flip", "color_jitter", "rand_augment"]
LISTS = [EVERYTHING, ["flip", "color_jitter"], ["rand_augment", "resized_crop", "flip"], ["resized_crop"]]


def photograph(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Smooth shapes with a little noise, as photographs have."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noisy = np.array(coarse) + rng.normal(0, 4, (size[1], size[0], 1))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def folder(root: Path, ending: str = ".png", **settings: Any) -> ImageFolderConfig:
    """Photographs of three classes in files that end so, each of its own size."""
    for number in range(30):
        file = root / ["cat", "dog", "fish"][number % 3] / f"{number:02}{ending}"
        file.parent.mkdir(parents=True, exist_ok=True)
        photograph(number, (120 + number, 100)).save(file)
    counts = {"meta_per_class": 1, "val_per_class": 1, "test_per_class": 1}
    return ImageFolderConfig(root=str(root), image_size=32, **counts, **{"augment": EVERYTHING, **settings})


def requests(loaded: LoadedData, **settings: Any) -> list[Request]:
    order = training_order(torch.from_numpy(loaded.data.train.labels), 6, 0, 1)
    return training_requests(order, 0, 0, **{"augmented": True, **settings})


def batches(loaded: LoadedData, **settings: Any) -> list[ImageBatch]:
    return list(loaded.train.batches(requests(loaded, **settings)))


def equal(first: list[ImageBatch], second: list[ImageBatch]) -> bool:
    return len(first) == len(second) > 0 and all(
        one is other is None or torch.equal(one, other)
        for both in zip(first, second, strict=True)
        for one, other in zip(*both, strict=True)
    )


# Augmentation


@pytest.mark.slow
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("augment", LISTS, ids=str)
def test_images_do_not_depend_on_where_they_are_augmented(tmp_path: Path, augment: list[str], grey: bool) -> None:
    config = folder(tmp_path, augment=augment, grey=grey)
    expected = load_data(config, 0, CPU, 0)
    for readers in (0, 2):
        moved = load_data(config, 0, CPU, readers, moved=AUGMENT)
        assert equal(batches(moved), batches(expected))
        assert equal(batches(moved, views=2), batches(expected, views=2))
        assert not equal(batches(moved), batches(moved, augmented=False))


@pytest.mark.slow
@pytest.mark.parametrize(("moved", "left"), [(IN_READERS, 0), (AUGMENT, 3), (DECODE, 3)])
def test_the_readers_leave_to_the_training_process_what_they_are_told_to(
    tmp_path: Path, moved: OnDevice, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def recorded(names: Any, images: Tensor, *rest: Any) -> Tensor:
        found.append((tuple(names), len(images)))
        return augment(names, images, *rest)

    monkeypatch.setattr("trainables.data.stream.augment", recorded)
    loaded = load_data(folder(tmp_path), 0, CPU, 1, moved=moved)
    sizes = [len(batch.labels) for batch in batches(loaded)]
    assert found == [(tuple(EVERYTHING[4 - left :]), size) for size in sizes]


@pytest.mark.slow
@pytest.mark.parametrize("moved", [AUGMENT, DECODE])
def test_shares_and_mixtures_of_images_do_not_depend_on_where_they_are_augmented(tmp_path: Path, moved: OnDevice) -> None:
    config = folder(tmp_path, mix="mixup")
    expected, mine = load_data(config, 0, CPU, 0), load_data(config, 0, CPU, 1, moved=moved)
    mixing = Mixing(config, torch.from_numpy(expected.data.class_counts[expected.data.train.labels]).double())
    assert len(expected.train) % 6 == 3
    for rank in range(8):  # of the six rows of the last batch, two workers have none
        settings: dict[str, Any] = {"views": 2, "mixing": mixing, "collectives": Collectives(rank, 8)}
        assert equal(batches(mine, **settings), batches(expected, **settings))


@pytest.mark.slow
def test_a_trial_has_the_same_metrics_wherever_its_images_are_augmented(tmp_path: Path) -> None:
    data = folder(tmp_path)

    def trained(**moved: Any) -> str:
        config = TrialConfig(
            epochs=2,
            device="cpu",
            data=data,
            classifier=SmallCNNConfig(),
            method=DifficultyNetConfig(hidden_width=8),
            optim=OptimConfig(batch_size=6),
            bilevel=BilevelConfig(meta_batch_size=3),
            compute=ComputeConfig(readers=1, **moved),
        )
        run = TrialRun()
        run.start(config)
        found = [run.run_epoch() for _ in range(config.epochs)]
        assert run.loaded.store.moved.augment == (config.compute.augment_on == "device")  # type: ignore[attr-defined]
        return repr([{name: value for name, value in some.items() if not name.startswith("time/")} for some in found])

    expected = trained()
    assert trained(augment_on="device") == expected
    assert trained(augment_on="device", decode_on="device") == expected  # PNG images, which the readers decode


def test_the_next_trial_with_other_places_does_not_get_the_streams_of_the_one_before(tmp_path: Path) -> None:
    config = folder(tmp_path)
    first = load_data(config, 0, CPU, 0)
    assert load_data(config, 1, CPU, 0, first).store is first.store
    assert load_data(config, 0, CPU, 0, first, moved=AUGMENT).store is not first.store


# Decoding


@pytest.mark.slow
@pytest.mark.parametrize("augment", LISTS, ids=str)
def test_png_images_do_not_depend_on_where_jpeg_images_are_decoded(tmp_path: Path, augment: list[str]) -> None:
    config = folder(tmp_path, augment=augment)
    expected = batches(load_data(config, 0, CPU, 0), views=2)
    for readers in (0, 2):
        assert equal(batches(load_data(config, 0, CPU, readers, moved=DECODE), views=2), expected)


@pytest.mark.slow
@pytest.mark.parametrize("grey", [False, True])
def test_jpeg_images_of_a_batch_are_nearly_the_same_wherever_they_are_decoded(
    tmp_path: Path, grey: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainables.data.stream.DECODED_TOGETHER", 4)
    config = folder(tmp_path, ".jpg", augment=["resized_crop", "flip"], grey=grey)
    images = [Path(tmp_path / "cat" / name) for name in ("00.jpg", "03.jpg", "06.jpg")]
    for file in images:  # some that the readers decode
        photograph(99, (50, 70)).convert("CMYK").save(file)
    expected = batches(load_data(config, 0, CPU, 0))
    for readers in (0, 1):
        found = batches(load_data(config, 0, CPU, readers, moved=DECODE))
        for mine, theirs in zip(found, expected, strict=True):
            assert mine.images.shape == theirs.images.shape
            assert torch.equal(mine.positions, theirs.positions)
            assert (mine.images - theirs.images).abs().mean() * 0.225 * 255 < 1  # levels of 0 to 255


def test_meta_and_val_and_training_images_that_are_not_augmented_are_decoded_by_the_readers(tmp_path: Path) -> None:
    config = folder(tmp_path, ".jpg")
    here, there = load_data(config, 0, CPU, 0, moved=DECODE), load_data(config, 0, CPU, 0)
    for mine, theirs in ((here.meta, there.meta), (here.val, there.val), (here.train, there.train)):
        asked = [Request(torch.arange(3))]
        assert equal(list(mine.batches(asked)), list(theirs.batches(asked)))


def jpeg(image: Image.Image, **settings: Any) -> bytes:
    image.save(file := io.BytesIO(), "JPEG", **settings)
    return file.getvalue()


def turned(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(image, exif=exif)


def other(image: Image.Image, form: str) -> bytes:
    image.save(file := io.BytesIO(), form)
    return file.getvalue()


def with_rgb_components(image: Image.Image) -> bytes:
    """A JPEG image that stores red, green and blue, which only the names of its components say."""
    encoded = jpeg(image, keep_rgb=True)
    start = encoded.index(b"\xff\xee")  # Adobe's mark, which says so as well
    end = start + 2 + int.from_bytes(encoded[start + 2 : start + 4])
    assert encoded[start + 4 : end].startswith(b"Adobe")
    return encoded[:start] + encoded[end:]


PHOTOGRAPH = photograph(0)
PLAIN = {
    "4:4:4": jpeg(PHOTOGRAPH, quality=90, subsampling=0),
    "4:2:0": jpeg(PHOTOGRAPH, quality=90, subsampling=2),
    "low quality": jpeg(PHOTOGRAPH, quality=30),
    "grey": jpeg(PHOTOGRAPH.convert("L"), quality=90),
    "upright": turned(PHOTOGRAPH, 1),
    "restarts": jpeg(PHOTOGRAPH, restart_marker_rows=1),
    "comment": jpeg(PHOTOGRAPH, comment=b"\xff\xc2" * 400),
}
NOT_PLAIN = {
    "progressive": jpeg(PHOTOGRAPH, progressive=True),
    "CMYK": jpeg(PHOTOGRAPH.convert("CMYK")),
    "RGB by mark": jpeg(PHOTOGRAPH, keep_rgb=True),
    "RGB by name": with_rgb_components(PHOTOGRAPH),
    "turned": turned(PHOTOGRAPH, 6),
    "more behind": jpeg(PHOTOGRAPH) + b"more",
    "PNG": other(PHOTOGRAPH, "PNG"),
    "WebP": other(PHOTOGRAPH, "WebP"),
    "GIF": other(PHOTOGRAPH, "GIF"),
}


def read(root: Path, encoded: bytes, grey: bool) -> Tensor:
    (root / "image").write_bytes(encoded)
    return torch.from_numpy(encoded_or_pixels(FileImages(root, np.array([b"image"])), 0, grey))


def by_pillow(encoded: bytes, grey: bool) -> Tensor:
    """The pixels that readers give, (C, H, W)."""
    pixels = np.array(Image.open(io.BytesIO(encoded)).convert("L" if grey else "RGB"))
    return torch.from_numpy(pixels[None] if grey else pixels.transpose(2, 0, 1).copy())


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("name", PLAIN)
def test_plain_jpeg_images_reach_the_device_encoded_and_have_nearly_pillows_pixels(tmp_path: Path, name: str, grey: bool) -> None:
    encoded = read(tmp_path, PLAIN[name], grey)
    assert encoded.numpy().tobytes() == PLAIN[name]
    (pixels,) = decode_jpegs([encoded], grey, CPU)
    expected = by_pillow(PLAIN[name], grey)
    assert pixels.shape == expected.shape
    assert (pixels.int() - expected.int()).abs().float().mean() < 1


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("name", NOT_PLAIN)
def test_other_images_reach_the_device_as_the_pixels_that_readers_give(tmp_path: Path, name: str, grey: bool) -> None:
    expected = by_pillow(NOT_PLAIN[name], grey)
    found = read(tmp_path, NOT_PLAIN[name], grey)
    assert torch.equal(found, expected.rot90(-1, (1, 2)) if name == "turned" else expected)


def test_images_keep_their_order_when_some_of_them_are_decoded_already(tmp_path: Path) -> None:
    found = [read(tmp_path, encoded, False) for encoded in (NOT_PLAIN["PNG"], PLAIN["4:2:0"], NOT_PLAIN["GIF"], PLAIN["grey"])]
    decoded = decode_each(found, ["a", "b", "c", "d"], False, CPU)
    assert torch.equal(decoded[0], found[0])
    assert torch.equal(decoded[2], found[2])
    assert torch.equal(decoded[1], decode_jpegs([found[1]], False, CPU)[0])
    assert torch.equal(decoded[3], decode_jpegs([found[3]], False, CPU)[0])
    assert decode_each([], [], False, CPU) == []


def damaged(encoded: bytes) -> bytes:
    """Without the tables that the pixels are coded with. The header is sound."""
    start = encoded.index(b"\xff\xc4")
    return encoded[: start + 5] + bytes([255] * 16) + encoded[start + 21 :]


@pytest.mark.parametrize("readers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_image_that_the_device_cannot_decode_is_named_with_a_cure(tmp_path: Path, readers: int) -> None:
    loaded = load_data(folder(tmp_path, ".jpg"), 0, CPU, readers, moved=DECODE)
    broken = Path(loaded.data.source.images.place(int(loaded.data.train.ids[4])))  # type: ignore[union-attr]
    broken.write_bytes(damaged(broken.read_bytes()))
    with pytest.raises(
        UnreadableImage,
        match=f"^data.root: {broken}: not an image that compute.decode_on=device can read .*; allowed: compute.decode_on=readers",
    ):
        batches(loaded)


@pytest.mark.parametrize("left", [0, 60, 1000])
def test_an_image_that_ends_early_is_named_as_it_is_without_the_device(tmp_path: Path, left: int) -> None:
    config = folder(tmp_path, ".jpg")
    messages = []
    for moved in (IN_READERS, DECODE):
        loaded = load_data(config, 0, CPU, 0, moved=moved)
        broken = Path(loaded.data.source.images.place(int(loaded.data.train.ids[4])))  # type: ignore[union-attr]
        whole = broken.read_bytes()
        broken.write_bytes(whole[:left])
        with pytest.raises(ValueError, match=f"^data.root: {broken}: ") as error:
            batches(loaded)
        messages.append(str(error.value))
        broken.write_bytes(whole)
    assert messages[0] == messages[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there the GPU may be able to decode")
def test_a_device_that_cannot_decode_is_refused_before_the_start_with_a_cure(tmp_path: Path) -> None:
    check_decoder(CPU)
    expected = (
        r"^compute.decode_on is 'device', but torchvision cannot decode JPEG images on cuda \(.+\); a torchvision with nvJPEG "
        r"is needed; allowed: compute.decode_on=readers"
    )
    with pytest.raises(ValueError, match=expected):
        load_data(folder(tmp_path), 0, torch.device("cuda"), 0, moved=DECODE)


@pytest.mark.gpu
def test_a_gpu_decodes_images_with_small_differences() -> None:
    check_decoder(torch.device("cuda"))
    for grey in (False, True):
        for encoded in PLAIN.values():
            (found,) = decode_jpegs([torch.frombuffer(bytearray(encoded), dtype=torch.uint8)], grey, torch.device("cuda"))
            expected = by_pillow(encoded, grey)
            assert found.device.type == "cuda"
            assert found.shape == expected.shape
            assert (found.cpu().int() - expected.int()).abs().float().mean() < 2


@pytest.mark.gpu
def test_images_that_a_gpu_decodes_wait_for_no_kernel_and_are_not_overwritten() -> None:
    """Memory that kernels of the training still use must not be given to nvJPEG."""
    encoded = [torch.frombuffer(bytearray(PLAIN["4:2:0"]), dtype=torch.uint8)] * 32
    expected = [image.clone() for image in decode_jpegs(encoded, False, torch.device("cuda"))]
    for _ in range(50):
        busy = torch.randn(2000, 2000, device="cuda")
        sums = [image.long().sum() for image in decode_jpegs(encoded, False, torch.device("cuda"))]
        busy = busy @ busy
        assert all(int(found) == int(image.long().sum()) for found, image in zip(sums, expected, strict=True))


# Settings


def trial(data: DataConfig, **moved: Any) -> TrialConfig:
    return TrialConfig(data=data, compute=ComputeConfig(**moved))


BOTH = {"augment_on": "device", "decode_on": "device"}


@pytest.mark.parametrize(
    ("settings", "moved", "message"),
    [
        (
            {},
            {"decode_on": "device"},
            "decode_on is 'device', but augment_on is 'readers', which would have no pixels to augment",
        ),
        (
            {"loading": "memory", "augment": []},
            BOTH,
            "compute.decode_on is 'device', but the images of data.source image_folder are",
        ),
        (
            {"augment": []},
            {"augment_on": "device"},
            "compute.augment_on is 'device', but data.augment is empty, .* or augmentations",
        ),
        ({"augment": []}, BOTH, "compute.decode_on is 'device', but data.augment is empty, "),
        (
            {"augment": ["flip", "resized_crop"]},
            {"augment_on": "device"},
            "data.augment ends with resized_crop, which the readers",
        ),
        (
            {"shrink": 256},
            BOTH,
            "compute.decode_on is 'device', but data.shrink is 256, .*; allowed: compute.decode_on readers, or ",
        ),
    ],
)
def test_places_without_effect_are_refused(settings: dict[str, Any], moved: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trial(ImageFolderConfig(root="images", **settings), **moved)


def test_images_that_are_not_streamed_have_no_places() -> None:
    expected = (
        "compute.augment_on is 'device', but the images of data.source digits are not .*; allowed: compute.augment_on readers "
    )
    with pytest.raises(ValueError, match=expected):
        trial(DigitsConfig(), augment_on="device")


def test_places_are_written_to_files_only_when_they_are_not_the_readers() -> None:
    data = ImageFolderConfig(root="images", augment=["resized_crop"])
    for moved in ({}, BOTH):
        config = trial(data, **moved)
        written = config.model_dump()["compute"]
        assert {name: written[name] for name in BOTH if name in written} == moved
        assert TrialConfig.model_validate(config.model_dump()) == config
    assert trial(ImageFolderConfig(root="images", shrink=256), augment_on="device").data.augment[-1] == "flip"
