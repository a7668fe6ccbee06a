"""Exported classifiers: weights in safetensors, with all metadata as text. Reading such a file never runs code in it."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from trainables.config import TrialConfig
from trainables.data import LongTailedData, build_data
from trainables.data.loaded import open_store
from trainables.data.loader import ImageFormat
from trainables.data.source import Vectors
from trainables.engine.numerics import numerics
from trainables.frozen import PREFIX, frozen_parts
from trainables.machine import choose_device, num_cores
from trainables.models import Classifier
from trainables.trained import read_test_set, trained_classifier


def write_model(
    path: Path, phi: dict[str, Tensor], config: TrialConfig, data: LongTailedData, form: ImageFormat, epoch: int = 0
) -> None:
    """Writes phi, the classifier's state at the end of `epoch`, with the metadata that a program needs to use the classifier.

    The metadata are the trial's configuration, class names, training images of each class, image shape (C, H, W), pixel mean and
    std of each channel, the framing of images if the weights that training began with expect one, the largest value of a pixel,
    and the digest of the split that phi was trained on. A model of feature vectors also gets the backbone that has computed them,
    if it is known.
    """
    metadata = {
        "trial": config.model_dump_json(),
        "class_names": json.dumps(data.class_names),
        "class_counts": json.dumps(data.class_counts.tolist()),
        **form.noted(),
        "white": str(data.source.white),
        "split_sha256": data.sha256,
        "stage": str(config.stage_at(epoch)),
    }
    tensors = {name: tensor.contiguous() for name, tensor in phi.items()}
    vectors = data.source.images
    if isinstance(vectors, Vectors) and vectors.backbone is not None:
        of_backbone, described = frozen_parts(vectors.backbone)
        tensors, metadata = tensors | of_backbone, metadata | described
    # Not `save_file`: its file can be read by its owner alone, whatever the umask says.
    path.write_bytes(save(tensors, metadata))


def read_model(path: Path) -> tuple[Classifier, TrialConfig, dict[str, str]]:
    """The classifier in eval mode, the configuration of its trial, and all metadata that `write_model` has written.

    The classifier's logits are those that predictions are made from: a post-hoc adjustment of the method is part of it. A model
    of feature vectors takes these, even if the file also holds the backbone that has computed them.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        names = [name for name in file.keys() if not name.startswith(PREFIX)]  # noqa: SIM118 (not a mapping)
        phi = {name: file.get_tensor(name) for name in names}
    config = TrialConfig.model_validate_json(metadata["trial"])
    shape, counts = tuple(json.loads(metadata["image_shape"])), json.loads(metadata["class_counts"])
    return trained_classifier(config, phi, shape, counts, int(metadata.get("stage", 0))), config, metadata


def read_test(path: Path) -> dict[str, float]:
    """Accuracy of an exported model on its sealed test set: `test/acc`, its bands and `test/plain_acc`.

    Call it once per model, at the end.

    Raises:
        ValueError: when the split differs from the one that the model was trained on, or an image cannot be read.
    """
    classifier, config, metadata = read_model(path)
    device = choose_device("cpu" if config.device == "cpu" else "auto")  # this machine may have no GPU, unlike the training's
    classifier.to(device)
    torch.set_num_threads(num_cores())  # with one thread, 50 000 large images would take hours
    data = build_data(config.data, config.seed)
    if data.sha256 != metadata["split_sha256"]:
        raise ValueError(f"data: the images or labels are not those of {path}: the split's sha256 was {metadata['split_sha256']}")
    store = open_store(config.data, data.source, device, config.compute.readers)
    form = ImageFormat.of(metadata)
    with numerics(config.compute, device):
        return read_test_set({"test": classifier}, data, store, form)
