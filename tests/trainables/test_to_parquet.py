"""After a conversion, a trial sees the same images, labels, class names and sets."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import miniatures
import numpy as np
import pyarrow.parquet as pq
import pytest
from faulty_store import faulty_store

from trainables import to_parquet
from trainables.config import TrialConfig
from trainables.config_file import read_settings
from trainables.data import build_data, open_source
from trainables.data.source import EncodedImages, Source
from trainables.data_config import DataConfig, ParquetConfig
from trainables.settings import named_values
from trainables.to_parquet import main

ROOT = Path(__file__).parents[2]
LISTS = {"train_list": "ImageNet_LT_train.txt", "val_list": "ImageNet_LT_val.txt", "test_list": "ImageNet_LT_test.txt"}


def write_source(root: Path, kind: str) -> dict[str, Any]:
    """Images of a kind, and the settings of a trial that reads them."""
    if kind == "folder":
        small = {"source": "image_folder", **miniatures.own_images(root)}
    elif kind == "chosen":  # classes merged and left out, an image that cannot be read
        small = {"source": "image_folder", **miniatures.own_images(root, endings=(".png",))}
        (root / "empty").mkdir()
        (root / "cat/00.png").write_bytes(b"")
        small |= {"classes": ["pet=cat", "pet=dog"], "min_images": 1, "broken": "skip"}
    elif kind == "checked":
        miniatures.own_images(root)
        miniatures.own_images(root.parent / "checked")
        small = {"source": "image_folder", "meta_root": str(root.parent / "checked"), "meta_per_class": None}
        small |= {"val_per_class": 1, "test_per_class": 2}
    elif kind == "parts":
        miniatures.own_images(root, ("train", "val", "test"))
        small = {"source": "image_folder", "meta_per_class": 1, "val_per_class": 2, "test_per_class": None}
    elif kind == "lists":
        small = {"source": "image_lists", **LISTS, **miniatures.imagenet_lt(root), "augment": ["resized_crop", "color_jitter"]}
    elif kind == "repeated":  # a list that names images twice
        small = {"source": "image_lists", **LISTS, **miniatures.imagenet_lt(root)}
        train = root / LISTS["train_list"]
        train.write_text(train.read_text() * 2)
    elif kind == "one list":
        miniatures.imagenet_lt(root, head=20)
        small = {"source": "image_lists", "train_list": LISTS["train_list"], "profile": "natural"}
        small |= {"meta_per_class": 2, "val_per_class": 2, "test_per_class": 2}
    else:
        small = {"source": "clothing1m", **miniatures.clothing1m(root)}
    return {"root": str(root), "image_size": 8, **small}


@pytest.fixture
def file(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    def write(data: dict[str, Any]) -> Path:
        path = tmp_path / "sweep.yaml"
        path.write_text(json.dumps({"trial": {"data": data, "epochs": 1}, "search": {"trials": 3}}))
        return path

    return write


def content(source: Source, ids: np.ndarray) -> list[bytes]:
    assert isinstance(source.images, EncodedImages)
    held = source.images.hold(ids)
    return [held.read(image) for image in ids.tolist()]


def overrides(output: str) -> list[str]:
    """The settings in the last line of the command's output."""
    return [text.removeprefix("trial.") for text in shlex.split(output.splitlines()[-1])]


def convert(config: Path, out: Path | str, *changes: str) -> int:
    return main([str(config), *changes, "--out", str(out)])


