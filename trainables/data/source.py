"""What every data source returns."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SourceImages:
    """All labelled images of a source, before any split: images (N, C, H, W) uint8, labels (N,) int64."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
