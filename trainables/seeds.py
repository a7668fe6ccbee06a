"""Independent random streams from one seed: what draws from one never meets the numbers of another."""

import numpy as np

STREAMS = ("phi", "theta", "train_batches", "meta_batches", "augment", "label_noise", "exploit", "explore")
"""What draws random numbers: initial weights of classifier and method, order of the batches, augmentation, wrong labels,
and in a population donors and their offspring's settings. The split uses the seed itself."""


def derive_seed(seed: int, stream: str, count: int = 0) -> int:
    """A seed below 2^63 for the `count`-th use of a stream; neighbouring seeds and counts share nothing."""
    mixed = np.random.SeedSequence([seed, STREAMS.index(stream), count]).generate_state(1, np.uint64)[0]
    return int(mixed) % 2**63
