"""What trials run on: how many at a time, each with how many workers, on which resources, and how patiently."""

from typing import Any

from pydantic import Field, field_validator, model_validator

from trainables.settings import Settings


class ResourcesConfig(Settings):
    """What trials run on."""

    max_concurrent: int = Field(2, ge=1)
    """Trials at the same time, at most: fewer when the machines hold fewer."""
    slots: int | None = Field(None, ge=1)
    """Trials at the same time, no fewer: the sweep is refused where they do not fit. None leaves it to `max_concurrent`."""
    workers: int | list[int] = 1
    """Processes that train one trial together, each on its share of every batch; they serve one trial after another. [min, max]
    starts with as many as fit, and from the loss of one on has min in this slot."""
    cpus_per_worker: float | None = Field(None, ge=0.01)
    """CPUs that Ray reserves for each worker; None means `trial.threads`. Less lets workers share cores; more leaves room for the
    processes that read images (`trial.compute.readers`)."""
    gpus_per_worker: float = Field(0, ge=0, le=1)
    """GPUs of each worker: 0 or 1, or with a single worker 1/2, 1/3, ... for trials that share a GPU."""
    heartbeat_timeout_s: float = Field(600, gt=0, le=1e6)
    """How long a worker may go without a sign of life before it counts as hanging: each training step is one, and the end of
    whatever else it does."""
    start_limit_s: float = Field(600, gt=0, le=1e6)
    """How long the workers of a slot may take to come up, machines that have to boot included."""
    restarts: int = Field(2, ge=0)
    """How often the workers of a trial are started anew after one was lost, failed or hung; then the trial has failed."""

    @field_validator("workers", mode="before")
    @classmethod
    def _range(cls, workers: Any) -> Any:
        numbers = workers if isinstance(workers, list) and len(workers) == 2 else [workers]
        if all(type(number) is int and number >= 1 for number in numbers) and sorted(set(numbers)) == numbers:
            return workers
        raise ValueError(f"{workers!r} is no number of workers; allowed: a whole number from 1 on, or [min, max] with min < max")

    @field_validator("gpus_per_worker")
    @classmethod
    def _whole_gpus(cls, gpus: float) -> float:
        if gpus and not 0.98 < round(1 / gpus) * gpus <= 1:  # so that 0.33 is a third
            raise ValueError(f"{gpus:g} of a GPU does not divide it; allowed: 0, 1, 0.5, 0.33, 0.25, ...")
        return gpus

    @model_validator(mode="after")
    def _own_gpus(self) -> "ResourcesConfig":
        if self.workers != 1 and self.gpus_per_worker not in (0, 1):
            raise ValueError(f"gpus_per_worker is {self.gpus_per_worker:g} with several workers; allowed: 0 or 1")
        return self

    def worker_range(self) -> tuple[int, int]:
        """The smallest and the largest number of workers."""
        return (self.workers, self.workers) if isinstance(self.workers, int) else (self.workers[0], self.workers[1])

    def wanted_slots(self) -> int:
        """Trials at the same time where machines are large enough."""
        return self.slots or self.max_concurrent
