"""Which events of a ledger MLflow has already: a resumed sweep does not send them again. Only reads from MLflow.

Events are sent in the ledger's order, so everything before an event that MLflow has is there as well.
"""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.ledger.events import Event, ExportEvent, Kind, Status, SweepEndEvent, SweepResumeEvent, trial_of

RUN_STATUS = {
    Status.FINISHED: "FINISHED",
    Status.STOPPED_EARLY: "FINISHED",  # MLflow marks what was killed as a failure
    Status.DIVERGED: "FAILED",
    Status.FAILED: "FAILED",
    Status.INTERRUPTED: "KILLED",
}
"""What a trial's status is called in MLflow."""
OF_A_TRIAL = {Kind.TRIAL_START, Kind.EPOCH, Kind.RETRY, Kind.TRIAL_END}
"""Kinds of events that a trial's run shows."""


def milliseconds(event: Event) -> int:
    """When an event happened, as MLflow counts time."""
    return int(event["time"] * 1000)


def sent_events(past: Sequence[Event], client: Any, parent: Any, runs: Mapping[str, Any]) -> bytearray:
    """Which events need not be sent: MLflow has them, or later events replaced them.

    Args:
        past: all events of the ledger.
        client: an MlflowClient.
        parent: the sweep's run as it was found; None when there was none.
        runs: the trials' runs as they were found.

    Returns: 1 or 0 for each event, by its number.
    """
    of_the_sweep: list[SweepResumeEvent | ExportEvent | SweepEndEvent] = []
    trials: dict[str, _Story] = {}
    for event in past:
        if event["event"] in (Kind.SWEEP_RESUME, Kind.EXPORT, Kind.SWEEP_END):
            of_the_sweep.append(event)
        elif event["event"] == Kind.SUGGEST:
            trials[event["trial_id"]] = _Story(event["config"]["select_by"])
        elif event["event"] in OF_A_TRIAL:
            trials[trial_of(event)].take(event)
    sent = bytearray(1 + past[-1]["n"])
    for number in _sent_of_sweep(of_the_sweep, client, parent):
        sent[number] = 1
    for trial_id, story in trials.items():
        for number in story.sent(client, runs.get(trial_id)):
            sent[number] = 1
    return sent


class _Story:
    """The events of a trial, as far as its run shows them: numbers alone, because a large sweep has very many."""

    def __init__(self, select_by: str) -> None:
        self._select_by = select_by
        self._numbers = array("Q")
        self._epochs, self._epoch_numbers, self._stamps = array("Q"), array("Q"), array("Q")
        self._last: Event | None = None

    def take(self, event: Event) -> None:
        self._numbers.append(event["n"])
        self._last = event
        if event["event"] == Kind.EPOCH:
            self._epochs.append(event["epoch"])
            self._epoch_numbers.append(event["n"])
            self._stamps.append(milliseconds(event))

    def sent(self, client: Any, run: Any) -> Iterable[int]:
        """When an epoch was repeated, the last attempt counts. An epoch that MLflow has in part is sent again."""
        end = self._last
        if end is None:
            return []
        if run and end["event"] == Kind.TRIAL_END and _ended_with(run, end) and run.data.tags.get("status") == end["status"]:
            return self._numbers
        last = dict(zip(self._epochs, self._epoch_numbers, strict=True))
        found = {number for epoch, number in zip(self._epochs, self._epoch_numbers, strict=True) if number != last[epoch]}
        if run:
            points = {(point.timestamp, point.step) for point in client.get_metric_history(run.info.run_id, self._select_by)}
            epochs = zip(self._stamps, self._epochs, self._epoch_numbers, strict=True)
            there = [number for stamp, epoch, number in epochs if (stamp, epoch) in points]
            # A request may have been cut off in the middle of the last epoch that MLflow has.
            found |= {number for number in self._epoch_numbers if number < max(there, default=0)}
        return found


def _sent_of_sweep(events: Sequence[SweepResumeEvent | ExportEvent | SweepEndEvent], client: Any, parent: Any) -> set[int]:
    """An end of the sweep from before a resumption is not sent: the sweep went on."""
    if parent and events and _ended_with(parent, events[-1]):
        return {event["n"] for event in events}
    resumed = max((event["n"] for event in events if event["event"] == Kind.SWEEP_RESUME), default=0)
    sent = {event["n"] for event in events if event["event"] == Kind.SWEEP_END and event["n"] < resumed}
    if parent:
        sent |= {event["n"] for event in events if event["event"] == Kind.EXPORT and _has_export(client, parent, event)}
    return sent


def _has_export(client: Any, parent: Any, event: ExportEvent) -> bool:
    keys = [key for key, value in event["metrics"].items() if value is not None]
    return bool(keys) and all(
        any(point.timestamp == milliseconds(event) for point in client.get_metric_history(parent.info.run_id, key))
        for key in keys
    )


def _ended_with(run: Any, event: Event) -> bool:
    """Whether MLflow has this end of a trial or of the sweep, and so everything before it."""
    if event["event"] != Kind.TRIAL_END and event["event"] != Kind.SWEEP_END:
        return False
    return bool(run.info.status == RUN_STATUS[event["status"]] and run.info.end_time == milliseconds(event))
