"""Proposes trials: references, the sampler's points, offspring of a population, and confirmations on fresh seeds.

Proposals knows the study. It reads the trials' states and never changes them; the conductor decides when a proposal is wanted and
writes it into the ledger.
"""

import functools
from collections import Counter
from typing import Any

import numpy as np

from orchestrator.config.ablation_config import PATH, AdaptiveSeedsConfig
from orchestrator.config.arms import Arm
from orchestrator.config.sweep_config import SweepConfig, apply_changes, on_seed
from orchestrator.decide.fresh_seeds import candidates, fresh_seeds
from orchestrator.decide.further_seeds import further_seeds, on_val
from orchestrator.decide.path_steps import missing_steps
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
        self._fixed = {(fixed.variant, fixed.trial.seed): fixed for fixed in config.fixed_trials()}
        """The fixed trials that were not suggested yet, by name and seed."""
        self._searches = {arm.name: _ArmSearch(config, arm, number) for number, arm in enumerate(config.arms())}
        self._num_runs: Counter[tuple[str, str]] = Counter()
        self._untold: dict[str, Result] = {}

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
            if event["role"] == Role.SEARCH:
                self._searches[event["variant"]].replay(number, params)
            else:
                self._searches[""].insert(number, params)

    def apply(self, event: Event) -> None:
        """Takes one event, after the trials' states have."""
        if event["event"] == Kind.SUGGEST:
            self._num_runs[self._configuration(self._trials[event["trial_id"]])] += 1
            if event["role"] == Role.REFERENCE:
                self._fixed.pop((event["variant"], event["seed"]), None)
            if event["role"] == Role.SEARCH and not event.get("parent"):
                self._searches[event["variant"]].suggested += 1
        elif event["event"] == Kind.DECIDE and event["action"] == Action.PAUSE:
            self._untold[event["trial_id"]] = self._result_of(self._trials[event["trial_id"]], Status.RUNNING)
        elif event["event"] == Kind.TRIAL_END and (status := Status(event["status"])) != Status.INTERRUPTED:
            self._untold[event["trial_id"]] = self._result_of(self._trials[event["trial_id"]], status)

    @property
    def all_searched(self) -> bool:
        """Whether the references and all trials of the search have been suggested."""
        return not self._fixed and all(search.over for search in self._searches.values())

    @property
    def num_left(self) -> int:
        """How many of these have not been suggested yet, at most."""
        return len(self._fixed) + sum(search.num_left for search in self._searches.values())

    def next_searched(self) -> SuggestEvent | None:
        """The next trial of the search, the references first, then one arm after another; None when there are no more."""
        if self.all_searched:
            return None
        self._tell()
        number = len(self._trials)
        if self._fixed:
            return self._fixed_trial(*next(iter(self._fixed.values())))
        # The arm with the fewest trials comes next, so that the arms take turns. `sorted` keeps their order among equals.
        for search in sorted(self._searches.values(), key=lambda search: search.suggested):
            if search.over or (params := search.propose(number)) is None:
                continue
            arm = search.arm
            trial = apply_changes(arm.trial, values_of(arm.space, params), "search")
            # A configuration that was proposed before becomes a further seed of it.
            num_runs = self._num_runs[arm.name, configuration_of(trial.model_dump())]
            trial = trial.model_copy(update={"seed": trial.seed + num_runs})
            return self._suggestion(Role.SEARCH, trial, variant=arm.name, params=params)
        return None

    def _fixed_trial(self, variant: str, trial: TrialConfig) -> SuggestEvent:
        """A fixed trial. The sampler learns from a reference when it lies in the space; the samplers of several arms do not: each
        arm has its own trials, and no more of them than the others.
        """
        params = None
        learns = "" in self._searches and not self._config.ablation
        if learns and (params := params_of_trial(self._config.space, self._config.trial, trial)) is not None:
            self._searches[""].insert(len(self._trials), params)
        return self._suggestion(Role.REFERENCE, trial, variant=variant, params=params)

    def offspring(self, donor: TrialState, replaced: TrialState, epoch: int) -> SuggestEvent:
        """A trial that continues from a donor's state at `epoch` with settings near the donor's, in the place of `replaced`."""
        changes = explore(self._config, flatten(donor.config), len(self._trials))
        trial = apply_changes(TrialConfig.model_validate(donor.onward), changes, "search")
        parent = Parent(trial_id=donor.trial_id, epoch=epoch)
        return self._suggestion(Role.SEARCH, trial, parent=parent, replaces=replaced.trial_id)

    def has_more(self) -> bool:
        """Whether there is more to do after all trials so far have ended: confirmations, or further trials of an ablation."""
        return bool(self._further_cells() if self._config.ablation else self.missing_confirmations())

    def afterwards(self) -> list[SuggestEvent]:
        """What is to do after all trials so far have ended."""
        if not self._config.ablation:
            return self.confirmations()
        plan, cells = self._config.ablation, self._config.trials_of_cells()
        further = self._further_cells()
        for variant in {variant for variant, _ in further} - cells.keys():
            cells[variant] = self._config.trial_of_cell(plan.cell_with(variant))
        return [
            self._suggestion(Role.REFERENCE, on_seed(cell, cells[cell], seed).trial, variant=cell, number=number)
            for number, (cell, seed) in enumerate(further, len(self._trials))
        ]

    def _further_cells(self) -> list[tuple[str, int]]:
        """Cells and seeds of an ablation that its results on val ask for: undecided variants, or the next step of a path."""
        plan = self._config.ablation
        if plan is None or not (plan.kind == PATH or isinstance(plan.seeds, AdaptiveSeedsConfig)):
            return []
        values: dict[str, dict[int, float | None]] = {cell.name: {} for cell in plan.cells()}
        for trial in self._trials.values():
            score = on_val(trial, plan.metric) if trial.status == Status.FINISHED else None
            values.setdefault(trial.variant, {})[trial.seed] = score
        first_seed = self._config.trial.seed
        if isinstance(plan.seeds, AdaptiveSeedsConfig):
            return further_seeds(plan, plan.seeds, values, first_seed)
        return missing_steps(plan, values, first_seed)

    def confirmations(self) -> list[SuggestEvent]:
        """All runs of the best configurations and of the references on fresh seeds that have not been suggested yet."""
        suggestions = []
        for number, (trial_id, seed) in enumerate(self.missing_confirmations(), len(self._trials)):
            confirmed = self._trials[trial_id]
            trial = apply_changes(TrialConfig.model_validate(confirmed.onward), {"seed": seed}, "search.confirm")
            arm, _ = self._configuration(confirmed)
            suggestions.append(self._suggestion(Role.CONFIRM, trial, variant=arm, number=number, confirms=trial_id))
        return suggestions

    def missing_confirmations(self) -> list[tuple[str, int]]:
        """The trial and the seed of each confirmation that has not been suggested yet.

        Confirmations from before a resumption count: the seeds stay, and a configuration keeps the trial that it was known by.
        """
        if not (confirm := self._config.search.confirm):
            return []
        configurations = {trial_id: self._configuration(trial) for trial_id, trial in self._trials.items()}
        confirming = [trial for trial in self._trials.values() if trial.role == Role.CONFIRM]
        known_by = {configurations[trial.trial_id]: trial.confirms or "" for trial in confirming}
        references = [
            trial for trial in self._trials.values() if trial.role == Role.REFERENCE and trial.status == Status.FINISHED
        ]
        always, found = {configurations[trial.trial_id][1] for trial in references}, []
        for arm in self._searches:
            scores = {trial.trial_id: trial.best_value for trial in self._trials.values() if self._may_be_confirmed(trial, arm)}
            names = {trial_id: configurations[trial_id][1] for trial_id in scores}
            found += candidates(scores, names, confirm.top, () if arm else always)
        if "" not in self._searches:
            found += [trial.trial_id for trial in references]
        best = list(dict.fromkeys(known_by.get(configurations[trial_id], trial_id) for trial_id in found))
        seeds = sorted({trial.config["seed"] for trial in confirming})
        used = [trial.config["seed"] for trial in self._trials.values()]
        seeds += fresh_seeds(used, max(0, confirm.seeds - len(seeds)))
        suggested = {(trial.confirms, trial.config["seed"]) for trial in confirming}
        return [(trial_id, seed) for seed in seeds for trial_id in best if (trial_id, seed) not in suggested]

    def _may_be_confirmed(self, trial: TrialState, arm: str) -> bool:
        """Whether a trial is one of those of which some are confirmed. References stand beside a search that has no arms: they
        may have a configuration that it has, too.
        """
        if trial.role == Role.CONFIRM or trial.status != Status.FINISHED:
            return False
        return not arm or (trial.role == Role.SEARCH and trial.variant == arm)

    def _configuration(self, trial: TrialState) -> tuple[str, str]:
        """A trial's arm and its configuration. Arms do not share configurations: each goes as it would alone."""
        return ("" if "" in self._searches else trial.variant, trial.configuration)

    def num_runs(self, trial: TrialState) -> int:
        """How often the trial's configuration was suggested, on any seed."""
        return self._num_runs[self._configuration(trial)]

    def close(self) -> None:
        """Ends the study: no trial stays RUNNING in it."""
        self._tell()
        for search in self._searches.values():
            search.study.close()

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
        """Tells the sampler of an earlier sweep's trials. A sweep with several arms has none to tell; see `warm_start`."""
        for trial in trials:
            history = {int(epoch): value for epoch, value in trial["history"].items()}
            if (params := params_of(self._config.space, trial["values"])) is not None:
                result = Result(trial["status"], trial["objectives"], history, trial.get("own_fault", False))
                self._searches[""].study.learn(params, result)

    def _tell(self) -> None:
        """Tells the samplers which trials have ended or were paused since they were asked last, in the order of their numbers."""
        for trial_id in sorted(self._untold, key=number_of):
            trial, result = self._trials[trial_id], self._untold[trial_id]
            arm, _ = self._configuration(trial)
            if trial.role != Role.CONFIRM and not trial.parent and arm in self._searches:
                self._searches[arm].tell(trial.number, result)
        self._untold.clear()

    def _result_of(self, trial: TrialState, status: Status) -> Result:
        """What a trial has reached so far."""
        history = {epoch: value for epoch, value in sorted(trial.values.items()) if value is not None}
        return Result(status, objectives_of(trial, self._config), history, trial.own_fault)


