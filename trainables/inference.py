"""Trained classifiers for use: from an exported folder to a module that turns uint8 images into probabilities."""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from trainables.command_line import typed_path
from trainables.config import TrialConfig
from trainables.config_file import ConfigError
from trainables.data.image_files import Transform
from trainables.data.loader import ImageFormat, Normalisation
from trainables.data_config import FeaturesConfig
from trainables.export_model import read_model
from trainables.files import file_sha256
from trainables.frozen import OnImages, read_frozen
from trainables.model_folder import MODEL, PROVENANCE, check_model_folder


class Model(NamedTuple):
    """A trained classifier, ready for use."""

    module: "ImageClassifier"
    """uint8 images (B, C, H, W) -> probabilities (B, num_classes)."""
    transform: Transform
    """An image file -> an image (C, H, W) for the module."""
    class_names: tuple[str, ...]
    """In the order of the probabilities."""


class ImageClassifier(nn.Module):
    """From images to probabilities. Normalisation and post-hoc adjustments of the method are inside; decoding is not.

    Args:
        classifier: normalised images -> logits; in eval mode, with its adjustment.
        normalisation: that of the classifier's training.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, classifier: nn.Module, normalisation: Normalisation) -> None:
        super().__init__()
        self.classifier = classifier
        for name, values in normalisation._asdict().items():
            self.register_buffer(name, torch.tensor(values)[:, None, None])
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities (B, num_classes), from uint8 images (B, C, H, W)."""
        logits: Tensor = self.classifier((images.float() - self.mean) / self.std)
        return logits.softmax(1)


def load_model(folder: str | Path) -> Model:
    """The model of an exported folder such as results/NAME/best, on the CPU. Of an export, the file's SHA-256 is checked.

    Raises:
        ConfigError: when the folder holds no model, or the model's file is damaged.
    """
    return read_inference(typed_path(str(folder)))[0]


def read_inference(folder: Path) -> tuple[Model, TrialConfig]:
    """The same, and the configuration of the model's trial."""
    file = folder / MODEL
    check_model_folder(folder)
    _check_digest(folder / PROVENANCE, file)
    try:
        classifier, config, metadata = read_model(file)
        form = ImageFormat.of(metadata)
        names, white = json.loads(metadata["class_names"]), int(metadata.get("white", 255))
        frozen = read_frozen(file)
    except ConfigError:
        raise
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        # A ValueError of the settings names a plug-in that is missing; torch raises RuntimeError for tensors that do not fit.
        reason = " ".join(str(error).split())
        raise ConfigError(f"{file}: not a model that can be read ({type(error).__name__}: {reason}); export it again") from error
    if frozen is not None:
        module = ImageClassifier(OnImages(frozen.backbone, classifier, form.normalisation), frozen.format.normalisation)
        transform = Transform(frozen.format.shape, frozen.streamed, frozen.white, frozen.format.framing)
        return Model(module, transform, tuple(names)), config
    if isinstance(config.data, FeaturesConfig):
        raise ConfigError(
            f"{file} is a model of feature vectors whose backbone is not known; allowed: a model of images, or one of vectors "
            "that `python -m trainables.features` has computed, which holds the backbone"
        )
    transform = Transform(form.shape, config.data.streamed(), white, form.framing)
    return Model(ImageClassifier(classifier, form.normalisation), transform, tuple(names)), config


def _check_digest(provenance: Path, file: Path) -> None:
    """Compares the model with the SHA-256 that its export noted; what `trainables.train --out` writes has none."""
    try:
        noted = json.loads(provenance.read_text(encoding="utf-8"))["files"][file.name]
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{provenance}: not the provenance of an export ({type(error).__name__}: {error})") from error
    if (found := file_sha256(file)) != noted:
        raise ConfigError(
            f"{file} was changed since its export: its sha256 is {found}, {PROVENANCE} has {noted}; export it again"
        )
