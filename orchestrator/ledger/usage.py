"""What a sweep has used: time, GPU hours, money, and how much of it its slots spent waiting. From the ledger's events."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from orchestrator.config.limits_config import BudgetConfig
from orchestrator.ledger.events import AFTERWARDS, Event, Kind, Status, shared_by, trial_of

HOUR = 3600.0
BUSY_UNTIL = (Kind.EPOCH, Kind.RETRY, Kind.GROUP_LOST)
"""Kinds of events that show that a trial was busy up to then."""


@dataclass
class _Integral:
    """Of a quantity over time that changes at moments."""

    value: float = 0.0
    _since: float = 0.0
    _sum: float = 0.0

    def until(self, time: float) -> float:
        return self._sum + self.value * max(0.0, time - self._since)

    def change(self, time: float, value: float) -> None:
        self._sum, self._since, self.value = self.until(time), max(time, self._since), value


class MachineTime(NamedTuple):
    """What machines that come and go have cost, in seconds times GPUs."""

    up_s: float
    starting_s: float
    gpus_up: float
    """GPUs that were up at the end."""
    idle_timeout_s: float | None
    """How long these stay without work; None when nobody knows."""


class MachineHours(NamedTuple):
    """GPU hours of machines that come and go."""

    trials: float
    """In which trials trained."""
    waiting: float
    """In which a slot had the GPU and no trial used it."""
    idle: float
    """In which no slot had it."""
    starting: float
    """In which its machine was on its way."""
    afterwards: float | None
    """At most, from the end of the sweep until the machines have gone; None when nobody knows."""

    @property
    def total(self) -> float:
        """All of them."""
        return sum(hours for hours in self if hours is not None)


@dataclass
class _Stint:
    """A trial's time in a process."""

    last: float
    """When it began, or gave something last."""
    busy_s: float = 0.0

    def until(self, time: float, shared_by: int) -> None:
        """The trial was busy from `last` to `time`; so many trials had this time in common."""
        self.last, self.busy_s = time, self.busy_s + (time - self.last) / shared_by


