"""scikit-learn's handwritten digits: 1797 real images of 8x8 pixels with 17 grey levels, embedded in the package."""

import numpy as np

from trainables.config import DigitsConfig
from trainables.data.source import SourceImages


def load_digits_images(_: DigitsConfig) -> SourceImages:
    """Images (1797, 1, 8, 8) with values 0..16 and labels 0..9, in the file's order."""
    from sklearn.datasets import load_digits  # takes a second to import, and only this source needs it

    digits = load_digits()
    images = digits.images.astype(np.uint8)[:, None]
    return SourceImages(
        images=images,
        labels=digits.target.astype(np.int64),
        class_names=tuple(str(name) for name in digits.target_names),
    )
