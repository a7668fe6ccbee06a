"""Whether an exported folder is what was exported. It can be checked alone, away from its sweep."""

import json
from pathlib import Path
from typing import Any

from orchestrator.outcome.own_digest import ZEROS, is_whole, seal
from trainables.files import file_sha256

PROVENANCE = "provenance.json"
OWN_DIGEST = b'"own_sha256": "'
"""What stands before the digest of the file that holds it."""


KEYS = ("sweep", "trial_id", "ledger_head_sha256", "files")
"""What the file says in any case."""


class Mismatch(Exception):
    """Something is not what was written."""


def sealed(provenance: dict[str, Any]) -> bytes:
    """The content of provenance.json, with its own digest."""
    return seal(json.dumps({**provenance, "own_sha256": ZEROS}, indent=1).encode(), OWN_DIGEST)


def check_bundle(folder: Path) -> tuple[dict[str, Any], int]:
    """Recomputes the digests of an exported folder.

    Returns: what provenance.json says, and the number of files.

    Raises:
        Mismatch: naming the first file that is missing, was changed, or was not exported.
    """
    if (folder / PROVENANCE).is_symlink():
        raise Mismatch(f"{folder / PROVENANCE} is a symbolic link; an export has files of its own")
    provenance = read_provenance(folder / PROVENANCE)
    files: dict[str, str] = provenance["files"]
    for name, digest in files.items():
        path = folder / name
        if path.is_symlink():
            raise Mismatch(f"{path} is a symbolic link; an export has files of its own")
        if not path.is_file():
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
    if (whole := is_whole(content, OWN_DIGEST)) is None:
        raise Mismatch(f"{file} holds no digest of its own: it was changed, or exported by an older version; export it again")
    if not whole:
        raise Mismatch(f"{file} was changed: its SHA-256 is not the one that it holds")
    provenance: dict[str, Any] = json.loads(content)
    if missing := [key for key in KEYS if key not in provenance]:
        raise Mismatch(f"{file} does not say {missing[0]!r}: no export of this project wrote it")
    return provenance
