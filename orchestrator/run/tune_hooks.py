"""Ray Tune's hooks: a searcher, a scheduler and a callback, each of which passes everything on to the supervisor.

Ray Tune only supplies processes. It starts them, hands them stints, and brings back their reports. We avoid its pause and restore
because both pickle state: a Tune trial is one bundle of stints, and a trial that goes on does so in a new Tune trial, from a
checkpoint that the stint names.
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
    """Gives Ray Tune the next bundle of stints."""

    def __init__(self, supervisor: Supervisor) -> None:
        _Hook.__init__(self, supervisor)
        Searcher.__init__(self)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next bundle as a mapping; None while there is none, FINISHED when there will be none. `trial_id` is Ray Tune's."""
        stints = self._supervisor.next_stints()
        if not stints:
            return Searcher.FINISHED if self._supervisor.over else None
        return {"bundle": stints[0].bundle, "stints": [stint.as_mapping() for stint in stints]}

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
        """STOP when the process is to leave all its trials."""
        is_free = self._supervisor.on_reports(trial.config["bundle"], result["reports"])
        return TrialScheduler.STOP if is_free else TrialScheduler.CONTINUE  # type: ignore[no-any-return]

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        """A process raised an error or died."""
        # Ray has written the error beside its own log by now. The copy in the storage, where get_error looks, comes later.
        file = Path(trial.error_file) if trial.error_file else None
        text = file.read_text(encoding="utf-8", errors="replace").strip() if file and file.is_file() else "no reason known"
        self._supervisor.on_error(trial.config["bundle"], ids_in(trial), text)


class StintCallback(_Hook, tune.Callback):
    """Tells the supervisor when a bundle begins, and lets it poll."""

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """A process has begun the stints of a bundle."""
        self._supervisor.on_start(ids_in(trial))

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Called by Ray Tune's loop, several times a second."""
        self._supervisor.poll()


def ids_in(trial: TuneTrial) -> list[str]:
    """The ids of the trials whose stints these are."""
    return [stint["trial_id"] for stint in trial.config["stints"]]


def name_of(trial: TuneTrial) -> str:
    """A name for Ray's own files: `t0007`, or `t0007+3` with three more trials."""
    first, *others = ids_in(trial)
    return f"{first}+{len(others)}" if others else first
