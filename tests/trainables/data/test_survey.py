from pathlib import Path

import miniatures
import numpy as np
import pytest
from PIL import Image

from trainables.data import build_data, open_source
from trainables.data.inspection import all_ids
from trainables.data.source import EncodedImages
from trainables.data.survey import equal_images, is_extreme, near_images, survey_images
from trainables.data_config import DigitsConfig, GeneratedConfig, ImageFolderConfig


def test_equal_pixels_are_found_whatever_the_files_are(tmp_path: Path) -> None:
    config = ImageFolderConfig(root=str(tmp_path), **miniatures.own_images(tmp_path, endings=(".png",)))
    source = open_source(config)
    images, ids = source.images, source.parts["train"]
    assert isinstance(images, EncodedImages)
    assert equal_images(survey_images(images, ids).looks) == []
    with Image.open(images.place(3)) as image:
        image.save(images.place(20), compress_level=0)
    assert images.read(3) != images.read(20)
    assert equal_images(survey_images(images, ids).looks) == [[3, 20]]
    Path(images.place(20)).write_bytes(b"not an image")
    survey = survey_images(images, ids)
    assert survey.faults == {20: f"data.root: {images.place(20)}: not an image that can be read (of no known format)"}
    assert set(survey.looks) == set(ids.tolist()) - {20}
    assert equal_images(survey.looks) == []


def test_arrays_are_searched_for_equal_images_too() -> None:
    data = build_data(GeneratedConfig(), 0)
    assert equal_images(survey_images(data.source.images, all_ids(data)).looks) == []
    data.source.images[data.val.ids[3]] = data.source.images[data.meta.ids[1]]  # type: ignore[index]
    (found,) = equal_images(survey_images(data.source.images, all_ids(data)).looks)
    assert set(found) == {data.val.ids[3], data.meta.ids[1]}


def test_resized_and_recompressed_images_are_near_and_others_are_not(tmp_path: Path) -> None:
    digits = open_source(DigitsConfig()).images
    assert isinstance(digits, np.ndarray)
    for folder, size, quality in (("one", 64, 95), ("two", 40, 60)):
        (tmp_path / folder).mkdir()
        for number in range(100):
            scaled = Image.fromarray((digits[number, 0] * 15).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
            scaled.save(tmp_path / folder / f"{number:03}.jpg", quality=quality)
    source = open_source(ImageFolderConfig(root=str(tmp_path)))
    looks = survey_images(source.images, np.arange(200)).looks
    assert equal_images(looks) == []
    pairs = near_images(looks)
    right = [(number, number + 100) for number in range(100)]
    assert len(set(right) & set(pairs)) > 90
    assert len(set(pairs) - set(right)) < 5


@pytest.mark.parametrize(
    ("size", "image_size", "extreme"),
    [
        ((100, 80), 224, False),
        ((100, 55), 224, True),
        ((100, 80), None, False),
        ((900, 100), None, True),
        ((8000, 7000), 224, True),
    ],
)
def test_sizes_are_extreme_in_three_ways(size: tuple[int, int], image_size: int | None, extreme: bool) -> None:
    data = build_data(DigitsConfig(), 0)
    look = survey_images(data.source.images, data.train.ids[:1]).looks[int(data.train.ids[0])]
    assert is_extreme(look._replace(size=size), image_size) is extreme
