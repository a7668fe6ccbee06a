"""scikit-learn's handwritten digits: 1797 real images of 8x8 pixels with 17 grey levels, embedded in the package."""

import numpy as np

from trainables.data.source import Source, as_one_pool
from trainables.data_config import DigitsConfig

WHITE = 16
"""The largest value of a pixel."""


def open_digits(_: DigitsConfig) -> Source:
    """Images (1797, 1, 8, 8) with values 0..WHITE and labels 0..9, in the order of the file."""
    from sklearn.datasets import load_digits  # imported here, because the import takes a second and only this source needs it

    digits = load_digits()
    names = tuple(str(name) for name in digits.target_names)
    return as_one_pool(digits.images.astype(np.uint8)[:, None], digits.target.astype(np.int64), names, white=WHITE)
