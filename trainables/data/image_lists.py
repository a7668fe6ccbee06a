"""Image files named in lists, one line each: `relative/path.jpg 17`. ImageNet-LT, Places-LT and iNaturalist use this format."""

import bisect
import os
from pathlib import Path

import numpy as np

from trainables.data.source import FileImages, Ids, Places, Source, check_labels
from trainables.data_config import ImageListsConfig


def open_image_lists(config: ImageListsConfig) -> Source:
    """The source with the images of all lists, train first. The train list's labels decide the number of classes.

    Raises:
        ValueError: when a list cannot be read, a line has no label, or a label is out of range; the message names the line.
    """
    given = {"train": config.train_list, "val": config.val_list, "test": config.test_list, "meta": config.meta_list}
    files = {part: Path(config.root) / name for part, name in given.items() if name is not None}
    read = {part: read_list(file, f"data.{part}_list", config.prefixes) for part, file in files.items()}
    train = read["train"][1]
    num_classes = 1 + int(train.max())
    for part, (_, labels) in read.items():
        # Each class needs a training image, so labels are at most the number of lines: a typing error must not add many classes.
        limit, why = (len(train), ", as many as lines") if part == "train" else (num_classes, f", as in {files['train']}")
        check_labels(labels, limit, Places([f"data.{part}_list: {files[part]}"], [0], "line", 1), why)
    return source_of_lists(Path(config.root), files, read, tuple(str(c) for c in range(num_classes)))


def source_of_lists(
    root: Path, files: dict[str, Path], read: dict[str, tuple[list[bytes], Ids]], class_names: tuple[str, ...]
) -> Source:
    """A source from the paths and labels (N,) in the list of each part.

    An image that a list names several times with one label belongs to its part once; a note says so.

    Raises:
        ValueError: when two lists name the same image, or a list gives an image two labels; the message names both lines.
    """
    first_ids = np.cumsum([0, *(len(labels) for _, labels in read.values())]).tolist()
    places = Places([str(files[part]) for part in read], first_ids[:-1], "line", 1)
    paths = [path for part_paths, _ in read.values() for path in part_paths]
    labels = np.concatenate([labels for _, labels in read.values()])
    # A repeated image keeps an id, because the id tells the line; it is left out of its part.
    used = np.ones(len(paths), bool)
    first: dict[bytes, int] = {}
    for image, path in enumerate(paths):
        if (other := first.setdefault(normal(path, root), image)) == image:
            continue
        used[image] = False
        # The same bisection point means the same list.
        if bisect.bisect(first_ids, other) != bisect.bisect(first_ids, image):
            raise ValueError(f"data: {places(image)} names the image of {places(other)}; allowed: an image in one list only")
        if labels[image] != labels[other]:
            raise ValueError(
                f"data: {places(image)} gives the image of {places(other)} the label {labels[image]} instead of {labels[other]}; "
                "allowed: one label for an image"
            )
    ids = {part: np.arange(first, after) for part, first, after in zip(read, first_ids, first_ids[1:], strict=False)}
    notes = [
        f"data: {places(int(of_part[~used[of_part]][0]))} names an image for the second time; {number} such lines of this list "
        "are left out, so that each image is taken once"
        for of_part in ids.values()
        if (number := int((~used[of_part]).sum()))
    ]
    parts = {part: of_part[used[of_part]] for part, of_part in ids.items()}
    return Source(FileImages(root, np.array(paths), places), labels, class_names, parts, tuple(notes))


def normal(path: bytes, root: Path) -> bytes:
    """The path relative to `root` in one spelling: `./a.jpg`, `b/../a.jpg` and the absolute path are `a.jpg`."""
    if not path.startswith(b"/") and b"//" not in path and b"./" not in path:
        return path  # nearly all paths of nearly all lists, which may have millions of lines
    folder = os.path.join(os.path.normpath(os.fsencode(root)), b"")
    return os.path.normpath(os.path.join(folder, path)).removeprefix(folder)


def read_list(file: Path, field: str, prefixes: list[str]) -> tuple[list[bytes], Ids]:
    """Paths and labels (N,) of a list. `field` is the setting that names the list, for errors.

    Raises:
        ValueError: when a line has the wrong format; the message names the first such line.
    """
    paths: list[bytes] = []
    labels: list[int] = []
    for number, line in enumerate(read_lines(file, field), 1):
        *path, label = line.rsplit(maxsplit=1) or [""]
        if not path or not label.isdecimal() or len(label) > 9:
            raise ValueError(f"{field}: {file}, line {number} is {line!r}; allowed: a path, a space and a label 0, 1, ...")
        paths.append(renamed(path[0].strip(), prefixes).encode())
        labels.append(int(label))
    return paths, np.array(labels, dtype=np.int64)


def read_lines(file: Path, field: str) -> list[str]:
    """The lines of a list, without empty lines at its end. `field` is the setting that names the list, for errors.

    Raises:
        ValueError: when the list cannot be read or is empty.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{field}: {file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if lines == [""]:
        raise ValueError(f"{field}: {file} is empty")
    return lines


def renamed(path: str, prefixes: list[str]) -> str:
    """The path with the first matching prefix replaced; each prefix is given as `old=new`."""
    for old, _, new in (prefix.partition("=") for prefix in prefixes):
        if path.startswith(old):
            return new + path.removeprefix(old)
    return path
