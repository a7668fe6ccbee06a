"""Long-tail profiles: how many training images each class keeps, and the bands of classes by that number. Pure numbers."""

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
"""Which classes a metric averages over, from an array of training counts: many > 100, medium 20..100, few < 20 (Liu et al.,
CVPR 2019)."""


def check_selection(select_by: str, class_counts: NDArray[np.int64]) -> None:
    """Sees that `select_by` averages over at least one class; `class_counts` is (num_classes,).

    Raises:
        ValueError: when its band is empty; the message lists the counts.
    """
    if not BANDS[select_by.removeprefix("val/")](class_counts).any():
        full = [f"val/{name}" for name, band in BANDS.items() if band(class_counts).any()]
        raise ValueError(
            f"select_by is {select_by}, but no class has so many training images ({', '.join(map(str, class_counts))}); "
            f"allowed: {', '.join(full)}"
        )


def exponential(num_classes: int, n_max: int, imbalance_factor: float) -> list[int]:
    """n_c = floor(n_max * imbalance_factor^(-c / (num_classes - 1))): class 0 is the head, the last class the tail.

    Source: LDAM-DRW's and Meta-Weight-Net's published CIFAR-LT splits.

    Raises:
        ValueError: when the tail class would have no image.
    """
    if num_classes < 1 or n_max < 1 or imbalance_factor < 1:
        raise ValueError(
            f"an exponential profile needs num_classes >= 1, n_max >= 1 and imbalance_factor >= 1; "
            f"given {num_classes}, {n_max}, {imbalance_factor}"
        )
    steps = max(num_classes - 1, 1)
    counts = [int(n_max * (1 / imbalance_factor) ** (c / steps)) for c in range(num_classes)]
    if min(counts) < 1:
        raise ValueError(
            f"data.imbalance_factor is {imbalance_factor:g} and data.n_max is {n_max}: the smallest class would have no image; "
            f"lower imbalance_factor to at most n_max = {n_max}"
        )
    return counts
