"""A frozen backbone in a file: what has turned images into vectors, so that a model of the vectors can take images again.

The file is safetensors with all metadata as text, as those of exported classifiers. An exported model of vectors holds the same
tensors, with PREFIX before their names, and the same metadata under KEY.
"""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from trainables.config import TrialConfig
from trainables.data.loader import ImageFormat, Normalisation
from trainables.models import Classifier, build_classifier

PREFIX, KEY = "frozen.", "frozen"


class Frozen(NamedTuple):
    """A backbone in eval mode, and what an image has to become for it."""

    backbone: nn.Module
    """Normalised images (B, C, H, W) -> features (B, D)."""
    format: ImageFormat
    white: int
    """The largest value of a pixel; see Source."""
    streamed: bool
    """Whether its training read images with `data.loading: stream`; see image_files.Transform."""


def write_frozen(path: Path, classifier: Classifier, config: TrialConfig, form: ImageFormat, white: int) -> None:
    """Writes the backbone of a classifier.

    Args:
        path: of the new file.
        classifier: its head is not written.
        config: whose `classifier` built it, and whose `data` say how images are resized.
        form: of the images.
        white: the largest value of a pixel.
    """
    metadata = {
        "trial": config.model_dump_json(),
        **form.noted(),
        "white": str(white),
    }
    state = {name: tensor.contiguous() for name, tensor in classifier.state_dict().items() if name.startswith("backbone.")}
    path.write_bytes(save(state, metadata))


def frozen_parts(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What an exported model of vectors has beside its own: tensors and metadata of the backbone in a file."""
    with safe_open(path, framework="pt") as file:
        tensors = {f"{PREFIX}{name}": file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        return tensors, {KEY: json.dumps(file.metadata())}


def read_frozen(path: Path) -> Frozen | None:
    """The backbone that an exported model of vectors holds; None if it holds none.

    Raises:
        ValueError: when it cannot be built here, as without a package that a plug-in needs.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        if KEY not in metadata:
            return None
        names = [name for name in file.keys() if name.startswith(PREFIX)]  # noqa: SIM118
        state = {name.removeprefix(f"{PREFIX}backbone."): file.get_tensor(name) for name in names}
    given = json.loads(metadata[KEY])
    config = TrialConfig.model_validate_json(given["trial"])
    form = ImageFormat.of(given)
    try:
        backbone = build_classifier(config.classifier, form.shape, 2, config.seed, pretrained=False).backbone
        backbone.load_state_dict(state)
    except Exception as error:  # a plug-in's program may raise anything
        reason = " ".join(str(error).split())
        raise ValueError(
            f"the backbone of the vectors cannot be built here ({type(error).__name__}: {reason}); install what it needs"
        ) from error
    return Frozen(backbone.eval(), form, int(given["white"]), config.data.streamed())


class OnImages(nn.Module):
    """A classifier of vectors behind the backbone that computes them.

    Args:
        backbone: normalised images -> features.
        classifier: normalised features -> logits.
        normalisation: of the features.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, classifier: nn.Module, normalisation: Normalisation) -> None:
        super().__init__()
        self.backbone, self.classifier = backbone, classifier
        for name, values in normalisation._asdict().items():
            self.register_buffer(name, torch.tensor(values))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of normalised images (B, C, H, W)."""
        logits: Tensor = self.classifier((self.backbone(images) - self.mean) / self.std)
        return logits
