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
    return _in_lanes(_stints(events))


def _stints(events: Iterable[Event]) -> list[Stint]:
    found: list[Stint] = []
    running: dict[str, tuple[float, float]] = {}
    clock, shift, last_time = 0.0, None, 0.0

    def close(trial_id: str, is_lost: bool) -> None:
        if trial_id in running:
            found.append(Stint(trial_id, *running.pop(trial_id), is_lost))

    for event in events:
        trial_id, kind = trial_of(event), event["event"]
        if kind == Kind.SWEEP_RESUME:
            for left in list(running):
                close(left, is_lost=False)
            shift = None if shift is None else event["time"] - clock
        if shift is None:
            if kind != Kind.TRIAL_START:
                continue
            shift = event["time"]
        if not trial_id or kind in (Kind.TEST_READ, Kind.EXPORT):
            continue
        clock = last_time = max(last_time, event["time"] - shift)
        if kind == Kind.TRIAL_START:
            close(trial_id, is_lost=False)
            running[trial_id] = (clock, clock)
        elif trial_id in running:
            failed = event["event"] == Kind.TRIAL_END and event["status"] in (Status.DIVERGED, Status.FAILED)
            if kind in BUSY_UNTIL or failed:
                running[trial_id] = (running[trial_id][0], clock)
            if kind in (Kind.TRIAL_END, Kind.RETRY):
                close(trial_id, is_lost=kind == Kind.RETRY)
            elif kind == Kind.GROUP_LOST:
                close(trial_id, is_lost=True)
                running[trial_id] = (clock, clock)
    for left in list(running):
        close(left, is_lost=False)
    return found


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
