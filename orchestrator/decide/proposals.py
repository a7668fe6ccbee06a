"""Proposes trials: references, the sampler's points, offspring of a population, and confirmations on fresh seeds.

Proposals knows the study. It reads the trials' states and never changes them; the conductor decides when a proposal is wanted and
writes it into the ledger.
"""

from collections import Counter
from typing import Any

from orchestrator.config.sweep_config import SweepConfig, apply_changes
from orchestrator.decide.fresh_seeds import candidates, fresh_seeds
from orchestrator.decide.schedulers import explore
from orchestrator.decide.study import Result, Study, params_of, params_of_trial, values_of
from orchestrator.ledger.events import Action, Event, Kind, Parent, Role, Status, SuggestEvent
from orchestrator.ledger.trial_states import TrialState, TrialStates, configuration_of, number_of, trial_id_of
from trainables.config import TrialConfig
from trainables.settings import flatten


class Proposals:
    """What a sweep may try next.

    Args:
        config: of the sweep.
        trials: the states of all trials, kept by the conductor.
    """

    def __init__(self, config: SweepConfig, trials: TrialStates) -> None:
        self._config, self._trials = config, trials
        self._study = Study(config.search, config.space, config.objectives(), config.accepts)
        self._num_runs: Counter[str] = Counter()
        self._suggested = 0
        self._untold: dict[str, Result] = {}
        self._exhausted = False

    def replay(self, event: Event) -> None:
        """Lets the study take the step that it took when `event` was written; called before `apply` for each event of the past.

        Raises:
            StudyError: when the sampler no longer proposes what the ledger says it proposed.
        """
        if event["event"] == Kind.SWEEP_START:
            self._learn(event.get("warm_start") or [])
        elif event["event"] == Kind.SUGGEST and (params := event.get("params")) is not None:
            self._tell()
            number = number_of(event["trial_id"])
            (self._study.replay if event["role"] == Role.SEARCH else self._study.insert)(number, params)

    def apply(self, event: Event) -> None:
        """Takes one event, after the trials' states have."""
        if event["event"] == Kind.SUGGEST:
            self._num_runs[self._trials[event["trial_id"]].configuration] += 1
            self._suggested += event["role"] != Role.CONFIRM and not event.get("parent")
        elif event["event"] == Kind.DECIDE and event["action"] == Action.PAUSE:
            self._untold[event["trial_id"]] = self._result_of(self._trials[event["trial_id"]], Status.RUNNING)
        elif event["event"] == Kind.TRIAL_END and (status := Status(event["status"])) != Status.INTERRUPTED:
            self._untold[event["trial_id"]] = self._result_of(self._trials[event["trial_id"]], status)

    @property
    def all_searched(self) -> bool:
        """Whether the references and all trials of the search have been suggested."""
        return self._exhausted or self._suggested >= self._config.num_trials()

    def next_searched(self) -> SuggestEvent | None:
        """The next trial of the search, the references first; None when there are no more."""
        if self.all_searched:
            return None
        self._tell()
        number, references = len(self._trials), self._config.search.references
        if number < len(references):
            variant = list(references)[number]
            trial = apply_changes(self._config.trial, references[variant], f"search.references.{variant}")
            params = params_of_trial(self._config.space, self._config.trial, trial)
            if params is not None:
                self._study.insert(number, params)
            return self._suggestion(Role.REFERENCE, trial, variant=variant, params=params)
        params = self._study.propose(number)
        if params is None:
            self._exhausted = True
            return None
        trial = apply_changes(self._config.trial, values_of(self._config.space, params), "search")
        # A configuration that was proposed before becomes a further seed of it.
        trial = trial.model_copy(update={"seed": trial.seed + self._num_runs[configuration_of(trial.model_dump())]})
        return self._suggestion(Role.SEARCH, trial, params=params)

    def offspring(self, donor: TrialState, replaced: TrialState, epoch: int) -> SuggestEvent:
        """A trial that continues from a donor's state at `epoch` with settings near the donor's, in the place of `replaced`."""
        changes = explore(self._config, flatten(donor.config), len(self._trials))
        trial = apply_changes(TrialConfig.model_validate(donor.onward), changes, "search")
        parent = Parent(trial_id=donor.trial_id, epoch=epoch)
        return self._suggestion(Role.SEARCH, trial, parent=parent, replaces=replaced.trial_id)

    def confirmations(self) -> list[SuggestEvent]:
        """All runs of the best configurations on fresh seeds that have not been suggested yet."""
        suggestions = []
        for number, (trial_id, seed) in enumerate(self.missing_confirmations(), len(self._trials)):
            trial = apply_changes(TrialConfig.model_validate(self._trials[trial_id].onward), {"seed": seed}, "search.confirm")
            suggestions.append(self._suggestion(Role.CONFIRM, trial, number=number, confirms=trial_id))
        return suggestions

    def missing_confirmations(self) -> list[tuple[str, int]]:
        """The trial and the seed of each confirmation that has not been suggested yet.

        Confirmations from before a resumption count: the seeds stay, and a configuration keeps the trial that it was known by.
        """
        if not (confirm := self._config.search.confirm):
            return []
        configurations = {trial_id: trial.configuration for trial_id, trial in self._trials.items()}
        confirming = [trial for trial in self._trials.values() if trial.role == Role.CONFIRM]
        others = [trial for trial in self._trials.values() if trial.role != Role.CONFIRM]
        scores = {trial.trial_id: trial.best_value for trial in others if trial.status == Status.FINISHED}
        known_by = {configurations[trial.trial_id]: trial.confirms or "" for trial in confirming}
        best = [known_by.get(configurations[trial_id], trial_id) for trial_id in candidates(scores, configurations, confirm.top)]
        seeds = sorted({trial.config["seed"] for trial in confirming})
        used = [trial.config["seed"] for trial in self._trials.values()]
        seeds += fresh_seeds(used, max(0, confirm.seeds - len(seeds)))
        suggested = {(trial.confirms, trial.config["seed"]) for trial in confirming}
        return [(trial_id, seed) for seed in seeds for trial_id in best if (trial_id, seed) not in suggested]

    def num_runs(self, trial: TrialState) -> int:
        """How often the trial's configuration was suggested, on any seed."""
        return self._num_runs[trial.configuration]

    def close(self) -> None:
        """Ends the study: no trial stays RUNNING in it."""
        self._tell()
        self._study.close()

    def _suggestion(
        self,
        role: Role,
        trial: TrialConfig,
        *,
        variant: str = "",
        number: int | None = None,
        params: dict[str, Any] | None = None,
        parent: Parent | None = None,
        replaces: str | None = None,
        confirms: str | None = None,
    ) -> SuggestEvent:
        return SuggestEvent(
            event=Kind.SUGGEST,
            trial_id=trial_id_of(len(self._trials) if number is None else number),
            role=role,
            variant=variant,
            seed=trial.seed,
            config=trial.model_dump(),
            params=params,
            parent=parent,
            replaces=replaces,
            confirms=confirms,
        )

    def _learn(self, trials: list[dict[str, Any]]) -> None:
        """Tells the sampler of an earlier sweep's trials."""
        for trial in trials:
            history = {int(epoch): value for epoch, value in trial["history"].items()}
            if (params := params_of(self._config.space, trial["values"])) is not None:
                result = Result(trial["status"], trial["objectives"], history, trial.get("own_fault", False))
                self._study.learn(params, result)

    def _tell(self) -> None:
        """Tells the sampler which trials have ended or were paused since it was asked last, in the order of their numbers."""
        for trial_id in sorted(self._untold, key=number_of):
            trial, result = self._trials[trial_id], self._untold[trial_id]
            if trial.role == Role.CONFIRM or trial.parent:
                continue
            if result.status == Status.RUNNING:  # paused: the study keeps the rung's result until there is a later one
                self._study.pause(trial.number, result)
            else:
                self._study.tell(trial.number, result)
        self._untold.clear()

    def _result_of(self, trial: TrialState, status: Status) -> Result:
        """What a trial has reached so far."""
        history = {epoch: value for epoch, value in sorted(trial.values.items()) if value is not None}
        return Result(status, objectives_of(trial, self._config), history, trial.own_fault)


def objectives_of(trial: TrialState, config: SweepConfig) -> list[float] | None:
    """What a trial reached at its best epoch, or None when one of the objectives is no number."""
    values = [value for name in config.objectives() if (value := trial.best_metrics.get(name)) is not None]
    return values if len(values) == len(config.objectives()) else None
