"""The traced programs of a trial's backbone, and their reuse by the next trial."""

from dataclasses import dataclass
from typing import Any

import torch

from trainables.collectives import Collectives
from trainables.config import ComputeConfig, TrialConfig
from trainables.data import LongTailedData
from trainables.data.loaded import LoadedData
from trainables.engine.linearize import Linearizer
from trainables.engine.numerics import autocast_type
from trainables.engine.parts import LinearizerInParts
from trainables.engine.sharded import ShardedLinearizer
from trainables.methods import build_method, task_of
from trainables.models import Classifier


@dataclass(frozen=True)
class TracedBackbone:
    """The traced programs of a backbone. Later trials of the same architecture reuse them without tracing or compiling."""

    key: tuple[dict[str, Any], ComputeConfig, tuple[int, ...], tuple[int, ...], torch.device]
    linearizer: Linearizer


def needs_forward_mode(config: TrialConfig, classifier: Classifier, data: LongTailedData) -> bool:
    """Whether a trial computes an exact meta-gradient, so that its backbone needs forward mode.

    Args:
        config: of the trial.
        classifier: of the trial.
        data: of the trial.
    """
    if config.bilevel.meta_gradient != "exact":
        return False
    task = task_of(data, classifier.num_features, classifier.head, config.optim.batch_size)
    method = build_method(config.method, task, config.seed)
    return bool(list(method.parameters())) or method.perturbation_shape(1) is not None


def trace_backbone(
    config: TrialConfig, loaded: LoadedData, collectives: Collectives, kept: TracedBackbone | None, views: int = 1
) -> TracedBackbone:
    """The linearizer of a trial whose batches have `views` of each image. Returns `kept` if its key is the trial's."""
    wanted = ((config.optim.batch_size, loaded.train), (config.bilevel.meta_batch_size, loaded.meta))
    repeats = config.data.meta == "from_train"  # its batches may have more images than the set
    batch_sizes = tuple(size if repeats and images is loaded.meta else min(size, len(images)) for size, images in wanted)
    batch_sizes = (views * batch_sizes[0], batch_sizes[1])
    key = (config.classifier.backbone(), config.compute, loaded.format.shape, batch_sizes, loaded.train.labels.device)
    if kept is not None and kept.key == key:
        return kept
    autocast = autocast_type(config.compute)
    compiled, micro_batch = batch_sizes if config.compute.compile else (), config.compute.micro_batch
    if collectives.alone:
        return TracedBackbone(key, LinearizerInParts(micro_batch, autocast, compiled))
    sync = config.compute.batch_norm == "sync"
    return TracedBackbone(key, ShardedLinearizer(collectives, sync, autocast, () if sync else compiled, micro_batch))
