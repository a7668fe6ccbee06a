"""Long-tail profiles: how many training images each class keeps, and bands of classes by that number. Needs no images."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

MANY_ABOVE, FEW_BELOW = 100, 20
BANDS: dict[str, Callable[[Any], Any]] = {
    "acc": lambda n: n >= 0,
    "acc_many": lambda n: n > MANY_ABOVE,
    "acc_medium": lambda n: (n >= FEW_BELOW) & (n <= MANY_ABOVE),
    "acc_few": lambda n: n < FEW_BELOW,
}
"""Training counts of classes -> which classes a metric averages over: many > 100, medium 20..100, few < 20 (Liu et al.,
CVPR 2019)."""


def check_selection(select_by: str, class_counts: NDArray[np.int64]) -> None:
    """Checks that `select_by` averages over at least one class; `class_counts` is (num_classes,).

    `val/plain_acc` averages over images of all classes.

    Raises:
        ValueError: when no class is in its band; the message gives the range of the counts.
    """
    if not BANDS.get(select_by.removeprefix("val/"), BANDS["acc"])(class_counts).any():
        full = [f"val/{name}" for name, band in BANDS.items() if band(class_counts).any()]
        raise ValueError(
            f"select_by is {select_by}, but no class has so many training images "
            f"({class_counts.max()} to {class_counts.min()} a class); "
            f"allowed: {', '.join(full)}"
        )


def exponential(num_classes: int, n_max: int, imbalance_factor: float, rounding: str = "floor") -> list[int]:
    """n_c = n_max * imbalance_factor^(-c / (num_classes - 1)): class 0 is the head, the last class the tail.

    Source: LDAM-DRW's and Meta-Weight-Net's published CIFAR-LT splits, which take the floor.

    Raises:
        ValueError: when the tail class would have no image.
    """
    steps = max(num_classes - 1, 1)
    return _counts([(1 / imbalance_factor) ** (c / steps) for c in range(num_classes)], n_max, imbalance_factor, rounding)


def step(num_classes: int, n_max: int, imbalance_factor: float, rounding: str = "floor") -> list[int]:
    """The first half of the classes has n_max images each, the second half n_max / imbalance_factor.

    Source: Buda et al., Neural Networks 2018, with half of the classes in the minority. If the number of classes is odd, the
    minority is the larger half, as in LDAM-DRW's code.

    Raises:
        ValueError: when the tail classes would have no image.
    """
    shares = [1.0 if c < num_classes // 2 else 1 / imbalance_factor for c in range(num_classes)]
    return _counts(shares, n_max, imbalance_factor, rounding)


def pareto(num_classes: int, n_max: int, imbalance_factor: float, rounding: str = "floor") -> list[int]:
    """n_c = n_max * (c + 1)^(-s), Pareto's rank-size law, with s chosen so that the last class has n_max / imbalance_factor.

    Raises:
        ValueError: when the tail class would have no image.
    """
    exponent = math.log(imbalance_factor) / math.log(num_classes) if num_classes > 1 and imbalance_factor >= 1 else 0.0
    return _counts([(c + 1) ** -exponent for c in range(num_classes)], n_max, imbalance_factor, rounding)


PROFILES: dict[str, Callable[[int, int, float, str], list[int]]] = {"exponential": exponential, "step": step, "pareto": pareto}
"""(num_classes, n_max, imbalance_factor, rounding) -> number of training images of each class; `natural` has no such rule."""


def _counts(shares: list[float], n_max: int, imbalance_factor: float, rounding: str) -> list[int]:
    if not shares or n_max < 1 or imbalance_factor < 1:
        raise ValueError(
            f"a profile needs num_classes >= 1, n_max >= 1 and imbalance_factor >= 1; "
            f"given {len(shares)}, {n_max}, {imbalance_factor}"
        )
    # Without the 1e-9 a product just below a whole number, such as 4.999...9, would lose an image to floating point.
    counts = [int(n_max * share + 1e-9) if rounding == "floor" else round(n_max * share) for share in shares]
    if min(counts) < 1:
        raise ValueError(
            f"data.imbalance_factor is {imbalance_factor:g} and data.n_max is {n_max}: the smallest class would have no image; "
            f"lower imbalance_factor to at most n_max = {n_max}"
        )
    return counts
