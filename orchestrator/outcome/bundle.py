"""Whether an exported folder is what was exported. It can be checked alone, away from its sweep."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from trainables.files import file_sha256

PROVENANCE = "provenance.json"
OWN_DIGEST = re.compile(rb'"own_sha256": "([0-9a-f]{64})"')
"""The digest of the file that holds it, computed with zeros in its place."""
ZEROS = b'"own_sha256": "' + b"0" * 64 + b'"'


class Mismatch(Exception):
    """Something is not what was written."""


def sealed(provenance: dict[str, Any]) -> bytes:
    """The content of provenance.json, with its own digest."""
    text = json.dumps({**provenance, "own_sha256": "0" * 64}, indent=1).encode()
    return text.replace(ZEROS, b'"own_sha256": "' + hashlib.sha256(text).hexdigest().encode() + b'"')


def check_bundle(folder: Path) -> tuple[dict[str, Any], int]:
    """Recomputes the digests of an exported folder.

    Returns: what provenance.json says, and the number of files.

    Raises:
        Mismatch: naming the first file that is missing, was changed, or was not exported.
    """
    provenance = read_provenance(folder / PROVENANCE)
    files: dict[str, str] = provenance["files"]
    for name, digest in files.items():
        path = folder / name
        if not path.is_file() or path.is_symlink():
            raise Mismatch(f"{path} is missing")
        if (found := file_sha256(path)) != digest:
            raise Mismatch(f"{path} was changed: its SHA-256 is {found[:16]}..., and {PROVENANCE} says {digest[:16]}...")
    if strange := sorted({path.name for path in folder.iterdir()} - files.keys() - {PROVENANCE}):
        raise Mismatch(f"{folder / strange[0]} was not exported: {PROVENANCE} does not name it")
    return provenance, len(files) + 1


def read_provenance(file: Path) -> dict[str, Any]:
    """What provenance.json says, after its own digest was recomputed.

    Raises:
        Mismatch: when the file is missing or was changed, or is of a version that held no digest of its own.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise Mismatch(f"{file} cannot be read: {error.strerror}") from error
    found = OWN_DIGEST.search(content)
    if found is None:
        raise Mismatch(f"{file} holds no digest of its own: it was changed, or exported by an older version; export it again")
    if hashlib.sha256(content.replace(found[0], ZEROS)).hexdigest().encode() != found[1]:
        raise Mismatch(f"{file} was changed: its SHA-256 is not the one that it holds")
    provenance: dict[str, Any] = json.loads(content)
    return provenance
