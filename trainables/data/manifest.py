"""The split of a trial as a file: which images were in which set, so that another trial's split can be compared with it.

Images are named, in the order of the set: by folder and file, or by parquet file and row. Each folder is named once, because a
split may have millions of images. Images without names, such as those of scikit-learn's digits, are listed by id.
"""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

from trainables.data import LongTailedData
from trainables.data.source import EncodedImages, Ids
from trainables.data_config import DataConfig
from trainables.files import replace_text

MANIFEST = "split.json"
ELSEWHERE = {
    "augment",
    "mix",
    "mix_alpha",
    "remix_kappa",
    "remix_tau",
    "root",
    "meta_root",
    "skip",
    "download",
    "loading",
    "image_size",
    "grey",
}
"""Settings that do not influence the split."""


def write_manifest(path: Path, config: DataConfig, seed: int, data: LongTailedData) -> None:
    """Writes the images of each set, the digest of the split, and the settings that decide the split."""
    recorded = {"sha256": data.sha256, **_settings(config, seed), "sets": sets_by_name(data)}
    replace_text(path, json.dumps(recorded))


def sets_by_name(data: LongTailedData) -> dict[str, list[Any]]:
    """The images of each set: ids, or of a source with names a list of `[folder, [file, ...]]` or `[file, [row, ...]]`.

    A folder that comes again later in the order of the set, is named again.
    """
    images = data.source.images
    if not isinstance(images, EncodedImages):
        return dict(data.split.manifest())
    return {name: _by_folder(images, ids) for name, ids in vars(data.split).items()}


def _by_folder(images: EncodedImages, ids: Ids) -> list[Any]:
    runs = groupby(map(images.address, ids.tolist()), key=lambda name: name[0])
    return [[folder, [item for _, item in names]] for folder, names in runs]


def check_manifest(path: Path, config: DataConfig, seed: int, data: LongTailedData) -> bool:
    """Compares `data` with the split recorded in `path`.

    The location of the images does not matter, but their names below the root do.

    Returns: whether `path` records a split with the same settings; if so, `data` is that split.

    Raises:
        ValueError: when the settings are equal but the split differs: files were added or removed, or their order or labels
            have changed.
    """
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
        same_settings = {key: recorded[key] for key in ("seed", "data")} == json.loads(json.dumps(_settings(config, seed)))
        digest, sets = recorded["sha256"], recorded["sets"]
    except (OSError, ValueError, KeyError, TypeError):
        return False  # no such file, or not a manifest
    if not same_settings:
        return False
    if digest != data.sha256:
        by_id = any(isinstance(image, int) for images in sets.values() for image in images)  # as older versions wrote all splits
        here = data.split.manifest() if by_id else sets_by_name(data)
        changed = [name for name, images in here.items() if _as_set(images) != _as_set(sets.get(name, []))]
        what = (
            f"other images are in {', '.join(changed)}"
            if changed
            else f"images under the same {'ids' if by_id else 'names'} are others, or their labels or order"
        )
        raise ValueError(f"data: the split is not the one that {path} records for these settings: {what}; is it another source?")
    return True


def _as_set(images: list[Any]) -> set[Any]:
    """The images of a set, without their order."""
    if any(isinstance(image, int) for image in images):
        return set(images)
    return {(folder, item) for folder, items in images for item in items}


def _settings(config: DataConfig, seed: int) -> dict[str, Any]:
    """The settings that decide a split, without the location and the processing of the images."""
    return {"seed": seed, "data": config.model_dump(exclude=ELSEWHERE)}
