"""Limits that end a sweep before all its trials have ended: a budget, and a share of failed trials."""

from pydantic import Field, model_validator

from trainables.settings import Settings


class BudgetConfig(Settings):
    """How much a sweep may use, over all its resumptions. When a budget is used up, running trials stop after their current epoch
    and the sweep counts as done. `--resume` with a larger budget continues the sweep.
    """

    wall_hours: float | None = Field(None, gt=0)
    """Hours from the start of the first trial."""
    gpu_hours: float | None = Field(None, gt=0)
    """GPUs of all slots times hours. GPUs that wait count like GPUs in use, as in a cloud's bill."""
    cost_per_gpu_hour: float | None = Field(None, gt=0)
    """Price of one GPU for one hour, in any currency. When the price is set, the sweep's summary shows costs."""
    cost: float | None = Field(None, gt=0)
    """Upper limit of the cost of all GPU hours, in the currency of `cost_per_gpu_hour`."""

    @model_validator(mode="after")
    def _priced(self) -> "BudgetConfig":
        if self.cost is not None and self.cost_per_gpu_hour is None:
            raise ValueError("budget.cost is set, but budget.cost_per_gpu_hour is not; allowed: both, or no cost")
        return self


class FailureConfig(Settings):
    """What happens when a trial fails: it raises an error, loses its process, or hangs. A trial that diverges has not failed."""

    retries: int = Field(1, ge=0)
    """How often a trial restarts from its last checkpoint before it counts as failed."""
    max_failed_fraction: float = Field(0.5, gt=0, le=1)
    """The sweep ends as failed when the number of failed trials exceeds this fraction of the searched trials and references."""
