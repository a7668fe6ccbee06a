"""A method that wants two views of each image, as contrastive and semi-supervised methods do."""

from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from trainables.config import TrialConfig
from trainables.method_config import METHOD_SETTINGS, WeightingSettings
from trainables.methods import METHODS, Method, Task
from trainables.methods.base import Head
from trainables.methods.context import Context
from trainables.plugins import register_method
from trainables.trial_run import TrialRun


class ConsistencyConfig(WeightingSettings):
    """Two views of an image should get the same probabilities."""

    name: Literal["consistency"] = "consistency"
    weight: float = 1.0


class Consistency(Method):
    """Cross-entropy of both views, and the squared distance between their probabilities."""

    views = 2
    seen: list[Context]

    def __init__(self, config: ConsistencyConfig, task: Task) -> None:
        super().__init__(config, task)
        self.weight, self.seen = config.weight, []

    def train_loss(self, head: Head, features: Tensor, context: Context, state: Any) -> Tensor:
        self.seen.append(context)
        logits = head(features)
        first, second = logits.softmax(1).chunk(2)
        return self.sample_losses(logits, context).mean() + self.weight * (first - second).square().sum(1).mean()


@pytest.fixture
def method() -> Any:
    register_method(ConsistencyConfig, Consistency)
    yield ConsistencyConfig()
    del METHODS["consistency"], METHOD_SETTINGS["consistency"]


def test_a_batch_has_all_images_twice_and_augmented_differently(method: ConsistencyConfig) -> None:
    run = TrialRun()
    config = TrialConfig(epochs=6, method=method)
    run.start(config.model_copy(update={"data": config.data.model_copy(update={"augment": ["crop_flip"]})}))
    first = run.run_epoch()
    contexts = run.method.seen
    assert len(contexts) == run.steps_per_epoch
    ids = torch.cat([context.ids.chunk(2)[0] for context in contexts])
    assert torch.equal(ids.sort().values, torch.arange(len(run.loaded.train)))  # each image once in an epoch
    for context in contexts:
        for rows in (context.ids, context.labels):
            assert torch.equal(*rows.chunk(2))
        assert torch.equal(context.labels, run.loaded.train.labels[context.ids])
        one, other = context.features.chunk(2)
        assert (one != other).any(1).float().mean() > 0.5  # shifted and flipped at random
    assert [run.run_epoch()["train/loss"] for _ in range(5)][-1] < 0.8 * first["train/loss"]


def test_without_augmentation_both_views_are_the_same(method: ConsistencyConfig) -> None:
    run = TrialRun()
    run.start(TrialConfig(epochs=2, method=method))  # digits are not augmented
    run.run_epoch()
    assert all(torch.equal(*context.features.chunk(2)) for context in run.method.seen)
