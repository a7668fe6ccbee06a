"""The split of a trial as a file: which images were in which set, so that another trial can be held against it."""

import json
from pathlib import Path
from typing import Any

from trainables.data import LongTailedData
from trainables.data_config import DataConfig
from trainables.files import replace_text

MANIFEST = "split.json"
ELSEWHERE = {"augment", "root", "download", "loading", "image_size", "grey"}
"""Settings that have no part in a split."""


def write_manifest(path: Path, config: DataConfig, seed: int, data: LongTailedData) -> None:
    """Writes ids and digest of each set, with the settings that decide them."""
    recorded = {"sha256": data.sha256, **_settings(config, seed), "sets": data.split.manifest()}
    replace_text(path, json.dumps(recorded))


def check_manifest(path: Path, config: DataConfig, seed: int, data: LongTailedData) -> bool:
    """Whether `path` records a split of the same settings; if so, `data` is that split.

    Where the images lie does not matter, what they are called below their root does.

    Raises:
        ValueError: when the settings are the same and the split is not: files have come, gone, or changed their order or labels.
    """
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
        same_settings = {key: recorded[key] for key in ("seed", "data")} == json.loads(json.dumps(_settings(config, seed)))
        digest, sets = recorded["sha256"], recorded["sets"]
    except (OSError, ValueError, KeyError, TypeError):
        return False  # no such file, or somebody else's
    if not same_settings:
        return False
    if digest != data.sha256:
        changed = [name for name, ids in data.split.manifest().items() if ids != sets.get(name)]
        what = f"other images are in {', '.join(changed)}" if changed else "images under the same ids are others, or their labels"
        raise ValueError(f"data: the split is not the one that {path} records for these settings: {what}; is it another source?")
    return True


def _settings(config: DataConfig, seed: int) -> dict[str, Any]:
    """What decides a split: not where the images are, nor what becomes of them."""
    return {"seed": seed, "data": config.model_dump(exclude=ELSEWHERE)}
