"""Random images of any number and size: each class has a pattern, and each image is its class's pattern plus noise."""

import numpy as np

from trainables.data.source import Source, as_one_pool
from trainables.data_config import GeneratedConfig


def open_generated(config: GeneratedConfig) -> Source:
    """Images (num_classes * images_per_class, channels, image_size, image_size); equal settings give equal images."""
    rng = np.random.default_rng(0)
    shape = (config.channels, config.image_size, config.image_size)
    patterns = rng.uniform(64, 192, (config.num_classes, *shape))
    labels = np.tile(np.arange(config.num_classes), config.images_per_class)
    images = patterns[labels] + rng.normal(0, 48, (len(labels), *shape))
    return as_one_pool(images.clip(0, 255).astype(np.uint8), labels, tuple(str(c) for c in range(config.num_classes)))
