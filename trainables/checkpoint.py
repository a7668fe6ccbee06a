"""A trial's state on disk: written atomically, checked by digest when read, and never a program.

A folder holds state.pt (tensors and numbers; read with weights_only, so nothing in it can run) and checkpoint.json (what it is).
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch

STATE, MANIFEST = "state.pt", "checkpoint.json"


def write_checkpoint(folder: Path, state: dict[str, Any], manifest: dict[str, Any]) -> None:
    """Writes `state` and then, as the seal, the manifest with its digest; both appear whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{STATE}.partial"
    torch.save(state, partial)
    sealed = manifest | {"sha256": file_sha256(partial)}
    os.replace(partial, folder / STATE)
    replace_text(folder / MANIFEST, json.dumps(sealed, indent=1))


def read_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """State and manifest of a checkpoint.

    Raises:
        ValueError: when the folder holds none, or its content is not what was written.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        digest = file_sha256(folder / STATE)
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder} holds no complete checkpoint ({error})") from error
    if digest != manifest["sha256"]:
        raise ValueError(f"{folder / STATE} is not what was written: sha256 {digest}, expected {manifest['sha256']}")
    return torch.load(folder / STATE, map_location="cpu", weights_only=True), manifest


def replace_text(path: Path, text: str) -> None:
    """Writes a small file so that readers see the old or the new text, never a part."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
