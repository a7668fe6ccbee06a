"""A folder with one subfolder of images for each class, or with such folders inside train, val and test."""

import os
import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from trainables.data.source import PARTS, Fault, FileImages, Ids, Source
from trainables.data_config import ImageFolderConfig

ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp"),
    *(".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"),
)
"""Endings of the files that are read as images, in lower case. `data.extra_endings` adds to them."""
NAMES_OF_PARTS = {"training": "train", "valid": "val", "validation": "val", "testing": "test"} | {part: part for part in PARTS}
"""Names of folders that are parts, in lower case."""
LIKE_A_PART = re.compile(r"train|test|val|dev|eval|hold.?out", re.IGNORECASE)
"""Fits a name that may belong to a part of the images."""
LEFT_BY_PROGRAMS = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__pycache__"}
"""Folders that archive programs, storage boxes and systems make; they hold no images of a class."""
SAMPLED = 5
"""Number of files of each ending whose content is looked at, to find out whether they are images."""
NO_ENDING = "none"
"""Stands for files without an ending."""


def open_image_folder(config: ImageFolderConfig) -> Source:
    """The source, with classes and images in the order of their names. The classes are those of all parts.

    Links are followed. Files with other endings than those of images are not read; a note says how many there are. Faults are
    classes without images, classes that train does not have, and links that lead to the same image twice.

    Raises:
        ValueError: when a folder cannot be read, or the classes look like parts.
    """
    root = Path(config.root)
    if not root.is_dir():
        raise ValueError(f"data.root is {config.root!r}, which is no folder on this machine")
    folders = _parts(root, config.meta_root)
    train = folders["train"]
    endings = {*ENDINGS, *(ending.lower() for ending in config.extra_endings)}
    of_part = {
        part: [name for name in _folders(folder) if folder / name not in folders.values()] for part, folder in folders.items()
    }
    if len(of_part["train"]) < 2:
        holds_images = not of_part["train"] and any(_ending(name) in endings for name in _files(root))
        hint = "; it holds images itself: give the folder above it" if holds_images else ""
        found = f"data.root: {train} holds {len(of_part['train'])} folders"
        raise ValueError(f"{found}; allowed: one for each class, at least 2{hint}")
    if train != root and (others := set(_folders(root)) - {folder.name for folder in folders.values()}):
        raise ValueError(f"data.root: {root} holds train beside {min(others)}; allowed: train, val, test and meta, or classes")
    _refuse_parts_as_classes(train, tuple(of_part["train"]))
    class_names = tuple(sorted(set().union(*of_part.values())))
    walk = _Walk()
    paths: list[bytes] = []
    labels: list[int] = []
    parts: dict[str, Ids] = {}
    unread: list[Path] = []
    faults: list[Fault] = []
    for part, folder in folders.items():
        first = len(paths)
        for name in of_part[part]:
            if name not in of_part["train"]:
                text = f"data.root: {folder / name}: there is no such class in {train}; allowed: the same classes in all parts"
                faults.append(Fault(f"{text}, or leave it out: {leaving_out(name)}", (name,)))
            files = sorted(walk.files(folder / name, name))
            images = [file for file in files if _ending(file.name) in endings]
            unread += [file for file in files if _ending(file.name) not in endings]
            if not images and not walk.has_fault(name):
                allowed = f"files ending with {' '.join(ENDINGS)}, or with one of data.extra_endings"
                cure = f"or leave the class out: {leaving_out(name)}, or data.min_images=1 for all such classes"
                faults.append(Fault(f"data.root: {folder / name} holds no image; allowed: {allowed}; {cure}", (name,)))
            paths += [os.fsencode(os.path.relpath(file, root)) for file in images]
            labels += [class_names.index(name)] * len(images)
        parts[part] = np.arange(first, len(paths))
    faults += [*walk.faults, *walk.linked_twice(root, paths)]
    notes = [_about_unread(unread, config.extra_endings)] if unread else []
    notes += _about_strays(folders, endings)
    files_of_source = FileImages(root, np.array(paths, dtype=np.bytes_))
    return Source(files_of_source, np.array(labels, dtype=np.int64), class_names, parts, tuple(notes), faults=tuple(faults))


