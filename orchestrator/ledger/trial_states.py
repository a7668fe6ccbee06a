"""The trials of a sweep, as far as its ledger knows: what each has done, saved and been told.

All changes of a trial's state pass `TrialState.move_to`, which knows the allowed ones. Most follow from an event; the others are
the conductor's own moves between two events, which a resumed sweep makes again.
"""

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from orchestrator.ledger.events import Action, DecideEvent, Event, Kind, Parent, Role, Status, SuggestEvent, shared_by
from trainables.best_epoch import improves
from trainables.config import ROUNDING, UNDECIDING, followed
from trainables.config_file import ConfigError
from trainables.settings import flatten


class State(StrEnum):
    """Where a trial stands."""

    WAITING = "waiting"
    """For a process."""
    RUNNING = "running"
    """A process has it."""
    DUE = "due"
    """For a verdict; its process has left it."""
    PAUSED = "paused"
    """By a verdict, until it is promoted."""
    STOPPING = "stopping"
    """By a verdict that has not been carried out yet."""
    ENDED = "ended"


MOVES = {
    State.WAITING: {State.RUNNING, State.ENDED},
    State.RUNNING: {State.WAITING, State.DUE, State.PAUSED, State.STOPPING, State.ENDED},
    State.DUE: {State.WAITING, State.PAUSED, State.STOPPING, State.ENDED},
    State.PAUSED: {State.WAITING, State.ENDED},
    State.STOPPING: {State.ENDED},
    State.ENDED: {State.RUNNING},  # never in a sound sweep; the campaign of faults reads unsound ledgers, to count such trials
}
"""From each state, the states that may follow."""


RECENT = 2
"""Checkpoints of a trial that goes on: the last one, and the one before, in case the last one is damaged."""


class Checkpoint(NamedTuple):
    """A saved state of a trial."""

    epoch: int
    path: str
    """In the results folder."""
    sha256: str


@dataclass
class TrialState:
    """A trial, as far as the ledger knows."""

    trial_id: str
    number: int
    role: Role
    variant: str
    """The name of a reference, or of the arm; empty for other roles when the sweep has no arms."""
    seed: int
    config: dict[str, Any]
    """As it runs, or ran."""
    parent: Parent | None
    """The trial and the epoch from whose state this one continues."""
    replaces: str | None
    confirms: str | None
    on_move: Callable[["TrialState", State], None] = field(default=lambda trial, state: None, repr=False, compare=False)
    """Is told of the new state before a change."""
    state: State = State.WAITING
    status: Status = Status.RUNNING
    """As in the tables."""
    stop_reason: str | None = None
    own_fault: bool = False
    """Whether the trial's own numbers ended it."""
    attempt: int = 1
    failures: int = 0
    trains_alone: bool = False
    """Whether it lost a process that it shared with other trials, and shares none from then on."""
    epoch: int = 0
    """The last one that was reported; one that is repeated counts anew."""
    values: dict[int, float | None] = field(default_factory=dict)
    """`select_by` in each epoch."""
    metrics: dict[int, dict[str, Any]] = field(default_factory=dict)
    """All metrics of each epoch; of a trial that has ended, only those of its first, best and last epochs."""
    best_epoch: int | None = None
    """None until an epoch has a number."""
    judged: set[int] = field(default_factory=set)
    """Epochs with a verdict; empty once the trial has ended."""
    verdict: DecideEvent | None = None
    """The last one; None once the trial has ended."""
    checkpoints: list[Checkpoint] = field(default_factory=list)
    pairing: dict[str, str] = field(default_factory=dict)
    """Digests of what the trial has in common with others; empty before its last epoch."""
    test: dict[str, float | None] = field(default_factory=dict)
    """Metrics of the test set; empty before it is read."""

    def __post_init__(self) -> None:
        """Until its sweep goes on with other settings, the trial's configuration would run again as it does."""
        self.onward = self.config
        """The settings with which the same configuration would run now."""

    @functools.cached_property
    def configuration(self) -> str:
        """See `configuration_of`."""
        return configuration_of(self.config)

    @property
    def best_value(self) -> float | None:
        """`select_by` at the best epoch."""
        return None if self.best_epoch is None else self.values[self.best_epoch]

    @property
    def best_metrics(self) -> dict[str, Any]:
        """All metrics of the best epoch; none before there is one."""
        return {} if self.best_epoch is None else self.metrics[self.best_epoch]

    def move_to(self, state: State) -> None:
        """Changes the state."""
        assert state == self.state or state in MOVES[self.state], f"{self.trial_id} is {self.state}, which cannot become {state}"
        self.on_move(self, state)
        self.state = state

    def take_epoch(self, epoch: int, metrics: dict[str, Any]) -> None:
        """Takes what an epoch gave. A repeated epoch replaces the attempt before."""
        repeated = epoch in self.values
        self.epoch, self.metrics[epoch], self.values[epoch] = epoch, metrics, metrics[self.config["select_by"]]
        if repeated:
            self.best_epoch = None
        for candidate in sorted(self.values) if repeated else [epoch]:
            if improves(self.values[candidate], self.best_value):
                self.best_epoch = candidate

    def end(self) -> None:
        """The trial has ended for good. It keeps what tables and comparisons need: no epoch of it will be repeated."""
        self.move_to(State.ENDED)
        self.judged, self.verdict = set(), None
        if self.metrics:
            kept = {min(self.metrics), self.best_epoch, max(self.metrics)}
            self.metrics = {epoch: metrics for epoch, metrics in self.metrics.items() if epoch in kept}


