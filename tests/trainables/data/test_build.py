"""build_data: from settings and a seed to four sets, and the record of them."""

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import miniatures
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from trainables.data import LongTailedData, build_data
from trainables.data.inspection import all_ids, check_images
from trainables.data.manifest import check_manifest, sets_by_name, write_manifest
from trainables.data.profiles import exponential
from trainables.data.source import FileImages, Source
from trainables.data.splits import Split
from trainables.data.survey import survey_images
from trainables.data_config import DigitsConfig, GeneratedConfig, ImageFolderConfig, ImageListsConfig, NoiseConfig, ParquetConfig


def test_the_default_tail_of_digits_is_the_published_formula() -> None:
    data = build_data(DigitsConfig(), seed=0)
    assert data.class_counts.tolist() == exponential(10, 90, 50) == [90, 58, 37, 24, 15, 10, 6, 4, 2, 1]
    assert (data.train.labels == data.source.labels[data.train.ids]).all()
    assert data.num_flipped == 0


def test_the_balanced_sets_do_not_depend_on_the_tail_or_the_noise() -> None:
    noise = NoiseConfig(kind="symmetric", rate=0.3)
    plain, steep, noisy = (
        build_data(config, seed=4)
        for config in (DigitsConfig(imbalance_factor=1.0), DigitsConfig(imbalance_factor=9.0), DigitsConfig(noise=noise))
    )
    for other in (steep, noisy):
        for name in ("meta", "val", "test"):
            assert (getattr(plain, name).ids == getattr(other, name).ids).all()
            assert (getattr(plain, name).labels == getattr(other, name).labels).all()


def test_noise_comes_after_the_tail_and_counts_are_what_the_trainer_sees() -> None:
    noisy = build_data(DigitsConfig(imbalance_factor=9, noise=NoiseConfig(kind="flip", rate=0.4)), seed=0)
    clean = build_data(DigitsConfig(imbalance_factor=9), seed=0)
    assert (noisy.train.ids == clean.train.ids).all()  # the same images
    assert noisy.num_flipped == (noisy.train.labels != clean.train.labels).sum() > 0.3 * len(clean.train)
    assert noisy.class_counts.tolist() == np.bincount(noisy.train.labels).tolist() != clean.class_counts.tolist()


def test_which_images_are_mislabelled_depends_on_the_trial_and_which_classes_are_confused_does_not() -> None:
    def confusions(seed: int) -> tuple[set[tuple[int, int]], list[int]]:
        noise = NoiseConfig(kind="flip", rate=0.5)
        data = build_data(GeneratedConfig(n_max=30, imbalance_factor=1, selection="first", noise=noise), seed)
        right = data.source.labels[data.train.ids]
        wrong = right != data.train.labels
        return set(zip(right[wrong].tolist(), data.train.labels[wrong].tolist(), strict=True)), data.train.ids[wrong].tolist()

    (pairs, images), (other_pairs, other_images) = confusions(1), confusions(2)
    assert pairs == other_pairs
    assert len(pairs) == 4
    assert images != other_images


def test_noise_that_empties_a_class_is_noted_and_classes_are_few_or_many_by_their_clean_labels() -> None:
    config = DigitsConfig(noise=NoiseConfig(kind="pairs", rate=1.0, pairs=["9=0", "0=8"]))
    data, plain = build_data(config, seed=0), build_data(DigitsConfig(), seed=0)
    assert data.notes == ("data.noise.rate is 1: with seed 0 no training image is labelled class 9",)
    assert data.clean_counts.tolist() == plain.class_counts.tolist()
    assert (data.class_counts[9], data.class_counts[0]) == (0, plain.class_counts[9])
    assert plain.clean_counts.tolist() == plain.class_counts.tolist()


def test_val_may_be_the_meta_set_as_in_the_papers() -> None:
    data = build_data(DigitsConfig(val="meta"), seed=0)
    assert data.val is data.meta
    assert len(data.split.val) == 0
    assert np.bincount(data.meta.labels).tolist() == [10] * 10


