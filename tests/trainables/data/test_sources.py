"""Every data source: one contract for all, and for each the errors that a person may meet."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import miniatures
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import TypeAdapter

from trainables.data import DATASETS, build_data, open_source
from trainables.data.decode import decode_all
from trainables.data.source import EncodedImages, Source
from trainables.data_config import DATA_SETTINGS, DataConfig, GeneratedConfig, ParquetConfig

LISTS = {"train_list": "ImageNet_LT_train.txt", "val_list": "ImageNet_LT_val.txt", "test_list": "ImageNet_LT_test.txt"}


def config_of(source: str, **settings: Any) -> DataConfig:
    config: DataConfig = TypeAdapter(DataConfig).validate_python({"source": source, **settings})
    return config


@pytest.fixture
def at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], DataConfig]:
    """Puts a small source of a kind into the test's folder and returns its settings."""

    def write(source: str) -> DataConfig:
        if source in ("digits", "generated"):
            return config_of(source)
        if source.startswith("cifar"):
            miniatures.cifar(tmp_path, monkeypatch, int(source.removeprefix("cifar")))
            settings: dict[str, Any] = {"download": False}
        elif source == "parquet":
            write_parquet(tmp_path / "all.parquet", random_images(12), [0, 1, 2] * 4)
            settings = {}
        else:
            layout = {"image_lists": "imagenet_lt", "image_folder": "own_images"}.get(source, source)
            settings = miniatures.LAYOUTS[layout](tmp_path) | (LISTS if source == "image_lists" else {})
        return config_of(source, root=str(tmp_path), **settings)

    return write


def pixels(source: Source, ids: list[int] | None = None) -> np.ndarray:
    wanted = np.arange(len(source.labels)) if ids is None else np.array(ids)
    if isinstance(source.images, EncodedImages):
        return decode_all(source.images, wanted, 8, grey=False)
    return source.images[wanted]


def test_the_table_and_the_settings_name_the_same_sources() -> None:
    assert sorted(DATASETS) == sorted(DATA_SETTINGS)


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "features"])  # whose contract is in test_feature_files.py
def test_every_source_keeps_the_contract(name: str, at_hand: Callable[[str], DataConfig]) -> None:
    config = at_hand(name)
    source, again = open_source(config), open_source(config)
    images = pixels(source)
    assert images.dtype == np.uint8
    assert images.ndim == 4
    assert images.shape[1] in (1, 3)
    assert source.labels.dtype == np.int64
    assert source.labels.shape == (len(images),)
    assert set(source.labels.tolist()) == set(range(len(source.class_names)))
    assert len(set(source.class_names)) == len(source.class_names)
    # Parts are disjoint and cover the source.
    assert sorted(np.concatenate(list(source.parts.values())).tolist()) == list(range(len(images)))
    assert set(source.parts) <= {"train", "val", "test"}
    assert (pixels(again) == images).all()
    assert (again.labels == source.labels).all()
    # In any order, and some of them only.
    assert (pixels(again, [5, 2]) == images[[5, 2]]).all()


def test_digits_are_the_real_images_with_their_labels() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    source = open_source(config_of("digits"))
    assert (pixels(source)[:, 0] == digits.images).all()
    assert (source.labels == digits.target).all()


def test_generated_images_have_the_wanted_shape_and_are_near_their_class() -> None:
    source = open_source(GeneratedConfig(num_classes=5, images_per_class=40, image_size=6, channels=1))
    images = pixels(source)
    assert images.shape == (200, 1, 6, 6)
    means = np.stack([images[source.labels == c].mean(0) for c in range(5)])
    nearest = [np.argmin([np.square(image - mean).sum() for mean in means]) for image in images.astype(float)]
    assert (np.array(nearest) == source.labels).mean() > 0.9


# ---- CIFAR


@pytest.mark.parametrize("num_classes", [10, 100])
def test_cifar_is_read_from_the_files_that_its_authors_ship(
    num_classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    miniatures.cifar(tmp_path, monkeypatch, num_classes)
    source = open_source(config_of(f"cifar{num_classes}", root=str(tmp_path), download=False))
    folder = next(tmp_path.iterdir())
    raw = unpickled(folder / ("test_batch" if num_classes == 10 else "test"))
    test = source.parts["test"]
    assert (pixels(source, test.tolist()).reshape(len(test), -1) == raw["data"]).all()  # rows are red, green, blue planes
    assert source.labels[test].tolist() == raw["labels" if num_classes == 10 else "fine_labels"]
    assert np.bincount(source.labels[source.parts["train"]]).tolist() == [20] * num_classes
    assert source.class_names[:2] == ("class00", "class01")


def unpickled(file: Path) -> dict[str, Any]:
    import pickle

    found: dict[str, Any] = pickle.loads(file.read_bytes())
    return found


def test_an_absent_or_damaged_copy_of_cifar_is_named_with_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("cifar10", root=str(tmp_path), download=False)
    with pytest.raises(ValueError, match=r"data.root is '.*', which holds no whole copy of cifar10, and data.download is False"):
        open_source(config)
    miniatures.cifar(tmp_path, monkeypatch, 10)
    with (tmp_path / "cifar-10-batches-py" / "data_batch_3").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match=r"holds no whole copy of cifar10"):
        open_source(config)


