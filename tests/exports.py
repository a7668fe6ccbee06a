"""Trained models as an export writes them, for tests."""

from pathlib import Path
from typing import Any

import torch

from trainables.config import TrialConfig
from trainables.export_model import write_model
from trainables.model_folder import MODEL
from trainables.trial_run import TrialRun

PATTERNS = {"source": "generated", "num_classes": 4, "images_per_class": 50, "n_max": 12, "imbalance_factor": 4}


def export_of(folder: Path, settings: dict[str, Any]) -> tuple[TrialRun, float]:
    """Trains a trial and writes the model of its best epoch to `folder`; returns the trial, and `val/acc` of that epoch."""
    run = TrialRun()
    run.start(TrialConfig.model_validate(settings))
    while run.epoch < run.config.epochs:
        run.run_epoch()
    assert run.best is not None
    folder.mkdir(parents=True, exist_ok=True)
    write_model(folder / MODEL, run.best.phi, run.config, run.loaded.data, run.loaded.format, run.best.epoch)
    return run, run.best.metrics["val/acc"]


def val_images(run: TrialRun) -> tuple[torch.Tensor, torch.Tensor]:
    """The val images of a decoded source, (N, C, H, W) uint8, and their labels."""
    data = run.loaded.data
    return torch.from_numpy(data.source.images[data.val.ids]), torch.from_numpy(data.val.labels)
