"""`--quick`: the same sweep, so small that it shows within minutes whether all works. Its numbers are no result."""

from collections.abc import Sequence
from pathlib import Path

from orchestrator.config.sweep_config import SweepConfig, apply_changes, read_sweep
from trainables.classifier_config import ClassifierSettings, ResNetConfig, TimmConfig, TorchvisionConfig
from trainables.data_config import EncodedConfig
from trainables.machine import num_gpus

EPOCHS, TRIALS, IMAGE_SIZE, DEPTH = 2, 3, 64, 10
WITHOUT = ("scheduler={name: none}", "search.confirm=null")
NO_RESULT = "--quick: a few short trials on small images show that all works; their numbers are no result"


def quick_overrides(sweep: Path, overrides: Sequence[str]) -> list[str]:
    """The changes to a sweep's file that make it small, before `overrides`, which come last and so win.

    Raises:
        ConfigError: when the file or the overrides are wrong.
    """
    config = read_sweep(sweep, [*WITHOUT, *overrides])
    return [*WITHOUT, *changes_to(config), *overrides]


def changes_to(config: SweepConfig) -> list[str]:
    """The changes that make a sweep small which neither stops trials early nor confirms them."""
    search = config.search
    references = (apply_changes(config.trial, search.changes_of(name), name) for name in search.references)
    # The first stage has the epochs that the later ones leave.
    later = max(sum(stage.epochs for stage in trial.later_stages()) for trial in (config.trial, *references))
    changes = [f"trial.epochs={EPOCHS + later}"]
    data, classifier = config.trial.data, config.trial.classifier
    changes.append(f"search.trials={TRIALS}" if search.per_method is None else "search.per_method=1")
    if (
        isinstance(data, EncodedConfig)
        and data.streamed()
        and data.image_size
        and data.image_size > IMAGE_SIZE
        and _any_size(classifier)
    ):
        changes.append(f"trial.data.image_size={IMAGE_SIZE}")
    if config.resources.gpus_per_worker and not num_gpus():
        changes.append("resources.gpus_per_worker=0")
        if isinstance(classifier, ResNetConfig) and classifier.depth > DEPTH and classifier.weights is None:
            changes.append(f"trial.classifier.depth={DEPTH}")
    return changes


def _any_size(classifier: ClassifierSettings) -> bool:
    """Whether the classifier can have small images: timm's models and vision transformers may need certain sizes."""
    vision_transformer = isinstance(classifier, TorchvisionConfig) and classifier.model.startswith("vit_")
    return not vision_transformer and not isinstance(classifier, TimmConfig)
