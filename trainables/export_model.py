"""A trained classifier as a file that needs no program to read safely: weights in safetensors, all else as text beside them."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from trainables.config import TrialConfig
from trainables.data import LongTailedData, build_data
from trainables.data.loader import DeviceSet
from trainables.evaluate import accuracy_metrics, class_accuracies
from trainables.models import Classifier, build_classifier


def write_model(path: Path, phi: dict[str, Tensor], config: TrialConfig, data: LongTailedData) -> None:
    """Writes phi with what a program needs to use it: the trial, class names, image shape (C, H, W), pixel mean and std."""
    metadata = {
        "trial": config.model_dump_json(),
        "class_names": json.dumps(data.class_names),
        "image_shape": json.dumps(data.train.images.shape[1:]),
        "normalisation": json.dumps({"mean": data.mean, "std": data.std}),
    }
    save_file({name: tensor.contiguous() for name, tensor in phi.items()}, path, metadata)


def read_model(path: Path) -> tuple[Classifier, TrialConfig]:
    """The classifier in eval mode, and the trial that trained it."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        phi = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    config = TrialConfig.model_validate_json(metadata["trial"])
    shape = tuple(json.loads(metadata["image_shape"]))
    classifier = build_classifier(config.classifier, shape, len(json.loads(metadata["class_names"])), config.seed)
    classifier.load_state_dict(phi)
    return classifier.eval(), config


def read_test(path: Path) -> dict[str, float]:
    """Accuracy of an exported model on its sealed test set: `test/acc` and its bands. Call it once for a model, at the end."""
    classifier, config = read_model(path)
    torch.set_num_threads(config.threads)
    data = build_data(config.data, config.seed)
    test = DeviceSet(data.test, data, torch.device("cpu"))
    accuracy = class_accuracies(classifier, test, len(data.class_counts))
    return accuracy_metrics("test", accuracy, torch.from_numpy(data.class_counts))
