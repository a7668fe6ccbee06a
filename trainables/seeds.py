"""Independent random streams from one seed: the numbers of one stream do not depend on draws from another."""

import numpy as np

STREAMS = (
    *("phi", "theta", "train_batches", "meta_batches", "augment", "label_noise"),
    *("exploit", "explore", "draws", "stages", "folds", "views", "lora"),
)
"""The random streams: initial weights of classifier and method, order of training and meta batches, augmentation, label noise;
in population-based training, donors and their offspring's settings; the methods' own random draws; batches of later stages; the
folds of a cross-validation; the views that vectors are computed from; the initial weights of updates of low rank. The split uses
the seed itself. The order of the names must not change, because a stream's position enters its seeds."""


def derive_seed(seed: int, stream: str, count: int = 0) -> int:
    """A seed below 2^63 for the `count`-th use of a stream. Neighbouring seeds and counts give unrelated seeds."""
    mixed = np.random.SeedSequence([seed, STREAMS.index(stream), count]).generate_state(1, np.uint64)[0]
    return int(mixed) % 2**63
