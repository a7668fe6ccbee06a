"""Clothing1M in its authors' layout: lists of images, one file with noisy labels and one with clean labels.

Source: Xiao et al., "Learning from Massive Noisy Labeled Data for Image Classification", CVPR 2015.
"""

from pathlib import Path

import numpy as np

from trainables.data.image_lists import read_lines, read_list, source_of_lists
from trainables.data.source import Ids, Places, Source, check_labels
from trainables.data_config import Clothing1MConfig

CLASS_NAMES = (
    "T-Shirt", "Shirt", "Knitwear", "Chiffon", "Sweater", "Hoodie", "Windbreaker",
    "Jacket", "Downcoat", "Suit", "Shawl", "Dress", "Vest", "Underwear",
)  # fmt: skip
KEYS = {"train": "noisy_train_key_list.txt", "val": "clean_val_key_list.txt", "test": "clean_test_key_list.txt"}
LABELS = {"train": "noisy_label_kv.txt", "val": "clean_label_kv.txt", "test": "clean_label_kv.txt"}


def open_clothing1m(config: Clothing1MConfig) -> Source:
    """The source with noisy labels for train and clean labels for val and test.

    Raises:
        ValueError: when a file is missing, an image has no label or two, or a label is not 0 to 13; the message names the line.
    """
    root = Path(config.root)
    labels = {name: _label_of(root / name) for name in sorted(set(LABELS.values()))}
    files = {part: root / name for part, name in KEYS.items()}
    read = {part: _labelled(file, labels[LABELS[part]], LABELS[part]) for part, file in files.items()}
    return source_of_lists(root, files, read, CLASS_NAMES)


def _label_of(file: Path) -> dict[bytes, int]:
    """The label of each image, by path."""
    paths, labels = read_list(file, "data.root", prefixes=[])
    place = Places([f"data.root: {file}"], [0], "line", 1)
    check_labels(labels, len(CLASS_NAMES), place)
    label_of: dict[bytes, int] = {}
    for line, (path, label) in enumerate(zip(paths, labels.tolist(), strict=True)):
        if label_of.setdefault(path, label) != label:
            raise ValueError(
                f"{place(line)} gives {path.decode()!r} the label {label}, a line above {label_of[path]}; allowed: one label for "
                "an image"
            )
    return label_of


def _labelled(file: Path, label_of: dict[bytes, int], name: str) -> tuple[list[bytes], Ids]:
    """Paths and labels (N,) of the images in a list; `name` is the file of `label_of`, for errors."""
    paths = [line.strip().encode() for line in read_lines(file, "data.root")]
    for number, path in enumerate(paths, 1):
        if path not in label_of:
            raise ValueError(f"data.root: {file}, line {number}: {path.decode()!r} has no label in {name}")
    return paths, np.array([label_of[path] for path in paths], dtype=np.int64)
