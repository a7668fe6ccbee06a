"""Exported classifiers: weights in safetensors, with all metadata as text. Reading such a file never runs code in it."""

import functools
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from trainables.config import TrialConfig
from trainables.data import LongTailedData, build_data
from trainables.data.loaded import open_store
from trainables.data.loader import ImageFormat, Normalisation
from trainables.engine.numerics import numerics
from trainables.evaluate import accuracy_metrics, class_accuracies
from trainables.machine import choose_device, num_cores
from trainables.method_config import MethodConfig
from trainables.methods import Loss, Method, Task, build_method
from trainables.models import Classifier, build_classifier, build_head
from trainables.models.stage_heads import build_stage_head
from trainables.stage_config import method_of


def write_model(
    path: Path, phi: dict[str, Tensor], config: TrialConfig, data: LongTailedData, form: ImageFormat, epoch: int = 0
) -> None:
    """Writes phi, the classifier's state at the end of `epoch`, with the metadata that a program needs to use the classifier.

    The metadata are the trial's configuration, class names, training images of each class, image shape (C, H, W), pixel mean and
    std of each channel, and the digest of the split that phi was trained on.
    """
    metadata = {
        "trial": config.model_dump_json(),
        "class_names": json.dumps(data.class_names),
        "class_counts": json.dumps(data.class_counts.tolist()),
        "image_shape": json.dumps(form.shape),
        "normalisation": json.dumps(form.normalisation._asdict()),
        "split_sha256": data.sha256,
        "stage": str(config.stage_at(epoch)),
    }
    save_file({name: tensor.contiguous() for name, tensor in phi.items()}, path, metadata)


def read_model(path: Path) -> tuple[Classifier, TrialConfig, dict[str, str]]:
    """The classifier in eval mode, the configuration of its trial, and all metadata that `write_model` has written.

    The classifier's logits are those that predictions are made from: a post-hoc adjustment of the method is part of it.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        phi = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    config = TrialConfig.model_validate_json(metadata["trial"])
    shape = tuple(json.loads(metadata["image_shape"]))
    num_classes = len(json.loads(metadata["class_names"]))
    classifier = build_classifier(config.classifier, shape, num_classes, config.seed, pretrained=False)
    if "stage" in metadata:  # files of older versions have one stage, and no method that adjusts predictions
        stages = config.later_stages()[: int(metadata["stage"])]
        new_head = functools.partial(build_head, config.classifier, classifier.num_features, num_classes)
        for stage in stages:
            classifier.head = build_stage_head(stage, classifier.head, num_classes, new_head)
        classifier.load_state_dict(phi)
        task = Task(num_classes, classifier.num_features, torch.tensor(json.loads(metadata["class_counts"])))
        adjusts = adjustment(method_of(stages[-1]) if stages else config.method, task)
        classifier.adjustment = None if adjusts is None else adjusts.to(next(classifier.parameters()).dtype)
    else:
        classifier.load_state_dict(phi)
    return classifier.eval(), config, metadata


def adjustment(config: MethodConfig, task: Task) -> nn.Module | None:
    """A method's `predict` as a module; None for methods that leave logits as they are."""
    method = build_method(config, task, seed=0)
    if type(method).predict is not Method.predict:
        return Prediction(method)
    return None if type(method.base_loss).predict is Loss.predict else Prediction(method.base_loss)


class Prediction(nn.Module):
    """Logits (B, num_classes) -> the logits that predictions are made from."""

    def __init__(self, adjusts: Method | Loss) -> None:
        super().__init__()
        self.adjusts = adjusts

    def forward(self, logits: Tensor) -> Tensor:
        """As Method.predict."""
        return self.adjusts.predict(logits)


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
    store.hold(data.test.ids)
    form = ImageFormat(tuple(json.loads(metadata["image_shape"])), Normalisation(**json.loads(metadata["normalisation"])))
    test = store.load(data.test, form)
    with numerics(config.compute, device):
        accuracy = class_accuracies(classifier, test, len(data.class_counts), predict=classifier.adjustment)
    counts = torch.bincount(test.labels, minlength=len(accuracy))
    return accuracy_metrics("test", accuracy, torch.from_numpy(data.clean_counts).to(device), counts)
