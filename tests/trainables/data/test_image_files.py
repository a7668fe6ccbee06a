from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from miniatures import own_images
from PIL import Image

from trainables.data import build_data
from trainables.data.image_files import Transform, find_images, save_images
from trainables.data.loaded import load_data
from trainables.data.loader import Request
from trainables.data.source import UnreadableImage
from trainables.data_config import DigitsConfig, GeneratedConfig, ImageFolderConfig, LongTailConfig
from trainables.files import shown

GREY = Transform((1, 8, 8), streamed=False, white=255)


def picture(file: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels.astype(np.uint8)).save(file)
    return file


@pytest.mark.parametrize("config", [DigitsConfig(), GeneratedConfig(), GeneratedConfig(channels=1)])
def test_the_saved_images_of_a_decoded_source_come_back_as_the_same_pixels(config: LongTailConfig, tmp_path: Path) -> None:
    data = build_data(config, seed=0)
    files = save_images(data.source, data.val, tmp_path / "val")
    transform = Transform(data.source.images.shape[1:], streamed=False, white=data.source.white)
    assert np.array_equal(torch.stack([transform(file) for file in files]).numpy(), data.source.images[data.val.ids])
    assert [file.parent.name for file in files] == [data.class_names[label] for label in data.val.labels]
    assert len(set(files)) == len(data.val)


@pytest.mark.parametrize("settings", [{"loading": "stream"}, {"loading": "memory", "augment": []}, {"grey": True}], ids=str)
def test_a_file_becomes_the_pixels_that_the_evaluation_in_training_sees(settings: dict[str, Any], tmp_path: Path) -> None:
    own = own_images(tmp_path / "own")
    config = ImageFolderConfig(root=str(tmp_path / "own"), image_size=7, **own, **settings)
    loaded = load_data(config, 0, torch.device("cpu"), readers=0)
    files = save_images(loaded.data.source, loaded.data.val, tmp_path / "val")
    transform = Transform(loaded.format.shape, config.streamed(), loaded.data.source.white)
    ((images, *_),) = loaded.val.batches([Request(torch.arange(len(files)))])
    assert torch.equal(loaded.format.normalisation(torch.stack([transform(file) for file in files])), images)


def test_digits_can_be_seen_in_the_files_that_are_saved(tmp_path: Path) -> None:
    data = build_data(DigitsConfig(), seed=0)
    file = save_images(data.source, data.val, tmp_path / "val")[0]
    assert np.asarray(Image.open(file)).max() == 255


def test_the_saved_files_of_an_encoded_source_are_the_sources_own(tmp_path: Path) -> None:
    own = own_images(tmp_path / "own")
    data = build_data(ImageFolderConfig(root=str(tmp_path / "own"), **own), seed=0)
    files = save_images(data.source, data.val, tmp_path / "val")
    assert [file.read_bytes() for file in files] == [data.source.images.read(image) for image in data.val.ids.tolist()]
    assert {file.suffix for file in files} <= {".jpeg", ".png", ".webp"}
    with pytest.raises(FileExistsError):
        save_images(data.source, data.val, tmp_path / "val")


def test_pixels_that_count_to_255_are_counted_as_the_training_counts(tmp_path: Path) -> None:
    digits = Transform((1, 8, 8), streamed=False, white=16)
    levels = np.arange(64).reshape(8, 8) % 17
    in_16 = picture(tmp_path / "16.png", levels)
    in_255 = picture(tmp_path / "255.png", np.round(levels * 255 / 16))
    assert torch.equal(digits(in_16), digits(in_255))
    assert torch.equal(digits(in_255)[0], torch.from_numpy(levels).to(torch.uint8))
    assert torch.equal(GREY(in_16)[0], torch.from_numpy(levels).to(torch.uint8))
    assert GREY(in_255).max() == 255


def test_images_of_other_sizes_are_resized_by_their_short_side_and_cut_to_the_middle(tmp_path: Path) -> None:
    wide = np.zeros((16, 32), np.uint8)
    wide[:, 6:26] = 200  # the middle square, and what the filter sees beside it
    assert torch.equal(GREY(picture(tmp_path / "wide.png", wide)), torch.full((1, 8, 8), 200, dtype=torch.uint8))
    assert GREY(picture(tmp_path / "small.png", np.full((3, 3), 7))).shape == (1, 8, 8)
    oblong = Transform((1, 4, 8), streamed=False, white=255)
    pixels = np.arange(32).reshape(4, 8)
    assert np.array_equal(oblong(picture(tmp_path / "oblong.png", pixels))[0].numpy(), pixels)
    assert oblong(picture(tmp_path / "other.png", np.full((9, 9), 5))).unique().tolist() == [5]


def test_colour_becomes_grey_and_grey_becomes_colour(tmp_path: Path) -> None:
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    assert GREY(picture(tmp_path / "red.png", red)).unique().tolist() == [76]  # 0.299 of 255
    colour = Transform((3, 8, 8), streamed=False, white=255)
    assert torch.equal(colour(picture(tmp_path / "grey.png", np.full((8, 8), 90))), torch.full((3, 8, 8), 90, dtype=torch.uint8))


def test_the_content_of_a_file_will_do(tmp_path: Path) -> None:
    file = picture(tmp_path / "a.png", np.arange(64).reshape(8, 8))
    assert torch.equal(GREY(file.read_bytes()), GREY(file))
    assert torch.equal(GREY(str(file)), GREY(file))


def test_what_is_no_image_is_named_with_the_reason(tmp_path: Path) -> None:
    whole = picture(tmp_path / "whole.png", np.random.default_rng(0).integers(0, 256, (64, 64)))
    (tmp_path / "half.png").write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.jpg").touch()
    for name, reason in {
        "half.png": "not an image that can be read",
        "text.png": "of no known format",
        "empty.jpg": "the file is empty",
        "gone.png": "cannot be read: No such file",
    }.items():
        with pytest.raises(UnreadableImage, match=f"{name}: .*{reason}"):
            GREY(tmp_path / name)
    with pytest.raises(UnreadableImage, match="the image: not an image"):
        GREY(b"nothing")


def test_a_folder_is_searched_to_the_bottom_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b/2.png", "a/x/3.JPG", "1.webp", ".hidden/4.png", "notes.txt", "b/5.avif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    found = find_images([tmp_path, tmp_path / "notes.txt"])
    assert [file.relative_to(tmp_path).as_posix() for file in found.files] == ["1.webp", "a/x/3.JPG", "b/2.png", "notes.txt"]
    assert [file.name for file in found.left_out] == ["5.avif", "notes.txt"]
    (tmp_path / "b" / "6").touch()
    assert [file.name for file in find_images([tmp_path / "b"], {".avif", "none"}).files] == ["2.png", "5.avif", "6"]


def test_a_place_without_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: the folder holds no image; allowed: files ending with .*\.png"):
        find_images([tmp_path / "empty"])


def test_a_name_that_is_no_text_is_shown_with_escapes() -> None:
    assert shown(b"\xff") == "the image"
    assert shown(Path("a\udcff.png")) == "a\\xff.png"


def test_a_transform_says_what_it_does() -> None:
    assert GREY.words() == "images become grey, are resized to the middle 8x8 pixels at the model's scale"
    assert "count up to 16 in place of 255" in GREY._replace(white=16).words()
    assert "a little less than all of the short side" in Transform((3, 32, 32), streamed=True, white=255).words()