class _ArmSearch:
    """An arm and its study.

    Args:
        config: of the sweep.
        arm: that is searched.
        number: of the arm, from 0.
    """

    def __init__(self, config: SweepConfig, arm: Arm, number: int) -> None:
        self.arm = arm
        search = config.search.model_copy(update={"seed": seed_of_arm(config.search.seed, number)})
        accepts = functools.partial(config.accepts, trial=arm.trial)
        self.study = Study(search, arm.space, config.objectives(), accepts)
        self.suggested = 0
        """Trials that have been proposed and stand in the ledger."""
        self._exhausted = False
        self._numbers: dict[int, int] = {}

    @property
    def num_left(self) -> int:
        """How many trials the arm may still get."""
        return 0 if self._exhausted else max(0, self.arm.trials - self.suggested)

    @property
    def over(self) -> bool:
        """Whether the arm has all its trials."""
        return self.num_left == 0

    def propose(self, number: int) -> dict[str, Any] | None:
        """The sampler's parameters of the new trial `number`; None when every point of a grid has been drawn."""
        params = self.study.propose(self._enter(number))
        self._exhausted = params is None
        return params

    def replay(self, number: int, params: dict[str, Any]) -> None:
        """Repeats a proposal from the ledger; see `Study.replay`."""
        self.study.replay(self._enter(number), params)

    def insert(self, number: int, params: dict[str, Any]) -> None:
        """Adds a reference that lies in the space."""
        self.study.insert(self._enter(number), params)

    def tell(self, number: int, result: Result) -> None:
        """Tells the sampler what a trial has reached."""
        if number not in self._numbers:  # a reference outside the space
            return
        if result.status == Status.RUNNING:  # paused: the study keeps the rung's result until there is a later one
            self.study.pause(self._numbers[number], result)
        else:
            self.study.tell(self._numbers[number], result)

    def _enter(self, number: int) -> int:
        """The number by which the study knows a trial. In a named arm it counts the arm's own trials, so that the arm's proposals
        do not depend on the other arms.
        """
        self._numbers[number] = self.suggested if self.arm.name else number
        return self._numbers[number]


def seed_of_arm(seed: int, number: int) -> int:
    """The seed of an arm's sampler, below 2^31: the search's own for the first arm, and unrelated ones for the others."""
    return seed if number == 0 else int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) >> 1


def objectives_of(trial: TrialState, config: SweepConfig) -> list[float] | None:
    """What a trial reached at its best epoch, or None when one of the objectives is no number."""
    values = [value for name in config.objectives() if (value := trial.best_metrics.get(name)) is not None]
    return values if len(values) == len(config.objectives()) else None