# ---- parquet


def random_images(number: int, size: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (number, size, size, 3), dtype=np.uint8)


def png(image: Image.Image) -> bytes:
    image.save(buffer := io.BytesIO(), format="PNG")
    return buffer.getvalue()


def write_parquet(
    file: Path, images: Any, labels: list[Any], names: str | None = None, rows_per_group: int | None = None
) -> None:
    encoded = [image if image is None or isinstance(image, bytes) else png(Image.fromarray(image)) for image in images]
    table = pa.table({"image": pa.array(encoded, pa.binary()), "label": labels})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({"class_names": names} if names else None), file, row_group_size=rows_per_group)


def parquet_pixels(root: Path | str, ids: list[int] | None = None, **settings: Any) -> np.ndarray:
    config = ParquetConfig(root=str(root), **settings)
    source = open_source(config)
    assert isinstance(source.images, EncodedImages)
    wanted = np.arange(len(source.labels)) if ids is None else np.array(ids)
    return decode_all(source.images, wanted, config.image_size, config.grey)


def test_parquet_rows_come_back_pixel_for_pixel_from_all_files_in_order(tmp_path: Path) -> None:
    images = random_images(7)
    write_parquet(tmp_path / "b.parquet", images[4:], [0, 1, 2])
    write_parquet(tmp_path / "a.parquet", images[:4], [0, 0, 1, 1], names="cat,dog,fish", rows_per_group=3)
    (tmp_path / "notes.txt").write_text("not mine")
    source = open_source(ParquetConfig(root=str(tmp_path)))
    assert (parquet_pixels(tmp_path) == images.transpose(0, 3, 1, 2)).all()
    assert (parquet_pixels(tmp_path, [6, 0, 3, 4]) == images[[6, 0, 3, 4]].transpose(0, 3, 1, 2)).all()
    assert source.labels.tolist() == [0, 0, 1, 1, 0, 1, 2]
    assert source.class_names == ("cat", "dog", "fish")
    assert list(source.parts) == ["train"]


def test_parquet_may_lie_in_any_file_system_of_pyarrow(tmp_path: Path) -> None:
    images = random_images(4)
    write_parquet(tmp_path / "a.parquet", images, [0, 1, 0, 1])
    assert (parquet_pixels(f"file://{tmp_path}") == images.transpose(0, 3, 1, 2)).all()
    with pytest.raises(ValueError, match=r"data.root is 'nowhere://bucket', which cannot be read: .*nowhere"):
        open_source(ParquetConfig(root="nowhere://bucket"))


def test_files_named_after_parts_are_the_parts(tmp_path: Path) -> None:
    for name, labels in (("test-00000-of-00001", [0, 1]), ("train-00000-of-00002", [0, 1, 1]), ("validation", [1, 0])):
        write_parquet(tmp_path / f"{name}.parquet", random_images(len(labels)), labels)
    write_parquet(tmp_path / "train-00001-of-00002.parquet", random_images(1), [0])
    parts = {name: ids.tolist() for name, ids in open_source(ParquetConfig(root=str(tmp_path))).parts.items()}
    assert parts == {"test": [0, 1], "train": [2, 3, 4, 5], "val": [6, 7]}
    write_parquet(tmp_path / "more.parquet", random_images(1), [0])
    with pytest.raises(
        ValueError, match=r"more\.parquet is for no part, others are; allowed: names that begin with train, val, test or"
    ):
        open_source(ParquetConfig(root=str(tmp_path)))


def test_images_with_their_path_as_hugging_face_writes_them_are_read(tmp_path: Path) -> None:
    images = random_images(2)
    column = [{"bytes": png(Image.fromarray(image)), "path": None} for image in images]
    pq.write_table(pa.table({"image": column, "label": [0, 1]}), tmp_path / "a.parquet")
    assert (parquet_pixels(tmp_path) == images.transpose(0, 3, 1, 2)).all()


def write_as_hugging_face_does(file: Path, rows: list[dict[str, Any]], labels: list[int], **more: list[Any]) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"img": pa.array(rows, kind), "fine_label": labels, **more}), file)


def test_columns_under_other_names_are_read_when_they_are_named(tmp_path: Path) -> None:
    """Hugging Face's CIFAR-100 has the columns img, fine_label and coarse_label."""
    images = random_images(4)
    rows = [{"bytes": png(Image.fromarray(image)), "path": None} for image in images]
    write_as_hugging_face_does(tmp_path / "a.parquet", rows, [0, 1, 2, 1], coarse_label=[1, 0, 0, 1], id=["a", "b", "c", "d"])
    fine, coarse = ({"image_column": "img", "label_column": f"{kind}_label"} for kind in ("fine", "coarse"))
    assert (parquet_pixels(tmp_path, **fine) == images.transpose(0, 3, 1, 2)).all()
    assert open_source(ParquetConfig(root=str(tmp_path), **fine)).labels.tolist() == [0, 1, 2, 1]
    assert open_source(ParquetConfig(root=str(tmp_path), **coarse)).labels.tolist() == [1, 0, 0, 1]


