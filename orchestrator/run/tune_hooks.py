"""Ray Tune's hooks: a searcher, a scheduler and a callback, each of which passes everything on to the supervisor.

Ray Tune only supplies processes. It starts them, hands them stints, and brings back their reports. We avoid its pause and restore
because both pickle state: a Tune trial is one stint, and a trial that goes on does so in a new Tune trial, from a checkpoint that
its configuration names.
"""

from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from orchestrator.run.supervisor import Supervisor


class _Hook:
    """Ray Tune pickles all three hooks, for its own way of resuming. We resume from the ledger, so they pickle as nothing."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def __getstate__(self) -> dict[str, Any]:
        return {}


class StintSearch(_Hook, Searcher):
    """Gives Ray Tune the next stint."""

    def __init__(self, supervisor: Supervisor) -> None:
        _Hook.__init__(self, supervisor)
        Searcher.__init__(self)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next stint as a mapping; None while there is none, FINISHED when there will be none. `trial_id` is Ray Tune's."""
        stint = self._supervisor.next_stint()
        if stint is None:
            return Searcher.FINISHED if self._supervisor.over else None
        return stint._asdict() | {"checkpoints": [checkpoint._asdict() for checkpoint in stint.checkpoints]}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the supervisor has the report already."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger holds everything."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class StintScheduler(_Hook, FIFOScheduler):
    """Takes reports, and ends stints."""

    def __init__(self, supervisor: Supervisor, num_slots: int) -> None:
        _Hook.__init__(self, supervisor)
        FIFOScheduler.__init__(self)
        self._to_keep = num_slots

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Keeps all idle processes. Ray Tune caches one idle actor; we raise that limit to the number of slots through a private
        attribute, because it has no setting for it.
        """
        if self._to_keep:
            tune_controller._actor_cache.increase_max(trial.placement_group_factory, by=self._to_keep)
            self._to_keep = 0

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """STOP when the process is to leave the trial."""
        leaves = self._supervisor.on_report(our_id(trial), result["report"])
        return TrialScheduler.STOP if leaves else TrialScheduler.CONTINUE  # type: ignore[no-any-return]

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        """A stint's process raised an error or died."""
        # Ray has written the error beside its own log by now. The copy in the storage, where get_error looks, comes later.
        file = Path(trial.error_file) if trial.error_file else None
        text = file.read_text(encoding="utf-8", errors="replace").strip() if file and file.is_file() else "no reason known"
        self._supervisor.on_error(our_id(trial), text)


class StintCallback(_Hook, tune.Callback):
    """Tells the supervisor when a stint begins, and lets it poll."""

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """A process has begun the stint."""
        self._supervisor.on_start(our_id(trial))

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Called by Ray Tune's loop, several times a second."""
        self._supervisor.poll()


def our_id(trial: TuneTrial) -> str:
    """The id of the trial whose stint this is."""
    return str(trial.config["trial_id"])
