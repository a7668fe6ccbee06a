import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trainables.config import DataConfig, DigitsConfig, ParquetConfig, names_of
from trainables.data import DATASETS, build_data
from trainables.data.augment import crop_flip
from trainables.data.loader import augmentation
from trainables.data.profiles import exponential
from trainables.data.splits import split_classes


def test_the_table_and_the_settings_name_the_same_sources() -> None:
    assert sorted(DATASETS) == sorted(names_of(DataConfig, "source"))


@pytest.mark.parametrize(
    ("num_classes", "n_max", "totals"),
    [
        (100, 500, {10: (19573, 50), 20: (15907, 25), 50: (12608, 10), 100: (10847, 5), 200: (9502, 2)}),
        (100, 490, {10: (19183, 49), 20: (15594, 24), 50: (12354, 9), 100: (10626, 4), 200: (9304, 2)}),
        (100, 475, {10: (18591, 47), 20: (15111, 23), 50: (11975, 9), 100: (10302, 4), 200: (9022, 2)}),
        (10, 5000, {10: (20431, 500), 20: (17023, 250), 50: (13996, 100), 100: (12406, 50), 200: (11203, 25)}),
        (10, 4990, {10: (20391, 499), 20: (16989, 249), 50: (13967, 99), 100: (12380, 49), 200: (11177, 24)}),
        (10, 4900, {10: (20021, 490), 20: (16683, 245), 50: (13717, 98), 100: (12156, 49), 200: (10978, 24)}),
    ],
)
def test_exponential_profiles_have_the_published_totals_and_tails(
    num_classes: int, n_max: int, totals: dict[int, tuple[int, int]]
) -> None:
    for imbalance_factor, (total, tail) in totals.items():
        counts = exponential(num_classes, n_max, imbalance_factor)
        assert (sum(counts), counts[0], counts[-1]) == (total, n_max, tail), imbalance_factor


def test_exponential_profile_of_cifar10_is_the_published_one() -> None:
    assert exponential(10, 5000, 100) == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


def test_a_profile_without_images_in_the_tail_is_refused() -> None:
    with pytest.raises(ValueError, match=r"imbalance_factor is 200 .* at most n_max = 90"):
        exponential(10, 90, 200)


@settings(max_examples=50)
@given(
    sizes=st.lists(st.integers(8, 30), min_size=2, max_size=6),
    held_out=st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 2)),
    train=st.integers(1, 2),
    seed=st.integers(0, 1000),
)
def test_splits_are_disjoint_balanced_and_seeded(sizes: list[int], held_out: tuple[int, int, int], train: int, seed: int) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    counts = [train + (c == 0) for c in range(len(sizes))]
    meta, val, test = held_out

    def make(seed: int) -> dict[str, list[int]]:
        split = split_classes(labels, train_counts=counts, meta_per_class=meta, val_per_class=val, test_per_class=test, seed=seed)
        return split.manifest()

    manifest = make(seed)
    everything = [sample for ids in manifest.values() for sample in ids]
    assert len(set(everything)) == len(everything)
    for name, per_class in (
        ("train", counts),
        ("meta", [meta] * len(sizes)),
        ("val", [val] * len(sizes)),
        ("test", [test] * len(sizes)),
    ):
        assert np.bincount(labels[manifest[name]], minlength=len(sizes)).tolist() == per_class
    assert make(seed) == manifest


@pytest.mark.slow
def test_the_test_set_does_not_depend_on_the_tail() -> None:
    flat, steep = (build_data(DigitsConfig(imbalance_factor=factor), seed=4) for factor in (1.0, 90.0))
    assert (flat.test.ids == steep.test.ids).all()
    assert (flat.val.ids == steep.val.ids).all()
    assert (flat.meta.ids == steep.meta.ids).all()


def test_the_digest_changes_with_every_id() -> None:
    data, other = (build_data(DigitsConfig(), seed) for seed in (0, 1))
    assert data.split.sha256() == build_data(DigitsConfig(), 0).split.sha256() != other.split.sha256()


def test_digits_are_the_real_images_with_their_labels() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    data = build_data(DigitsConfig(), seed=0)
    for part in (data.train, data.meta, data.val, data.test):
        assert (part.images[:, 0] == digits.images[part.ids]).all()
        assert (part.labels == digits.target[part.ids]).all()
    assert data.mean == pytest.approx(digits.images[data.train.ids].mean())  # of the training images alone
    assert data.std == pytest.approx(digits.images[data.train.ids].std())
    assert data.class_counts.tolist() == exponential(10, 90, 50) == [90, 58, 37, 24, 15, 10, 6, 4, 2, 1]


def test_more_meta_images_than_a_class_has_is_refused_with_the_cure() -> None:
    with pytest.raises(
        ValueError, match=r"data.meta_per_class is 100.*class 0 has only 178; lower data.meta_per_class to at most 14"
    ):
        build_data(DigitsConfig(meta_per_class=100), seed=0)


