"""Decides what a sweep does next: which trial begins, goes on, waits, stops. A state machine over the ledger's events.

Every change of state is an event, so the state after a crash is the state after handing all events of the ledger to a new
conductor. The conductor knows neither Ray nor a clock. A *stint* is what a process is given to do: a trial, from its last
checkpoint on, until the conductor says stop. A trial that waits at a rung, loses its process or goes on after an interruption
takes several stints. With `resources.fused`, a process is given a *bundle*: stints of trials that it trains together.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.proposals import Proposals
from orchestrator.decide.retention import Retention
from orchestrator.decide.schedulers import Verdict, build_scheduler
from orchestrator.ledger.events import Action, Event, Kind, Role, Status, shared_fields, trial_of
from orchestrator.ledger.trial_states import Checkpoint, State, TrialState, TrialStates, number_of, or_lowest, trial_id_of
from trainables.config import ROUNDING, UNDECIDING, TrialConfig
from trainables.fusion import fusion_key
from trainables.settings import flatten
from trainables.words import plural

DECISIONS = {
    Kind.SUGGEST: ("trial_id", "role", "variant", "seed", "config", "parent", "replaces", "confirms"),
    Kind.DECIDE: ("trial_id", "epoch", "action", "cutoff", "rank", "of", "donor"),
}
"""The kinds of events that are decisions, and the fields that count."""


class Stint(NamedTuple):
    """What a process is to do."""

    trial_id: str
    config: dict[str, Any]
    checkpoints: list[Checkpoint]
    """To go on from, the newest first; none begins at the beginning."""
    attempt: int
    first_epoch: int
    """Of the trial: 1, except for a trial that continues from another one's state."""
    due: Sequence[int]
    """Epochs at whose end the state is needed."""
    may_leave: Sequence[int] = ()
    """Epochs before the last one at whose end the trial may leave its process."""
    bundle: int = 0
    """Number of the bundle: equal for the stints that a process is given together."""

    def as_mapping(self) -> dict[str, Any]:
        """As a process gets it."""
        return self._asdict() | {"checkpoints": [checkpoint._asdict() for checkpoint in self.checkpoints]}


class Halt(NamedTuple):
    """Why a sweep stops before all its trials have ended."""

    status: Status
    reason: str


