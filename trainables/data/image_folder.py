"""A folder with one subfolder of images for each class, or with such folders inside train, val and test."""

import os
from pathlib import Path

import numpy as np

from trainables.data.source import PARTS, FileImages, Ids, Source
from trainables.data_config import ImageFolderConfig

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def open_image_folder(config: ImageFolderConfig) -> Source:
    """The source, with classes and images in the order of their names. The classes are those of the train part.

    Raises:
        ValueError: when a folder cannot be read, a class has no image, or val or test have a class that train does not have.
    """
    root = Path(config.root)
    if not root.is_dir():
        raise ValueError(f"data.root is {config.root!r}, which is no folder on this machine")
    # A class may be called `train`. Its folder holds images; the train part holds folders.
    divided = bool(_folders(root / "train"))
    folders = {part: root / part for part in PARTS if (root / part).is_dir()} if divided else {"train": root}
    class_names = tuple(_folders(folders["train"]))
    if len(class_names) < 2:
        hint = "; it holds images itself: give the folder above it" if not class_names and _images(root) else ""
        found = f"data.root: {folders['train']} holds {len(class_names)} folders"
        raise ValueError(f"{found}; allowed: one for each class, at least 2{hint}")
    if divided and (others := set(_folders(root)) - set(PARTS)):
        raise ValueError(f"data.root: {root} holds train beside {min(others)}; allowed: train, val and test, or classes")
    paths: list[bytes] = []
    labels: list[int] = []
    parts: dict[str, Ids] = {}
    for part, folder in folders.items():
        first = len(paths)
        for name in _folders(folder):
            if name not in class_names:
                raise ValueError(f"data.root: {folder / name}: there is no such class in {folders['train']}")
            files = _images(folder / name)
            if not files:
                raise ValueError(f"data.root: {folder / name} holds no image; allowed: files ending with {' '.join(ENDINGS)}")
            paths += [os.fsencode(file.relative_to(root)) for file in files]
            labels += [class_names.index(name)] * len(files)
        parts[part] = np.arange(first, len(paths))
    return Source(FileImages(root, np.array(paths)), np.array(labels, dtype=np.int64), class_names, parts)


def _folders(folder: Path) -> list[str]:
    """Names of the folders inside `folder`, sorted; empty if `folder` does not exist."""
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ValueError(f"data.root: {folder} cannot be read: {error.strerror}") from error


def _images(folder: Path) -> list[Path]:
    """Image files in `folder` and its subfolders, sorted."""
    below = (Path(place) / name for place, _, names in os.walk(folder) for name in names)
    return sorted(path for path in below if path.suffix.lower() in ENDINGS and not path.name.startswith("."))
