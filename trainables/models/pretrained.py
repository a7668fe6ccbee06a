"""Pre-trained weights for a backbone, from a local file. Reading the file never runs code in it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from trainables.data.framing import Framing
from trainables.data.loader import Expected, Normalisation, noted_framing

WRAPPERS = ("state_dict", "model")
"""Keys under which training programs store the state dict among other objects."""
PREFIXES = re.compile(r"^((module|backbone)\.)+")
"""Prefixes of parameter names: DataParallel's `module`, and `backbone` of whole classifiers, including this project's."""
WHOLE = re.compile(r"^(module\.)*backbone\.")
"""How parameter names of the backbone of a whole classifier begin; the others are those of its head."""
IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""What most published weights expect, in units of the largest value of a pixel."""


class Architecture(NamedTuple):
    """What is to be known of a backbone to read a file of its weights."""

    title: str
    """Its name in messages, as `a ResNet-18`."""
    setting: str
    """The setting that chooses among the architectures, as `depth`."""
    value: Any
    """Its value."""
    first: str
    """Name of the first convolution."""
    heads: tuple[str, ...]
    """How the names of the file's own head begin. They are skipped: a pre-trained head has other classes."""
    adapt: Callable[[dict[str, Any], nn.Module], dict[str, Any]] = lambda state, backbone: state
    """Fits a state dict to this backbone, for example to the size of its images."""


def load_pretrained(backbone: nn.Module, weights: str, architecture: Architecture) -> None:
    """Overwrites parameters and buffers of `backbone` with those of the file `weights`.

    Raises:
        ValueError: when the file cannot be read, or does not hold exactly the backbone's tensors. num_batches_tracked may be
            missing, as in old files.
    """
    own, given = backbone.state_dict(), read_state(Path(weights), architecture.heads)
    try:
        given = architecture.adapt(given, backbone)
    except (RuntimeError, KeyError, ValueError, AttributeError, TypeError) as error:  # it was written for files that fit
        reason = " ".join(str(error).split())
        raise ValueError(
            f"classifier.weights: {weights} is not of {architecture.title} ({type(error).__name__}: {reason}); is it of another "
            f"{architecture.setting} than {architecture.value}?"
        ) from error
    missing = [name for name in own if name not in given and not name.endswith(".num_batches_tracked")]
    unexpected = [name for name in given if name not in own]
    misshapen = [name for name in own if name in given and _shape(given[name]) != _shape(own[name])]
    faults = []
    if missing:
        faults.append(f"lacks {_first(missing)}")
    if unexpected:
        faults.append(f"has {_first(unexpected)}, which {architecture.title} has not")
    if misshapen:
        name = misshapen[0]
        faults.append(f"has {_first(misshapen)} of shape {_shape(given[name])}, expected {_shape(own[name])}")
    if faults:
        first = f"{architecture.first}.weight"
        only_first = misshapen == [first] and not missing and not unexpected
        what, here = ("number of channels", own[first].shape[1]) if only_first else (architecture.setting, architecture.value)
        raise ValueError(f"classifier.weights: {weights} {'; '.join(faults)}; is it of another {what} than {here}?")
    backbone.load_state_dict(own | given)


def read_state(path: Path, heads: tuple[str, ...]) -> dict[str, Any]:
    """The state dict of a file, without the head, with the backbone's parameter names.

    Args:
        path: of the file.
        heads: how the names of the file's head begin. In a file of a whole classifier, with a `backbone`, `head` is one, too.

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
    of_head = {name for name in loaded if PREFIXES.sub("", str(name)).startswith(heads)}
    if any(WHOLE.match(str(name)) for name in loaded):
        of_head |= {name for name in loaded if not WHOLE.match(str(name)) and PREFIXES.sub("", str(name)).startswith("head.")}
    state = {PREFIXES.sub("", str(name)): value for name, value in loaded.items()}
    if len(state) < len(loaded):
        raise ValueError(f"classifier.weights: {path} has names that differ only in their prefix; keep one state dict in it")
    return {PREFIXES.sub("", str(name)): value for name, value in loaded.items() if name not in of_head}


def exported_input(weights: str) -> Expected | None:
    """What an exported model of this project was trained with; None if the file is no such model."""
    if not weights.endswith(".safetensors"):
        return None
    try:
        with safe_open(weights, framework="pt") as file:
            noted = file.metadata() or {}
        mean, std = (json.loads(noted["normalisation"])[name] for name in ("mean", "std"))
        white, framing = int(noted.get("white", 255)), noted_framing(noted)
    except Exception:  # what is wrong with the file is said where its weights are read
        return None
    return Expected(Normalisation(tuple(value / white for value in mean), tuple(value / white for value in std)), framing)


def published_input(model: str, weights: str) -> Expected:
    """What torchvision's published weights of a model expect.

    Args:
        model: torchvision's name of the architecture.
        weights: a local file. Where there are several weights for the model, the file's name, without its ending, tells which
            ones it holds; a file of another name counts as the first ones, IMAGENET1K_V1 except for `vit_h_14`.
    """
    from torchvision.models import get_model_weights  # here, because the import takes over a second

    known = list(get_model_weights(model))
    stem = Path(weights).stem
    given = next((some.transforms() for some in known if Path(some.url).stem == stem), known[0].transforms())
    normalisation = Normalisation(tuple(given.mean), tuple(given.std))
    return Expected(normalisation, Framing(given.crop_size[0] / given.resize_size[0], given.interpolation.value))


def _shape(value: Any) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _first(names: list[str]) -> str:
    return f"{names[0]} (and {len(names) - 1} more)" if len(names) > 1 else names[0]