@pytest.mark.parametrize("name", DATASETS)
def test_every_source_keeps_the_contract(name: str, tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", random_images(12), [0, 1, 2] * 4)
    config = {"digits": DigitsConfig(), "parquet": ParquetConfig(root=str(tmp_path))}[name]
    source, again = DATASETS[name](config), DATASETS[name](config)
    assert source.images.dtype == np.uint8
    assert source.images.ndim == 4
    assert source.labels.dtype == np.int64
    assert source.labels.shape == (len(source.images),)
    assert set(source.labels.tolist()) == set(range(len(source.class_names)))
    assert (source.images == again.images).all()
    assert (source.labels == again.labels).all()


def random_images(number: int, size: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (number, size, size, 3), dtype=np.uint8)


def png(image: Image.Image) -> bytes:
    image.save(buffer := io.BytesIO(), format="PNG")
    return buffer.getvalue()


def write_parquet(file: Path, images: Any, labels: list[int], names: str | None = None) -> None:
    encoded = []
    for pixels in images:
        if isinstance(pixels, bytes):
            encoded.append(pixels)
            continue
        encoded.append(png(Image.fromarray(pixels)))
    table = pa.table({"image": encoded, "label": labels})
    pq.write_table(table.replace_schema_metadata({"class_names": names} if names else None), file)


def test_parquet_rows_come_back_pixel_for_pixel_from_all_files_in_order(tmp_path: Path) -> None:
    images = random_images(7)
    write_parquet(tmp_path / "b.parquet", images[4:], [0, 1, 2])
    write_parquet(tmp_path / "a.parquet", images[:4], [0, 0, 1, 1], names="cat,dog,fish")
    source = DATASETS["parquet"](ParquetConfig(root=str(tmp_path)))
    assert (source.images == images.transpose(0, 3, 1, 2)).all()
    assert source.labels.tolist() == [0, 0, 1, 1, 0, 1, 2]
    assert source.class_names == ("cat", "dog", "fish")


@pytest.mark.parametrize(
    ("images", "labels", "names", "message"),
    [
        ([b"no image"], [0], None, r"a\.parquet, row 0: not an image"),
        (
            [random_images(1)[0], random_images(1, size=5)[0]],
            [0, 1],
            None,
            r"a\.parquet, row 1: the image is \(3, 5, 5\)",
        ),
        (random_images(2), [0, -1], None, r"labels go from -1 to 0"),
        (random_images(2), [0, 2], "cat,dog", r"labels go from 0 to 2, but there are 2 classes"),
        (random_images(2), [0, None], None, r"a\.parquet: column 'label' must hold whole numbers, none missing; it is int64"),
        (random_images(2), [0.2, 1.9], None, r"a\.parquet: column 'label' must hold whole numbers, none missing; it is double"),
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
    tmp_path: Path, images: Any, labels: list[int], names: str | None, message: str
) -> None:
    write_parquet(tmp_path / "a.parquet", images, labels, names)
    with pytest.raises(ValueError, match=message):
        DATASETS["parquet"](ParquetConfig(root=str(tmp_path)))


def test_images_with_a_palette_or_transparency_are_colour_images(tmp_path: Path) -> None:
    pixels = np.repeat(np.array([[[255, 0, 0], [0, 0, 255]]], dtype=np.uint8), 2, axis=0)
    image = Image.fromarray(pixels)
    write_parquet(tmp_path / "a.parquet", [png(image.quantize(4)), png(image.convert("RGBA"))], [0, 1])
    source = DATASETS["parquet"](ParquetConfig(root=str(tmp_path)))
    assert (source.images == pixels.transpose(2, 0, 1)).all()


def test_the_folder_is_found_from_any_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").mkdir()
    write_parquet(tmp_path / "images" / "a.parquet", random_images(2), [0, 1])
    monkeypatch.chdir(tmp_path)
    config = ParquetConfig(root="images")
    monkeypatch.chdir("/")
    assert len(DATASETS["parquet"](ParquetConfig.model_validate(config.model_dump())).labels) == 2


def test_a_folder_without_parquet_files_or_a_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.root is '.*', which holds no \.parquet file"):
        DATASETS["parquet"](ParquetConfig(root=str(tmp_path)))
    (tmp_path / "a.parquet").write_bytes(b"PAR1xx")
    with pytest.raises(ValueError, match=r"data\.root: .*a\.parquet is no parquet file"):
        DATASETS["parquet"](ParquetConfig(root=str(tmp_path)))
    pq.write_table(pa.table({"picture": [b""], "label": [0]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: column 'image' is missing; there are \['picture', 'label'\]"):
        DATASETS["parquet"](ParquetConfig(root=str(tmp_path)))


def test_every_image_is_shifted_and_mirrored_by_its_own_draw() -> None:
    images = torch.arange(200 * 3 * 5 * 4, dtype=torch.int32).remainder(251).add(1).to(torch.uint8).view(200, 3, 5, 4)
    changed = crop_flip(images, torch.Generator().manual_seed(0))
    seen = set()
    for before, after in zip(images, changed, strict=True):
        padded = torch.nn.functional.pad(before, (4, 4, 4, 4))
        found = set()
        for top, left, mirrored in itertools.product(range(9), range(9), (False, True)):
            window = padded[:, top : top + 5, left : left + 4]
            if torch.equal(after, window.flip(2) if mirrored else window):
                found.add((top, left, mirrored))
        assert found
        if len(found) == 1:
            seen |= found
    assert {draw[0] for draw in seen} >= set(range(1, 8))
    assert {draw[1] for draw in seen} >= set(range(1, 7))
    assert {draw[2] for draw in seen} == {False, True}


def test_the_augmentation_of_a_step_depends_on_seed_and_step_only() -> None:
    images = torch.from_numpy(random_images(20).transpose(0, 3, 1, 2).copy())

    def changed(seed: int, step: int) -> torch.Tensor:
        torch.rand(1)
        augment = augmentation("crop_flip", seed, step)
        assert augment is not None
        return augment(images)

    assert torch.equal(changed(1, 2), changed(1, 2))
    assert not torch.equal(changed(1, 2), changed(1, 3))
    assert not torch.equal(changed(1, 2), changed(2, 2))
    assert augmentation("none", 1, 2) is None
