"""The epochs of a ledger. When an epoch was repeated after a crash, the last attempt counts."""

from collections.abc import Iterator, Sequence

from orchestrator.ledger.events import EpochEvent, Event, Kind, Status


def last_attempts(events: Sequence[Event]) -> Iterator[EpochEvent]:
    """The event of each trial and epoch. When an epoch is repeated, the last attempt counts, in the place of the first.

    Args:
        events: a ledger. It is read twice, because the epochs of a large sweep do not fit into the memory.
    """
    repeated = _repeated(events)
    for event in events:
        if event["event"] == Kind.EPOCH:
            key = (event["trial_id"], event["epoch"])
            if key not in repeated:
                yield event
            elif (last := repeated[key]) is not None:
                repeated[key] = None
                yield last


def _repeated(events: Sequence[Event]) -> dict[tuple[str, int], EpochEvent | None]:
    """The last attempt of each epoch that was repeated."""
    seen: dict[str, set[int]] = {}
    found: dict[tuple[str, int], EpochEvent | None] = {}
    for event in events:
        if event["event"] == Kind.EPOCH:
            epochs = seen.setdefault(event["trial_id"], set())
            if event["epoch"] in epochs:
                found[event["trial_id"], event["epoch"]] = event
            epochs.add(event["epoch"])
        elif event["event"] == Kind.TRIAL_END and event["status"] != Status.INTERRUPTED:
            seen.pop(event["trial_id"], None)  # no epoch of the trial is repeated any more
    return found