class TrialStates(dict[str, TrialState]):
    """Trials by their ids, in the order in which they were suggested.

    What is asked at every event, how many trials run for instance, is kept up to date and not counted anew: a sweep may have
    thousands of trials.
    """

    def __init__(self) -> None:
        super().__init__()
        self._by_state: dict[State, dict[int, TrialState]] = {state: {} for state in State}
        self._heirs: dict[str, list[TrialState]] = {}
        self._settings: dict[str, Any] = {}
        self.with_status: Counter[Status] = Counter()
        """How many trials have each status."""

    def in_state(self, state: State) -> list[TrialState]:
        """Those that wait, run, and so on, in the order in which they were suggested."""
        found = self._by_state[state]
        return [found[number] for number in sorted(found)]

    def num_in_state(self, state: State) -> int:
        """How many trials wait, run, and so on."""
        return len(self._by_state[state])

    def heirs_of(self, trial_id: str) -> list[TrialState]:
        """The trials that continue from a trial's state."""
        return self._heirs.get(trial_id, [])

    def apply(self, event: Event) -> None:
        """Takes one event."""
        if event["event"] in (Kind.SWEEP_START, Kind.SWEEP_RESUME):
            self._follow(event.get("config", {}).get("trial", {}))
        elif event["event"] == Kind.SUGGEST:
            self._add(_suggested(event))
        elif event["event"] == Kind.DAMAGED:
            for trial in self.values():  # the checkpoint may be another trial's, from which this one was to continue
                trial.checkpoints = [checkpoint for checkpoint in trial.checkpoints if checkpoint.path != event["path"]]
        elif (trial_id := event.get("trial_id")) in self:
            trial = self[str(trial_id)]
            self.with_status[trial.status] -= 1
            _apply(event, trial)
            self.with_status[trial.status] += 1

    def _follow(self, settings: dict[str, Any]) -> None:
        """Lets all trials go on with the settings that a sweep may change when it is resumed."""
        for trial in self.values():
            trial.onward = followed(trial.onward, self._settings, settings)
            ended = trial.state == State.ENDED  # how it rounded is past; where its images are is not
            trial.config = followed(trial.config, self._settings, settings, UNDECIDING) if ended else trial.onward
        self._settings = settings

    def _add(self, trial: TrialState) -> None:
        self[trial.trial_id] = trial
        self._by_state[trial.state][trial.number] = trial
        self.with_status[trial.status] += 1
        trial.on_move = self._move
        if trial.parent:
            self._heirs.setdefault(trial.parent["trial_id"], []).append(trial)

    def _move(self, trial: TrialState, state: State) -> None:
        del self._by_state[trial.state][trial.number]
        self._by_state[state][trial.number] = trial