def test_a_missing_column_is_answered_with_the_columns_that_fit_and_the_setting_that_names_one(tmp_path: Path) -> None:
    rows = [{"bytes": b"", "path": None}] * 2
    write_as_hugging_face_does(tmp_path / "a.parquet", rows, [0, 1], coarse_label=[0, 1], id=["a", "b"])
    columns = "img, fine_label, coarse_label, id"
    with pytest.raises(ValueError, match=rf"data.image_column is 'image', .*missing.*; there are {columns}; allowed: img$"):
        open_source(ParquetConfig(root=str(tmp_path)))
    with pytest.raises(ValueError, match=r"data.label_column is 'label', .*missing.*; allowed: fine_label or coarse_label$"):
        open_source(ParquetConfig(root=str(tmp_path), image_column="img"))
    with pytest.raises(ValueError, match=r"column 'id' must hold encoded images; it is string"):
        parquet_pixels(tmp_path, image_column="id", label_column="fine_label")
    pq.write_table(pa.table({"text": ["x"], "score": [0.5]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"there are text, score; allowed: none of these, by their types$"):
        open_source(ParquetConfig(root=str(tmp_path)))


def test_rows_whose_images_lie_outside_are_told_from_empty_rows(tmp_path: Path) -> None:
    columns = {"image_column": "img", "label_column": "fine_label"}
    good = {"bytes": png(Image.fromarray(random_images(1)[0])), "path": "0.png"}
    write_as_hugging_face_does(tmp_path / "a.parquet", [good, {"bytes": None, "path": "/data/7.png"}], [0, 1])
    with pytest.raises(
        ValueError,
        match=r"a\.parquet, row 1: the row has no bytes of an image, only the path '/data/7.png'; write the bytes into",
    ):
        parquet_pixels(tmp_path, **columns)
    assert parquet_pixels(tmp_path, [0], **columns).shape == (1, 3, 6, 6)  # the first row is whole
    write_as_hugging_face_does(tmp_path / "a.parquet", [good, {"bytes": None, "path": None}], [0, 1])
    with pytest.raises(ValueError, match=r"a\.parquet, row 1: .*\(the row is empty"):
        parquet_pixels(tmp_path, **columns)


def test_files_whose_names_hold_the_parts_elsewhere_are_not_taken_for_one_pool(tmp_path: Path) -> None:
    for name in ("Train-0", "TEST-0"):
        write_parquet(tmp_path / "capital" / f"{name}.parquet", random_images(2), [0, 1])
        write_parquet(tmp_path / "behind" / f"pets-{name.lower()}.parquet", random_images(2), [0, 1])
    assert set(open_source(ParquetConfig(root=str(tmp_path / "capital"))).parts) == {"train", "test"}
    with pytest.raises(
        ValueError, match=r"pets-test-0.parquet and .*pets-train-0.parquet look like parts; allowed: names that begin"
    ):
        open_source(ParquetConfig(root=str(tmp_path / "behind")))


@pytest.mark.parametrize(
    ("images", "labels", "names", "message"),
    [
        ([b"no image"], [0], None, r"a\.parquet, row 0: not an image"),
        ([random_images(1)[0], png(Image.fromarray(random_images(1)[0]))[:60]], [0, 1], None, r"a\.parquet, row 1: not an image"),
        ([random_images(1)[0], None], [0, 1], None, r"a\.parquet, row 1: not an image that can be read \(the row is empty"),
        (
            [random_images(1)[0], random_images(1, size=5)[0]],
            [0, 1],
            None,
            r"a\.parquet, row 1: the image is \(3, 5, 5\), the first one \(3, 6, 6\); set data.image_size",
        ),
        (random_images(2), [0, -1], None, r"a\.parquet, row 1: the label is -1; allowed: 0 to 1"),
        (
            random_images(3),
            [0, 2, 2],
            None,
            r"data: class 1 has no training image .* the highest label is 2 \(.*a\.parquet, row 1\)",
        ),
        (random_images(2), pa.array([0, 2**63 + 5], pa.uint64()), None, r"a\.parquet, row 1: the label is \d+; allowed: 0 to 1"),
        (random_images(2), [0, 1], "cat,cat", r"a\.parquet: class_names has 'cat' twice; allowed: a name for each class"),
        (random_images(2), [0, 2], "cat,dog", r"a\.parquet, row 1: the label is 2; allowed: 0 to 1, as there are 2 classes"),
        (random_images(2), [0, 2], None, r"row 1: the label is 2; allowed: 0 to 1, as there are 2 training images"),
        (
            random_images(2),
            [0, None],
            None,
            r"a\.parquet: column 'label' must hold whole numbers.*it is int64 with 2 rows, 1 of them",
        ),
        (random_images(2), [0.2, 1.9], None, r"a\.parquet: column 'label' must hold whole numbers, .* it is double"),
        ([], [], None, r"a\.parquet: column 'label' must hold whole numbers"),
        (
            [png(Image.fromarray(np.ones((2, 2), dtype=np.uint16)))],
            [0],
            None,
            r"a\.parquet, row 0: images of mode I;16 are not read",
        ),
    ],
)
def test_wrong_parquet_files_are_answered_with_file_and_row(
    tmp_path: Path, images: Any, labels: list[Any], names: str | None, message: str
) -> None:
    write_parquet(tmp_path / "a.parquet", images, labels, names)
    with pytest.raises(ValueError, match=message):
        parquet_pixels(tmp_path)


def test_a_truncated_parquet_file_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", random_images(4), [0, 1] * 2)
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"data.root: .*a\.parquet is no whole parquet file"):
        open_source(ParquetConfig(root=str(tmp_path)))


def test_a_folder_without_parquet_files_or_a_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.root is '.*', which holds no \.parquet file"):
        open_source(ParquetConfig(root=str(tmp_path)))
    with pytest.raises(ValueError, match=r"data\.root is '.*absent', which cannot be read"):
        open_source(ParquetConfig(root=str(tmp_path / "absent")))
    (tmp_path / "a.parquet").write_bytes(b"PAR1xx")
    with pytest.raises(ValueError, match=r"data\.root: .*a\.parquet is no whole parquet file"):
        open_source(ParquetConfig(root=str(tmp_path)))
    pq.write_table(pa.table({"picture": [b""], "label": [0]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"data.image_column is 'image', but that column is missing in .*a\.parquet"):
        open_source(ParquetConfig(root=str(tmp_path)))
    pq.write_table(pa.table({"image": ["x", "y"], "label": [0, 1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: column 'image' must hold encoded images; it is string"):
        parquet_pixels(tmp_path)


def test_palettes_transparency_and_grey_images_become_colour_or_grey(tmp_path: Path) -> None:
    colours = np.repeat(np.array([[[255, 0, 0], [0, 0, 255]]], dtype=np.uint8), 2, axis=0)
    image = Image.fromarray(colours)
    write_parquet(
        tmp_path / "a.parquet", [png(image.quantize(4)), png(image.convert("RGBA")), png(image.convert("L"))], [0, 1, 1]
    )
    found = parquet_pixels(tmp_path)
    assert (found[:2] == colours.transpose(2, 0, 1)).all()
    assert (found[2] == np.array(image.convert("L"))).all()
    grey = parquet_pixels(tmp_path, grey=True)
    assert grey.shape == (3, 1, 2, 2)
    assert (grey == np.array(image.convert("L"))).all()


def test_the_folder_is_found_from_any_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "images" / "a.parquet", random_images(2), [0, 1])
    monkeypatch.chdir(tmp_path)
    config = ParquetConfig(root="images")
    monkeypatch.chdir("/")
    assert len(open_source(ParquetConfig.model_validate(config.model_dump())).labels) == 2


# ---- image files


def test_images_are_resized_by_their_short_side_and_cut_from_the_middle(tmp_path: Path) -> None:
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20, 1] = 200
    write_parquet(tmp_path / "a.parquet", [wide, wide.transpose(1, 0, 2)], [0, 1])
    assert (parquet_pixels(tmp_path, image_size=10) == wide[:, 10:20].transpose(2, 0, 1)).all()
    assert parquet_pixels(tmp_path, image_size=5).shape == (2, 3, 5, 5)
    assert np.ptp(parquet_pixels(tmp_path, image_size=5)[0, 1, :, 1:4]) == 0


def test_the_lists_of_imagenet_lt_are_read_line_by_line(tmp_path: Path) -> None:
    miniatures.imagenet_lt(tmp_path)
    source = open_source(config_of("image_lists", root=str(tmp_path), **LISTS))
    assert {name: np.bincount(source.labels[ids]).tolist() for name, ids in source.parts.items()} == {
        "train": [9, 7, 5],
        "val": [4, 4, 4],
        "test": [3, 3, 3],
    }
    line = (tmp_path / "ImageNet_LT_val.txt").read_text().splitlines()[5]
    fifth = int(source.parts["val"][5])
    assert isinstance(source.images, EncodedImages)
    path, label = line.rsplit(" ", 1)
    assert source.images.read(fifth) == (tmp_path / path).read_bytes()
    assert source.labels[fifth] == int(label)
    assert source.images.place(fifth) == f"{tmp_path}/ImageNet_LT_val.txt, line 6: {tmp_path}/{path}"


def test_lists_may_have_tabs_windows_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    miniatures.imagenet_lt(tmp_path)
    plain = open_source(config_of("image_lists", root=str(tmp_path), **LISTS))
    file = tmp_path / "ImageNet_LT_train.txt"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b" ", b"\t").replace(b"\n", b"\r\n"))
    other = open_source(config_of("image_lists", root=str(tmp_path), **LISTS))
    assert (pixels(other) == pixels(plain)).all()
    assert (other.labels == plain.labels).all()


def test_files_that_disagree_on_the_classes_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", random_images(2), [0, 1], names="cat,dog")
    write_parquet(tmp_path / "test.parquet", random_images(2), [0, 1], names="dog,cat")
    with pytest.raises(
        ValueError, match=r"the class_names of .*train.parquet are not those of .*test.parquet; allowed: the same"
    ):
        open_source(ParquetConfig(root=str(tmp_path)))


@pytest.mark.parametrize("kind", [pa.large_binary(), pa.dictionary(pa.int32(), pa.binary())])
def test_images_may_be_stored_in_any_binary_column(tmp_path: Path, kind: pa.DataType) -> None:
    images = random_images(2)
    column = pa.array([png(Image.fromarray(image)) for image in images], pa.binary()).cast(kind)
    pq.write_table(pa.table({"image": column, "label": pa.array([0, 1], pa.uint8())}), tmp_path / "a.parquet")
    assert (parquet_pixels(tmp_path) == images.transpose(0, 3, 1, 2)).all()


def test_an_image_that_makes_its_reader_fail_in_an_odd_way_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    miniatures.own_images(tmp_path)

    def fail(file: object) -> Image.Image:
        raise NotImplementedError("pixel format 17")

    monkeypatch.setattr("trainables.data.decode.Image.open", fail)
    with pytest.raises(ValueError, match=r"data.root: .*/cat/00.jpg: not an image that can be read \(pixel format 17\)"):
        pixels(open_source(config_of("image_folder", root=str(tmp_path))))


def test_prefixes_read_lists_made_for_another_layout(tmp_path: Path) -> None:
    lists = {"train_list": "Places_LT_train.txt", "val_list": "Places_LT_val.txt", "test_list": "Places_LT_test.txt"}
    miniatures.places_lt(tmp_path, listed_under="data_256/")
    with pytest.raises(
        ValueError, match=r"Places_LT_train.txt, line 1: .*data_256/train/airfield/00000000.jpg: there is no such"
    ):
        pixels(open_source(config_of("image_lists", root=str(tmp_path), **lists)))
    source = open_source(config_of("image_lists", root=str(tmp_path), prefixes=["other/=x/", "data_256/="], **lists))
    assert len(pixels(source)) == len(source.labels)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "train/a.JPEG",
            r"data.train_list: .*train.txt, line 3 is 'train/a.JPEG'; allowed: a path, a space and a label 0, 1, ...",
        ),
        ("train/a.JPEG x", r"line 3 is 'train/a.JPEG x'; allowed: a path"),
        ("train/a.JPEG -1", r"line 3 is 'train/a.JPEG -1'; allowed: a path"),
        ("", r"line 3 is ''; allowed: a path"),
        ("train/a.JPEG 7", r"data: class 3 has no training image .* the highest label is 7 \(.*train.txt, line 3: .*a.JPEG\)"),
        (
            "train/a.JPEG 2000000",
            r"data.train_list: .*train.txt, line 3: the label is 2000000; allowed: 0 to 21, as many as lines",
        ),
        ("train/a.JPEG 99999999999999999999", r"line 3 is 'train/a.JPEG 99999999999999999999'; allowed: a path"),
        (
            "train/n01440764/n01440764_100.JPEG 0",
            r"data: .*val.txt, line 1 names the image of .*train.txt, line 3; allowed: an image in one",
        ),
    ],
)
def test_a_wrong_line_of_a_list_is_named(tmp_path: Path, line: str, message: str) -> None:
    miniatures.imagenet_lt(tmp_path)
    file = tmp_path / "ImageNet_LT_train.txt"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:2], line, *lines[2:]]))
    with pytest.raises(ValueError, match=message):
        open_source(config_of("image_lists", root=str(tmp_path), **LISTS))


