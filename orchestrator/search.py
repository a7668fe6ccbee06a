"""The searcher that Tune asks for configurations: the references first, then Optuna's suggestions."""

import functools
import math
from typing import Any

from ray.tune.search.optuna import OptunaSearch

from orchestrator.config import SEARCHED, SweepConfig, apply_changes
from orchestrator.ledger import Ledger
from orchestrator.study import always, build_sampler, outcome, params_of, suggest, values_of
from trainables.settings import flatten

OBJECTIVE = "objective"
"""What sampler, scheduler and export compare trials by: the best `select_by` so far, NaN for a diverged trial."""


def trial_status(result: dict[str, Any], error: bool = False) -> str:
    """How a trial ended, from its last result: finished, stopped_early, diverged or failed."""
    if error or not result:
        return "failed"
    if "ended" in result:
        return str(result["ended"])
    return "finished" if result["epoch"] >= result["epochs"] else "stopped_early"


class StudySearch(OptunaSearch):
    """Ray's OptunaSearch with our trial ids, references and endings.

    Left to itself it tells trials that were stopped early as complete, leaves those without a finite objective running for ever
    in the study, and can only propose points of the space, which plain cross-entropy is not. References that lie inside the space
    are told to the study, so the sampler learns from them.
    """

    def __init__(self, config: SweepConfig, ledger: Ledger) -> None:
        self._config, self._ledger = config, ledger
        self._references = dict(config.search.references)
        self._suggested = 0
        super().__init__(
            space=functools.partial(suggest, config.space),
            metric=OBJECTIVE,
            mode="max",
            sampler=build_sampler(config.search.sampler, config.search.seed, config.space, always),
        )

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next trial: its id, its variant and its whole configuration. `trial_id` is Tune's."""
        variant = next(iter(self._references), SEARCHED)
        if variant != SEARCHED:
            trial = apply_changes(self._config.trial, self._references.pop(variant), f"search.references.{variant}")
            if (point := self._point_of(trial)) is not None:
                self._ot_study.enqueue_trial(point)
                super().suggest(trial_id)
        else:
            values = values_of(self._config.space, super().suggest(trial_id) or {})
            trial = apply_changes(self._config.trial, values, "search")
        ours = f"t{self._suggested:04d}"
        self._suggested += 1
        self._ledger.append("suggest", trial_id=ours, variant=variant, seed=trial.seed, config=trial.model_dump())
        return {"trial_id": ours, "variant": variant, "trial": trial.model_dump()}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Hands an epoch's objective to the study."""
        value = result[OBJECTIVE]
        if trial_id in self._ot_trials and math.isfinite(value):
            self._ot_trials[trial_id].report(value, result["epoch"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Ends the trial in the study as COMPLETE, PRUNED or FAIL."""
        if trial_id not in self._ot_trials:
            return
        if result:
            self.on_trial_result(trial_id, result)  # Tune keeps the epoch at which a trial is stopped to itself
        state, values = outcome(trial_status(result or {}, error), [(result or {}).get(OBJECTIVE, math.nan)])
        self._ot_study.tell(self._ot_trials[trial_id], values, state=state)

    def _point_of(self, trial: Any) -> dict[str, Any] | None:
        """The reference as a point of the space, or None when it differs from the sweep's trial in anything else."""
        given, base = flatten(trial.model_dump()), flatten(self._config.trial.model_dump())
        others = (key for key in given.keys() | base.keys() if key not in self._config.space)
        if any(given.get(key) != base.get(key) for key in others):
            return None
        return params_of(self._config.space, given)
