"""Files that appear whole or not at all, and their digests. Pure Python."""

import hashlib
import os
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Writes a small file so that readers see the old or the new text, never a part."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
