"""An exported model where this project is missing: MLflow keeps this file beside the model, and needs torch and numpy alone."""

from pathlib import Path
from typing import Any

import numpy as np
import torch


class ExportedModel:
    """What `mlflow.pyfunc.load_model` gives."""

    def __init__(self, program: Any) -> None:
        """Takes a program of torch.export from uint8 images (B, C, H, W) to probabilities (B, num_classes)."""
        self._program = program

    def predict(self, images: Any, params: Any = None) -> Any:
        """Probabilities (B, num_classes), float32, from uint8 images (B, C, H, W), both arrays of numpy."""
        with torch.inference_mode():
            return self._program(torch.from_numpy(np.ascontiguousarray(images))).numpy()


def _load_pyfunc(path: str) -> ExportedModel:
    """The model in a folder; the name is MLflow's."""
    return ExportedModel(torch.export.load(Path(path, "model.pt2")).module())
