"""Small copies of the folders that the benchmarks come in: the real layout and file formats, few and tiny images."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

MIXED = (".jpg", ".PNG", ".webp")
SIZES = [(12, 9), (9, 12), (10, 10)]
"""Width and height; real photographs differ, too."""


def photograph(file: Path, label: int, number: int) -> None:
    """An image whose colour tells the class, with something of its own."""
    width, height = SIZES[number % len(SIZES)]
    rng = np.random.default_rng([label, number, *file.name.encode()])
    pixels = rng.integers(0, 60, (height, width, 3))
    pixels[..., label % 3] += 40 * (1 + label % 5)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(file, **({"quality": 95} if file.suffix != ".png" else {}))


def imagenet_lt(root: Path, num_classes: int = 3, head: int = 9, test: int = 3) -> dict[str, Any]:
    """`train/<wnid>/*.JPEG`, `val/<wnid>/*.JPEG` and the lists of ImageNet-LT; val lies under train as in the original."""
    lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for c in range(num_classes):
        wnid = f"n{1440764 + c:08}"
        for number in range(head - 2 * c):
            lines["train"].append(f"train/{wnid}/{wnid}_{number}.JPEG {c}")
        for number in range(4):
            lines["val"].append(f"train/{wnid}/{wnid}_{100 + number}.JPEG {c}")
        for number in range(test):
            lines["test"].append(f"val/{wnid}/ILSVRC2012_val_{c:04}{number:04}.JPEG {c}")
    write_lists(root, lines, "ImageNet_LT_{}.txt")
    return {"meta_per_class": 2, "val_per_class": 2}


def places_lt(root: Path, listed_under: str = "") -> dict[str, Any]:
    """`train/<scene>/*.jpg`, `val/<scene>/*.jpg` and the lists of Places-LT, whose paths may begin with another folder."""
    lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for c, scene in enumerate(("airfield", "attic", "bakery")):
        lines["train"] += [f"train/{scene}/{number:08}.jpg {c}" for number in range(9 - 2 * c)]
        lines["val"] += [f"train/{scene}/{100 + number:08}.jpg {c}" for number in range(4)]
        lines["test"] += [f"val/{scene}/Places365_val_{c:04}{number:04}.jpg {c}" for number in range(3)]
    write_lists(root, lines, "Places_LT_{}.txt", listed_under)
    return {"meta_per_class": 2, "val_per_class": 2}


def write_lists(root: Path, lines: dict[str, list[str]], name: str, listed_under: str = "") -> None:
    for part, listed in lines.items():
        for number, line in enumerate(listed):
            path, label = line.rsplit(" ", 1)
            photograph(root / path, int(label), number)
        (root / name.format(part)).write_text("".join(f"{listed_under}{line}\n" for line in listed))


def clothing1m(root: Path) -> dict[str, Any]:
    """`images/<digit>/<digit>/*.jpg`, three key lists and two files of labels; some noisy labels are wrong."""
    keys: dict[str, list[str]] = {"noisy_train": [], "clean_val": [], "clean_test": []}
    labels: dict[str, list[str]] = {"noisy_label_kv.txt": [], "clean_label_kv.txt": []}
    for c in range(14):
        for part, count in (("noisy_train", 4 + c % 3), ("clean_val", 4), ("clean_test", 2)):
            for number in range(count):
                key = f"images/{c % 10}/{number}/{part}_{c},{number}.jpg"
                photograph(root / key, c, number)
                keys[part].append(key)
                labels["noisy_label_kv.txt"].append(f"{key} {(c + (number == 3)) % 14}")
                labels["clean_label_kv.txt"].append(f"{key} {c}")
    for part, listed in keys.items():
        (root / f"{part}_key_list.txt").write_text("\n".join(listed) + "\n")
    for name, listed in labels.items():
        (root / name).write_text("\n".join(listed) + "\n")
    return {}


def own_images(root: Path, parts: tuple[str, ...] = ("",), endings: tuple[str, ...] = MIXED) -> dict[str, Any]:
    """`<class>/...`, or the same inside train, val and test."""
    for part in parts:
        for c, name in enumerate(("cat", "dog", "fish")):
            for number in range(12 - 3 * c):
                photograph(root / part / name / f"{part}{number:02}{endings[number % len(endings)]}", c, number)
    return {"meta_per_class": 1, "val_per_class": 1, "test_per_class": 2}


LAYOUTS = {"imagenet_lt": imagenet_lt, "places_lt": places_lt, "clothing1m": clothing1m, "own_images": own_images}


def cifar(root: Path, monkeypatch: pytest.MonkeyPatch, num_classes: int, per_class: int = 20, test_per_class: int = 3) -> None:
    """The folder of CIFAR-10 or CIFAR-100 as its authors ship it, and torchvision told that these are the right files."""
    from torchvision import datasets

    kind, key = (datasets.CIFAR10, "labels") if num_classes == 10 else (datasets.CIFAR100, "fine_labels")
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)

    def write(name: str, content: dict[str, Any]) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def batch(name: str, count: int) -> list[str]:
        labels = np.tile(np.arange(num_classes), count).tolist()
        return write(name, {"data": rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8), key: labels})

    trains = [name for name, _ in kind.train_list]
    monkeypatch.setattr(kind, "train_list", [batch(name, per_class // len(trains)) for name in trains])
    monkeypatch.setattr(kind, "test_list", [batch(name, test_per_class) for name, _ in kind.test_list])
    names = {kind.meta["key"]: [f"class{c:02}" for c in range(num_classes)]}
    _, digest = write(kind.meta["filename"], names)
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": digest})
