"""What of a ledger MLflow shows already: a resumed sweep need not send it again. Reads from MLflow only.

Events go out in the ledger's order, so what comes before something that is there is there as well.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.ledger.ledger import Event

RUN_STATUS = {
    "finished": "FINISHED",
    "stopped_early": "KILLED",
    "diverged": "FAILED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}
"""What a trial's status is called in MLflow."""
OF_A_TRIAL = {"trial_start", "epoch", "retry", "trial_end"}
"""Events that a trial's run shows."""
OF_THE_SWEEP = {"sweep_resume", "export", "sweep_end"}
"""Events that the parent shows."""


def milliseconds(event: Event) -> int:
    """When an event happened, as MLflow counts time."""
    return int(event["time"] * 1000)


def sent_events(past: Sequence[Event], client: Any, parent: Any, runs: Mapping[str, Any]) -> set[int]:
    """Numbers of the events that need not be sent: MLflow has them, or later ones have taken their place.

    Args:
        past: all events of the ledger.
        client: an MlflowClient.
        parent: the sweep's run as it was found; None when there was none.
        runs: the trials' runs as they were found.
    """
    sent = _sent_of_sweep([event for event in past if event["event"] in OF_THE_SWEEP], client, parent)
    select_by = {event["trial_id"]: event["config"]["select_by"] for event in past if event["event"] == "suggest"}
    trials: dict[str, list[Event]] = {}
    for event in past:
        if event["event"] in OF_A_TRIAL:
            trials.setdefault(event["trial_id"], []).append(event)
    for trial_id, events in trials.items():
        sent |= _sent_of_trial(events, client, runs.get(trial_id), select_by[trial_id])
    return sent


def _sent_of_sweep(events: list[Event], client: Any, parent: Any) -> set[int]:
    """An end after which the sweep went on counts no more."""
    if parent and events and _ended_with(parent, events[-1]):
        return {event["n"] for event in events}
    resumed = max((event["n"] for event in events if event["event"] == "sweep_resume"), default=0)
    sent = {event["n"] for event in events if event["event"] == "sweep_end" and event["n"] < resumed}
    if parent:
        sent |= {event["n"] for event in events if event["event"] == "export" and _has_export(client, parent, event)}
    return sent


def _has_export(client: Any, parent: Any, event: Event) -> bool:
    keys = [key for key, value in event["metrics"].items() if value is not None]
    return bool(keys) and all(
        any(point.timestamp == milliseconds(event) for point in client.get_metric_history(parent.info.run_id, key))
        for key in keys
    )


def _sent_of_trial(events: list[Event], client: Any, run: Any, select_by: str) -> set[int]:
    """Of an epoch that was repeated the last attempt counts. An epoch that MLflow has in part is sent again."""
    if run and _ended_with(run, events[-1]) and run.data.tags.get("status") == events[-1]["status"]:
        return {event["n"] for event in events}
    epochs = [event for event in events if event["event"] == "epoch"]
    last = {event["epoch"]: event["n"] for event in epochs}
    sent = {event["n"] for event in epochs if event["n"] != last[event["epoch"]]}
    if run:
        points = {(point.timestamp, point.step) for point in client.get_metric_history(run.info.run_id, select_by)}
        there = [event["n"] for event in epochs if (milliseconds(event), event["epoch"]) in points]
        # A request may have ended in the middle of the last one of these.
        sent |= {event["n"] for event in epochs if event["n"] < max(there, default=0)}
    return sent


def _ended_with(run: Any, event: Event) -> bool:
    """Whether this end of a trial or of the sweep is the last that a run was told, after everything before it."""
    if event["event"] not in ("trial_end", "sweep_end"):
        return False
    return bool(run.info.status == RUN_STATUS[event["status"]] and run.info.end_time == milliseconds(event))