def leaving_out(name: str) -> str:
    """The setting that leaves a class out, as one types it."""
    return shlex.quote(f"trial.data.classes=[-{name}]")


def _parts(root: Path, meta_root: str | None) -> dict[str, Path]:
    """The folder of each part, train first; `root` itself is train if it is not divided into parts.

    Raises:
        ValueError: when two folders are the same part, such as `Test` and `testing`.
    """
    folders = _divided(root)
    if meta_root is None:
        return folders
    if "meta" in folders:
        raise ValueError(f"data.meta_root is {meta_root!r}, but {folders['meta']} is for the meta set; allowed: one of them")
    if not Path(meta_root).is_dir():
        raise ValueError(f"data.meta_root is {meta_root!r}, which is no folder on this machine")
    return folders | {"meta": Path(meta_root)}


def _divided(root: Path) -> dict[str, Path]:
    # A class may be called `train`. Its folder holds images; the train part holds folders.
    known = [name for name in _folders(root) if name.lower() in NAMES_OF_PARTS]
    # Names other than `train` count only where no folder is anything else: `Training` may be a class beside `Swimming`.
    if "train" not in known and len(known) < len(_folders(root)):
        return {"train": root}
    by_part = {part: [name for name in known if NAMES_OF_PARTS[name.lower()] == part] for part in PARTS}
    if not any(_folders(root / name) for name in by_part["train"]):
        return {"train": root}
    for part, names in by_part.items():
        if len(names) > 1:
            raise ValueError(f"data.root: {root} holds {' and '.join(names)}; allowed: one folder for the part {part}")
    return {part: root / name for part in PARTS for name in by_part[part]}


def _refuse_parts_as_classes(folder: Path, class_names: tuple[str, ...]) -> None:
    """Refuses folders of parts that would be taken for classes: none holds files, and all hold the same folders.

    Raises:
        ValueError: naming the folders, and both ways to go on.
    """
    inside = [set(_folders(folder / name)) for name in class_names]
    shared = set.intersection(*inside)
    same = len(shared) >= 2 and shared == set.union(*inside)
    similar = bool(shared) and all(LIKE_A_PART.search(name) for name in class_names)
    if not (same or similar) or any(True for name in class_names for _ in _files(folder / name)):
        return
    example = next((name for name in class_names if "train" in name.lower()), class_names[0])
    raise ValueError(
        f"data.root: {folder} holds {_few(class_names, 5)}, and each of these holds the folders {_few(sorted(shared), 3)}: they "
        "look like parts, not classes; allowed: parts that are named train, val and test, or one folder "
        f"for each class, as in {folder / example}; if they are the classes, put their images into them "
        "without folders in between"
    )


def _few(names: Sequence[str], number: int) -> str:
    return ", ".join([*names[:number], *(["..."] if len(names) > number else [])])


