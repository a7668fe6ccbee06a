from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainables.data.noise import CIFAR10, CIFAR100_PAIRS, noisy_labels, transition_matrix
from trainables.data_config import NoiseConfig

NAMES = tuple("abcdef")
CIFAR100 = Path(__file__).parents[4] / "shared" / "data" / "cifar100" / "train.parquet"


def config(kind: str, rate: float = 0.4, seed: int = 1, pairs: list[str] | None = None) -> NoiseConfig:
    """Noise of a kind, with those of the settings that this kind has."""
    own = {"flip": {"seed": seed}, "flip2": {"seed": seed}, "pairs": {"pairs": pairs or []}}
    return NoiseConfig.model_validate({"kind": kind, "rate": rate, **own.get(kind, {})})


@given(
    kind=st.sampled_from(["flip", "flip2", "symmetric", "pairs"]),
    rate=st.floats(0, 1),
    num_classes=st.integers(3, 12),
    seed=st.integers(0, 99),
)
def test_rows_are_probabilities_with_the_rate_off_the_diagonal(kind: str, rate: float, num_classes: int, seed: int) -> None:
    names = tuple(map(str, range(num_classes)))
    pairs = [f"{name}={names[(c + 1) % num_classes]}" for c, name in enumerate(names)]
    matrix = transition_matrix(config(kind, rate, seed, pairs), names)
    np.testing.assert_allclose(matrix.sum(1), 1)
    assert matrix.min() >= 0
    kept = 1 - rate * (num_classes - 1) / num_classes if kind == "symmetric" else 1 - rate
    np.testing.assert_allclose(np.diag(matrix), kept, atol=1e-12)
    others = (matrix - np.diag(np.diag(matrix)) > 0).sum(1)
    targets = {"flip": 1, "flip2": 2, "pairs": 1, "symmetric": num_classes - 1}[kind]
    assert (others <= targets).all()
    if rate > 1e-9:
        assert (others == targets).all()


def test_flip2_gives_both_classes_half_of_the_rate() -> None:
    matrix = transition_matrix(config("flip2", 0.4), NAMES)
    assert sorted(matrix[0][matrix[0] > 0].round(12)) == [0.2, 0.2, 0.6]


def test_the_matrix_depends_on_its_own_seed_alone() -> None:
    first, second, other = (transition_matrix(config("flip", seed=seed), NAMES) for seed in (1, 1, 2))
    assert (first == second).all()
    assert (first != other).any()


@pytest.mark.parametrize("kind", ["flip", "flip2", "symmetric", "pairs"])
def test_drawn_labels_have_the_rates_of_the_matrix(kind: str) -> None:
    settings = config(kind, 0.4, pairs=["a=b", "c=f"])
    labels = np.repeat(np.arange(6), 20_000)
    noisy = noisy_labels(labels, settings, NAMES, np.random.default_rng(0))
    found = np.array([np.bincount(noisy[labels == c], minlength=6) for c in range(6)]) / 20_000
    # Five standard deviations of a proportion from 20 000 draws.
    np.testing.assert_allclose(found, transition_matrix(settings, NAMES), atol=5 * 0.5 / np.sqrt(20_000))


def test_no_noise_leaves_the_labels_alone() -> None:
    labels = np.array([3, 1, 2])
    assert noisy_labels(labels, config("none", 0.0), NAMES, np.random.default_rng(0)).tolist() == [3, 1, 2]
    assert noisy_labels(labels, config("flip", rate=0.0), NAMES, np.random.default_rng(0)).tolist() == [3, 1, 2]


def test_a_rate_of_one_moves_every_image() -> None:
    labels = np.repeat(np.arange(6), 50)
    assert (noisy_labels(labels, config("flip", 1.0), NAMES, np.random.default_rng(0)) != labels).all()


def test_the_pairs_of_cifar10_are_the_published_ones() -> None:
    names = tuple(sorted(CIFAR10))
    matrix = transition_matrix(config("pairs", 0.4), names)
    moved = {names[c]: names[int(np.argsort(row)[-2])] for c, row in enumerate(matrix) if row.max() < 1}
    assert moved == {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"}


@pytest.mark.skipif(not CIFAR100.exists(), reason="CIFAR-100 is not here")
def test_the_pairs_of_cifar100_go_round_within_each_superclass() -> None:
    table = pq.read_table(CIFAR100, columns=["label", "coarse_label"])
    names = table.schema.metadata[b"class_names"].decode().split(",")
    superclass = dict(zip(table["label"].to_pylist(), table["coarse_label"].to_pylist(), strict=True))
    assert set(CIFAR100_PAIRS) == set(names)
    for c, name in enumerate(names):
        group = [other for other in range(100) if superclass[other] == superclass[c]]
        after = group[(group.index(c) + 1) % 5]
        assert CIFAR100_PAIRS[name] == names[after]


def test_unknown_pairs_are_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"kind is pairs, but which of these classes are similar is not known; set data.noise.pairs, for example .a=f.$",
    ):
        transition_matrix(config("pairs"), NAMES)
    with pytest.raises(ValueError, match=r"data.noise.pairs names 'x', which is no class; allowed: a, b, c, d, e, f"):
        transition_matrix(config("pairs", pairs=["a=x"]), NAMES)
    with pytest.raises(ValueError, match=r"data.noise.kind is flip2, but there are only 2 classes; allowed: at least 3"):
        transition_matrix(config("flip2"), ("a", "b"))
