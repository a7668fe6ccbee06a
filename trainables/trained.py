"""The classifier of a finished epoch, with head and predictions of its stage, and what it reaches on the sealed test set."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainables.collectives import ALONE, Collectives
from trainables.config import TrialConfig
from trainables.data import LongTailedData
from trainables.data.loader import ImageFormat, ImageStore
from trainables.engine.numerics import autocast_type
from trainables.evaluate import accuracy_metrics, class_accuracies, predicted_classes
from trainables.method_config import MethodConfig
from trainables.methods import Loss, Method, Task, build_method
from trainables.models import Classifier, build_classifier, build_head
from trainables.models.stage_heads import build_stage_head
from trainables.stage_config import method_of

LAST = "test_last"
"""The prefix of the test metrics of the last epoch; those of the best epoch begin with `test`."""


def trained_classifier(
    config: TrialConfig, phi: dict[str, Tensor], shape: tuple[int, int, int], class_counts: Sequence[int], stage: int
) -> Classifier:
    """The classifier with parameters `phi`, on the CPU and in eval mode.

    Its `adjustment` turns logits into those that predictions are made from, or is None. Sets are evaluated in the trial's
    precision.

    Args:
        config: of the trial.
        phi: the classifier's state, of an epoch of `stage`.
        shape: of an image, (C, H, W).
        class_counts: training images of each class, (num_classes,), as the trainer sees them.
        stage: number of the stage that phi belongs to.
    """
    num_classes = len(class_counts)
    classifier = build_classifier(config.classifier, shape, num_classes, config.seed, pretrained=False)
    stages = config.later_stages()[:stage]
    new_head = functools.partial(build_head, config.classifier, classifier.num_features, num_classes)
    for later in stages:
        classifier.head = build_stage_head(later, classifier.head, num_classes, new_head)
    classifier.load_state_dict(phi)
    classifier.autocast = autocast_type(config.compute)
    task = Task(num_classes, classifier.num_features, torch.tensor(class_counts))
    adjusts = adjustment(method_of(stages[-1]) if stages else config.method, task)
    classifier.adjustment = None if adjusts is None else adjusts.to(next(classifier.parameters()).dtype)
    return classifier.eval()


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


def read_test_set(
    classifiers: dict[str, Classifier],
    data: LongTailedData,
    store: ImageStore,
    form: ImageFormat,
    collectives: Collectives = ALONE,
) -> dict[str, float]:
    """Accuracies on the sealed test set, which is loaded once: `<prefix>/acc`, its bands and `<prefix>/plain_acc`.

    Args:
        classifiers: by the prefix of their metrics; on the device of the images.
        data: of the trial.
        store: of the trial's images.
        form: the images' format.
        collectives: the workers of the trial; each evaluates its share.

    Raises:
        ValueError: when an image cannot be read.
    """
    store.hold(data.test.ids)
    test = store.load(data.test, form)
    clean_counts = torch.from_numpy(data.clean_counts).to(test.labels.device)
    counts = torch.bincount(test.labels, minlength=len(clean_counts))
    metrics: dict[str, float] = {}
    for prefix, classifier in classifiers.items():
        predicted = predicted_classes(classifier, test, None, collectives, classifier.adjustment)
        accuracy = class_accuracies(predicted, test.labels, len(clean_counts))
        metrics |= accuracy_metrics(prefix, accuracy, clean_counts, counts)
    return metrics
