"""Checkpoints: a trial's state on disk, written atomically and verified by digest when read.

A folder holds state.pt (tensors, numbers, strings) and its digest. state.pt is read with weights_only, so no code in it can run.
"""

import hashlib
import io
import json
import pickle
from pathlib import Path
from typing import Any

from trainables.files import replace_files, sync

STATE, MANIFEST = "state.pt", "checkpoint.json"


class DamagedCheckpoint(ValueError):
    """A checkpoint is missing, or its content differs from what was written."""


def pack(state: dict[str, Any]) -> bytes:
    """`state` as bytes, the content of state.pt."""
    import torch  # takes seconds, which digests do not need

    packed = io.BytesIO()
    torch.save(_without_views(state), packed)
    return packed.getvalue()


def _without_views(value: Any) -> Any:
    """The same state with copies in place of tensors that are parts of larger ones, which torch would write as a whole."""
    import torch

    if isinstance(value, torch.Tensor):
        is_part = value.untyped_storage().nbytes() > value.numel() * value.element_size()
        return value.clone(memory_format=torch.contiguous_format) if is_part else value
    if isinstance(value, dict):
        return type(value)((key, _without_views(inner)) for key, inner in value.items())
    return [_without_views(inner) for inner in value] if isinstance(value, list) else value


def unpack(packed: bytes, source: str = "this") -> dict[str, Any]:
    """The state that `pack` was given, with tensors on the CPU. `source` names the state in errors.

    Raises:
        ValueError: when the bytes are not a state, or contain objects other than tensors and plain values. No code in them runs.
    """
    import torch

    try:
        state: dict[str, Any] = torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{source} is not the state of a trial: there are other things in it than tensors and plain values; they could be "
            "programs, and nothing of it was run"
        ) from error
    except Exception as error:  # with damaged bytes torch raises exceptions of many types
        raise ValueError(f"{source} is not the state of a trial: it cannot be read ({type(error).__name__}: {error})") from error
    return state


GOING_ON = frozenset({"phi", "average", "theta", "optimizer", "meta_optimizer", "zero_updates", "watch"})
"""What a trial's state holds for the epochs that follow alone."""
LATER = frozenset({"average", "zero_updates", "watch"})
"""What of it the states of earlier versions do not hold."""


def completed(state: dict[str, Any]) -> dict[str, Any]:
    """The state of a trial that has trained all its epochs, without what further epochs alone would need."""
    return {key: value for key, value in state.items() if key not in GOING_ON}


def write_checkpoint(folder: Path, packed: bytes) -> str:
    """Writes a packed state and then its digest. Each of the two files appears whole or not at all.

    On a full disk an older checkpoint in the folder stays unchanged, and the call may be repeated.

    Returns: the digest.
    """
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(packed).hexdigest()
    replace_files(folder, {STATE: packed, MANIFEST: _manifest(digest)})
    for place in new:
        sync(place.parent)  # a power cut must not take the folder with its synced files
    return digest


def read_checkpoint(folder: Path, expected: str | None = None) -> bytes:
    """The packed state of a checkpoint. `expected` is its digest from another record; None takes the digest in the folder.

    Raises:
        DamagedCheckpoint: when the folder holds no complete checkpoint, or its content differs from what was written.
    """
    try:
        written = expected or json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["sha256"]
        packed = (folder / STATE).read_bytes()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"{folder} holds no complete checkpoint ({error})") from error
    if (digest := hashlib.sha256(packed).hexdigest()) != written:
        raise DamagedCheckpoint(f"{folder / STATE} is not what was written: sha256 {digest}, expected {written}")
    return packed


def check_checkpoint(folder: Path, digest: str) -> None:
    """Sees that a folder holds the checkpoint with this digest, and that the digest in the folder is the same.

    Raises:
        DamagedCheckpoint: when it does not; the message names the file.
    """
    read_checkpoint(folder, digest)
    try:
        written = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise DamagedCheckpoint(f"{folder / MANIFEST} cannot be read: {error.strerror}") from error
    if written != _manifest(digest):
        raise DamagedCheckpoint(f"{folder / MANIFEST} is not what was written: it does not hold the sha256 {digest} of {STATE}")


def _manifest(digest: str) -> bytes:
    return json.dumps({"sha256": digest}).encode()