class _Walk:
    """Reads folders with all that is below them, and keeps what tells whether links lead to the same image twice."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self._folders: dict[str, Path] = {}  # by the path without links
        self._links: list[Path] = []

    def has_fault(self, class_name: str) -> bool:
        """Whether a folder of the class leads to another one that was read."""
        return any(class_name in fault.classes for fault in self.faults)

    def files(self, folder: Path, class_name: str) -> Iterator[Path]:
        """The files of a folder and of the folders below it. Names that begin with a dot are left out.

        A folder that was read before, under another name, is not read again; it is a fault of the class.

        Raises:
            ValueError: when a folder cannot be read.
        """
        real = os.path.realpath(folder)
        if (other := self._folders.setdefault(real, folder)) != folder:
            text = f"data.root: {folder} leads to the same folder as {other}; allowed: each image once; remove the link"
            self.faults.append(Fault(text, (class_name,)))
            return
        for entry in _entries(folder):
            if entry.is_dir():
                yield from self.files(folder / entry.name, class_name)
            else:
                if entry.is_symlink():
                    self._links.append(folder / entry.name)
                yield folder / entry.name

    def linked_twice(self, root: Path, paths: list[bytes]) -> Iterator[Fault]:
        """A fault for each link that leads to an image that is read under another name too. `paths` are those of the images."""
        if not self._links:
            return
        images = {Path(os.path.normpath(root / os.fsdecode(path))): image for image, path in enumerate(paths)}
        reached: dict[str, Path] = {}
        for link in (link for link in self._links if link in images):
            real = os.path.realpath(link)
            folder = self._folders.get(os.path.dirname(real))
            direct = folder / os.path.basename(real) if folder else None
            other = direct if direct in images and direct != link else reached.setdefault(real, link)
            if other is not None and other != link:
                text = f"data.root: {link} leads to the image of {other}; allowed: each image once"
                yield Fault(f"{text}; remove the link, or name it in a list of data.skip", images=(images[link], images[other]))


def _about_strays(folders: dict[str, Path], endings: Collection[str]) -> Iterator[str]:
    """Notes about image files that lie beside the folders of the classes, and about folders that programs have left there."""
    for folder in folders.values():
        if strays := [name for name in _files(folder) if _ending(name) in endings]:
            number = "1 image is" if len(strays) == 1 else f"{len(strays)} images are"
            yield f"data.root: {number} not read in {folder}, beside the folders of the classes ({_few(strays, 3)})"
    for folder in dict.fromkeys(folders.values()):
        for name in sorted(set(os.listdir(folder)) & LEFT_BY_PROGRAMS):
            yield f"data.root: {folder / name} is left out: programs make folders of this name"


def _about_unread(files: list[Path], extra: list[str]) -> str:
    """A note about files that are not read: how many, with which endings, and how to have them read."""
    by_ending: dict[str, list[Path]] = {}
    for file in files:
        by_ending.setdefault(_ending(file.name), []).append(file)
    counts = Counter({ending: len(found) for ending, found in by_ending.items()})
    images = [ending for ending, found in sorted(by_ending.items()) if any(_is_image(file) for file in found[:SAMPLED])]
    listed = ", ".join(f"{number} {'without an ending' if end == NO_ENDING else end}" for end, number in counts.most_common(8))
    more = f", and {len(counts) - 8} more endings" if len(counts) > 8 else ""
    cure = f"; extra_endings=[{','.join([*extra, *images])}] reads the images among them" if images else ""
    given = f"data.extra_endings is [{','.join(extra)}]"
    number = "1 file in the class folders is" if len(files) == 1 else f"{len(files)} files in the class folders are"
    return f"{given}: {number} not read ({listed}{more}){cure}"


def _is_image(file: Path) -> bool:
    """Whether Pillow knows the file's format, whatever its name says."""
    try:
        with Image.open(file):
            return True
    except Exception:  # with damaged files Pillow's readers raise exceptions of many types
        return False


def _ending(name: str) -> str:
    """The ending of a file's name, in lower case, or NO_ENDING."""
    return os.path.splitext(name)[1].lower() or NO_ENDING


def _folders(folder: Path) -> list[str]:
    """Names of the folders inside `folder`, sorted; empty if `folder` does not exist."""
    return sorted(entry.name for entry in _entries(folder) if entry.is_dir())


def _files(folder: Path) -> list[str]:
    """Names of the files inside `folder`."""
    return [entry.name for entry in _entries(folder) if not entry.is_dir()]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds; empty if it does not exist. Names that begin with a dot are left out, and those of programs."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".") and entry.name not in LEFT_BY_PROGRAMS]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ValueError(f"data.root: {folder} cannot be read: {error.strerror}") from error