def test_too_many_meta_images_are_refused_with_the_cure() -> None:
    with pytest.raises(
        ValueError, match=r"data.meta_per_class is 100.*class 0 has only 178; lower data.meta_per_class to at most 14"
    ):
        build_data(DigitsConfig(meta_per_class=100), seed=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_max": 89},
        {"imbalance_factor": 49.0},
        {"meta_per_class": 9},
        {"val_per_class": 23},
        {"test_per_class": 49},
        {"selection": "first"},
        {"val": "meta"},
        {"noise": NoiseConfig(kind="flip", rate=0.1)},
    ],
)
def test_the_digest_changes_with_every_image_and_label(changes: dict[str, Any]) -> None:
    plain = DigitsConfig(imbalance_factor=10)
    digest = build_data(plain, 0).sha256
    assert build_data(plain, 0).sha256 == digest
    assert build_data(plain.model_copy(update=changes), 0).sha256 != digest
    assert build_data(plain, 1).sha256 != digest


def lists_config(root: Path) -> ImageListsConfig:
    names = {"train_list": "ImageNet_LT_train.txt", "val_list": "ImageNet_LT_val.txt", "test_list": "ImageNet_LT_test.txt"}
    return ImageListsConfig(root=str(root), meta_per_class=2, val_per_class=2, **names)


def test_a_manifest_knows_its_split_again_wherever_the_images_lie(tmp_path: Path) -> None:
    for name in ("here", "there"):
        miniatures.imagenet_lt(tmp_path / name)
    here, there = (lists_config(tmp_path / name) for name in ("here", "there"))
    file = tmp_path / "split.json"
    assert not check_manifest(file, here, 0, build_data(here, 0))
    write_manifest(file, here, 0, build_data(here, 0))
    lists = {name: (tmp_path / "here" / f"ImageNet_LT_{name}.txt").read_text().splitlines() for name in ("train", "val", "test")}
    lines = [line.rpartition(" ")[0] for part in lists.values() for line in part]
    for name, ids in vars(build_data(here, 0).split).items():
        listed = json.loads(file.read_text())["sets"][name]
        assert [f"{folder}/{image}" for folder, images in listed for image in images] == [lines[image] for image in ids.tolist()]
    assert check_manifest(file, here, 0, build_data(here, 0))
    assert check_manifest(file, there, 0, build_data(there, 0))
    assert not check_manifest(file, here, 1, build_data(here, 1))  # another seed is another split, and no error

    listed = tmp_path / "there" / "ImageNet_LT_val.txt"
    lines = listed.read_text().splitlines()
    listed.write_text("\n".join([lines[1], lines[0], *lines[2:]]))  # the same ids now mean other images
    with pytest.raises(
        ValueError, match=r"data: the split is not the one that .*split.json records .*: other images are in meta, val;"
    ):
        check_manifest(file, there, 0, build_data(there, 0))
    older = json.loads(file.read_text()) | {"sets": build_data(here, 0).split.manifest()}  # as older versions wrote it
    (tmp_path / "older.json").write_text(json.dumps(older))
    assert check_manifest(tmp_path / "older.json", here, 0, build_data(here, 0))
    with pytest.raises(ValueError, match=r"records .* under the same ids"):
        check_manifest(tmp_path / "older.json", there, 0, build_data(there, 0))
    listed.write_text("\n".join(lines))
    image = next((tmp_path / "there" / "train").rglob("*.JPEG"))
    content = image.read_bytes()
    image.write_bytes(content + b"more")
    with pytest.raises(ValueError, match=r"records .* images under the same names are others, or their labels or order"):
        check_manifest(file, there, 0, build_data(there, 0))
    image.write_bytes(content)
    miniatures.photograph(tmp_path / "there" / "train/n01440764/new.JPEG", 0, 0)
    listed.write_text("\n".join([*lines, "train/n01440764/new.JPEG 0"]))
    with pytest.raises(ValueError, match=r"other images are in .*meta, val"):
        check_manifest(file, there, 0, build_data(there, 0))


