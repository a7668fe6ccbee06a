"""From the ledger to MLflow: a parent run for the sweep, a child run for each trial. The only file that imports mlflow.

The sweep hands events over and goes on; one thread sends them, with the ledger's own timestamps and step numbers. When MLflow
fails, tracking ends with a warning and the sweep does not notice: the ledger holds everything.
"""

import json
import logging
import os
import queue
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from orchestrator.config import SEARCHED, TrackingConfig
from orchestrator.ledger import Event
from trainables.config_file import dump_yaml
from trainables.settings import flatten

RUN_STATUS = {
    "finished": "FINISHED",
    "stopped_early": "KILLED",
    "diverged": "FAILED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}
"""What a trial's status is called in MLflow."""
MAX_BATCH, FLUSH_S = 1000, 2.0
"""MLflow takes at most 1000 metrics in a request; open charts get new points every two seconds."""


def tracking_uri(config: TrackingConfig, results: Path) -> str:
    """Where MLflow keeps the runs: the given URI, or mlflow.db in the folder of all sweeps."""
    return config.uri or f"sqlite:///{(results / 'mlflow.db').resolve()}"


class Tracker:
    """A ledger listener. Starts its thread at once, so that MLflow's slow first start overlaps with Ray's."""

    def __init__(self, config: TrackingConfig, results: Path, name: str, note: Callable[[str], None] = warnings.warn) -> None:
        """Connects in the background; `note` tells the user of a failure."""
        self._uri, self._experiment, self._name, self._note = tracking_uri(config, results), config.experiment, name, note
        # A server of one's own decides itself where artifacts go.
        self._artifacts = None if config.uri else (results / "mlartifacts").resolve().as_uri()
        self._events: queue.Queue[Event | None] = queue.Queue()
        self._experiment_id = ""
        self._run_ids: dict[str, str] = {}
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        """Takes an event; returns at once."""
        if self.error is None:
            self._events.put(event)

    def close(self, timeout_s: float = 60) -> None:
        """Waits until everything has been sent, at most `timeout_s`."""
        self._events.put(None)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._note(f"MLflow at {self._uri} has not taken everything after {timeout_s:.0f} s; the ledger has it")

    def compare_path(self, trial_ids: list[str]) -> str | None:
        """Where the MLflow UI compares these trials, below its address; None when not all of them have been sent."""
        if any(trial_id not in self._run_ids for trial_id in trial_ids):
            return None
        runs, experiments = (quote(json.dumps(ids)) for ids in ([self._run_ids[t] for t in trial_ids], [self._experiment_id]))
        return f"/#/compare-runs?runs={runs}&experiments={experiments}"

    def _run(self) -> None:
        try:
            sender = _Sender(_connect(self._uri), self._experiment, self._artifacts, self._name, self._run_ids)
            self._experiment_id = sender.experiment_id
            while (event := self._next(sender)) is not None:
                sender.send(event)
            sender.flush()
        except Exception as error:
            self.error = error
            self._note(f"tracking to {self._uri} ended: {error}; the sweep goes on, and the ledger has everything")

    def _next(self, sender: "_Sender") -> Event | None:
        while True:
            try:
                return self._events.get(timeout=FLUSH_S)
            except queue.Empty:
                sender.flush()


class _Sender:
    """Turns events into runs, parameters, metrics, tags and artifacts."""

    def __init__(self, client: Any, experiment: str, artifacts: str | None, name: str, run_ids: dict[str, str]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        self._client, self._name = client, name
        self._metric, self._param, self._tag = Metric, Param, RunTag
        found = client.get_experiment_by_name(experiment)
        if found and found.lifecycle_stage == "deleted":
            raise RuntimeError(f"the experiment {experiment!r} is deleted; restore it, or choose another tracking.experiment")
        self.experiment_id: str = (
            found.experiment_id if found else client.create_experiment(experiment, artifact_location=artifacts)
        )
        self._parent = ""
        self._sweep_tags: dict[str, str] = {}
        self._suggested: dict[str, Event] = {}
        self._runs = run_ids
        self._pending: dict[str, list[Any]] = {}
        self._flushed = time.monotonic()

    def send(self, event: Event) -> None:
        """Handles one event; kinds without a meaning for MLflow are passed over."""
        handler = getattr(self, f"_on_{event['event']}", None)
        if handler:
            handler(event)
        if time.monotonic() - self._flushed > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Sends all metrics that have gathered."""
        for run_id, metrics in self._pending.items():
            for start in range(0, len(metrics), MAX_BATCH):
                self._client.log_batch(run_id, metrics=metrics[start : start + MAX_BATCH], synchronous=True)
        self._pending.clear()
        self._flushed = time.monotonic()

    def _on_sweep_start(self, event: Event) -> None:
        self._sweep_tags = {
            "git_commit": event["git_commit"] or "",
            "split_sha256": event["split_sha256"],
            "dataset": event["config"]["trial"]["data"]["source"],
            "imbalance_factor": f"{event['config']['trial']['data']['imbalance_factor']:g}",
        }
        self._parent = self._create_run(event, self._name, {**self._sweep_tags, "tailtune.kind": "sweep"})
        self._log_params(self._parent, event["config"])
        self._client.log_text(self._parent, dump_yaml(event["config"]), "sweep.yaml")

    def _on_suggest(self, event: Event) -> None:
        self._suggested[event["trial_id"]] = event

    def _on_trial_start(self, event: Event) -> None:
        self._run_of(event)

    def _on_epoch(self, event: Event) -> None:
        stamp = int(event["time"] * 1000)
        # An empty band has no accuracy (null in the ledger); MLflow could only draw it as a number that it is not.
        points = {key: value for key, value in event["metrics"].items() if value is not None}
        self._pending.setdefault(self._run_of(event), []).extend(
            self._metric(key, value, stamp, event["epoch"]) for key, value in points.items()
        )

    def _on_trial_end(self, event: Event) -> None:
        run_id, stamp = self._run_of(event), int(event["time"] * 1000)
        self.flush()
        reason = (event["stop_reason"] or "").strip().splitlines()[-1:]
        tags = [self._tag("status", event["status"]), self._tag("stop_reason", reason[0][:1000] if reason else "")]
        metrics = []
        if event.get("best_value") is not None:
            select_by = self._suggested[event["trial_id"]]["config"]["select_by"]
            metrics = [self._metric(f"best/{select_by}", event["best_value"], stamp, event["best_epoch"])]
        self._client.log_batch(run_id, metrics=metrics, tags=tags, synchronous=True)
        self._client.set_terminated(run_id, RUN_STATUS[event["status"]], stamp)

    def _run_of(self, event: Event) -> str:
        """The run of the trial that an event is about; made when it is first needed, be it at a failed start."""
        trial_id = event["trial_id"]
        if trial_id not in self._runs:
            suggestion = self._suggested[trial_id]
            tags = {
                **self._sweep_tags,
                "mlflow.parentRunId": self._parent,
                "tailtune.kind": "trial",
                "trial_id": trial_id,
                "variant": suggestion["variant"],
                "method": suggestion["config"]["method"]["name"],
                "seed": str(suggestion["seed"]),
            }
            label = trial_id if suggestion["variant"] == SEARCHED else f"{trial_id} {suggestion['variant']}"
            self._runs[trial_id] = self._create_run(event, label, tags)
            self._log_params(self._runs[trial_id], suggestion["config"])
            self._client.log_text(self._runs[trial_id], dump_yaml(suggestion["config"]), "config.yaml")
        return self._runs[trial_id]

    def _on_export(self, event: Event) -> None:
        stamp = int(event["time"] * 1000)
        metrics = [self._metric(key, value, stamp, 0) for key, value in event["metrics"].items() if value is not None]
        tags = [self._tag("best_trial", event["trial_id"])]
        self._client.log_batch(self._parent, metrics=metrics, tags=tags, synchronous=True)
        self._client.log_artifacts(self._parent, event["path"], "best")

    def _on_sweep_end(self, event: Event) -> None:
        self.flush()
        self._client.set_terminated(self._parent, RUN_STATUS[event["status"]], int(event["time"] * 1000))

    def _create_run(self, event: Event, run_name: str, tags: dict[str, str]) -> str:
        started = int(event["time"] * 1000)
        run = self._client.create_run(self.experiment_id, start_time=started, tags=tags, run_name=run_name)
        return str(run.info.run_id)

    def _log_params(self, run_id: str, config: dict[str, Any]) -> None:
        params = [self._param(key, str(value)) for key, value in flatten(config).items()]
        for start in range(0, len(params), 100):
            self._client.log_batch(run_id, params=params[start : start + 100], synchronous=True)


def _connect(uri: str) -> Any:
    """A client that neither waits minutes for a dead server nor sends usage data."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return mlflow.MlflowClient(tracking_uri=uri)
