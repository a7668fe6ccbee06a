"""What trials run on: how many run at a time, the workers of each trial, the resources of each worker, and the time limits."""

from typing import Any

from pydantic import Field, field_validator, model_validator

from trainables.settings import Settings


class ResourcesConfig(Settings):
    """What trials run on."""

    max_concurrent: int | None = Field(2, ge=1)
    """Upper limit of the trials that run at the same time. Fewer run when the machines have room for fewer. None: as many as the
    machines have room for, for instance one on each GPU. With `fused`, it counts processes that train several trials each."""
    slots: int | None = Field(None, ge=1)
    """Exact number of trials that run at the same time. The sweep is refused when they do not fit. None leaves the number to
    `max_concurrent`. On a cluster whose machines come and go, it is the largest number: fewer run while machines are missing.
    With `fused`, it counts processes that train several trials each."""
    fused: int = Field(1, ge=1, le=1024)
    """Number of trials that each process trains together, on the same batches, at most. The results are those of separate trials
    up to rounding, and in a deterministic sweep the same trials are trained together on any machine. Together they take a part of
    the time where each trial is small. Only the classifiers `linear` and `mlp_adapter` can be fused, as on `data.source:
    features`, with one worker and the methods of docs/features.md; other trials of the sweep train alone."""
    workers: int | list[int] = 1
    """Number of processes that train one trial together, each on its share of every batch. The processes serve one trial after
    another. With [min, max], a slot starts with as many workers as fit; after the loss of a worker, the slot continues with min
    workers."""
    cpus_per_worker: float | None = Field(None, ge=0.01)
    """CPUs that Ray reserves for each worker. None means `trial.threads`. A smaller number lets workers share cores. A larger
    number leaves room for the processes that read images (`trial.compute.readers`)."""
    gpus_per_worker: float = Field(0, ge=0, le=1)
    """GPUs of each worker: 0 or 1. With a single worker also 1/2, 1/3, ..., so that several trials share a GPU."""
    heartbeat_timeout_s: float = Field(600, gt=0, le=1e6)
    """Seconds that a worker may go without a heartbeat before the worker counts as hanging. Each training step is a heartbeat,
    and so are batches of an evaluation, and the pieces of longer work before the first step, such as decoding images for the
    cache."""
    start_limit_s: float = Field(600, gt=0, le=1e6)
    """Seconds that the workers of a slot may take to start, including the boot time of machines."""
    restarts: int = Field(2, ge=0)
    """How often the workers of a trial are restarted after a worker was lost, failed or hung. Then the trial has failed; trials
    that were trained together (`fused`) go on alone instead."""

    @field_validator("workers", mode="before")
    @classmethod
    def _range(cls, workers: Any) -> Any:
        numbers = workers if isinstance(workers, list) and len(workers) == 2 else [workers]
        # The second condition also refuses [2, 2]: equal limits are written as one number.
        if all(type(number) is int and number >= 1 for number in numbers) and sorted(set(numbers)) == numbers:
            return workers
        raise ValueError(f"{workers!r} is no number of workers; allowed: a whole number from 1 on, or [min, max] with min < max")

    @field_validator("gpus_per_worker")
    @classmethod
    def _whole_gpus(cls, gpus: float) -> float:
        if gpus and not 0.98 < round(1 / gpus) * gpus <= 1:  # the margin lets 0.33 count as a third
            raise ValueError(f"{gpus:g} of a GPU does not divide it; allowed: 0, 1, 0.5, 0.33, 0.25, ...")
        return gpus

    @model_validator(mode="after")
    def _own_gpus(self) -> "ResourcesConfig":
        if self.workers != 1 and self.gpus_per_worker not in (0, 1):
            raise ValueError(f"gpus_per_worker is {self.gpus_per_worker:g} with several workers; allowed: 0 or 1")
        if self.fused > 1 and self.workers != 1:
            raise ValueError(f"fused is {self.fused} with workers {self.workers}; allowed: fused 1, or workers 1")
        return self

    def worker_range(self) -> tuple[int, int]:
        """The smallest and the largest number of workers of a trial."""
        return (self.workers, self.workers) if isinstance(self.workers, int) else (self.workers[0], self.workers[1])

    def wanted_slots(self, trials: int) -> int:
        """Number of processes that train so many trials when the machines are large enough."""
        return self.slots or self.max_concurrent or trials