def test_a_manifest_names_rows_of_parquet_files_and_what_has_no_name_by_id(tmp_path: Path) -> None:
    (tmp_path / "parquet").mkdir()
    for name in ("a", "b"):
        table = pa.table({"image": [b"an image"] * 20, "label": [0, 1] * 10})
        pq.write_table(table, tmp_path / "parquet" / f"{name}.parquet")
    counts = {"n_max": 5, "imbalance_factor": 1, "meta_per_class": 2, "val_per_class": 2, "test_per_class": 2}
    data = build_data(ParquetConfig(root=str(tmp_path / "parquet"), **counts), 0)
    named = sets_by_name(data)["train"]
    expected = [(f"{'ab'[image // 20]}.parquet", image % 20) for image in data.train.ids.tolist()]
    assert [(file, row) for file, rows in named for row in rows] == expected
    assert {type(row) for _, rows in named for row in rows} == {int}
    digits = build_data(DigitsConfig(), 0)
    assert sets_by_name(digits) == digits.split.manifest()


@pytest.mark.slow
def test_the_manifest_of_a_large_split_stays_small(tmp_path: Path) -> None:
    """ImageNet has 1.28 million images in 1000 folders. A path for each would take 50 bytes and more."""
    names = [b"train/n%08d/n%08d_%d.JPEG" % (image % 100, image % 100, image) for image in range(128_000)]
    images = FileImages(tmp_path, np.sort(np.array(names)))
    nothing = np.empty(0, np.int64)
    source = Source(images, np.zeros(len(names), np.int64), ("a",), {"train": np.arange(len(names))})
    data = build_data(DigitsConfig(), 0)
    data = dataclasses.replace(data, source=source, split=Split(np.arange(len(names)), nothing, nothing, nothing))
    began = time.process_time()
    size = len(json.dumps(sets_by_name(data)))
    assert size < 25 * len(names)
    assert time.process_time() - began < 5


def test_only_the_files_that_are_used_are_asked_for_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(50):
        (tmp_path / f"{number}.jpg").write_bytes(b"x" * number)
    asked = []

    class Entry:
        def __init__(self, entry: "os.DirEntry[bytes]") -> None:
            self.name, self._entry = entry.name, entry

        def is_file(self) -> bool:
            asked.append(self.name)
            return self._entry.is_file()

        def stat(self) -> os.stat_result:
            return self._entry.stat()

    scandir = os.scandir
    monkeypatch.setattr("trainables.data.source.os.scandir", lambda folder: map(Entry, scandir(folder)))
    images = FileImages(tmp_path, np.array([b"%d.jpg" % number for number in range(50)]))
    assert images.identity(np.array([7, 3])) == b"7.jpg 7\n3.jpg 3\n"
    assert sorted(asked) == [b"3.jpg", b"7.jpg"]


def test_a_digest_is_of_the_images_and_not_of_their_ids_alone(tmp_path: Path) -> None:
    """The same ids and labels everywhere."""
    small, large = (build_data(GeneratedConfig(image_size=size), 0) for size in (8, 9))
    assert small.sha256 != large.sha256
    same, other = (build_data(GeneratedConfig(image_size=8), 0) for _ in range(2))
    other.source.images[other.train.ids[-1], 0, 0, 0] ^= 1  # type: ignore[index]
    assert small.sha256 == same.sha256 != other.sha256

    config, data = folder(tmp_path / "folder")
    assert build_data(config, 0).sha256 == data.sha256
    Path(data.source.images.place(int(data.test.ids[0]))).write_bytes(b"another image under the same name")  # type: ignore[union-attr]
    assert build_data(config, 0).sha256 != data.sha256

    digests = set()
    for shade in (10, 10, 20):
        table = pa.table({"image": [bytes([shade, number]) * 50 for number in range(40)], "label": [0, 1] * 20})
        (tmp_path / "parquet").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "parquet" / "a.parquet")
        counts = {"n_max": 5, "imbalance_factor": 1, "meta_per_class": 2, "val_per_class": 2, "test_per_class": 2}
        digests.add(build_data(ParquetConfig(root=str(tmp_path / "parquet"), **counts), 0).sha256)
    assert len(digests) == 2


def test_a_manifest_is_of_its_source_s_settings_too(tmp_path: Path) -> None:
    config = GeneratedConfig()
    write_manifest(tmp_path / "split.json", config, 0, build_data(config, 0))
    other = GeneratedConfig(images_per_class=70)
    assert not check_manifest(tmp_path / "split.json", other, 0, build_data(other, 0))


