"""Pre-trained weights for a backbone, from a local file. Reading the file never runs code in it."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

WRAPPERS = ("state_dict", "model")
"""Keys under which training programs store the state dict among other objects."""
PREFIXES = re.compile(r"^((module|backbone)\.)+")
"""Prefixes of parameter names: DataParallel's `module`, and `backbone` of whole classifiers, including this project's."""
HEAD_NAMES = ("fc.", "head.")
"""Parameter names of torchvision's head and of this project's. They are skipped: a pre-trained head has other classes."""


def load_pretrained(backbone: nn.Module, weights: str, depth: int) -> None:
    """Overwrites parameters and buffers of `backbone`, a ResNet of `depth` layers, with those of the file `weights`.

    Raises:
        ValueError: when the file cannot be read, or does not hold exactly the backbone's tensors. num_batches_tracked may be
            missing, as in old files.
    """
    own, given = backbone.state_dict(), read_state(Path(weights))
    missing = [name for name in own if name not in given and not name.endswith(".num_batches_tracked")]
    unexpected = [name for name in given if name not in own]
    misshapen = [name for name in own if name in given and _shape(given[name]) != _shape(own[name])]
    faults = []
    if missing:
        faults.append(f"lacks {_first(missing)}")
    if unexpected:
        faults.append(f"has {_first(unexpected)}, which a ResNet-{depth} has not")
    if misshapen:
        name = misshapen[0]
        faults.append(f"has {_first(misshapen)} of shape {_shape(given[name])}, expected {_shape(own[name])}")
    if faults:
        only_first = misshapen == ["conv1.weight"] and not missing and not unexpected
        what, here = ("number of channels", own["conv1.weight"].shape[1]) if only_first else ("depth", depth)
        raise ValueError(f"classifier.weights: {weights} {'; '.join(faults)}; is it of another {what} than {here}?")
    backbone.load_state_dict(own | given)


def read_state(path: Path) -> dict[str, Any]:
    """The state dict of a file, without the head, with the backbone's parameter names.

    Raises:
        ValueError: when the file holds no state dict, or cannot be read without running code in it.
    """
    try:
        path.open("rb").close()
    except OSError as error:
        raise ValueError(f"classifier.weights: {path} cannot be read: {error.strerror}") from error
    try:
        loaded = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # with damaged files the readers raise many types, from EOFError to struct.error
        raise ValueError(
            f"classifier.weights: {path} cannot be read ({type(error).__name__}); allowed: a .safetensors file, or a torch file "
            "of tensors and plain values alone, since other objects could run programs"
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict):
        raise ValueError(f"classifier.weights: {path} holds a {type(loaded).__name__}; expected a state dict, tensors by name")
    state = {PREFIXES.sub("", str(name)): value for name, value in loaded.items()}
    if len(state) < len(loaded):
        raise ValueError(f"classifier.weights: {path} has names that differ only in their prefix; keep one state dict in it")
    return {name: value for name, value in state.items() if not name.startswith(HEAD_NAMES)}


def _shape(value: Any) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _first(names: list[str]) -> str:
    return f"{names[0]} (and {len(names) - 1} more)" if len(names) > 1 else names[0]
