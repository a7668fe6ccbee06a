"""The split of a trial as a file: which images were in which set, so that another trial's split can be compared with it."""

import json
from pathlib import Path
from typing import Any

from trainables.data import LongTailedData
from trainables.data_config import DataConfig
from trainables.files import replace_text

MANIFEST = "split.json"
ELSEWHERE = {"augment", "mix", "mix_alpha", "remix_kappa", "remix_tau", "root", "download", "loading", "image_size", "grey"}
"""Settings that do not influence the split."""


def write_manifest(path: Path, config: DataConfig, seed: int, data: LongTailedData) -> None:
    """Writes the ids of each set, the digest of the split, and the settings that decide the split."""
    recorded = {"sha256": data.sha256, **_settings(config, seed), "sets": data.split.manifest()}
    replace_text(path, json.dumps(recorded))


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
        changed = [name for name, ids in data.split.manifest().items() if ids != sets.get(name)]
        what = f"other images are in {', '.join(changed)}" if changed else "images under the same ids are others, or their labels"
        raise ValueError(f"data: the split is not the one that {path} records for these settings: {what}; is it another source?")
    return True


def _settings(config: DataConfig, seed: int) -> dict[str, Any]:
    """The settings that decide a split, without the location and the processing of the images."""
    return {"seed": seed, "data": config.model_dump(exclude=ELSEWHERE)}