def list_config(root: Path, **lists: list[str]) -> DataConfig:
    """Writes lists for images a/0.png, a/1.png, ... of class 0 and b/0.png, ... of class 1, and the images."""
    for number in range(8):
        for label, name in enumerate("ab"):
            miniatures.photograph(root / name / f"{number}.png", label, number)
    for part, lines in lists.items():
        (root / f"{part}.txt").write_text("\n".join(lines))
    return config_of("image_lists", root=str(root), **{f"{part}_list": f"{part}.txt" for part in lists})


SPELLINGS = ["b/0.png", "./b/0.png", "b//0.png", "b/./0.png", "a/../b/0.png", "{root}/b/0.png", "{root}/./a/../b/0.png"]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_image_that_a_list_names_twice_is_taken_once_however_it_is_spelled(tmp_path: Path, spelling: str) -> None:
    spelling = spelling.format(root=tmp_path)
    source = open_source(list_config(tmp_path, train=["a/0.png 0", "b/0.png 1", f"{spelling} 1", "b/1.png 1", "a/0.png 0"]))
    assert isinstance(source.images, EncodedImages)
    assert source.parts["train"].tolist() == [0, 1, 3]
    assert source.images.place(3) == f"{tmp_path}/train.txt, line 4: {tmp_path}/b/1.png"
    (note,) = source.notes
    assert note.startswith(
        f"data: {tmp_path}/train.txt, line 3 names an image for the second time; 2 such lines of this list are"
    )


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_image_cannot_be_in_two_lists_or_have_two_labels_however_it_is_spelled(tmp_path: Path, spelling: str) -> None:
    spelling = spelling.format(root=tmp_path)
    with pytest.raises(
        ValueError, match=r"data: .*test.txt, line 2 names the image of .*train.txt, line 2; allowed: an image in one list only"
    ):
        open_source(list_config(tmp_path, train=["a/0.png 0", "b/0.png 1"], test=["a/1.png 0", f"{spelling} 1"]))
    with pytest.raises(
        ValueError,
        match=r"data: .*train.txt, line 3 gives the image of .*train.txt, line 2 the label 0 instead of 1; allowed: one",
    ):
        open_source(list_config(tmp_path, train=["a/0.png 0", "b/0.png 1", f"{spelling} 0"]))


