"""Models of timm, PyTorch Image Models (Wightman), an optional package."""

import difflib
import re
from importlib import import_module
from typing import Any

from torch import nn

from trainables.classifier_config import TimmConfig
from trainables.data.framing import Framing
from trainables.data.loader import Expected, Normalisation
from trainables.models.classifier import Classifier
from trainables.models.heads import build_head
from trainables.models.hub import unreachable
from trainables.models.pretrained import Architecture

INSTALL = "pip install 'tailtune[backbones]' (or pip install timm)"
FILES = ("model.safetensors", "pytorch_model.bin")
"""What timm's weights are called on the hub, in the order in which timm looks for them."""


def timm_model(config: TimmConfig, image_shape: tuple[int, int, int], num_classes: int) -> Classifier:
    """A model of timm without its classifier, and a head. Models that are built for one size of images are built for this one.

    Raises:
        ValueError: when timm is missing, has no such model, or the model cannot have images of this shape.
    """
    backbone = create(config, image_shape, pretrained=False)
    num_features = int(backbone.num_features if not hasattr(backbone, "head_hidden_size") else backbone.head_hidden_size)  # type: ignore[arg-type]
    return Classifier(backbone, build_head(config, num_features, num_classes), num_features)


def create(config: TimmConfig, image_shape: tuple[int, int, int], pretrained: bool) -> nn.Module:
    """The backbone: with random weights, or with timm's own, which are downloaded.

    Raises:
        ValueError: as `timm_model`, and when there are no such weights or they cannot be downloaded.
    """
    timm, expected = installed(), _expected(config.model)
    channels, height, width = image_shape
    sized = {"img_size": (height, width)} if expected is not None and expected.fixed_input_size else {}
    if pretrained and expected is not None and expected.hf_hub_id:
        files = [expected.hf_hub_filename] if expected.hf_hub_filename else FILES
        if (reason := unreachable(expected.hf_hub_id, files)) is not None:
            raise ValueError(_no_weights(config.model, f"no connection to the hub: {reason}"))
    try:
        made: nn.Module = timm.create_model(config.model, pretrained=pretrained, num_classes=0, in_chans=channels, **sized)
    except Exception as error:  # models refuse sizes by asserts and other types; downloads fail in many ways
        reason = " ".join(str(error).split())[:300]
        if pretrained:
            raise ValueError(_no_weights(config.model, f"{type(error).__name__}: {reason}")) from error
        raise ValueError(_wrong_size(config.model, expected, height, width, f"{type(error).__name__}: {reason}")) from error
    patches = getattr(getattr(made, "patch_embed", None), "patch_size", None)
    if isinstance(patches, tuple) and (height % patches[0] or width % patches[1]):  # the rest would be cut off in silence
        raise ValueError(_wrong_size(config.model, expected, height, width, f"its patches have {patches[0]}x{patches[1]}"))
    return made


def _no_weights(model: str, reason: str) -> str:
    return (
        f"classifier.pretrained is true, but the weights of {model} cannot be had ({reason}); allowed: "
        "classifier.pretrained=false with classifier.weights=FILE, a local copy of them"
    )


def _wrong_size(model: str, expected: Any, height: int, width: int, reason: str) -> str:
    wanted = expected.input_size[-1] if expected is not None else 224
    return (
        f"classifier.model is {model}, which cannot have images of {height}x{width} pixels ({reason}); allowed: "
        f"trial.data.image_size={wanted}, which its weights were trained with"
    )


def installed() -> Any:
    """The package timm.

    Raises:
        ValueError: when it is not installed.
    """
    try:
        return import_module("timm")
    except ImportError as error:
        raise ValueError(f"classifier.name is timm, but the package timm is not installed ({error}); {INSTALL}") from error


def _expected(model: str) -> Any:
    """What timm's weights of a model expect of images, and how they are named; None for a model without weights.

    Raises:
        ValueError: when timm is missing, or has no such model or no such weights.
    """
    timm = installed()
    name, _, tag = model.partition(".")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 5) or ["see timm.list_models()"]
        raise ValueError(f"classifier.model is {model!r}, which timm {timm.__version__} has not; near: {', '.join(near)}")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
    if tag and tag not in tags:
        allowed = ", ".join([name, *(f"{name}.{known}" for known in tags)])
        raise ValueError(f"classifier.model is {model!r}, but {name} has no weights {tag!r}; allowed: {allowed}")
    return timm.get_pretrained_cfg(model)


def timm_architecture(config: TimmConfig, backbone: nn.Module) -> Architecture:
    """How a file of weights fits. timm's own function renames what other programs call otherwise, and fits it to the size of the
    images.
    """
    expected = _expected(config.model)
    heads, first = (getattr(expected, name, None) for name in ("classifier", "first_conv"))
    names = (heads,) if isinstance(heads, str) else tuple(heads or ())
    first = first if isinstance(first, str) else (first or ("",))[0]
    filtered = getattr(import_module(type(backbone).__module__), "checkpoint_filter_fn", None)

    def adapt(state: dict[str, Any], backbone: nn.Module) -> dict[str, Any]:
        return dict(filtered(dict(state), backbone)) if filtered is not None else state

    return Architecture(config.model, "model", config.model, first, tuple(f"{name}." for name in names), adapt)


def timm_input(config: TimmConfig) -> Expected | None:
    """What timm's weights of this model expect; None if timm does not say."""
    expected = _expected(config.model)
    if expected is None:
        return None
    found = import_module("timm.data").resolve_data_config(pretrained_cfg=expected.to_dict())
    mean, std, mode = tuple(found["mean"]), tuple(found["std"]), found["crop_mode"]
    # timm fills the border with the mean; where crop_pct is above 1, its border is black.
    colour = tuple(round(255 * value) for value in mean) if mode == "border" else (0, 0, 0)
    return Expected(Normalisation(mean, std), Framing(found["crop_pct"], found["interpolation"], mode, colour))


def timm_blocks(backbone: nn.Module) -> list[str]:
    """Names of the blocks of a model, in their order, from its own grouping of its parameters; empty if it has none."""
    matcher = getattr(backbone, "group_matcher", None)
    groups = matcher(coarse=False) if matcher is not None else None
    rules = groups.get("blocks") if isinstance(groups, dict) else None  # of a few models it is a function
    patterns = [rules] if isinstance(rules, str) else [pattern for pattern, suffix in rules or () if suffix is None]
    found = [found[0] for name, _ in backbone.named_parameters() for p in patterns if (found := re.match(p, name))]
    return list(dict.fromkeys(found))
