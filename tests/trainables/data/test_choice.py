import json
import os
from pathlib import Path
from typing import Any

import miniatures
import numpy as np
import pytest
from PIL import ExifTags, Image

from trainables.data import build_data, open_source, survey_source
from trainables.data.cache import CACHE
from trainables.data.decode import open_image
from trainables.data.skip_list import read_skip_list, write_skip_list
from trainables.data.source import EncodedImages, Source
from trainables.data_config import ImageFolderConfig, ImageListsConfig


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """12 cats, 9 dogs and 6 fish."""
    miniatures.own_images(tmp_path / "pets", endings=(".png",))
    return tmp_path / "pets"


def opened(root: Path, **settings: Any) -> Source:
    return open_source(ImageFolderConfig(root=str(root), **settings))


def sizes(source: Source) -> dict[str, int]:
    counts = np.bincount(source.labels[source.parts["train"]], minlength=len(source.class_names))
    return dict(zip(source.class_names, counts.tolist(), strict=True))


def names(source: Source) -> set[str]:
    assert isinstance(source.images, EncodedImages)
    return {source.images.name(image) for image in source.parts["train"].tolist()}


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (["dog", "cat"], {"cat": 12, "dog": 9}),
        (["-cat"], {"dog": 9, "fish": 6}),
        (["pet=cat", "pet=dog"], {"pet": 21, "fish": 6}),
        (["dog=cat"], {"dog": 21, "fish": 6}),
        (["pet=cat", "fish"], {"pet": 12, "fish": 6}),
    ],
)
def test_classes_are_picked_left_out_and_merged(pets: Path, entries: list[str], expected: dict[str, int]) -> None:
    source = opened(pets, classes=entries)
    assert sizes(source) == expected
    folder_of = {name: name.split("/")[0] for name in names(source)}
    merged = {old: new for new, _, old in (entry.partition("=") for entry in entries if "=" in entry)}
    assert isinstance(source.images, EncodedImages)
    for image in source.parts["train"].tolist():
        folder = folder_of[source.images.name(image)]
        assert source.class_names[source.labels[image]] == merged.get(folder, folder)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["cats"], r"data.classes holds 'cats', but there is no class 'cats'; allowed: names of classes \(cat, ...\)"),
        (["-bird"], r"data.classes holds '-bird', but there is no class 'bird'; allowed: names of classes \(cat, dog, fish\)"),
        (["pet=cow"], r"data.classes holds 'pet=cow', but there is no class 'cow'"),
        (["cat"], r"only 'cat' is left; allowed: at least 2 classes"),
        (["cat", "dog", "-cat"], r"data.classes leaves out 'cat' and uses it; allowed: one of them"),
    ],
)
def test_wrong_names_of_classes_are_refused(pets: Path, entries: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        opened(pets, classes=entries)


def test_a_name_that_looks_like_an_entry_is_a_name(tmp_path: Path) -> None:
    for number, name in enumerate(("-a", "b=c", "7", "d")):
        miniatures.photograph(tmp_path / name / "1.png", number, 0)
    assert set(sizes(opened(tmp_path, classes=["-a", "b=c", 7]))) == {"-a", "b=c", "7"}
    assert set(sizes(opened(tmp_path, classes=["--a"]))) == {"b=c", "7", "d"}


def test_empty_and_small_classes_are_left_out_when_asked_for(pets: Path) -> None:
    for name in ("cow", "emu"):
        (pets / name).mkdir()
    faults = survey_source(ImageFolderConfig(root=str(pets))).faults
    assert [fault.classes for fault in faults] == [("cow",), ("emu",)]
    with pytest.raises(ValueError, match=r"/cow holds no image; .*trial.data.classes=\[-cow\].*; 1 more such fault"):
        opened(pets)
    assert sizes(opened(pets, classes=["-cow", "-emu"])) == {"cat": 12, "dog": 9, "fish": 6}
    source = opened(pets, min_images=1)
    assert sizes(source) == {"cat": 12, "dog": 9, "fish": 6}
    assert source.notes[-1] == "data.min_images is 1: 2 of 5 classes are smaller and are left out (cow: 0; emu: 0)"
    source = opened(pets, min_images=9)
    assert sizes(source) == {"cat": 12, "dog": 9}
    assert source.notes[-1].endswith("3 of 5 classes are smaller and are left out (cow: 0; emu: 0; fish: 6)")


def test_broken_images_are_left_out_and_looked_for_again_when_a_file_changes(pets: Path, tmp_path: Path) -> None:
    whole = (pets / "cat/00.png").read_bytes()
    (pets / "cat/00.png").write_bytes(bytes(len(whole)))
    (pets / "dog/02.png").write_bytes(whole[:80])
    source = opened(pets, broken="skip")
    assert sizes(source) == {"cat": 11, "dog": 8, "fish": 6}
    assert {"cat/00.png", "dog/02.png"}.isdisjoint(names(source))
    assert source.notes[-1].startswith("data.broken is skip: 2 of 27 images cannot be read and are left out (")
    (kept,) = (tmp_path / "cache").iterdir()
    assert len(json.loads(kept.read_text())) == 2
    kept.write_text("{}")  # it is believed
    assert sizes(opened(pets, broken="skip"))["cat"] == 12
    kept.write_text('{"0":')  # damage is not
    assert sizes(opened(pets, broken="skip"))["cat"] == 11
    (pets / "cat/00.png").write_bytes(whole)  # of the same size
    os.utime(pets / "cat/00.png", (1, 1))
    assert sizes(opened(pets, broken="skip"))["cat"] == 12


def test_the_same_trial_on_mended_images_is_another_split(pets: Path) -> None:
    settings = miniatures.own_images(pets, endings=(".png",))
    whole = build_data(ImageFolderConfig(root=str(pets), broken="skip", **settings), 0).sha256
    (pets / "cat/00.png").write_bytes(b"x")
    assert build_data(ImageFolderConfig(root=str(pets), broken="skip", **settings), 0).sha256 != whole


def test_images_of_a_list_are_left_out(pets: Path, tmp_path: Path) -> None:
    strange = "dog/new\nline\t#.png"
    (pets / "dog/02.png").rename(pets / strange)
    os.rename(os.fsencode(pets / "fish/01.png"), os.fsencode(pets / "fish") + b"/caf\xe9.png")
    listed = tmp_path / "skip.txt"
    entries = [("cat/00.png", "a remark"), (strange, "two\tlines\nof it"), ("fish/caf\udce9.png", ""), ("cat/gone.png", "")]
    write_skip_list(listed, "two\nlines", entries)
    assert set(read_skip_list(listed)) == {name for name, _ in entries}
    source = opened(pets, skip=str(listed))
    assert sizes(source) == {"cat": 11, "dog": 8, "fish": 5}
    assert (
        source.notes[-1]
        == "data.skip: 3 images of the list are left out; 1 of its names are no image that is used (line 6: cat/gone.png)"
    )
    with pytest.raises(FileExistsError):
        write_skip_list(listed, "", [])
    with pytest.raises(ValueError, match=r"data.skip: .*absent.txt cannot be read: No such file"):
        opened(pets, skip=str(tmp_path / "absent.txt"))
    listed.write_text('"cat/00.png\n')
    with pytest.raises(ValueError, match=r"data.skip: .*skip.txt, line 1 is '\"cat/00.png'; allowed: a path below data.root"):
        opened(pets, skip=str(listed))


def test_a_list_ends_the_fault_of_an_image_that_is_linked_twice(pets: Path, tmp_path: Path) -> None:
    (pets / "dog/linked.png").symlink_to(pets / "cat/00.png")
    with pytest.raises(ValueError, match="leads to the image of"):
        opened(pets)
    (tmp_path / "skip.txt").write_text("dog/linked.png\n")
    assert sizes(opened(pets, skip=str(tmp_path / "skip.txt"))) == {"cat": 12, "dog": 9, "fish": 6}


def test_a_clean_folder_serves_the_meta_set_alone(pets: Path, tmp_path: Path) -> None:
    miniatures.own_images(tmp_path / "checked", endings=(".png",))
    settings: dict[str, Any] = {"root": str(pets), "val_per_class": 1, "test_per_class": 2}
    config = ImageFolderConfig(meta_root=str(tmp_path / "checked"), meta_per_class=4, **settings)
    data = build_data(config, 0)
    images = data.source.images
    assert isinstance(images, EncodedImages)
    assert {Path(os.path.normpath(images.place(i))).parent.parent for i in data.meta.ids.tolist()} == {tmp_path / "checked"}
    assert np.bincount(data.meta.labels).tolist() == [4, 4, 4]
    others = np.concatenate([data.train.ids, data.val.ids, data.test.ids])
    assert {Path(images.place(i)).parent.parent for i in others.tolist()} == {pets}
    assert len(others) == 27
    assert len(build_data(config.model_copy(update={"meta_per_class": None}), 0).meta) == 27
    assert "val and test come from the same images as train" in data.notes[0]
    (pets / "train").mkdir()
    for name in ("cat", "dog", "fish"):
        (pets / name).rename(pets / "train" / name)
    (tmp_path / "checked").rename(pets / "meta")
    assert np.bincount(build_data(ImageFolderConfig(meta_per_class=4, **settings), 0).meta.labels).tolist() == [4, 4, 4]
    with pytest.raises(ValueError, match=r"meta_root is .*but .*meta is for the meta set; allowed: one of them"):
        build_data(ImageFolderConfig(meta_root=str(pets), **settings), 0)
    with pytest.raises(
        ValueError, match=r"meta_root is .*, but meta is from_train, which needs no meta set; allowed: meta separate"
    ):
        ImageFolderConfig(meta_root="x", meta="from_train", **settings)


def test_a_list_of_checked_images_serves_the_meta_set_alone(pets: Path) -> None:
    files = sorted(str(path.relative_to(pets)) for path in pets.rglob("*.png"))
    label = {"cat": 0, "dog": 1, "fish": 2}
    checked = [name for name in files if name.endswith("1.png")]
    for name, listed in (("checked.txt", checked), ("train.txt", [name for name in files if name not in checked])):
        (pets / name).write_text("".join(f"{path} {label[path.split('/')[0]]}\n" for path in listed))
    settings: dict[str, Any] = {"val_per_class": 1, "test_per_class": 1, "meta_per_class": 1}
    data = build_data(ImageListsConfig(root=str(pets), train_list="train.txt", meta_list="checked.txt", **settings), 0)
    assert isinstance(data.source.images, EncodedImages)
    assert {data.source.images.name(image) for image in data.meta.ids.tolist()} <= set(checked)
    assert len(data.meta) == 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright_as_a_camera_says(tmp_path: Path, orientation: int) -> None:
    upright = np.zeros((6, 9, 3), np.uint8)
    upright[0, 0], upright[0, -1] = (255, 0, 0), (0, 255, 0)
    # What a camera that was held so has stored: the inverse of what EXIF 2.3, table 6, says to do.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / name / "1.png", exif=exif)
    images = opened(tmp_path).images
    assert isinstance(images, EncodedImages)
    assert np.array_equal(np.array(open_image(images, 0, grey=False)), upright)