def folder(root: Path) -> tuple[ImageFolderConfig, LongTailedData]:
    config = ImageFolderConfig(root=str(root), **miniatures.own_images(root, endings=(".png", ".PNG")))
    return config, build_data(config, 0)


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_images_that_are_missing_or_broken_are_found_before_anything_starts(tmp_path: Path, loading: str) -> None:
    config, data = folder(tmp_path)
    config = ImageFolderConfig.model_validate(config.model_dump() | {"loading": loading, "augment": [], "image_size": 8})
    check_images(config, data)
    last = Path(data.source.images.place(int(data.test.ids[-2])))  # type: ignore[union-attr]
    for content in (last.read_bytes()[:50], b"a text, whatever its name says"):
        last.write_bytes(content)
        with pytest.raises(ValueError, match=f"data.root: {last}: not an image that can be read"):
            check_images(config, data)
    last.write_bytes(Path(data.source.images.place(int(data.train.ids[0]))).read_bytes())  # type: ignore[union-attr]
    check_images(config, data)
    second = Path(data.source.images.place(int(data.train.ids[1])))  # type: ignore[union-attr]  # of its class and set
    whole = second.read_bytes()
    second.write_bytes(b"a text, whatever its name says")
    with pytest.raises(ValueError, match=f"data.root: {second}: not an image that can be read"):
        check_images(config, data)
    second.write_bytes(whole)
    last.write_bytes(b"")
    with pytest.raises(ValueError, match=f"data.root: {last}: the file is empty"):
        check_images(config, data)
    last.unlink()
    with pytest.raises(ValueError, match=f"data.root: {last}: there is no such file"):
        check_images(config, data)
    assert len(all_ids(data)) == 27


def streamed(root: Path, ending: str) -> tuple[ImageFolderConfig, LongTailedData, list[Path]]:
    """Images that are streamed, and the files of those that no set has as the first of their class."""
    counts = miniatures.own_images(root, endings=(ending,))
    config = ImageFolderConfig(root=str(root), image_size=8, **counts)
    data = build_data(config, 0)
    later = [image for part in (data.train, data.test) for c in range(3) for image in part.ids[part.labels == c][1:].tolist()]
    return config, data, [Path(data.source.images.place(image)) for image in later]  # type: ignore[union-attr]


@pytest.mark.parametrize(("ending", "lost"), [(".jpg", 20), (".png", 60), (".webp", 20)])
def test_a_truncated_image_among_many_is_found_before_the_start_without_decoding_all(
    tmp_path: Path, ending: str, lost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainables.data.inspection.DECODING_S", 0.0)
    config, data, files = streamed(tmp_path, ending)
    check_images(config, data)
    for file in files:
        whole = file.read_bytes()
        file.write_bytes(whole[:-lost])
        with pytest.raises(ValueError, match=f"data.root: {file}: not an image that can be read"):
            check_images(config, data)
        file.write_bytes(whole + b"more behind the image")  # some cameras write this
        check_images(config, data)


def test_images_with_other_faults_are_found_before_the_start_as_far_as_time_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, data, files = streamed(tmp_path, ".png")
    whole = files[-1].read_bytes()
    middle = whole.index(b"IDAT") + 20
    files[-1].write_bytes(whole[:middle] + bytes(255 - byte for byte in whole[middle : middle + 9]) + whole[middle + 9 :])
    with pytest.raises(ValueError, match=f"data.root: {files[-1]}: not an image that can be read .* -m orchestrator.doctor"):
        check_images(config, data)
    monkeypatch.setattr("trainables.data.inspection.DECODING_S", 0.0)
    check_images(config, data)  # found by the doctor, whom the error above names
    assert [fault for fault in survey_images(data.source.images, all_ids(data)).faults.values() if str(files[-1]) in fault]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"augment": ["flip"]},
            r"augment holds 'flip', but loading is memory; allowed: \[\] or some of crop_flip, autoaugment, cutout",
        ),
        ({"augment": ["cutout", "cutout"]}, r"augment holds 'cutout' twice; allowed: each name once"),
        (
            {"loading": "stream", "image_size": 32, "augment": ["cutout"]},
            r"'cutout', but loading is stream; allowed: .*resized_crop",
        ),
        (
            {"loading": "stream", "augment": []},
            r"image_size is None, but loading is stream; allowed: a whole number of at least 1",
        ),
    ],
)
def test_augmentations_must_fit_the_loading(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ParquetConfig(root="x", **settings)
