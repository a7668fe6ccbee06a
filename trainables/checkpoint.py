"""A trial's state on disk: written atomically, checked by digest when read, and never a program.

A folder holds state.pt (tensors, numbers, words; read with weights_only, so nothing in it can run) and its digest.
"""

import hashlib
import io
import json
import pickle
from pathlib import Path
from typing import Any

import torch

from trainables.files import replace_files

STATE, MANIFEST = "state.pt", "checkpoint.json"


class DamagedCheckpoint(ValueError):
    """A checkpoint is not there, or not what was written."""


def pack(state: dict[str, Any]) -> bytes:
    """`state` as the content of state.pt."""
    packed = io.BytesIO()
    torch.save(state, packed)
    return packed.getvalue()


def unpack(packed: bytes, source: str = "this") -> dict[str, Any]:
    """What `pack` was given; tensors come to the CPU. `source` names it in errors.

    Raises:
        ValueError: when there is anything but tensors and plain values in it, none of which is run, or no state at all.
    """
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{source} is not the state of a trial: there are other things in it than tensors and plain values; they could be "
            "programs, and nothing of it was run"
        ) from error
    except Exception as error:  # damaged bytes make torch raise nearly anything
        raise ValueError(f"{source} is not the state of a trial: it cannot be read ({type(error).__name__}: {error})") from error
    return state


def write_checkpoint(folder: Path, packed: bytes) -> str:
    """Writes a packed state and then, as the seal, its digest, which is returned; both appear whole or not at all.

    On a full disk an older checkpoint in the folder stays as it was, and this may be called again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(packed).hexdigest()
    replace_files(folder, {STATE: packed, MANIFEST: json.dumps({"sha256": digest}).encode()})
    return digest


def read_checkpoint(folder: Path, expected: str | None = None) -> bytes:
    """The packed state of a checkpoint; `expected` is its digest where another record holds it too.

    Raises:
        DamagedCheckpoint: when the folder holds none, or its content is not what was written.
    """
    try:
        written = expected or json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["sha256"]
        packed = (folder / STATE).read_bytes()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"{folder} holds no complete checkpoint ({error})") from error
    if (digest := hashlib.sha256(packed).hexdigest()) != written:
        raise DamagedCheckpoint(f"{folder / STATE} is not what was written: sha256 {digest}, expected {written}")
    return packed
