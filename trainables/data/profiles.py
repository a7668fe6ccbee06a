"""Long-tail profiles: how many training images each class keeps. Pure numbers."""


def exponential(num_classes: int, n_max: int, imbalance_factor: float) -> list[int]:
    """n_c = floor(n_max * imbalance_factor^(-c / (num_classes - 1))): class 0 is the head, the last class the tail.

    Source: LDAM-DRW's and Meta-Weight-Net's published splits (METHODS: the CIFAR-LT totals).

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
