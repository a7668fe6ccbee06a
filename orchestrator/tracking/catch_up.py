"""Which events of a ledger MLflow has already: a resumed sweep does not send them again. Only reads from MLflow.

Events are sent in the ledger's order, so everything before an event that MLflow has is there as well.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.ledger.events import Event, ExportEvent, Kind, Status, SweepEndEvent, SweepResumeEvent, trial_of

RUN_STATUS = {
    Status.FINISHED: "FINISHED",
    Status.STOPPED_EARLY: "KILLED",
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


def sent_events(past: Sequence[Event], client: Any, parent: Any, runs: Mapping[str, Any]) -> set[int]:
    """The numbers of the events that need not be sent: MLflow has them, or later events replaced them.

    Args:
        past: all events of the ledger.
        client: an MlflowClient.
        parent: the sweep's run as it was found; None when there was none.
        runs: the trials' runs as they were found.
    """
    of_the_sweep = [event for event in past if event["event"] in (Kind.SWEEP_RESUME, Kind.EXPORT, Kind.SWEEP_END)]
    sent = _sent_of_sweep(of_the_sweep, client, parent)
    select_by = {event["trial_id"]: event["config"]["select_by"] for event in past if event["event"] == Kind.SUGGEST}
    trials: dict[str, list[Event]] = {}
    for event in past:
        if event["event"] in OF_A_TRIAL:
            trials.setdefault(trial_of(event), []).append(event)
    for trial_id, events in trials.items():
        sent |= _sent_of_trial(events, client, runs.get(trial_id), select_by[trial_id])
    return sent


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


def _sent_of_trial(events: list[Event], client: Any, run: Any, select_by: str) -> set[int]:
    """When an epoch was repeated, the last attempt counts. An epoch that MLflow has in part is sent again."""
    end = events[-1]
    if run and end["event"] == Kind.TRIAL_END and _ended_with(run, end) and run.data.tags.get("status") == end["status"]:
        return {event["n"] for event in events}
    epochs = [event for event in events if event["event"] == Kind.EPOCH]
    last = {event["epoch"]: event["n"] for event in epochs}
    sent = {event["n"] for event in epochs if event["n"] != last[event["epoch"]]}
    if run:
        points = {(point.timestamp, point.step) for point in client.get_metric_history(run.info.run_id, select_by)}
        there = [event["n"] for event in epochs if (milliseconds(event), event["epoch"]) in points]
        # A request may have been cut off in the middle of the last epoch that MLflow has.
        sent |= {event["n"] for event in epochs if event["n"] < max(there, default=0)}
    return sent


def _ended_with(run: Any, event: Event) -> bool:
    """Whether MLflow has this end of a trial or of the sweep, and so everything before it."""
    if event["event"] != Kind.TRIAL_END and event["event"] != Kind.SWEEP_END:
        return False
    return bool(run.info.status == RUN_STATUS[event["status"]] and run.info.end_time == milliseconds(event))
