"""A trial's state on disk: written atomically, checked by digest when read, and never a program.

A folder holds state.pt (tensors, numbers, words; read with weights_only, so nothing in it can run) and its digest.
"""

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import torch

from trainables.files import replace_text

STATE, MANIFEST = "state.pt", "checkpoint.json"


def pack(state: dict[str, Any]) -> bytes:
    """`state` as the content of state.pt."""
    packed = io.BytesIO()
    torch.save(state, packed)
    return packed.getvalue()


def unpack(packed: bytes) -> dict[str, Any]:
    """What `pack` was given; tensors come to the CPU."""
    state: dict[str, Any] = torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)
    return state


def write_checkpoint(folder: Path, packed: bytes) -> str:
    """Writes a packed state and then, as the seal, its digest, which is returned; both appear whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{STATE}.partial"
    partial.write_bytes(packed)
    digest = hashlib.sha256(packed).hexdigest()
    os.replace(partial, folder / STATE)
    replace_text(folder / MANIFEST, json.dumps({"sha256": digest}))
    return digest


def read_checkpoint(folder: Path, expected: str | None = None) -> bytes:
    """The packed state of a checkpoint; `expected` is its digest where another record holds it too.

    Raises:
        ValueError: when the folder holds none, or its content is not what was written.
    """
    try:
        written = expected or json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["sha256"]
        packed = (folder / STATE).read_bytes()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} holds no complete checkpoint ({error})") from error
    if (digest := hashlib.sha256(packed).hexdigest()) != written:
        raise ValueError(f"{folder / STATE} is not what was written: sha256 {digest}, expected {written}")
    return packed
