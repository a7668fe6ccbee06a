"""Vectors from files: what a trial trains on is what the files hold, and what is wrong with them is said before it starts."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from trainables.data import build_data
from trainables.data.feature_files import open_features
from trainables.data.features import FeaturePool, FeatureSet
from trainables.data.loaded import load_data
from trainables.data.loader import Request
from trainables.data.mix import Mixture
from trainables.data.source import Source, Vectors
from trainables.data_config import FeaturesConfig

LENGTH, CLASSES, EACH = 6, 3, 20


def some_vectors(dtype: Any = np.float32) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.tile(np.arange(CLASSES), EACH)
    return (rng.normal(3, 2, (len(labels), LENGTH)) + labels[:, None]).astype(dtype), labels


def write_parquet(folder: Path, features: Any, labels: np.ndarray, name: str = "all.parquet", **more: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"features": features, "label": pa.array(labels), **more}), folder / name)


def fixed(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def config_of(root: Path, **more: Any) -> FeaturesConfig:
    small = {"profile": "natural", "meta_per_class": 2, "val_per_class": 3, "test_per_class": 4}
    return FeaturesConfig(root=str(root), **(small | more))


def vectors_of(source: Source) -> Vectors:
    assert isinstance(source.images, Vectors)
    return source.images


@pytest.mark.parametrize("kind", ["fixed", "list", "large_list"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_columns_of_lists_are_read_as_they_are(tmp_path: Path, kind: str, dtype: Any) -> None:
    features, labels = some_vectors(dtype)
    value = pa.from_numpy_dtype(np.dtype(dtype))
    of_kind = {"fixed": pa.list_(value, LENGTH), "list": pa.list_(value), "large_list": pa.large_list(value)}[kind]
    write_parquet(tmp_path, pa.array([list(row) for row in features], of_kind), labels)
    source = open_features(config_of(tmp_path))
    found = vectors_of(source).features
    assert found.dtype == (np.float16 if dtype is np.float16 else np.float32)
    assert np.array_equal(found, features.astype(found.dtype))
    assert np.array_equal(source.labels, labels)
    assert source.class_names == ("0", "1", "2")


@pytest.mark.parametrize("parts", [False, True])
def test_numpy_files_give_what_parquet_files_give(tmp_path: Path, parts: bool) -> None:
    features, labels = some_vectors()
    cuts = {"train": slice(0, 40), "test": slice(40, 60)} if parts else {"": slice(None)}
    for part, rows in cuts.items():
        prefix = f"{part}_" if part else ""
        (tmp_path / "npy").mkdir(exist_ok=True)
        np.save(tmp_path / "npy" / f"{prefix}features.npy", features[rows])
        np.save(tmp_path / "npy" / f"{prefix}labels.npy", labels[rows])
        write_parquet(tmp_path / "pq", fixed(features[rows]), labels[rows], f"{part or 'all'}.parquet")
    splits = [build_data(config_of(tmp_path / name, test_per_class=None if parts else 4), 0) for name in ("npy", "pq")]
    assert vectors_of(splits[0].source).features.shape == (60, LENGTH)
    for name in ("train", "meta", "val", "test"):
        values = [sorted(map(tuple, vectors_of(data.source).features[getattr(data, name).ids].tolist())) for data in splits]
        assert values[0] == values[1]
    (tmp_path / "npy" / "class_names.txt").write_text("ant\nbee, red\ncat\n")
    assert open_features(config_of(tmp_path / "npy")).class_names == ("ant", "bee, red", "cat")


def test_columns_of_a_users_own_that_have_our_names_are_left_alone(tmp_path: Path) -> None:
    features, labels = some_vectors()
    images = pa.array([{"bytes": b"x", "path": None}] * len(labels))  # as Hugging Face writes them
    write_parquet(tmp_path, fixed(features), labels, image=images, seen=pa.array(labels), views=pa.array(labels))
    vectors = vectors_of(open_features(config_of(tmp_path)))
    assert np.array_equal(vectors.features, features)
    assert vectors.names is vectors.seen is vectors.views is None


def test_class_names_with_commas_are_read_as_a_list(tmp_path: Path) -> None:
    features, labels = some_vectors()
    table = pa.table({"features": fixed(features), "label": labels}).replace_schema_metadata({"class_names": '["a,b", "c", "d"]'})
    pq.write_table(table, tmp_path / "all.parquet")
    assert open_features(config_of(tmp_path)).class_names == ("a,b", "c", "d")


def damaged(folder: Path, how: str) -> None:
    features, labels = some_vectors()
    match how:
        case "nan":
            features[7, 2] = np.nan
            write_parquet(folder, fixed(features), labels)
        case "lengths":
            write_parquet(folder, pa.array([row.tolist()[: 5 if i == 9 else 6] for i, row in enumerate(features)]), labels)
        case "missing number":
            rows = [row.tolist() for row in features]
            rows[4][1] = None
            write_parquet(folder, pa.array(rows), labels)
        case "numbers":
            write_parquet(folder, pa.array(features[:, 0]), labels)
        case "label":
            labels[11] = 70
            write_parquet(folder, fixed(features), labels)
        case "both":
            write_parquet(folder, fixed(features), labels)
            np.save(folder / "features.npy", features)
        case "no labels":
            np.save(folder / "features.npy", features)
        case "fewer labels":
            np.save(folder / "features.npy", features)
            np.save(folder / "labels.npy", labels[:-1])
        case "other names":
            np.save(folder / "x.npy", features)
        case "whole numbers":
            np.save(folder / "features.npy", features.astype(int))
            np.save(folder / "labels.npy", labels)
        case "nan array":
            features[3, 0] = np.inf
            np.save(folder / "features.npy", features)
            np.save(folder / "labels.npy", labels)
        case "no array":
            (folder / "features.npy").write_bytes(b"nothing")
        case "nothing":
            pass


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("nan", r"all\.parquet, row 7: a number is not finite; remove the row"),
        ("lengths", r"all\.parquet, row 9: column 'features' has 5 numbers, the first row 6; allowed: vectors of one length"),
        ("missing number", r"all\.parquet, row 4: a number is missing in column 'features'"),
        ("numbers", r"all\.parquet: column 'features' is float; allowed: lists of floating-point numbers"),
        ("label", r"all\.parquet, row 11: the label is 70; allowed: 0 to 59"),
        ("both", r"holds features\.npy and all\.parquet; allowed: files of one kind"),
        ("no labels", r"labels\.npy is missing; allowed: a file of labels for each file of vectors"),
        ("fewer labels", r"labels\.npy is int64 \(59,\); allowed: whole numbers \(60,\), one for each vector"),
        ("other names", r"holds x\.npy; allowed: features\.npy and labels\.npy, or train_features\.npy"),
        ("whole numbers", r"features\.npy is int64 \(60, 6\); allowed: float16 or float32 \(N, D\)"),
        ("nan array", r"features\.npy, row 3: a number is not finite; remove the row"),
        ("no array", r"features\.npy is no NumPy array that can be read"),
        ("nothing", r"holds no \.parquet file"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, how: str, text: str) -> None:
    damaged(tmp_path, how)
    with pytest.raises(ValueError, match=text):
        open_features(config_of(tmp_path))


def test_views_that_are_not_there_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path, fixed(some_vectors()[0]), some_vectors()[1])
    with pytest.raises(ValueError, match=r"data\.augment holds 'views', but .* has no views; allowed: \[\], or vectors that"):
        open_features(config_of(tmp_path, augment=["views"]))
    with pytest.raises(ValueError, match=r"augment holds 'flip', but source is features; allowed: \[\] or some of views"):
        config_of(tmp_path, augment=["flip"])


def test_a_trial_gets_vectors_that_are_standardised_over_its_training_images(tmp_path: Path) -> None:
    features, labels = some_vectors()
    features[:, 4] = 5.0  # a constant has no deviation
    write_parquet(tmp_path, fixed(features), labels)
    loaded = load_data(config_of(tmp_path), 0, torch.device("cpu"), 0)
    mine = features[loaded.data.train.ids].astype(np.float64)
    mean, std = mine.mean(0), np.where(np.arange(LENGTH) == 4, 1, mine.std(0))
    for part, images in ((loaded.data.train, loaded.train), (loaded.data.val, loaded.val)):
        (batch,) = images.batches([Request(torch.arange(len(images)))])
        expected = (features[part.ids] - mean) / std
        assert batch.images.numpy() == pytest.approx(expected, abs=1e-5)
        assert np.array_equal(batch.labels.numpy(), part.labels)
    assert loaded.format.shape == (LENGTH, 1, 1)
    plain = load_data(config_of(tmp_path, standardise=False), 0, torch.device("cpu"), 0)
    (batch,) = plain.val.batches([Request(torch.arange(len(plain.val)))])
    assert np.array_equal(batch.images.numpy(), features[plain.data.val.ids])


def test_a_request_with_draws_gets_one_of_the_views_whoever_asks(tmp_path: Path) -> None:
    features, labels = some_vectors()
    views = np.stack([features + 100 * view for view in (1, 2, 3)], 1)
    write_parquet(tmp_path, fixed(features), labels, views=fixed(views.reshape(len(features), -1)))
    config = config_of(tmp_path, augment=["views"], standardise=False)
    loaded = load_data(config, 0, torch.device("cpu"), 0)
    own = features[loaded.data.train.ids]
    positions = torch.arange(len(own)).repeat(2)
    whole = Request(positions, (5, 6))
    (batch,) = loaded.train.batches([whole])
    chosen = ((batch.images.numpy() - np.concatenate([own, own])) / 100).round().astype(int)
    assert (chosen == chosen[:, :1]).all()
    assert set(chosen[:, 0]) == {1, 2, 3}  # of 2 x 33 drawn ones
    half = len(own)
    (second,) = loaded.train.batches([whole._replace(share=slice(half, None))])
    assert torch.equal(second.images, batch.images[half:])
    (plain,) = loaded.train.batches([Request(positions[:half])])
    assert np.array_equal(plain.images.numpy(), own)


def test_vectors_are_mixed_as_images_are() -> None:
    features = torch.randn(4, 3)
    mixture = Mixture(torch.tensor([1, 0, 3, 2]), 0.25, torch.full((4,), 0.25))
    (batch,) = FeatureSet(features, torch.arange(4)).batches([Request(torch.arange(4), mixture=mixture)])
    assert torch.allclose(batch.images, 0.25 * features + 0.75 * features[[1, 0, 3, 2]])
    assert batch.partners is not None
    assert batch.partners.tolist() == [1, 0, 3, 2]


def test_statistics_of_many_rows_are_those_of_all_at_once() -> None:
    features = np.random.default_rng(0).normal(1000, 1e-2, (9000, 2)).astype(np.float32)
    normalisation = FeaturePool(Vectors(features), torch.device("cpu"), True).format(np.arange(9000)).normalisation
    assert normalisation.mean == pytest.approx(features.astype(np.float64).mean(0), rel=1e-12)
    assert normalisation.std == pytest.approx(features.astype(np.float64).std(0), rel=1e-9)


def test_a_test_set_that_the_backbone_was_trained_on_is_refused_and_a_val_set_is_noted(tmp_path: Path) -> None:
    features, labels = some_vectors()
    write_parquet(tmp_path / "plain", fixed(features), labels)
    data = build_data(config_of(tmp_path / "plain"), 0)
    assert not any("backbone" in note for note in data.notes)
    for name, ids in (("val", data.val.ids[:2]), ("test", data.test.ids[:5])):
        seen = np.isin(np.arange(len(labels)), ids)
        write_parquet(tmp_path / name, fixed(features), labels, seen=pa.array(seen))
    notes = build_data(config_of(tmp_path / "val"), 0).notes
    assert "trained on 2 of 9 val images and 0 of 6 meta images, so accuracies there are too high" in notes[-1]
    with pytest.raises(
        ValueError, match=r"split_seed is 0: the backbone of these vectors was trained on 5 of the 12 test images"
    ):
        build_data(config_of(tmp_path / "test"), 0)


def test_files_that_have_not_changed_are_read_once_and_changed_ones_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export opens the vectors for each seed; somebody may compute them anew while a notebook holds on to them."""
    features, labels = some_vectors()
    write_parquet(tmp_path, fixed(features), labels)
    first = open_features(config_of(tmp_path))
    assert open_features(config_of(tmp_path, val_per_class=2)).images is first.images
    write_parquet(tmp_path, fixed(features + 1), labels)
    assert np.array_equal(vectors_of(open_features(config_of(tmp_path))).features, features + 1)
    write_parquet(tmp_path, fixed(features), labels, "more.parquet")
    assert len(vectors_of(open_features(config_of(tmp_path))).features) == 2 * len(features)
    with pytest.raises(ValueError, match=r"data.features_column is 'other', but that column is missing"):
        open_features(config_of(tmp_path, features_column="other"))
