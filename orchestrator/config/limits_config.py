"""What ends a sweep before all its trials have: a budget, or too many failures."""

from pydantic import Field, model_validator

from trainables.settings import Settings


class BudgetConfig(Settings):
    """How much a sweep may use, over all its resumptions. Where a budget is used up, running trials end with their current epoch,
    the sweep counts as done, and `--resume` with a larger budget takes it up again.
    """

    wall_hours: float | None = Field(None, gt=0)
    """Hours from the start of the first trial."""
    gpu_hours: float | None = Field(None, gt=0)
    """GPUs of all slots times hours, whether a trial uses them or they wait: what a cloud bills."""
    cost_per_gpu_hour: float | None = Field(None, gt=0)
    """Price of a GPU for an hour, in any currency; the outcome then gives costs."""
    cost: float | None = Field(None, gt=0)
    """Most that all GPU hours may cost."""

    @model_validator(mode="after")
    def _priced(self) -> "BudgetConfig":
        if self.cost is not None and self.cost_per_gpu_hour is None:
            raise ValueError("budget.cost is set, but budget.cost_per_gpu_hour is not; allowed: both, or no cost")
        return self


class FailureConfig(Settings):
    """What happens when a trial fails: raises an error, loses its process, or hangs. One that diverges has not failed."""

    retries: int = Field(1, ge=0)
    """How often a trial goes on from its last checkpoint before it counts as failed."""
    max_failed_fraction: float = Field(0.5, gt=0, le=1)
    """The sweep ends as failed when more than this share of `search.trials` has failed."""
