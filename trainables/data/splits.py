"""Disjoint, seeded splits into train, meta, val and test, class by class. Pure numpy."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Positions in the source of each set's images; no position is in two sets."""

    train: Ids
    meta: Ids
    val: Ids
    test: Ids

    def manifest(self) -> dict[str, list[int]]:
        """The sample ids of each set, for the record."""
        return {name: ids.tolist() for name, ids in vars(self).items()}

    def sha256(self) -> str:
        """Digest over names, sizes and ids; two trials trained on the same split if and only if it is equal."""
        digest = hashlib.sha256()
        for name, ids in vars(self).items():
            digest.update(f"{name} {len(ids)}\n".encode() + ids.astype("<i8").tobytes())
        return digest.hexdigest()


def split_classes(
    labels: NDArray[np.int64],
    *,
    train_counts: list[int],
    meta_per_class: int,
    val_per_class: int,
    test_per_class: int,
    seed: int,
) -> Split:
    """Draws each class's images in random order: test first, then val, meta and train.

    The balanced sets therefore do not change when only the long tail does: sweeps over the imbalance share their test set.

    Raises:
        ValueError: when a class has too few images.
    """
    rng = np.random.default_rng(seed)
    per_class: dict[str, list[Ids]] = {"train": [], "meta": [], "val": [], "test": []}
    for c, train_count in enumerate(train_counts):
        ids = rng.permutation(np.flatnonzero(labels == c))
        held_out = test_per_class + val_per_class + meta_per_class
        if held_out + train_count > len(ids):
            raise ValueError(_too_few(c, len(ids), train_count, meta_per_class, val_per_class, test_per_class))
        test, val, meta, rest = np.split(ids, np.cumsum([test_per_class, val_per_class, meta_per_class]))
        for name, part in (("train", rest[:train_count]), ("meta", meta), ("val", val), ("test", test)):
            per_class[name].append(part)
    return Split(**{name: np.concatenate(parts) for name, parts in per_class.items()})


def _too_few(c: int, available: int, train: int, meta: int, val: int, test: int) -> str:
    wanted = f"data.meta_per_class is {meta}, data.val_per_class {val}, data.test_per_class {test} and the profile takes {train}"
    left_for_meta = available - val - test - train
    cure = (
        f"lower data.meta_per_class to at most {left_for_meta}"
        if left_for_meta >= 1
        else "lower data.n_max or the sizes of the held-out sets"
    )
    return f"{wanted} for training, {meta + val + test + train} images in all, but class {c} has only {available}; {cure}"
