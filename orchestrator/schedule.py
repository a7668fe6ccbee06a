"""From settings to a Tune scheduler that counts our epochs."""

from typing import Any

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from orchestrator.config import SEARCHED, AshaConfig, SweepConfig
from orchestrator.search import OBJECTIVE


def build_scheduler(config: SweepConfig) -> TrialScheduler:
    """The scheduler of a sweep; it sees the same objective as the sampler and the export."""
    if not isinstance(config.scheduler, AshaConfig):
        return FIFOScheduler()
    return Asha(
        time_attr="epoch",
        metric=OBJECTIVE,
        mode="max",
        max_t=config.trial.epochs,
        grace_period=config.scheduler.grace_epochs,
        reduction_factor=config.scheduler.reduction_factor,
    )


class Asha(AsyncHyperBandScheduler):
    """Asynchronous successive halving. References count on its rungs but are never stopped: they are what is compared with."""

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """CONTINUE or STOP."""
        decision: str = super().on_trial_result(tune_controller, trial, result)
        return decision if trial.config["variant"] == SEARCHED else TrialScheduler.CONTINUE
