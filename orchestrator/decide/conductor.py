"""Decides what a sweep does next: which trial begins, goes on, waits, stops. A state machine over the ledger's events.

Every change of state is an event, so the state after a crash is the state after handing all events of the ledger to a new
conductor. Nothing here knows Ray or reads a clock. A *stint* is what a process is given to do: a trial, from its last checkpoint
on, until somebody says stop; a trial that waits at a rung, loses its process or goes on after an interruption takes several.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from orchestrator.config.sweep_config import SEARCHED, SweepConfig, apply_changes
from orchestrator.decide.schedulers import Verdict, build_scheduler, explore
from orchestrator.decide.study import Study, params_of, params_of_trial, values_of
from orchestrator.ledger.ledger import Event
from orchestrator.ledger.trial_states import Checkpoint, TrialState, TrialStates, or_lowest
from orchestrator.outcome.confirmation import CONFIRMED, candidates, fresh_seeds
from trainables.config import TrialConfig
from trainables.settings import flatten

DECISIONS = {
    "suggest": ("trial_id", "variant", "seed", "config", "parent", "replaces", "confirms"),
    "decide": ("trial_id", "epoch", "action", "cutoff", "rank", "of", "donor"),
}
"""The events that are decisions, and what of them is."""
KEPT_CHECKPOINTS = 2
"""Of each trial: the last one, and the one before, in case that the last one is damaged."""


class Stint(NamedTuple):
    """What a process is to do."""

    trial_id: str
    config: dict[str, Any]
    checkpoints: list[Checkpoint]
    """To go on from, the newest first; none begins at the beginning."""
    attempt: int
    first_epoch: int
    """Of the trial: 1, but for one that goes on from another one's state."""
    due: list[int]
    """Epochs at whose end the state is needed."""