class Conductor:
    """A sweep's state and its next move.

    Args:
        config: of the sweep.
        slots: how many bundles run at a time.
        append: writes an event into the ledger, which hands it back to `apply`.
        fused: how many trials a bundle holds at most.
    """

    def __init__(self, config: SweepConfig, slots: int, append: Callable[..., Any], fused: int = 1) -> None:
        self._config, self._slots, self._append, self._fused = config, slots, append, fused
        self._scheduler = build_scheduler(config)
        self.trials = TrialStates()
        self._proposals = Proposals(config, self.trials)
        confirmed = config.search.confirm.top if config.search.confirm else 0
        self._retention = Retention(config.checkpoints.keep, confirmed, self.trials, self._proposals.num_runs)
        self._between_waves = True
        self._failed_before = 0
        self._bundles: dict[str, int] = {}
        """The bundle of each trial's last stint."""
        self._num_bundles = 0
        self._keys: dict[str, tuple[str | None, int]] = {}
        """Of trials that wait, the fusion key and the first epoch that cannot be fused."""
        self._wave_size = 1
        """Trials that waited when the wave began."""
        self.halted: Halt | None = None
        self._in_waves = config.search.deterministic or self._scheduler.waits_for_all
        self._width = config.num_trials() if self._scheduler.waits_for_all else config.wave_width()

    # What happened

    def restore(self, events: Iterable[Event]) -> None:
        """Takes over what a ledger holds; trials that were running are to go on.

        Raises:
            StudyError: when the sampler does not propose again what it proposed then.
        """
        for event in events:
            self._proposals.replay(event)
            self.apply(event)
            if event["event"] in (Kind.EPOCH, Kind.TRIAL_END):
                self.drop_checkpoints(trial_of(event))
        for trial in list(self.trials.values()):
            self._take_up(trial)
        # Failures from before the resumption no longer count: the user saw them and went on.
        self.halted, self._failed_before = None, self.num_failed

    def _take_up(self, trial: TrialState) -> None:
        """Completes what was half done for a trial when the ledger broke off."""
        if trial.state == State.STOPPING:
            self._carry_out(trial)
        if trial.state != State.RUNNING:
            return
        if trial.epoch >= self._config.trial.epochs and trial.checkpoints and trial.checkpoints[-1].epoch == trial.epoch:
            self._end(trial, Status.FINISHED, None)
            return
        if trial.epoch and self._is_due(trial):
            self._act(trial, self._scheduler.judge(trial.number, trial.epoch))
        if trial.state == State.RUNNING:
            trial.move_to(State.WAITING)
        trial.attempt += 1

    def apply(self, event: Event) -> None:
        """Takes one event."""
        self.trials.apply(event)
        self._proposals.apply(event)
        if event["event"] == Kind.SUGGEST and event["role"] != Role.CONFIRM:
            self._scheduler.join(number_of(event["trial_id"]), self._group_of(self.trials[event["trial_id"]]))
        if event["event"] in DECISIONS:
            self._between_waves = True
        elif event["event"] == Kind.TRIAL_START:
            self._between_waves = False
        elif event["event"] == Kind.EPOCH and (trial := self.trials.get(trial_of(event))):
            self._after_epoch_of(trial, event["epoch"])

    def _group_of(self, trial: TrialState) -> str:
        """The trials with which a trial is compared: those of its arm. All fixed references are a group."""
        return trial.variant if trial.role == Role.SEARCH else Role.REFERENCE

    def _after_epoch_of(self, trial: TrialState, epoch: int) -> None:
        if trial.role == Role.CONFIRM:
            return
        if trial.role == Role.SEARCH or not self._scheduler.waits_for_all:  # references are no members of a population
            self._scheduler.record(trial.number, epoch, trial.values[epoch])
        if self._in_waves and self._is_due(trial):
            trial.move_to(State.DUE)

    # What happens next

    @property
    def over(self) -> bool:
        """Whether every trial that there will be has ended."""
        ended = self._proposals.all_searched and self.trials.num_in_state(State.ENDED) == len(self.trials)
        return ended and not self._proposals.has_more()

    @property
    def num_failed(self) -> int:
        """Trials that have failed."""
        return self.trials.with_status[Status.FAILED]

    def halt(self, status: Status, reason: str) -> None:
        """Lets running trials stop with their current epoch, and begins no more. The first reason counts."""
        self.halted = self.halted or Halt(status, reason)

    def set_slots(self, slots: int) -> None:
        """Says how many bundles may run at a time from now on. Trials that run go on, even if they are more."""
        self._slots = slots

    @property
    def running(self) -> int:
        """How many bundles run now."""
        return len({self._bundles[trial.trial_id] for trial in self.trials.in_state(State.RUNNING)})

    @property
    def could_run(self) -> int:
        """How many bundles could run now if there were slots without end."""
        if self.halted:
            return self.running
        if self._in_waves:
            keys = Counter(self._fusion_key(trial) for trial in self.trials.in_state(State.WAITING))
            size = self._size_in_wave()
            return self.running + sum(number if key is None else math.ceil(number / size) for key, number in keys.items())
        return self.running + self.trials.num_in_state(State.WAITING) + self._proposals.num_left

    def next_stints(self) -> list[Stint]:
        """The bundle that a free slot is to train now; empty when it has to wait, or when there is nothing left (see `over`)."""
        free = self._slots - self.running
        if self.halted or free <= 0:
            return []
        if not self.trials.num_in_state(State.WAITING) or self._between_waves:
            self._find_work()
        if not (waiting := self.trials.in_state(State.WAITING)):
            return []
        self._num_bundles += 1
        return [self._begin_stint(trial) for trial in self._bundle(waiting[0], free)]

    def _bundle(self, first: TrialState, free: int) -> list[TrialState]:
        """`first` and waiting trials that can be trained together with it. Slots share what is there to run. In waves they are as
        many as the settings want, not as many as are free: the same trials are trained together on any machine, and so the
        numbers are rounded in the same way.
        """
        if (key := self._fusion_key(first)) is None:
            return [first]
        if self._in_waves:
            size = self._size_in_wave()
        else:
            waiting = self.trials.num_in_state(State.WAITING)
            size = min(self._fused, math.ceil((waiting + self._proposals.num_left) / free))
            for _ in range(size - waiting):
                self._begin_one()
        fitting = [trial for trial in self.trials.in_state(State.WAITING) if self._fusion_key(trial) == key]
        return fitting[:size]

    def _size_in_wave(self) -> int:
        """The most trials of a bundle in a wave; as many as may be where the settings name no number of slots."""
        resources = self._config.resources
        return min(self._fused, math.ceil(self._wave_size / (resources.slots or resources.max_concurrent or 1)))

    def _fusion_key(self, trial: TrialState) -> tuple[str, int] | None:
        """Waiting trials with equal keys can be trained together; None for a trial that trains alone."""
        if self._fused == 1 or trial.trains_alone:
            return None
        if trial.trial_id not in self._keys:
            config = TrialConfig.model_validate(trial.config)
            self._keys[trial.trial_id] = fusion_key(config), config.stage_epochs()[0].stop
        (key, stage_end), sources = self._keys[trial.trial_id], self.sources(trial)
        epoch = sources[0].epoch if sources else 0
        return None if key is None or epoch >= stage_end else (key, epoch)

    def _begin_stint(self, trial: TrialState) -> Stint:
        trial.move_to(State.RUNNING)
        self._keys.pop(trial.trial_id, None)
        self._bundles[trial.trial_id] = self._num_bundles
        is_judged = trial.role != Role.CONFIRM
        epochs = range(1, self._config.trial.epochs)
        may_leave = [epoch for epoch in epochs if is_judged and self._scheduler.is_due(trial.number, epoch)]
        due = may_leave if self._in_waves or self._config.scheduler.name == "promotion" else []
        first_epoch = trial.parent["epoch"] + 1 if trial.parent else 1
        sources = self.sources(trial)
        return Stint(trial.trial_id, trial.config, sources, trial.attempt, first_epoch, due, may_leave, self._num_bundles)

    def runs_in(self, trial_id: str, bundle: int) -> bool:
        """Whether a trial runs, and does so in this bundle."""
        return self.trials[trial_id].state == State.RUNNING and self._bundles[trial_id] == bundle

    def after_epoch(self, trial_id: str) -> bool:
        """Whether the process is to leave the trial, whose epoch stands in the ledger now."""
        trial = self.trials[trial_id]
        if trial.epoch >= self._config.trial.epochs:
            self._end(trial, Status.FINISHED, None)
            return True
        if trial.state == State.RUNNING and not self._in_waves and self._is_due(trial):
            self._act(trial, self._scheduler.judge(trial.number, trial.epoch))
        if self.halted and trial.state == State.RUNNING:
            trial.move_to(State.WAITING)
        return trial.state != State.RUNNING

    def after_ending(self, trial_id: str, status: Status, reason: str, own_fault: bool = True, shared_by: int = 1) -> None:
        """The trial has ended by its own rules: diverged or failed, and would do so again.

        Args:
            trial_id: of the trial.
            status: diverged or failed.
            reason: a sentence.
            own_fault: whether the trial's own numbers are the reason, which the sampler learns from.
            shared_by: how many trials the process trained together.
        """
        self._end(self.trials[trial_id], status, reason, own_fault, shared_by)

    def after_failure(self, trial_id: str, reason: str, shared_by: int = 1) -> None:
        """The trial's process raised an error or is gone.

        Args:
            trial_id: of the trial.
            reason: a sentence.
            shared_by: how many trials the process trained together. Nobody knows which one of several is at fault: each trains
                alone from then on, and has not failed yet.
        """
        trial = self.trials[trial_id]
        if self.halted:  # most likely no fault of the trial: processes are taken away
            trial.move_to(State.WAITING)
        elif shared_by > 1 or trial.failures < self._config.failures.retries:
            self._append(Kind.RETRY, trial_id=trial_id, attempt=trial.attempt + 1, reason=reason, **shared_fields(shared_by))
        else:
            self._end(trial, Status.FAILED, reason)

    def after_retreat(self, trial_id: str) -> None:
        """The trial has left a process whose machines did not come; another process takes it."""
        self.trials[trial_id].move_to(State.WAITING)

    def interrupt(self, reason: str) -> None:
        """Ends, for the time being, the trials that have not ended."""
        for trial in self.trials.values():
            if trial.state != State.ENDED:
                self._append_end(trial, Status.INTERRUPTED, reason)

    def close(self) -> None:
        """Ends the study: no trial stays RUNNING in it."""
        self._proposals.close()

    def sources(self, trial: TrialState) -> list[Checkpoint]:
        """The checkpoints that a trial may go on from, the newest first: its own, then those of its parent."""
        own = [checkpoint for checkpoint in reversed(trial.checkpoints) if checkpoint.epoch <= trial.epoch]
        if not trial.parent:
            return own
        parent = self.trials[trial.parent["trial_id"]]
        return own + [checkpoint for checkpoint in parent.checkpoints if checkpoint.epoch == trial.parent["epoch"]]

    def drop_checkpoints(self, trial_id: str) -> list[Checkpoint]:
        """Forgets the checkpoints that nobody needs any more after an epoch or the end of a trial, and returns them."""
        trial = self.trials[trial_id]
        return self._retention.after_end(trial) if trial.state == State.ENDED else self._retention.after_epoch(trial)

    def _find_work(self) -> None:
        """Makes a trial wait for a process, if there is one to run."""
        if not self._in_waves:
            if not self.trials.num_in_state(State.WAITING):
                self._begin_one()
        elif not self.trials.num_in_state(State.RUNNING):
            self._settle()
            active = self.trials.num_in_state(State.WAITING)
            while active < self._width and self._begin_one():
                active += 1
        idle = not self.trials.num_in_state(State.WAITING) and not self.trials.num_in_state(State.RUNNING)
        if idle and self._proposals.all_searched and not self._promote_last():
            self._end_paused()
            for suggestion in self._proposals.afterwards():
                self._append(**suggestion)
        if not self.trials.num_in_state(State.RUNNING):
            self._wave_size = max(1, self.trials.num_in_state(State.WAITING))

    def _settle(self) -> None:
        """Decides on all trials that wait for a verdict, in the order of their numbers."""
        due = sorted(self.trials.in_state(State.DUE), key=lambda trial: trial.number)
        if due:
            self._replace_broken(max(trial.epoch for trial in due))
        verdicts = self._scheduler.settle({trial.number: trial.epoch for trial in due})
        for trial in due:
            self._act(trial, verdicts.get(trial.number, Verdict(Action.CONTINUE)))

    def _replace_broken(self, epoch: int) -> None:
        """Gives members of a population that diverged or failed a successor, which continues from one of the best at `epoch`."""
        replaced = {trial.replaces for trial in self.trials.values()}
        for trial in list(self.trials.values()):
            broken = trial.state == State.ENDED and trial.status in (Status.DIVERGED, Status.FAILED)
            if trial.role == Role.SEARCH and broken and trial.trial_id not in replaced:
                donor = self._scheduler.donor(epoch, trial.number)
                if donor is not None:
                    self._append(**self._proposals.offspring(self.trials[trial_id_of(donor)], trial, epoch))

    def _act(self, trial: TrialState, verdict: Verdict) -> None:
        """Writes a verdict down and carries it out. References are ranked, but never stopped."""
        if trial.role != Role.SEARCH:
            verdict = verdict._replace(action=Action.CONTINUE)
        self._append(
            Kind.DECIDE,
            trial_id=trial.trial_id,
            epoch=trial.epoch,
            action=verdict.action,
            cutoff=verdict.cutoff,
            rank=verdict.rank,
            of=verdict.of,
            donor=None if verdict.donor is None else trial_id_of(verdict.donor),
        )
        if trial.state == State.STOPPING:
            self._carry_out(trial)

    def _carry_out(self, trial: TrialState) -> None:
        """Ends a trial by the verdict on its last epoch, after its offspring has been suggested."""
        verdict = trial.verdict
        assert verdict is not None, "a trial stops by a verdict"
        rank = f"{verdict['rank']} of {verdict['of']} at epoch {trial.epoch}"
        if verdict["action"] == Action.STOP:
            self._end(trial, Status.STOPPED_EARLY, f"{rank}, below the cutoff {verdict['cutoff']:.4f}")
            return
        donor = verdict["donor"]
        assert donor is not None, "a verdict to replace names the donor"
        heirs = self.trials.heirs_of(donor)
        heir = next((other.trial_id for other in heirs if other.replaces == trial.trial_id), None)
        if heir is None:
            suggestion = self._proposals.offspring(self.trials[donor], trial, trial.epoch)
            heir = suggestion["trial_id"]
            self._append(**suggestion)
        self._end(trial, Status.STOPPED_EARLY, f"{rank}, replaced by {heir}, which goes on from {donor}")

    def _begin_one(self) -> bool:
        """Promotes a paused trial or begins a new one; whether there was one."""
        paused = {trial.number: trial.epoch for trial in self.trials.in_state(State.PAUSED)}
        promoted = self._scheduler.promote(paused)
        if promoted:
            self._act(self.trials[trial_id_of(promoted[0])], promoted[1])
            return True
        suggestion = self._proposals.next_searched()
        if suggestion is not None:
            self._append(**suggestion)
        return suggestion is not None

    def _promote_last(self) -> bool:
        """Lets the best paused trial of an arm go on if none of the arm's trials has finished: each arm needs a best one. Whether
        it did.
        """
        searched = [trial for trial in self.trials.values() if trial.role == Role.SEARCH]
        have_one = {trial.variant for trial in searched if trial.status == Status.FINISHED}
        paused = [trial for trial in self.trials.in_state(State.PAUSED) if trial.variant not in have_one]
        if not paused:
            return False
        best = max(paused, key=lambda trial: (trial.epoch, or_lowest(trial.best_value), -trial.number))
        of = sum(trial.variant == best.variant for trial in paused)
        self._act(best, Verdict(Action.PROMOTE, rank=1, of=of))
        return True

    def _end_paused(self) -> None:
        """Ends the trials that will not be promoted."""
        for trial in self.trials.in_state(State.PAUSED):
            self._end(trial, Status.STOPPED_EARLY, f"not among the best at the rung of epoch {trial.epoch}")

    def _end(self, trial: TrialState, status: Status, reason: str | None, own_fault: bool = False, shared_by: int = 1) -> None:
        self._append_end(trial, status, reason, own_fault, shared_by)
        limit, failed = self._config.failures.max_failed_fraction, self.num_failed - self._failed_before
        if failed > limit * self._config.num_trials():
            self.halt(Status.FAILED, f"{plural(failed, 'trial')} failed; failures.max_failed_fraction is {limit:g}")

    def _append_end(
        self, trial: TrialState, status: Status, reason: str | None, own_fault: bool = False, shared_by: int = 1
    ) -> None:
        more: dict[str, Any] = ({"own_fault": True} if own_fault else {}) | shared_fields(shared_by)
        if trial.best_epoch is not None:
            more |= {"best_epoch": trial.best_epoch, "best_value": trial.best_value}
        self._append(Kind.TRIAL_END, trial_id=trial.trial_id, status=status, stop_reason=reason, **more)

    def _is_due(self, trial: TrialState) -> bool:
        if trial.epoch in trial.judged or trial.epoch >= self._config.trial.epochs or trial.role == Role.CONFIRM:
            return False
        return self._scheduler.is_due(trial.number, trial.epoch)


def decisions(events: Iterable[Event]) -> Iterator[str]:
    """What was decided, in order, without when: a line of JSON for each decision."""
    for event in events:
        if keys := DECISIONS.get(event["event"]):
            yield json.dumps([event["event"], *(_decided(key, event.get(key)) for key in keys)], sort_keys=True)


def _decided(field: str, value: Any) -> Any:
    """What counts of a field. A resumed sweep may change some settings without deciding anything else."""
    if field != "config":
        return value
    return {key: setting for key, setting in flatten(value).items() if key not in UNDECIDING | ROUNDING}


def decision_hash(events: Iterable[Event]) -> str:
    """SHA-256 of all decisions of a sweep."""
    digest = hashlib.sha256()
    for number, decision in enumerate(decisions(events)):
        digest.update(f"\n{decision}".encode() if number else decision.encode())
    return digest.hexdigest()
