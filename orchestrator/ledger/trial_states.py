"""The trials of a sweep, as far as its ledger knows: what each has done, saved and been told.

All changes of a trial's state pass `TrialState.move_to`, which knows the allowed ones. Most follow from an event; the others are
the conductor's own moves between two events, which a resumed sweep makes again.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from orchestrator.ledger.events import Action, DecideEvent, Event, Kind, Parent, Role, Status, SuggestEvent
from trainables.best_epoch import improves


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
    """The name of a reference; empty for other roles."""
    seed: int
    config: dict[str, Any]
    parent: Parent | None
    """The trial and the epoch from whose state this one continues."""
    replaces: str | None
    confirms: str | None
    state: State = State.WAITING
    status: Status = Status.RUNNING
    """As in the tables."""
    stop_reason: str | None = None
    own_fault: bool = False
    """Whether the trial's own numbers ended it."""
    attempt: int = 1
    failures: int = 0
    epoch: int = 0
    """The last one that was reported; one that is repeated counts anew."""
    values: dict[int, float | None] = field(default_factory=dict)
    """`select_by` in each epoch."""
    metrics: dict[int, dict[str, Any]] = field(default_factory=dict)
    """All metrics of each epoch."""
    best_epoch: int | None = None
    """None until an epoch has a number."""
    verdicts: dict[int, DecideEvent] = field(default_factory=dict)
    """What was decided, by epoch."""
    checkpoints: list[Checkpoint] = field(default_factory=list)

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


class TrialStates(dict[str, TrialState]):
    """Trials by their ids, in the order in which they were suggested."""

    def in_state(self, state: State) -> list[TrialState]:
        """Those that wait, run, and so on."""
        return [trial for trial in self.values() if trial.state == state]

    def apply(self, event: Event) -> None:
        """Takes one event."""
        if event["event"] == Kind.SUGGEST:
            self[event["trial_id"]] = _suggested(event)
        elif event["event"] == Kind.DAMAGED:
            for trial in self.values():  # the checkpoint may be another trial's, from which this one was to continue
                trial.checkpoints = [checkpoint for checkpoint in trial.checkpoints if checkpoint.path != event["path"]]
        elif (trial_id := event.get("trial_id")) in self:
            _apply(event, self[str(trial_id)])


def trial_states_of(events: Iterable[Event]) -> TrialStates:
    """The trials of a ledger."""
    trials = TrialStates()
    for event in events:
        trials.apply(event)
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
        case Kind.GROUP_LOST:
            trial.attempt += 1
        case Kind.RETRY:
            trial.failures, trial.attempt = trial.failures + 1, event["attempt"]
            trial.move_to(State.WAITING)
        case Kind.DECIDE:
            trial.verdicts[event["epoch"]] = event
            if (state := _state_after(event["action"], trial.state)) is not None:
                trial.move_to(state)
        case Kind.TRIAL_END:
            trial.status, trial.stop_reason = Status(event["status"]), event["stop_reason"]
            trial.own_fault = event.get("own_fault", False)
            if trial.status != Status.INTERRUPTED:  # which leaves the trial where it was
                trial.move_to(State.ENDED)


def _state_after(action: Action, state: State) -> State | None:
    """The state that a verdict leads to; None where it changes nothing."""
    if action in (Action.STOP, Action.REPLACE):
        return State.STOPPING
    if action == Action.PAUSE:
        return State.PAUSED
    return State.WAITING if action == Action.PROMOTE or state == State.DUE else None


def trial_id_of(number: int) -> str:
    """The id of a sweep's trial by its number, from 0: `t0007`."""
    return f"t{number:04d}"


def number_of(trial_id: str) -> int:
    """The number in a trial's id."""
    return int(trial_id[1:])


def or_lowest(value: float | None) -> float:
    """A value to compare by: what is no number loses against every number."""
    return float("-inf") if value is None else value