@dataclass
class Usage:
    """Grows with each event. A sweep that was interrupted has used nothing in between.

    A trial is busy from the start of each stint to the last thing that it gave. Trials that a process trains together have equal
    shares of its time.
    """

    slots: int = 0
    """How many there are now."""
    most_slots: int = 0
    gpus_per_slot: float = 0.0
    busy: dict[str, float] = field(default_factory=dict)
    """Seconds by trial, without the stint that is running."""
    _is_running: bool = False
    """Whether a trial has begun in this segment: from then on slots count."""
    _last: float = 0.0
    _wall_s: _Integral = field(default_factory=_Integral)
    _slot_s: _Integral = field(default_factory=_Integral)
    _gpu_s: _Integral = field(default_factory=_Integral)
    """GPUs of slots that have them from beginning to end."""
    _stints: dict[str, _Stint] = field(default_factory=dict)
    _held: dict[int, float] | None = None
    """Since when each slot holds machines of a cluster; None where machines are there anyway."""
    _over: set[tuple[int, float]] = field(default_factory=set)
    """Slots that have given machines back, each with the time since when it had held them. Each of the trials that a slot trains
    together tells of this, and another one may tell later of what is over."""
    _held_gpu_s: float = 0.0
    """Seconds, times GPUs, that slots have held machines, without those that they hold now."""
    _past_held_gpu_s: float = 0.0
    """Those of earlier segments."""
    _busy_gpu_s: float = 0.0
    """Seconds, times GPUs, that trials took of held machines in this segment, without the stints that are running."""
    _machines: MachineTime | None = None
    """In this segment."""
    _past_hours: MachineHours | None = None

    def apply(self, event: Event) -> None:
        """Takes one event."""
        time, trial_id = event["time"], trial_of(event)
        if event["event"] == Kind.SWEEP_RESUME:
            self._close_segment()
        elif event["event"] == Kind.SLOTS:
            self.slots, self.gpus_per_slot = event["slots"], event["gpus_per_slot"]
            self.most_slots = max(self.most_slots, self.slots)
            self._held = (self._held or {}) if event.get("machines_may_come") else None
            self._count_slots(time)
        elif event["event"] == Kind.MACHINES:
            self._machines = MachineTime(event["up_s"], event["starting_s"], event["gpus_up"], event.get("idle_timeout_s"))
        elif event["event"] == Kind.TRIAL_START:
            if not self._is_running:
                self._is_running = True
                self._count_slots(time)
            self._close_stint(trial_id)
            self._stints[trial_id] = _Stint(time)
        elif trial_id in self._stints and _was_busy(event):
            self._stints[trial_id].until(_ended_at(event), shared_by(event))
        elif self._held is not None and event["event"] == Kind.GROUP_START:
            if (event["slot"], event["held_since"]) not in self._over:
                self._held[event["slot"]] = event["held_since"]
            if trial_id in self._stints:  # since the last thing that it gave, it has only waited
                self._close_stint(trial_id)
                self._stints[trial_id] = _Stint(event.get("ready_at", event["held_since"]))
                self._stints[trial_id].until(time, shared_by(event))
        if event["event"] in (Kind.GROUP_LOST, Kind.GROUP_END):
            self._give_back(event.get("slot", 0), _ended_at(event))
        if self._is_running and trial_id and event["event"] not in AFTERWARDS:
            self._last = time

    def wall_s(self, now: float | None = None) -> float:
        """Seconds during which slots were there, from the first trial's start on; up to `now`, or to the last event."""
        return self._wall_s.until(self._until(now))

    def slot_s(self, now: float | None = None) -> float:
        """The same, times the number of slots."""
        return self._slot_s.until(self._until(now))

    def gpu_hours(self, now: float | None = None) -> float:
        """GPUs of all slots times hours. On a cluster whose machines come with the work, a slot's GPUs count from when it has
        them until it gives them back.
        """
        until = self._until(now)
        holding = sum(max(0.0, until - since) for since in (self._held or {}).values())
        return (self._gpu_s.until(until) + self._past_held_gpu_s + self._held_gpu_s + self.gpus_per_slot * holding) / HOUR

    def machine_hours(self) -> MachineHours | None:
        """Where the GPU hours of machines that come and go went; None where machines are there anyway."""
        now, past = self._segment_hours(), self._past_hours
        if now is None or past is None:
            return now or past
        return MachineHours(
            now.trials + past.trials,
            now.waiting + past.waiting,
            now.idle + past.idle,
            now.starting + past.starting,
            now.afterwards,
        )

    def _segment_hours(self) -> MachineHours | None:
        if (machines := self._machines) is None:
            return None
        holding = sum(max(0.0, self._last - since) for since in (self._held or {}).values())
        held = self._held_gpu_s + self.gpus_per_slot * holding
        busy = self._busy_gpu_s + self.gpus_per_slot * sum(stint.busy_s for stint in self._stints.values())
        after = None if machines.idle_timeout_s is None else machines.gpus_up * machines.idle_timeout_s / HOUR
        idle = max(0.0, machines.up_s - held)
        return MachineHours(busy / HOUR, max(0.0, held - busy) / HOUR, idle / HOUR, machines.starting_s / HOUR, after)

    def busy_s(self) -> dict[str, float]:
        """Seconds that each trial has taken in a slot."""
        busy = dict(self.busy)
        for trial_id, stint in self._stints.items():
            busy[trial_id] = busy.get(trial_id, 0.0) + stint.busy_s
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

    def _until(self, now: float | None) -> float:
        return self._last if now is None else now

    def _count_slots(self, time: float, number: int | None = None) -> None:
        """Lets the slots of now, or `number`, count from `time` on."""
        number = (self.slots if self._is_running else 0) if number is None else number
        self._wall_s.change(time, float(number > 0))
        self._slot_s.change(time, number)
        self._gpu_s.change(time, number * self.gpus_per_slot if self._held is None else 0.0)

    def _give_back(self, slot: int, time: float) -> None:
        if self._held is not None and (since := self._held.get(slot)) is not None and since <= time:
            del self._held[slot]
            self._over.add((slot, since))
            self._held_gpu_s += self.gpus_per_slot * (time - since)

    def _close_stint(self, trial_id: str) -> None:
        if trial_id in self._stints:
            busy_s = self._stints.pop(trial_id).busy_s
            self.busy[trial_id] = self.busy.get(trial_id, 0.0) + busy_s
            self._busy_gpu_s += self.gpus_per_slot * busy_s if self._held is not None else 0.0

    def _close_segment(self) -> None:
        self._count_slots(self._last, 0)
        self._is_running = False
        for slot in list(self._held or {}):
            self._give_back(slot, self._last)
        for trial_id in list(self._stints):
            self._close_stint(trial_id)
        self._past_hours, self._machines = self.machine_hours(), None
        self._past_held_gpu_s += self._held_gpu_s
        self._held_gpu_s = self._busy_gpu_s = 0.0


