"""What a slot's workers are asked for, as a sweep's settings say."""

from orchestrator.config.sweep_config import SweepConfig
from trainables.workers.worker_group import GroupConfig


def group_of(
    config: SweepConfig, min_workers: int, max_workers: int, cpus_per_worker: float, machines_may_come: bool = False
) -> GroupConfig:
    """The group of workers of a slot.

    Args:
        config: of the sweep.
        min_workers: with which a trial goes on after a loss.
        max_workers: with which a trial begins.
        cpus_per_worker: that Ray counts.
        machines_may_come: whether the group waits for machines without limit.
    """
    resources = config.resources
    return GroupConfig(
        min_workers=min_workers,
        max_workers=max_workers,
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=resources.gpus_per_worker,
        device=config.trial.device,
        heartbeat_timeout_s=resources.heartbeat_timeout_s,
        start_s=resources.start_limit_s,
        restarts=resources.restarts,
        machines_may_come=machines_may_come,
    )