class Conductor:
    """A sweep's state and its next move.

    Args:
        config: of the sweep.
        slots: how many trials run at a time.
        append: writes an event into the ledger, which hands it back to `apply`.
    """

    def __init__(self, config: SweepConfig, slots: int, append: Callable[..., Any]) -> None:
        self._config, self._slots, self._append = config, slots, append
        self._scheduler = build_scheduler(config)
        self._study = Study(config.search, config.space, config.objectives(), config.accepts)
        self.members = TrialStates()
        self._untold: list[TrialState] = []
        self._seeds_of: dict[str, int] = {}
        self._exhausted = False
        self._between_waves = True
        self._failed_before = 0
        self.halted: tuple[str, str] | None = None
        self._in_waves = config.search.deterministic or self._scheduler.waits_for_all
        self._width = config.search.trials if self._scheduler.waits_for_all else config.resources.wanted_slots()

    # What happened

    def restore(self, events: Iterable[Event]) -> None:
        """Takes over what a ledger holds; trials that were running are to go on.

        Raises:
            StudyError: when the sampler does not propose again what it proposed then.
        """
        for event in events:
            if event["event"] == "sweep_start":
                self._learn(event.get("warm_start") or [])
            if event["event"] == "suggest" and event.get("params") is not None:
                self._tell()
                number = int(event["trial_id"][1:])
                (self._study.replay if event["variant"] == SEARCHED else self._study.insert)(number, event["params"])
            self.apply(event)
        for member in list(self.members.values()):
            self._take_up(member)
        self.halted, self._failed_before = None, self.num_failed  # whoever goes on has seen what failed

    def _take_up(self, member: TrialState) -> None:
        """Does what was left half done for a trial when the ledger broke off."""
        if member.state == "stopping":
            self._carry_out(member)
        if member.state != "running":
            return
        if member.epoch >= self._config.trial.epochs and member.checkpoints and member.checkpoints[-1].epoch == member.epoch:
            self._end(member, "finished", None)
            return
        if member.epoch and self._is_due(member):
            self._act(member, self._scheduler.judge(member.number, member.epoch))
        if member.state == "running":
            member.state = "waiting"
        member.attempt += 1

    def _learn(self, trials: list[dict[str, Any]]) -> None:
        """Tells the sampler of an earlier sweep's trials."""
        for trial in trials:
            history = {int(epoch): value for epoch, value in trial["history"].items()}
            if (params := params_of(self._config.space, trial["values"])) is not None:
                self._study.learn(params, trial["status"], trial["objectives"], history)

    def apply(self, event: Event) -> None:
        """Takes one event."""
        self.members.apply(event)
        member = self.members.get(event.get("trial_id", ""))
        if event["event"] in DECISIONS:
            self._between_waves = True
        elif event["event"] == "trial_start":
            self._between_waves = False
        if event["event"] == "suggest":
            key = _without_seed(event["config"])
            self._seeds_of[key] = self._seeds_of.get(key, 0) + 1
        elif event["event"] == "epoch" and member:
            self._after_epoch_of(member, event["epoch"])
        elif event["event"] == "trial_end" and member and member.state == "ended":
            self._untold.append(member)

    def _after_epoch_of(self, member: TrialState, epoch: int) -> None:
        if member.variant == CONFIRMED:
            return
        if member.variant == SEARCHED or not self._scheduler.waits_for_all:  # references are no members of a population
            self._scheduler.record(member.number, epoch, member.values[epoch])
        if self._in_waves and self._is_due(member):
            member.state = "due"

    # What happens next

    @property
    def over(self) -> bool:
        """Whether every trial that there will be has ended."""
        ended = self._searched() and all(member.state == "ended" for member in self.members.values())
        return ended and not self._missing_confirmations()

    @property
    def num_failed(self) -> int:
        """Trials that have failed."""
        return sum(member.status == "failed" for member in self.members.values())

    def halt(self, status: str, reason: str) -> None:
        """Lets running trials stop with the epoch that they are in, and begins no more."""
        self.halted = self.halted or (status, reason)

    def next_stint(self) -> Stint | None:
        """What a free slot is to do now; None when it has to wait, or when there is nothing left (see `over`)."""
        if self.halted or len(self.members.in_state("running")) >= self._slots:
            return None
        if not self.members.in_state("waiting") or self._between_waves:
            self._find_work()
        if not (waiting := self.members.in_state("waiting")):
            return None
        member = waiting[0]
        member.state = "running"
        due = [epoch for epoch in range(1, self._config.trial.epochs) if self._needs_state(member, epoch)]
        first_epoch = member.parent["epoch"] + 1 if member.parent else 1
        return Stint(member.trial_id, member.config, self.sources(member), member.attempt, first_epoch, due)

    def after_epoch(self, trial_id: str) -> bool:
        """Whether the process is to leave the trial, whose epoch stands in the ledger now."""
        member = self.members[trial_id]
        if member.epoch >= self._config.trial.epochs:
            self._end(member, "finished", None)
            return True
        if member.state == "running" and not self._in_waves and self._is_due(member):
            self._act(member, self._scheduler.judge(member.number, member.epoch))
        if self.halted and member.state == "running":
            member.state = "waiting"
        return member.state != "running"

    def after_ending(self, trial_id: str, status: str, reason: str) -> None:
        """The trial has ended by its own rules: diverged or failed, and would do so again."""
        self._end(self.members[trial_id], status, reason)

    def after_failure(self, trial_id: str, reason: str) -> None:
        """The trial's process raised an error or is gone."""
        member = self.members[trial_id]
        if self.halted:  # no fault of its own, most likely: processes are taken away
            member.state = "waiting"
        elif member.failures < self._config.failures.retries:
            self._append("retry", trial_id=trial_id, attempt=member.attempt + 1, reason=reason)
        else:
            self._end(member, "failed", reason)

    def interrupt(self, reason: str) -> None:
        """Ends, for the time being, the trials that have not ended."""
        for member in self.members.values():
            if member.state != "ended":
                self._append(
                    "trial_end", trial_id=member.trial_id, status="interrupted", stop_reason=reason, **self._best(member)
                )

    def close(self) -> None:
        """Ends the study: nothing stays running there."""
        self._tell()
        self._study.close()

    def sources(self, member: TrialState) -> list[Checkpoint]:
        """The checkpoints that a trial may go on from, the newest first: its own, or those of the trial that it comes from."""
        own = [checkpoint for checkpoint in reversed(member.checkpoints) if checkpoint.epoch <= member.epoch]
        if not member.parent:
            return own
        parent = self.members[member.parent["trial_id"]]
        return own + [checkpoint for checkpoint in parent.checkpoints if checkpoint.epoch == member.parent["epoch"]]

    def drop_checkpoints(self, trial_id: str) -> list[Checkpoint]:
        """Forgets checkpoints of a trial that nobody will go on from, and returns them."""
        member = self.members[trial_id]
        heirs = [other for other in self.members.values() if other.parent and other.parent["trial_id"] == trial_id]
        young = [heir for heir in heirs if heir.state != "ended" and len(heir.checkpoints) < KEPT_CHECKPOINTS]
        needed = {heir.parent["epoch"] for heir in young if heir.parent}
        kept = KEPT_CHECKPOINTS if member.state != "ended" or member.status == "finished" else 1
        dropped = [checkpoint for checkpoint in member.checkpoints[:-kept] if checkpoint.epoch not in needed]
        member.checkpoints = [checkpoint for checkpoint in member.checkpoints if checkpoint not in dropped]
        return dropped

    def _find_work(self) -> None:
        """Makes a trial wait for a process, if there is one to run."""
        if not self._in_waves:
            if not self.members.in_state("waiting"):
                self._begin_one()
        elif not self.members.in_state("running"):
            self._settle()
            active = len(self.members.in_state("waiting"))
            while active < self._width and self._begin_one():
                active += 1
        if not self.members.in_state("waiting") and not self.members.in_state("running") and self._searched():
            self._end_paused()
            for trial_id, seed in self._missing_confirmations():
                config = TrialConfig.model_validate(self.members[trial_id].config)
                self._append_suggestion(CONFIRMED, apply_changes(config, {"seed": seed}, "search.confirm"), confirms=trial_id)

    def _settle(self) -> None:
        """Decides on all trials that wait for a verdict, in their order."""
        due = sorted(self.members.in_state("due"), key=lambda member: member.number)
        verdicts = self._scheduler.settle({member.number: member.epoch for member in due})
        for member in due:
            self._act(member, verdicts.get(member.number, Verdict("continue")))

    def _act(self, member: TrialState, verdict: Verdict) -> None:
        """Writes a verdict down and carries it out. References are compared with, but never stopped."""
        if member.variant != SEARCHED:
            verdict = verdict._replace(action="continue")
        self._append(
            "decide",
            trial_id=member.trial_id,
            epoch=member.epoch,
            action=verdict.action,
            cutoff=verdict.cutoff,
            rank=verdict.rank,
            of=verdict.of,
            donor=None if verdict.donor is None else _id_of(verdict.donor),
        )
        if member.state == "stopping":
            self._carry_out(member)

    def _carry_out(self, member: TrialState) -> None:
        """Ends a trial by the verdict on its last epoch, after its offspring has been suggested."""
        verdict = member.verdicts[member.epoch]
        rank = f"{verdict['rank']} of {verdict['of']} at epoch {member.epoch}"
        if verdict["action"] == "stop":
            self._end(member, "stopped_early", f"{rank}, below the cutoff {verdict['cutoff']:.4f}")
            return
        donor = verdict["donor"]
        heirs = [trial_id for trial_id, other in self.members.items() if other.replaces == member.trial_id]
        heir = heirs[0] if heirs else self._suggest_offspring(self.members[donor], member)
        self._end(member, "stopped_early", f"{rank}, replaced by {heir}, which goes on from {donor}")

    def _begin_one(self) -> bool:
        """Promotes a trial or suggests a new one; whether there was one."""
        paused = {member.number: member.epoch for member in self.members.in_state("paused")}
        promoted = self._scheduler.promote(paused, {member.number for member in self.members.in_state("ended")})
        if promoted:
            self._act(self.members[_id_of(promoted[0])], promoted[1])
            return True
        return self._suggest()

    def _suggest(self) -> bool:
        """Appends the next suggestion: the references first, then the sampler's; whether there was one."""
        if self._searched():
            return False
        self._tell()
        number = len(self.members)
        references = self._config.search.references
        if number < len(references):
            variant = list(references)[number]
            trial = apply_changes(self._config.trial, references[variant], f"search.references.{variant}")
            params = params_of_trial(self._config.space, self._config.trial, trial)
            if params is not None:
                self._study.insert(number, params)
        else:
            variant = SEARCHED
            params = self._study.propose(number)
            if params is None:
                self._exhausted = True
                return False
            trial = apply_changes(self._config.trial, values_of(self._config.space, params), "search")
        self._append_suggestion(variant, trial, params=params)
        return True

    def _suggest_offspring(self, donor: TrialState, replaced: TrialState) -> str:
        """Appends a trial that goes on from a donor's state with settings near the donor's; returns its id."""
        changes = explore(self._config, flatten(donor.config), len(self.members))
        trial = apply_changes(TrialConfig.model_validate(donor.config), changes, "search")
        parent = {"trial_id": donor.trial_id, "epoch": replaced.epoch}
        return self._append_suggestion(SEARCHED, trial, parent=parent, replaces=replaced.trial_id)

    def _end_paused(self) -> None:
        """Ends the trials that nobody will promote; but of few trials one goes on to the end, so that there is a best one."""
        paused = self.members.in_state("paused")
        if paused and not any(member.status == "finished" and member.variant == SEARCHED for member in self.members.values()):
            best = max(paused, key=lambda member: (member.epoch, or_lowest(member.best_value), -member.number))
            self._act(best, Verdict("promote", rank=1, of=len(paused)))
            return
        for member in paused:
            self._end(member, "stopped_early", f"not among the best at the rung of epoch {member.epoch}")

    def _missing_confirmations(self) -> list[tuple[str, int]]:
        """The runs of the best configurations on fresh seeds that have not been suggested yet: trial and seed of each.

        What ran before a resumption counts: the seeds stay, and a configuration keeps the trial that it was known by.
        """
        if not (confirm := self._config.search.confirm):
            return []
        configurations = {trial_id: _without_seed(member.config) for trial_id, member in self.members.items()}
        confirming = [member for member in self.members.values() if member.variant == CONFIRMED]
        searched = [member for member in self.members.values() if member.variant != CONFIRMED]
        scores = {member.trial_id: member.best_value for member in searched if member.status == "finished"}
        known_by = {configurations[member.trial_id]: member.confirms or "" for member in confirming}
        best = [known_by.get(configurations[trial_id], trial_id) for trial_id in candidates(scores, configurations, confirm.top)]
        seeds = sorted({member.config["seed"] for member in confirming})
        used = [member.config["seed"] for member in self.members.values()]
        seeds += fresh_seeds(used, max(0, confirm.seeds - len(seeds)))
        there = {(member.confirms, member.config["seed"]) for member in confirming}
        return [(trial_id, seed) for seed in seeds for trial_id in best if (trial_id, seed) not in there]

    def _append_suggestion(
        self,
        variant: str,
        trial: TrialConfig,
        params: dict[str, Any] | None = None,
        parent: dict[str, Any] | None = None,
        replaces: str | None = None,
        confirms: str | None = None,
    ) -> str:
        if variant == SEARCHED and not parent:  # what has been proposed before becomes a further seed of it
            trial = trial.model_copy(update={"seed": trial.seed + self._seeds_of.get(_without_seed(trial.model_dump()), 0)})
        trial_id = _id_of(len(self.members))
        self._append(
            "suggest",
            trial_id=trial_id,
            variant=variant,
            seed=trial.seed,
            config=trial.model_dump(),
            params=params,
            parent=parent,
            replaces=replaces,
            confirms=confirms,
        )
        return trial_id

    def _end(self, member: TrialState, status: str, reason: str | None) -> None:
        self._append("trial_end", trial_id=member.trial_id, status=status, stop_reason=reason, **self._best(member))
        limit, failed = self._config.failures.max_failed_fraction, self.num_failed - self._failed_before
        if failed > limit * self._config.search.trials:
            self.halt("failed", f"{failed} trials have failed; failures.max_failed_fraction is {limit:g}")

    def _tell(self) -> None:
        """Tells the sampler of the trials that have ended since it was asked last, in their order."""
        for member in sorted(self._untold, key=lambda member: member.number):
            if member.variant == CONFIRMED or member.parent:
                continue
            history = {epoch: value for epoch, value in sorted(member.values.items()) if value is not None}
            self._study.tell(member.number, member.status, objectives_of(member, self._config), history)
        self._untold.clear()

    def _searched(self) -> bool:
        """Whether all trials of the search have been suggested."""
        suggested = sum(member.variant != CONFIRMED and not member.parent for member in self.members.values())
        return self._exhausted or suggested >= self._config.search.trials

    def _is_due(self, member: TrialState) -> bool:
        if member.epoch in member.verdicts or member.epoch >= self._config.trial.epochs or member.variant == CONFIRMED:
            return False
        return self._scheduler.is_due(member.number, member.epoch)

    def _needs_state(self, member: TrialState, epoch: int) -> bool:
        """Whether the trial may leave its process at the end of `epoch`."""
        if member.variant == CONFIRMED or not (self._in_waves or self._config.scheduler.name == "promotion"):
            return False
        return self._scheduler.is_due(member.number, epoch)

    def _best(self, member: TrialState) -> dict[str, Any]:
        return {} if member.best_epoch is None else {"best_epoch": member.best_epoch, "best_value": member.best_value}


def objectives_of(member: TrialState, config: SweepConfig) -> list[float] | None:
    """What a trial reached at its best epoch, or None when one of the objectives is no number."""
    values = [value for name in config.objectives() if (value := member.metrics.get(name)) is not None]
    return values if len(values) == len(config.objectives()) else None


def decisions(events: Iterable[Event]) -> Iterator[str]:
    """What was decided, in order, without when: a line of JSON for each decision."""
    for event in events:
        if keys := DECISIONS.get(event["event"]):
            yield json.dumps([event["event"], *(event.get(key) for key in keys)], sort_keys=True)


def decision_hash(events: Iterable[Event]) -> str:
    """Digest of all decisions of a sweep."""
    return hashlib.sha256("\n".join(decisions(events)).encode()).hexdigest()


def _id_of(number: int) -> str:
    return f"t{number:04d}"


def _without_seed(config: dict[str, Any]) -> str:
    return json.dumps({key: value for key, value in config.items() if key != "seed"}, sort_keys=True)