def trial_states_of(events: Iterable[Event]) -> TrialStates:
    """The trials of a ledger, each with its recent checkpoints."""
    trials = TrialStates()
    for event in events:
        trials.apply(event)
        if event["event"] == Kind.CHECKPOINT and (trial := trials.get(event["trial_id"])):
            trial.checkpoints = trial.checkpoints[-RECENT:]  # the sweep removes the others
    return trials


def _suggested(event: SuggestEvent) -> TrialState:
    trial_id = event["trial_id"]
    return TrialState(
        trial_id,
        number_of(trial_id),
        Role(event["role"]),
        event["variant"],
        event["seed"],
        event["config"],
        event.get("parent"),
        event.get("replaces"),
        event.get("confirms"),
    )


def _apply(event: Event, trial: TrialState) -> None:
    """What an event changes about its trial."""
    match event["event"]:
        case Kind.TRIAL_START:
            trial.move_to(State.RUNNING)
            trial.status, trial.stop_reason, trial.attempt = Status.RUNNING, None, event["attempt"]
        case Kind.EPOCH:
            trial.take_epoch(event["epoch"], event["metrics"])
        case Kind.CHECKPOINT:
            trial.checkpoints.append(Checkpoint(event["epoch"], event["path"], event["sha256"]))
        case Kind.PAIRING:
            trial.pairing = event["digests"]
        case Kind.TEST_READ:
            trial.test = event["metrics"]
        case Kind.GROUP_LOST:
            trial.attempt += 1
        case Kind.RETRY:
            is_shared = shared_by(event) > 1
            trial.attempt, trial.failures = event["attempt"], trial.failures + (not is_shared)
            trial.trains_alone = trial.trains_alone or is_shared
            trial.move_to(State.WAITING)
        case Kind.DECIDE:
            trial.judged.add(event["epoch"])
            trial.verdict = event
            if (state := _state_after(event["action"], trial.state)) is not None:
                trial.move_to(state)
        case Kind.TRIAL_END:
            trial.status, trial.stop_reason = Status(event["status"]), event["stop_reason"]
            trial.own_fault = event.get("own_fault", False)
            if trial.status != Status.INTERRUPTED:  # which leaves the trial where it was
                trial.end()


def _state_after(action: Action, state: State) -> State | None:
    """The state that a verdict leads to; None where it changes nothing."""
    if action in (Action.STOP, Action.REPLACE):
        return State.STOPPING
    if action == Action.PAUSE:
        return State.PAUSED
    return State.WAITING if action == Action.PROMOTE or state == State.DUE else None


def configuration_of(config: dict[str, Any]) -> str:
    """Tells configurations apart that differ in more than the seed and settings that decide no result; a digest."""
    deciding = {key: value for key, value in flatten(config).items() if key not in {"seed"} | UNDECIDING | ROUNDING}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def trial_id_of(number: int) -> str:
    """The id of a sweep's trial by its number, from 0: `t0007`."""
    return f"t{number:04d}"


def number_of(trial_id: str) -> int:
    """The number in a trial's id."""
    return int(trial_id[1:])


def check_known(wanted: str, known: Sequence[str], sweep: str) -> None:
    """Sees that a sweep has the trial that a person names.

    Args:
        wanted: the trial's id, as it was typed.
        known: the ids of the sweep's trials, in their order.
        sweep: its name in the message.

    Raises:
        ConfigError: when it has not.
    """
    if wanted not in known:
        allowed = f"{known[0]} to {known[-1]}" if known else "none, because no trial has begun"
        raise ConfigError(f"command line: {wanted!r} is no trial of {sweep}; allowed: {allowed}")


def or_lowest(value: float | None) -> float:
    """A value to compare by: what is no number loses against every number."""
    return float("-inf") if value is None else value