def _was_busy(event: Event) -> bool:
    """Whether an event shows that its trial was busy up to then. A trial that diverged or failed was training until its end."""
    if event["event"] == Kind.TRIAL_END:
        return event["status"] in (Status.DIVERGED, Status.FAILED)
    return event["event"] in BUSY_UNTIL


def _ended_at(event: Event) -> float:
    """When what an event tells ended; a lost group is told only when its epoch has been repeated."""
    return event.get("lost_at", event["time"]) if event["event"] == Kind.GROUP_LOST else event["time"]


def usage_of(events: Iterable[Event]) -> Usage:
    """What a sweep has used so far."""
    usage = Usage()
    for event in events:
        usage.apply(event)
    return usage


@dataclass
class Seconds:
    """From the start to the last trial's end, without the time between an interruption and the resumption. Of the command's time,
    which `clock_of` tells, the start of Ray, the export and the report are missing.
    """

    _before: float = 0.0
    """Of earlier segments."""
    _began: float = 0.0
    _ended: float = 0.0

    def apply(self, event: Event) -> None:
        """Takes one event."""
        if event["event"] in (Kind.SWEEP_START, Kind.SWEEP_RESUME):
            self._before, self._began = self.total, event["time"]
        if event["event"] not in (Kind.SWEEP_END, *AFTERWARDS):
            self._ended = event["time"]

    @property
    def total(self) -> float:
        """So far."""
        return self._before + self._ended - self._began


class Clock(NamedTuple):
    """What the clock on the wall says about a sweep."""

    seconds: float
    """From the person's Enter to the end, summed over the commands."""
    commands: int
    """The first one, and those that resumed the sweep."""


def clock_of(events: Iterable[Event], now: float | None = None) -> Clock:
    """Seconds that a person waited in front of the sweep: start, export and report included.

    Args:
        events: the ledger. Each beginning says in `entered` when its command was entered; in a ledger of an older version it is
            the time of the event itself, a few seconds later.
        now: the end of the command that has just run; None means the last event.
    """
    seconds, commands, began, last, runs = 0.0, 0, 0.0, 0.0, False
    for event in events:
        if event["event"] in (Kind.SWEEP_START, Kind.SWEEP_RESUME):
            seconds, commands, began, runs = seconds + last - began, commands + 1, event.get("entered", event["time"]), True
        if runs and event["event"] != Kind.EXPORT_OTHER:  # another command's, as everything after the end
            last = event["time"]
        runs = runs and event["event"] != Kind.SWEEP_END
    return Clock(seconds + (last if now is None else max(last, now)) - began, commands)