def test_no_image_of_a_list_with_repetitions_is_in_two_sets(tmp_path: Path) -> None:
    lines = [f"{name}/{number}.png {label}" for label, name in enumerate("ab") for number in range(8)]
    config = list_config(tmp_path, train=[*lines, *(f"./{line}" for line in lines)])
    config = type(config).model_validate(config.model_dump() | {"meta_per_class": 2, "val_per_class": 2, "test_per_class": 2})
    data = build_data(config, 0)
    assert isinstance(data.source.images, EncodedImages)
    ids = np.concatenate([part.ids for part in (data.train, data.meta, data.val, data.test)]).tolist()
    assert len({os.path.realpath(data.source.images.place(image).split(": ")[1]) for image in ids}) == len(ids) == 16
    assert len(data.source.notes) == 1


def test_labels_of_val_that_train_does_not_have_and_absent_lists_are_named(tmp_path: Path) -> None:
    miniatures.imagenet_lt(tmp_path)
    with (tmp_path / "ImageNet_LT_val.txt").open("a") as file:
        file.write("train/x.JPEG 3\n")
    with pytest.raises(
        ValueError, match=r"data.val_list: .*val.txt, line 13: the label is 3; allowed: 0 to 2, as in .*train.txt"
    ):
        open_source(config_of("image_lists", root=str(tmp_path), **LISTS))
    with pytest.raises(ValueError, match=r"data.train_list: .*absent.txt cannot be read: No such file"):
        open_source(config_of("image_lists", root=str(tmp_path), train_list="absent.txt"))
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"data.train_list: .*empty.txt is empty"):
        open_source(config_of("image_lists", root=str(tmp_path), train_list="empty.txt"))


