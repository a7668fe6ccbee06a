"""A method from outside the package: the fewer images a class has, the larger the weight of each of its images.

    python -m orchestrator.sweep examples/inverse_frequency.yaml

A plug-in is a module with three parts: settings, a class with the interface of trainables/methods/base.py, and one call that
registers both. `trial.plugins: [examples.inverse_frequency]` in the sweep's file names the module.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor

from trainables.method_config import WeightingSettings
from trainables.methods import Context, Task
from trainables.methods.weighted import Weighted
from trainables.plugins import register_method


class InverseFrequencyConfig(WeightingSettings):
    """Class weights from class counts: w_c is proportional to n_c^-strength, with mean 1 over the classes."""

    name: Literal["inverse_frequency"] = "inverse_frequency"
    """Name of the method."""
    strength: float = Field(1.0, ge=0)
    """Exponent of the class counts. 0 gives plain cross-entropy, 0.5 the inverse square root of the class frequency, 1 the
    inverse class frequency."""


class InverseFrequency(Weighted):
    """(1/B) sum_i w_{y_i} L_i, without theta. `Weighted` multiplies the loss of each image by what `begin_batch` returns."""

    weights: Tensor

    def __init__(self, config: InverseFrequencyConfig, task: Task) -> None:
        super().__init__(config, task)
        # A class without images counts as one image. A buffer follows the method to the trial's device.
        weights = task.class_counts.clamp_min(1).double() ** -config.strength
        self.register_buffer("weights", weights / weights.mean(), persistent=False)

    def begin_batch(self, context: Context) -> Tensor:
        """The weight of each image of the batch, (B,)."""
        return self.weights[context.labels]


register_method(InverseFrequencyConfig, InverseFrequency)
