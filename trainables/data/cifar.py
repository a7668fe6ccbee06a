"""CIFAR-10 and CIFAR-100, read or downloaded by torchvision."""

import numpy as np

from trainables.data.source import Source
from trainables.data_config import Cifar10Config, Cifar100Config


def open_cifar(config: Cifar10Config | Cifar100Config) -> Source:
    """Images (60 000, 3, 32, 32): 50 000 of the train part, then 10 000 of the test part, in the order of the files.

    Raises:
        ValueError: when the files are missing or incomplete.
    """
    from torchvision import datasets  # imported here, because the import takes seconds and only this source needs it

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[config.source]
    try:
        train, test = (kind(config.root, train=part, download=config.download) for part in (True, False))
    except (OSError, RuntimeError, EOFError) as error:  # no network, no such folder, a wrong digest
        raise ValueError(
            f"data.root is {config.root!r}, which holds no whole copy of {config.source}, and data.download is "
            f"{config.download}: {error}"
        ) from error
    images = np.concatenate([train.data, test.data]).transpose(0, 3, 1, 2)
    labels = np.array(train.targets + test.targets, dtype=np.int64)
    parts = {"train": np.arange(len(train)), "test": np.arange(len(train), len(labels))}
    return Source(np.ascontiguousarray(images), labels, tuple(train.classes), parts)