def test_missing_and_corrupt_files_are_named_with_their_line(tmp_path: Path) -> None:
    miniatures.imagenet_lt(tmp_path)
    source = open_source(config_of("image_lists", root=str(tmp_path), **LISTS))
    image = tmp_path / "val/n01440764/ILSVRC2012_val_00000002.JPEG"
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"data.root: .*test.txt, line 3: .*00000002.JPEG: not an image that can be read"):
        pixels(source)
    image.unlink()
    with pytest.raises(ValueError, match=r"data.root: .*test.txt, line 3: .*00000002.JPEG: there is no such file"):
        pixels(source)


def test_clothing1m_has_noisy_labels_for_training_and_clean_ones_elsewhere(tmp_path: Path) -> None:
    miniatures.clothing1m(tmp_path)
    source = open_source(config_of("clothing1m", root=str(tmp_path)))
    assert isinstance(source.images, EncodedImages)
    for name, wrong in (("train", True), ("val", False), ("test", False)):
        right = [int(source.images.place(image).rsplit("_", 1)[1].split(",")[0]) for image in source.parts[name].tolist()]
        assert (source.labels[source.parts[name]].tolist() != right) is wrong
    assert source.class_names[0] == "T-Shirt"
    assert len(source.class_names) == 14


def test_what_is_wrong_in_clothing1m_is_named(tmp_path: Path) -> None:
    miniatures.clothing1m(tmp_path)
    config = config_of("clothing1m", root=str(tmp_path))
    labels, keys = tmp_path / "clean_label_kv.txt", tmp_path / "clean_val_key_list.txt"
    lines = labels.read_text()
    labels.write_text(lines.replace(" 13\n", " 14\n"))
    with pytest.raises(ValueError, match=r"data.root: .*clean_label_kv.txt, line \d+: the label is 14; allowed: 0 to 13"):
        open_source(config)
    labels.write_text(lines + lines.splitlines()[0].rsplit(" ", 1)[0] + " 7\n")
    with pytest.raises(
        ValueError, match=r"clean_label_kv.txt, line \d+ gives 'images/.*' the label 7, a line above 0; allowed: one"
    ):
        open_source(config)
    labels.write_text(lines)
    keys.write_text("images/0/0/unknown.jpg\n" + keys.read_text())
    with pytest.raises(
        ValueError, match=r"clean_val_key_list.txt, line 1: 'images/0/0/unknown.jpg' has no label in clean_label_kv"
    ):
        open_source(config)
    keys.unlink()
    with pytest.raises(ValueError, match=r"data.root: .*clean_val_key_list.txt cannot be read: No such file"):
        open_source(config)


def test_an_image_folder_is_one_pool_or_divided_by_its_owner(tmp_path: Path) -> None:
    miniatures.own_images(tmp_path / "pool")
    (tmp_path / "pool" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "pool" / ".cache").mkdir()
    source = open_source(config_of("image_folder", root=str(tmp_path / "pool")))
    assert source.class_names == ("cat", "dog", "fish")
    assert np.bincount(source.labels).tolist() == [12, 9, 6]
    assert list(source.parts) == ["train"]
    miniatures.own_images(tmp_path / "divided", parts=("train", "test"))
    divided = open_source(config_of("image_folder", root=str(tmp_path / "divided")))
    assert {name: np.bincount(divided.labels[ids]).tolist() for name, ids in divided.parts.items()} == {
        "train": [12, 9, 6],
        "test": [12, 9, 6],
    }


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for number, name in enumerate(("bus", "train")):
        miniatures.photograph(tmp_path / name / "1.png", number, 0)
    assert open_source(config_of("image_folder", root=str(tmp_path))).class_names == ("bus", "train")


