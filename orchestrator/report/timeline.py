"""Which trial each slot had when, from the ledger's events: the stints, and what was lost."""

from collections.abc import Iterable
from typing import NamedTuple

from orchestrator.ledger.events import Event, Kind, Status, trial_of
from orchestrator.ledger.usage import BUSY_UNTIL


class Stint(NamedTuple):
    """A trial in a slot, from its start to the last thing that it gave."""

    trial_id: str
    began: float
    """Seconds since the first stint of the sweep, without the time between an interruption and the resumption."""
    ended: float
    is_lost: bool
    """Whether the slot's process or its workers were lost at the end of it."""
    lane: int = 0
    """The slot, from 0. The ledger does not name slots, so a stint takes the one that has been free for the longest time."""


def stints_of(events: Iterable[Event]) -> list[Stint]:
    """The stints of a sweep, in the order of their beginnings."""
    stints = Stints()
    for event in events:
        stints.apply(event)
    return stints.all()


class Stints:
    """The stints of a sweep; grows with each event."""

    def __init__(self) -> None:
        self._ended: list[Stint] = []
        self._running: dict[str, tuple[float, float]] = {}
        """Beginning and last sign of life of each trial that is in a slot."""
        self._clock = 0.0
        self._shift: float | None = None

    def all(self) -> list[Stint]:
        """In the order of their beginnings."""
        going_on = [Stint(trial_id, *times, is_lost=False) for trial_id, times in self._running.items()]
        return _in_lanes([*self._ended, *going_on])

    def apply(self, event: Event) -> None:
        """Takes one event."""
        trial_id, kind = trial_of(event), event["event"]
        if kind == Kind.SWEEP_RESUME:
            for left in list(self._running):
                self._close(left)
            self._shift = None if self._shift is None else event["time"] - self._clock
        if self._shift is None:
            if kind != Kind.TRIAL_START:
                return
            self._shift = event["time"]
        if not trial_id or kind in (Kind.TEST_READ, Kind.EXPORT):
            return
        self._clock = now = max(self._clock, event["time"] - self._shift)
        if kind == Kind.TRIAL_START:
            self._close(trial_id)
            self._running[trial_id] = (now, now)
        elif trial_id in self._running:
            failed = event["event"] == Kind.TRIAL_END and event["status"] in (Status.DIVERGED, Status.FAILED)
            if kind in BUSY_UNTIL or failed:
                self._running[trial_id] = (self._running[trial_id][0], now)
            if kind in (Kind.TRIAL_END, Kind.RETRY, Kind.GROUP_LOST):
                self._close(trial_id, is_lost=kind != Kind.TRIAL_END)
            if kind == Kind.GROUP_LOST:  # the slot goes on with other workers
                self._running[trial_id] = (now, now)

    def _close(self, trial_id: str, is_lost: bool = False) -> None:
        if trial_id in self._running:
            self._ended.append(Stint(trial_id, *self._running.pop(trial_id), is_lost))


def _in_lanes(stints: list[Stint]) -> list[Stint]:
    """The stints with their lanes."""
    free_at: list[float] = []
    found = []
    for stint in sorted(stints, key=lambda stint: (stint.began, stint.ended)):
        free = [lane for lane, time in enumerate(free_at) if time <= stint.began]
        lane = min(free, key=lambda lane: free_at[lane], default=len(free_at))
        free_at[lane:] = [stint.ended, *free_at[lane + 1 :]]
        found.append(stint._replace(lane=lane))
    return found
