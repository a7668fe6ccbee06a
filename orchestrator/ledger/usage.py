"""What a sweep has used: time, GPU hours, money, and how much of it its slots spent waiting. From the ledger's events."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from orchestrator.config.limits_config import BudgetConfig
from orchestrator.ledger.events import Event, Kind, Status, trial_of

HOUR = 3600.0
BUSY_UNTIL = (Kind.EPOCH, Kind.CHECKPOINT, Kind.RETRY, Kind.GROUP_LOST)
"""Kinds of events that show that a trial was busy up to then."""


@dataclass
class Usage:
    """Grows with each event. A sweep that was interrupted has used nothing in between.

    A trial is busy from the start of each stint to the last thing that it gave.
    """

    slots: int = 0
    gpus_per_slot: float = 0.0
    busy: dict[str, float] = field(default_factory=dict)
    """Seconds by trial, without the stint that is running."""
    _began: float | None = None
    _last: float = 0.0
    _earlier_s: float = 0.0
    _earlier_slot_s: float = 0.0
    _earlier_gpu_s: float = 0.0
    _stints: dict[str, tuple[float, float]] = field(default_factory=dict)
    _held: dict[int, float] | None = None
    """Since when each slot holds machines of a cluster; None where machines are there anyway."""
    _held_s: float = 0.0
    """Seconds that slots have held machines, without those that they hold now."""

    def apply(self, event: Event) -> None:
        """Takes one event."""
        time, trial_id = event["time"], trial_of(event)
        if event["event"] == Kind.SWEEP_RESUME:
            self._close_segment()
        elif event["event"] == Kind.SLOTS:
            self.slots, self.gpus_per_slot = event["slots"], event["gpus_per_slot"]
            self._held = {} if event.get("machines_may_come") else None
        elif event["event"] == Kind.TRIAL_START:
            self._began = self._began or time
            self._close_stint(trial_id)
            self._stints[trial_id] = (time, time)
        elif trial_id in self._stints and _was_busy(event):
            self._stints[trial_id] = (self._stints[trial_id][0], time)
        elif self._held is not None and event["event"] == Kind.GROUP_START:
            self._held[event["slot"]] = event["held_since"]
            if trial_id in self._stints:  # since the last thing that it gave, it has only waited
                self._close_stint(trial_id)
                self._stints[trial_id] = (event["held_since"], time)
        if event["event"] in (Kind.GROUP_LOST, Kind.GROUP_END):
            self._give_back(event.get("slot", 0), time)
        if self._began and trial_id and event["event"] not in (Kind.TEST_READ, Kind.EXPORT):
            self._last = time

    def wall_s(self, now: float | None = None) -> float:
        """Seconds during which slots were there, from the first trial's start on; up to `now`, or to the last event."""
        return self._earlier_s + self._running_s(now)

    def slot_s(self, now: float | None = None) -> float:
        """The same, times the number of slots."""
        return self._earlier_slot_s + self.slots * self._running_s(now)

    def gpu_hours(self, now: float | None = None) -> float:
        """GPUs of all slots times hours. On a cluster whose machines come with the work, a slot's GPUs count from when it has
        them until it gives them back.
        """
        slot_s = self.slots * self._running_s(now) if self._held is None else self._holding_s(now)
        return (self._earlier_gpu_s + self.gpus_per_slot * slot_s) / HOUR

    def gpu_idle_share(self) -> float | None:
        """Which part of the GPU hours of machines that come and go no trial has used; None where machines are there anyway."""
        hours = self.gpu_hours()
        if self._held is None or not hours:
            return None
        return max(0.0, 1 - sum(self.busy_s().values()) * self.gpus_per_slot / (hours * HOUR))

    def _holding_s(self, now: float | None) -> float:
        until = self._last if now is None else now
        return self._held_s + sum(max(0.0, until - since) for since in (self._held or {}).values())

    def _give_back(self, slot: int, time: float) -> None:
        if self._held is not None and (since := self._held.pop(slot, None)) is not None:
            self._held_s += time - since

    def busy_s(self) -> dict[str, float]:
        """Seconds that each trial has taken in a slot."""
        busy = dict(self.busy)
        for trial_id, (began, last) in self._stints.items():
            busy[trial_id] = busy.get(trial_id, 0.0) + last - began
        return busy

    def idle_share(self) -> float:
        """Which part of their time slots waited: for a process to start, for others at a rung, for the last trial to end."""
        slot_s = self.slot_s()
        return max(0.0, 1 - sum(self.busy_s().values()) / slot_s) if slot_s else 0.0

    def exceeds(self, budget: BudgetConfig, now: float) -> str | None:
        """Which part of the budget is used up, if any."""
        gpu_hours = self.gpu_hours(now)
        used = {
            "wall_hours": (self.wall_s(now) / HOUR, budget.wall_hours),
            "gpu_hours": (gpu_hours, budget.gpu_hours),
            "cost": (gpu_hours * (budget.cost_per_gpu_hour or 0), budget.cost),
        }
        for name, (amount, limit) in used.items():
            if limit is not None and amount >= limit:
                return f"budget.{name} of {limit:g} is used up"
        return None

    def _running_s(self, now: float | None) -> float:
        return 0.0 if self._began is None else max(0.0, (self._last if now is None else now) - self._began)

    def _close_stint(self, trial_id: str) -> None:
        if trial_id in self._stints:
            began, last = self._stints.pop(trial_id)
            self.busy[trial_id] = self.busy.get(trial_id, 0.0) + last - began

    def _close_segment(self) -> None:
        self._earlier_s, self._earlier_slot_s, self._earlier_gpu_s = self.wall_s(), self.slot_s(), self.gpu_hours() * HOUR
        self._began, self._held_s = None, 0.0
        self._held = None if self._held is None else {}
        for trial_id in list(self._stints):
            self._close_stint(trial_id)


def _was_busy(event: Event) -> bool:
    """Whether an event shows that its trial was busy up to then. A trial that diverged or failed was training until its end."""
    if event["event"] == Kind.TRIAL_END:
        return event["status"] in (Status.DIVERGED, Status.FAILED)
    return event["event"] in BUSY_UNTIL


def usage_of(events: Iterable[Event]) -> Usage:
    """What a sweep has used so far."""
    usage = Usage()
    for event in events:
        usage.apply(event)
    return usage