def test_what_is_wrong_in_an_image_folder_is_named(tmp_path: Path) -> None:
    config = config_of("image_folder", root=str(tmp_path))
    with pytest.raises(ValueError, match=r"data.root: .* holds 0 folders; allowed: one for each class, at least 2$"):
        open_source(config)
    with pytest.raises(ValueError, match=r"data.root is '.*absent', which is no folder on this machine"):
        open_source(config_of("image_folder", root=str(tmp_path / "absent")))
    miniatures.own_images(tmp_path)
    with pytest.raises(ValueError, match=r"/cat holds 0 folders; .*; it holds images itself: give the folder above it"):
        open_source(config_of("image_folder", root=str(tmp_path / "cat")))
    (tmp_path / "horse").mkdir()
    with pytest.raises(ValueError, match=r"data.root: .*/horse holds no image; allowed: files ending with .jpg"):
        open_source(config)
    os.rmdir(tmp_path / "horse")
    (tmp_path / "dog" / "00.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"data.root: .*/dog/00.jpg: the file is empty"):
        pixels(open_source(config))
    os.remove(tmp_path / "dog" / "00.jpg")
    os.symlink(tmp_path / "gone.jpg", tmp_path / "dog" / "00.jpg")
    with pytest.raises(ValueError, match=r"data.root: .*/dog/00.jpg: there is no such file"):
        pixels(open_source(config))
    os.remove(tmp_path / "dog" / "00.jpg")
    miniatures.own_images(tmp_path / "divided", parts=("train", "test"))
    miniatures.photograph(tmp_path / "divided" / "test" / "horse" / "1.png", 0, 0)
    with pytest.raises(ValueError, match=r"data.root: .*/test/horse: there is no such class in .*/train"):
        open_source(config_of("image_folder", root=str(tmp_path / "divided")))
    miniatures.own_images(tmp_path / "mixed", parts=("train", "."))
    with pytest.raises(
        ValueError, match=r"data.root: .*/mixed holds train beside cat; allowed: train, val, test and meta, or classes"
    ):
        open_source(config_of("image_folder", root=str(tmp_path / "mixed")))


@pytest.mark.parametrize("layout", miniatures.LAYOUTS)
def test_every_layout_can_be_split(layout: str, tmp_path: Path) -> None:
    settings = miniatures.LAYOUTS[layout](tmp_path)
    lists = {key: name.replace("ImageNet", "Places") if layout == "places_lt" else name for key, name in LISTS.items()}
    source = {"clothing1m": "clothing1m", "own_images": "image_folder"}.get(layout, "image_lists")
    data = build_data(config_of(source, root=str(tmp_path), **settings, **(lists if source == "image_lists" else {})), seed=0)
    assert min(map(len, (data.train, data.meta, data.val, data.test))) > 0


def endings_of(root: Path, *endings: str) -> None:
    """Three images of each ending in each of two classes; they are JPEG whatever their name says."""
    for label, name in enumerate("ab"):
        for number, ending in enumerate(endings * 3):
            miniatures.photograph(root / "image.jpg", label, number)
            (root / name).mkdir(exist_ok=True)
            (root / "image.jpg").rename(root / name / f"{number}{ending}")


def test_jpeg_files_are_read_under_all_their_endings(tmp_path: Path) -> None:
    endings_of(tmp_path, ".jpg", ".jfif", ".JPE", ".pjpeg")
    source = open_source(config_of("image_folder", root=str(tmp_path)))
    assert len(pixels(source)) == 24
    assert source.notes == ()


def test_files_that_are_not_read_are_counted_in_one_note_whose_advice_works(tmp_path: Path) -> None:
    endings_of(tmp_path, ".jpg", ".photo", "")
    for number in range(4):
        (tmp_path / "a" / f"{number}.txt").write_text("not an image")
    source = open_source(config_of("image_folder", root=str(tmp_path)))
    assert len(pixels(source)) == 6
    (note,) = source.notes
    assert note == (
        "data.extra_endings is []: 16 files in the class folders are not read (6 .photo, 6 without an ending, 4 .txt); "
        "extra_endings=[.photo,none] reads the images among them"
    )
    source = open_source(config_of("image_folder", root=str(tmp_path), extra_endings=[".photo", "none"]))
    assert len(pixels(source)) == 18
    assert source.notes == (
        "data.extra_endings is [.photo,none]: 4 files in the class folders are not read (4 .txt)",  # advice that helps or none
    )
    with pytest.raises(ValueError, match="extra_endings"):
        config_of("image_folder", root=str(tmp_path), extra_endings=["photo"])


def test_images_behind_links_to_folders_are_read(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    miniatures.own_images(root)
    miniatures.photograph(tmp_path / "elsewhere" / "more" / "1.png", 0, 1)
    os.symlink(tmp_path / "elsewhere", root / "cat" / "linked")
    os.symlink(tmp_path / "elsewhere" / "more" / "1.png", tmp_path / "elsewhere" / "unused.txt")
    source = open_source(config_of("image_folder", root=str(root)))
    assert np.bincount(source.labels).tolist() == [13, 9, 6]
    assert len(pixels(source)) == 28


@pytest.mark.parametrize(
    ("link", "target", "message"),
    [
        ("train/horse", "train/dog", r"train/horse leads to the same folder as .*train/dog; allowed: each image once"),
        ("test/dog", "train/dog", r"test/dog leads to the same folder as .*train/dog; allowed"),
        ("train/dog/more", "train/cat", r"train/dog/more leads to the same folder as .*train/cat; allowed"),
        ("train/dog/loop", "train", r"train/dog/loop/\w+ leads to the same folder as .*train/\w+; allowed"),
        ("test/cat/x.jpg", "train/cat/train00.jpg", r"test/cat/x.jpg leads to the image of .*train/cat/train00.jpg; allowed"),
        ("train/cat/x.jpg", "test/cat/test00.jpg", r"train/cat/x.jpg leads to the image of .*test/cat/test00.jpg; allowed"),
    ],
)
def test_links_that_lead_to_an_image_twice_are_refused(tmp_path: Path, link: str, target: str, message: str) -> None:
    miniatures.own_images(tmp_path, parts=("train", "test"))
    if (tmp_path / link).exists():
        (tmp_path / link).rename(tmp_path.parent / "moved_away")
    os.symlink(tmp_path / target, tmp_path / link)
    with pytest.raises(ValueError, match=message):
        open_source(config_of("image_folder", root=str(tmp_path)))


def test_two_links_to_one_image_are_refused_and_links_to_different_images_are_not(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    for number, name in enumerate(("cat", "dog")):
        miniatures.photograph(tmp_path / "all" / f"{name}.png", number, 0)
        (root / name).mkdir(parents=True)
        os.symlink(tmp_path / "all" / f"{name}.png", root / name / "1.png")
    assert len(pixels(open_source(config_of("image_folder", root=str(root))))) == 2
    os.symlink(tmp_path / "all" / "cat.png", root / "dog" / "2.png")
    with pytest.raises(ValueError, match=r"dog/2.png leads to the image of .*cat/1.png; allowed: each image once"):
        open_source(config_of("image_folder", root=str(root)))


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (("Training", "Testing"), {"train", "test"}),
        (("Train", "Val", "Test"), {"train", "val", "test"}),
        (("TRAIN", "valid"), {"train", "val"}),
        (("train", "validation"), {"train", "val"}),
        (("training",), {"train"}),
    ],
)
def test_parts_under_their_other_names_are_parts(tmp_path: Path, names: tuple[str, ...], parts: set[str]) -> None:
    miniatures.own_images(tmp_path, parts=names)
    source = open_source(config_of("image_folder", root=str(tmp_path)))
    assert set(source.parts) == parts
    assert source.class_names == ("cat", "dog", "fish")
    assert len(pixels(source)) == 27 * len(names)


@pytest.mark.parametrize(
    ("names", "cure"),
    [
        (("clean_test", "clean_train", "noisy_train"), "clean_train"),
        (("fold1", "fold2", "fold3"), "fold1"),
        (("Val", "Test"), "Test"),
        (("train_images", "dev_images"), "train_images"),
    ],
)
def test_parts_are_not_taken_for_classes(tmp_path: Path, names: tuple[str, ...], cure: str) -> None:
    miniatures.own_images(tmp_path, parts=names)
    with pytest.raises(
        ValueError,
        match=rf"data.root: .* each of these holds the folders cat, dog, fish: they look like parts.* as in .*/{cure};",
    ):
        open_source(config_of("image_folder", root=str(tmp_path)))
    assert open_source(config_of("image_folder", root=str(tmp_path / cure))).class_names == ("cat", "dog", "fish")


def test_names_of_parts_that_lack_a_class_are_not_taken_for_classes_either(tmp_path: Path) -> None:
    for part, classes in (("my_train", "ab"), ("my_test", "a")):
        for name in classes:
            miniatures.photograph(tmp_path / part / name / "1.png", 0, 0)
    with pytest.raises(ValueError, match=r"holds my_test, my_train, and each of these holds the folders a: they look like parts"):
        open_source(config_of("image_folder", root=str(tmp_path)))


def test_two_folders_for_one_part_are_refused(tmp_path: Path) -> None:
    miniatures.own_images(tmp_path, parts=("train", "valid", "validation"))
    with pytest.raises(ValueError, match=r"data.root: .* holds valid and validation; allowed: one folder for the part val"):
        open_source(config_of("image_folder", root=str(tmp_path)))


def test_classes_may_have_folders_of_their_own_and_names_like_parts(tmp_path: Path) -> None:
    for number, (name, below) in enumerate({"cat": "a b", "dog": "a c", "Training": "a", "testing": "."}.items()):
        for folder in below.split():
            miniatures.photograph(tmp_path / name / folder / "1.png", number, 0)
    source = open_source(config_of("image_folder", root=str(tmp_path)))
    assert source.class_names == ("Training", "cat", "dog", "testing")
    assert np.bincount(source.labels).tolist() == [1, 2, 2, 1]