KINDS = ["folder", "chosen", "checked", "parts", "lists", "repeated", "one list", "clothing1m"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_trial_sees_the_same_images_in_the_same_sets(
    tmp_path: Path, file: Callable[[dict[str, Any]], Path], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file(write_source(tmp_path / "images", kind))
    assert convert(path, tmp_path / "out") == 0
    before = read_settings(TrialConfig, path, section="trial")
    after = read_settings(TrialConfig, path, overrides(capsys.readouterr().out), section="trial")
    assert isinstance(after.data, ParquetConfig)
    assert shared(after.data) == {**shared(before.data), "source": "parquet", "root": str(tmp_path / "out")}
    for seed in (0, 1):
        old, new = build_data(before.data, seed), build_data(after.data, seed)
        assert new.class_names == old.class_names
        for part in ("train", "meta", "val", "test"):
            was, now = getattr(old, part), getattr(new, part)
            assert now.labels.tolist() == was.labels.tolist()
            assert content(new.source, now.ids) == content(old.source, was.ids)


def shared(data: DataConfig) -> dict[str, Any]:
    return {key: value for key, value in named_values(data).items() if key.split(".")[0] in SHARED}


SHARED = ParquetConfig.model_fields.keys() - {"image_column", "label_column", "classes", "min_images", "broken", "skip"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_hold_the_same_images_and_labels_in_the_same_order(
    tmp_path: Path, file: Callable[[dict[str, Any]], Path], kind: str
) -> None:
    path = file(write_source(tmp_path / "images", kind))
    assert convert(path, tmp_path / "out") == 0
    old = open_source(read_settings(TrialConfig, path, section="trial").data)
    new = open_source(ParquetConfig(root=str(tmp_path / "out")))
    assert new.class_names == old.class_names
    assert new.parts.keys() == old.parts.keys()
    for part, ids in old.parts.items():
        assert new.labels[new.parts[part]].tolist() == old.labels[ids].tolist()
        assert content(new, new.parts[part]) == content(old, ids)


@pytest.fixture
def shards(tmp_path: Path, file: Callable[[dict[str, Any]], Path], monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setattr(to_parquet, "SHARD_BYTES", 4000)
    monkeypatch.setattr(to_parquet, "GROUP_BYTES", 1500)
    assert convert(file(write_source(tmp_path / "images", "parts")), tmp_path / "out") == 0
    return sorted((tmp_path / "out").iterdir())


def test_files_and_row_groups_have_a_limited_size(shards: list[Path], tmp_path: Path) -> None:
    names = [shard.name for shard in shards]
    assert names[0] == "test-00000.parquet"
    assert "train-00002.parquet" in names
    assert any(name.startswith("val-") for name in names)
    for shard in shards:
        images = pq.read_table(shard)["image"].to_pylist()
        assert sum(map(len, images)) <= 4000
    assert any(pq.ParquetFile(shard).num_row_groups > 1 for shard in shards)


def test_a_file_that_is_missing_is_noticed(shards: list[Path], tmp_path: Path) -> None:
    for shard in shards:
        kept = shard.read_bytes()
        shard.unlink()
        with pytest.raises(ValueError, match=rf"^data\.root: .* is followed by {shard.name}, which is missing"):
            open_source(ParquetConfig(root=str(tmp_path / "out")))
        shard.write_bytes(kept)


def test_bytes_that_a_disk_has_changed_are_noticed(tmp_path: Path, file: Callable[[dict[str, Any]], Path]) -> None:
    assert convert(file(write_source(tmp_path / "images", "parts")), tmp_path / "out") == 0
    train = tmp_path / "out" / "train-00000.parquet"
    whole = bytearray(train.read_bytes())
    # Headers repeat the lowest and the highest value; the others are in a page alone.
    whole[whole.index(sorted(pq.read_table(train)["image"].to_pylist())[1]) + 5] ^= 1
    train.write_bytes(whole)
    source = open_source(ParquetConfig(root=str(tmp_path / "out")))
    with pytest.raises(ValueError, match=rf"^data\.root: .*{train.name} is no whole parquet file .*CRC"):
        content(source, source.parts["train"])


def test_an_existing_place_is_left_alone(
    tmp_path: Path, file: Callable[[dict[str, Any]], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = file(write_source(tmp_path / "images", "folder"))
    (tmp_path / "out").mkdir()
    assert convert(path, tmp_path / "out") == 2
    assert f"--out is '{tmp_path}/out', which exists; allowed: a new folder; nothing was written" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_unreadable_images_are_copied_and_missing_ones_are_named(
    tmp_path: Path, file: Callable[[dict[str, Any]], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = file(write_source(tmp_path / "images", "lists"))
    first = (tmp_path / "images" / LISTS["train_list"]).read_text().split()[0]
    (tmp_path / "images" / first).write_bytes(b"no image")
    assert convert(path, tmp_path / "out") == 0
    source = open_source(ParquetConfig(root=str(tmp_path / "out")))
    assert content(source, source.parts["train"])[0] == b"no image"
    (tmp_path / "images" / first).unlink()
    assert convert(path, tmp_path / "again") == 2
    message = f"data.root: {tmp_path}/images/{LISTS['train_list']}, line 1: {tmp_path}/images/{first}: there is no such file"
    assert f"{message}; nothing was written" in capsys.readouterr().err
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["images", "out", "sweep.yaml"]


def test_an_image_that_vanishes_meanwhile_leaves_nothing(
    tmp_path: Path, file: Callable[[dict[str, Any]], Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file(write_source(tmp_path / "images", "folder"))
    monkeypatch.setattr(to_parquet, "GROUP_BYTES", 1000)

    def vanish(images: Any, image: int) -> bytes:
        if image == 10:
            raise FileNotFoundError(2, "No such file or directory")
        return bytes(images.read(image))

    read = to_parquet._read
    monkeypatch.setattr(to_parquet, "_read", lambda images, image: read(Vanishing(images, vanish), image))
    assert convert(path, tmp_path / "out") == 2
    assert "10.PNG: No such file or directory; nothing was written" in capsys.readouterr().err
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["images", "sweep.yaml"]


class Vanishing:
    def __init__(self, images: Any, read: Callable[[Any, int], bytes]) -> None:
        self._images, self._read = images, read

    def read(self, image: int) -> bytes:
        return self._read(self._images, image)

    def place(self, image: int) -> str:
        return str(self._images.place(image))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cat, tabby", "data.root: the class 'cat, tabby' has a comma in its name"),
        (os.fsdecode(b"caf\xe9"), r"data.root: the class 'caf\\xe9' has letters that are not UTF-8 in its name"),
    ],
)
def test_class_names_that_parquet_files_cannot_hold_are_refused(
    tmp_path: Path, file: Callable[[dict[str, Any]], Path], name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file(write_source(tmp_path / "images", "folder"))
    (tmp_path / "images" / "cat").rename(tmp_path / "images" / name)
    assert convert(path, tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_sources_without_image_files_and_secrets_are_refused(
    tmp_path: Path, file: Callable[[dict[str, Any]], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = file({"source": "generated"})
    assert convert(path, tmp_path / "out") == 2
    allowed = "parquet, image_lists, clothing1m, image_folder"
    assert f"data.source is generated, which has no image files; allowed: {allowed}" in capsys.readouterr().err
    assert convert(path, "s3://key:secret@bucket/pets") == 2
    assert "secret@" not in (error := capsys.readouterr().err)
    assert "--out is the address 's3://***@bucket/pets', which holds a password" in error


def test_a_sweep_s_file_of_the_repository_needs_no_more_than_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    miniatures.own_images(tmp_path / "pets")
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("mine")
    sweep = ROOT / "search_spaces" / "own_images.yaml"
    assert convert(sweep, tmp_path / "out", f"trial.data.root={tmp_path / 'pets'}") == 0
    output = capsys.readouterr().out
    assert "note: data.extra_endings is []: 1 file in the class folders is not read (1 .txt)\n" in output
    assert "images-00000.parquet: 27 images" in output
    after = read_settings(TrialConfig, sweep, overrides(output), section="trial")
    assert after.data.profile == "natural"
    assert len(build_data(after.data, 0).train) > 0


def test_parquet_files_are_divided_anew(tmp_path: Path, file: Callable[[dict[str, Any]], Path]) -> None:
    assert convert(file(write_source(tmp_path / "images", "folder")), tmp_path / "one") == 0
    assert convert(file({"source": "parquet", "root": str(tmp_path / "one")}), tmp_path / "two") == 0
    one, two = (open_source(ParquetConfig(root=str(tmp_path / name))) for name in ("one", "two"))
    assert content(one, one.parts["train"]) == content(two, two.parts["train"])


@pytest.mark.slow
def test_ctrl_c_leaves_nothing(tmp_path: Path, file: Callable[[dict[str, Any]], Path]) -> None:
    path = file(write_source(tmp_path / "images", "folder"))
    code = (
        "import sys, time\nfrom trainables import to_parquet\n"
        "to_parquet._read = lambda images, image: time.sleep(3) or b'x'\n"
        "sys.exit(to_parquet.main(sys.argv[1:]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path), "--out", str(tmp_path / "out")], cwd=ROOT)
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob(".out.*.partial")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["images", "sweep.yaml"]


@pytest.mark.slow
def test_it_writes_straight_to_a_store_that_fails(
    tmp_path: Path,
    file: Callable[[dict[str, Any]], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(to_parquet, "SHARD_BYTES", 4000)
    monkeypatch.setenv("TAILTUNE_CACHE", str(tmp_path / "cache"))
    path = file(write_source(tmp_path / "images", "parts"))
    with faulty_store() as store:
        address = store.address("photos", "pets")
        store.fail_every(4)
        assert convert(path, address) == 0
        assert store.num_failed
        after = read_settings(TrialConfig, path, overrides(capsys.readouterr().out), section="trial")
        before = read_settings(TrialConfig, path, section="trial")
        old, new = build_data(before.data, 0), build_data(after.data, 0)
        assert content(new.source, new.train.ids) == content(old.source, old.train.ids)
        assert convert(path, address) == 2
        assert f"--out is '{address}', where there are files; allowed: a new folder" in capsys.readouterr().err
        store.heal()
        names = store.names("photos")
        monkeypatch.setattr(to_parquet, "_read", fail_at(20))
        assert convert(path, store.address("photos", "cats")) == 2
        assert [name for name in store.names("photos") if name != "cats/"] == names  # Arrow leaves a mark of the empty folder
        assert convert(path, "s3://no-such-bucket/pets") == 2
        assert "--out is 's3://no-such-bucket/pets', which cannot be written: " in capsys.readouterr().err


def fail_at(number: int) -> Callable[[EncodedImages, int], bytes]:
    def read(images: EncodedImages, image: int) -> bytes:
        if image == number:
            raise ValueError("data.root: gone")
        return images.read(image)

    return read
