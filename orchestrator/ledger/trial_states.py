"""The trials of a sweep, as far as its ledger knows: what each has done, saved and been told."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from orchestrator.ledger.ledger import Event


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
    variant: str
    config: dict[str, Any]
    parent: dict[str, Any] | None
    """The trial and the epoch from whose state this one goes on."""
    replaces: str | None
    confirms: str | None
    state: str = "waiting"
    """`waiting` for a process, `running`, `due` for a verdict, `paused` by one, `stopping` by one, `ended`."""
    status: str = "running"
    """As in the tables."""
    attempt: int = 1
    failures: int = 0
    epoch: int = 0
    """The last one that was reported; one that is repeated counts anew."""
    values: dict[int, float | None] = field(default_factory=dict)
    """`select_by` in each epoch."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Of the best epoch."""
    best_epoch: int | None = None
    verdicts: dict[int, Event] = field(default_factory=dict)
    """What was decided, by epoch."""
    checkpoints: list[Checkpoint] = field(default_factory=list)

    @property
    def best_value(self) -> float | None:
        """`select_by` at the best epoch."""
        return None if self.best_epoch is None else self.values[self.best_epoch]

    def take(self, epoch: int, metrics: dict[str, Any], value: float | None) -> None:
        """What an epoch gave. A repeated epoch replaces what it repeats, with equal numbers."""
        self.epoch, self.values[epoch] = epoch, value
        best = self.best_value
        if value is not None and (best is None or value > best or epoch == self.best_epoch):
            self.best_epoch, self.metrics = epoch, metrics


class TrialStates(dict[str, TrialState]):
    """Trials by their ids, in the order in which they were suggested."""

    def apply(self, event: Event) -> None:
        """Takes one event."""
        handler = getattr(self, f"_on_{event['event']}", None)
        if handler:
            handler(event)

    def in_state(self, state: str) -> list[TrialState]:
        """Those that wait, run, and so on."""
        return [member for member in self.values() if member.state == state]

    def _on_suggest(self, event: Event) -> None:
        trial_id = event["trial_id"]
        self[trial_id] = TrialState(
            trial_id,
            int(trial_id[1:]),
            event["variant"],
            event["config"],
            event.get("parent"),
            event.get("replaces"),
            event.get("confirms"),
        )

    def _on_trial_start(self, event: Event) -> None:
        member = self[event["trial_id"]]
        member.state, member.status, member.attempt = "running", "running", event["attempt"]

    def _on_epoch(self, event: Event) -> None:
        member = self[event["trial_id"]]
        member.take(event["epoch"], event["metrics"], event["metrics"][member.config["select_by"]])

    def _on_checkpoint(self, event: Event) -> None:
        member = self[event["trial_id"]]
        member.checkpoints.append(Checkpoint(event["epoch"], event["path"], event["sha256"]))

    def _on_damaged(self, event: Event) -> None:
        for member in self.values():  # it may be that of another trial, from which this one was to go on
            member.checkpoints = [checkpoint for checkpoint in member.checkpoints if checkpoint.path != event["path"]]

    def _on_group_lost(self, event: Event) -> None:
        self[event["trial_id"]].attempt += 1

    def _on_retry(self, event: Event) -> None:
        member = self[event["trial_id"]]
        member.failures += 1
        member.state, member.attempt = "waiting", event["attempt"]

    def _on_decide(self, event: Event) -> None:
        member = self[event["trial_id"]]
        member.verdicts[event["epoch"]] = event
        if event["action"] in ("stop", "replace"):
            member.state = "stopping"
        elif event["action"] == "pause":
            member.state = "paused"
        elif event["action"] == "promote" or member.state == "due":
            member.state = "waiting"

    def _on_trial_end(self, event: Event) -> None:
        member = self[event["trial_id"]]
        member.status = event["status"]
        if member.status != "interrupted":  # which leaves it where it was
            member.state = "ended"


def trial_states_of(events: Iterable[Event]) -> TrialStates:
    """The trials of a ledger."""
    members = TrialStates()
    for event in events:
        members.apply(event)
    return members


def or_lowest(value: float | None) -> float:
    """A value to compare by: what is no number loses against every number."""
    return float("-inf") if value is None else value
