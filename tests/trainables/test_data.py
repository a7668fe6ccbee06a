import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables.config import DataConfig, DigitsConfig, names_of
from trainables.data import DATASETS, build_data
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
def test_every_source_keeps_the_contract(name: str) -> None:
    config = {"digits": DigitsConfig()}[name]
    source, again = DATASETS[name](config), DATASETS[name](config)
    assert source.images.dtype == np.uint8
    assert source.images.ndim == 4
    assert source.labels.dtype == np.int64
    assert source.labels.shape == (len(source.images),)
    assert set(source.labels.tolist()) == set(range(len(source.class_names)))
    assert (source.images == again.images).all()
    assert (source.labels == again.labels).all()
