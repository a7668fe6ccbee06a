"""From the ledger to MLflow, beside the sweep: the sweep puts events into a queue, and one thread sends them.

When MLflow fails, tracking ends with a warning and the sweep goes on: the ledger holds everything, and a resumed sweep sends what
is missing.
"""

import contextlib
import json
import queue
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

from orchestrator.config.sweep_config import TrackingConfig
from orchestrator.ledger.events import Event
from orchestrator.tracking.mlflow_runs import FLUSH_S, MlflowRuns, connect


def tracking_uri(config: TrackingConfig, results: Path) -> str:
    """Where MLflow keeps the runs: the given URI, or mlflow.db in the folder of all sweeps."""
    return config.uri or f"sqlite:///{(results / 'mlflow.db').resolve()}"


class Tracker:
    """A ledger listener. Its thread starts at once, so that MLflow's slow first start overlaps with Ray's."""

    def __init__(
        self,
        config: TrackingConfig,
        results: Path,
        name: str,
        note: Callable[[str], None] = warnings.warn,
        past: Sequence[Event] = (),
    ) -> None:
        """Connects in the background; `note` tells the user of a failure, once.

        `past` is what the ledger of a resumed sweep holds already: what MLflow lacks of it is sent before the first new event.
        """
        self._uri, self._experiment, self._name, self._note = tracking_uri(config, results), config.experiment, name, note
        # A tracking server chooses the place of artifacts itself.
        self._artifacts = None if config.uri else (results / "mlartifacts").resolve().as_uri()
        self._events: queue.Queue[Event | None] = queue.Queue()
        self._experiment_id = ""
        self._run_ids: dict[str, str] = {}
        self._past = past
        self._told = False
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        """Takes an event; returns at once."""
        if self.error is None:
            self._events.put(event)

    def close(self, timeout_s: float = 60) -> None:
        """Waits until everything has been sent and no run of the sweep is RUNNING, at most `timeout_s`."""
        self._events.put(None)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._tell(f"MLflow at {self._uri} has not taken everything after {timeout_s:.0f} s; the ledger has it")

    def compare_path(self, trial_ids: list[str]) -> str | None:
        """Where the MLflow UI compares these trials, below its address; None when not all of them have been sent."""
        if any(trial_id not in self._run_ids for trial_id in trial_ids):
            return None
        runs, experiments = (quote(json.dumps(ids)) for ids in ([self._run_ids[t] for t in trial_ids], [self._experiment_id]))
        return f"/#/compare-runs?runs={runs}&experiments={experiments}"

    def _run(self) -> None:
        try:
            runs = MlflowRuns(connect(self._uri), self._experiment, self._artifacts, self._name, self._run_ids)
            self._experiment_id = runs.experiment_id
            runs.catch_up(self._past)
            self._past = ()
            while (event := self._next(runs)) is not None:
                runs.send(event)
            runs.finish()
        except Exception as error:
            self.error = error
            self._tell(f"tracking to {self._uri} ended: {error}; the sweep goes on, and the ledger has everything")

    def _next(self, runs: MlflowRuns) -> Event | None:
        while True:
            try:
                return self._events.get(timeout=FLUSH_S)
            except queue.Empty:
                runs.flush()

    def _tell(self, text: str) -> None:
        """Notes the first failure. Must not raise: where warnings are errors, `note` does."""
        if not self._told:
            self._told = True
            with contextlib.suppress(Exception):
                self._note(text)
