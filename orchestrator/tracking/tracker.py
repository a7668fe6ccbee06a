"""From the ledger to MLflow, beside the sweep: the sweep puts events into a queue, and one thread sends them.

When MLflow cannot be reached for a while, the thread waits, connects again, and sends what MLflow lacks of the ledger. The sweep
never waits for it: the ledger holds everything, and a resumed sweep sends what is missing.
"""

import contextlib
import os
import queue
import re
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.config.sweep_config import TrackingConfig
from orchestrator.ledger.events import CompareEvent, Event, ExportEvent
from orchestrator.ledger.ledger import read_ledger
from orchestrator.ledger.paths import uploadable
from orchestrator.tracking.local_store import STORE, sqlite_file
from orchestrator.tracking.mlflow_runs import FLUSH_S, MlflowRuns, Page, connect, may_pass, page_of
from orchestrator.tracking.page import key_of
from trainables.settings import without_password

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
"""Seconds before MLflow is tried again; each pause is twice the one before, up to the longest."""
LAST_TRIES_S = 10.0
"""How long MLflow is tried once nothing more comes, from its first failure on."""
MOST_WAITING = 10_000
"""Events that wait for MLflow, some 20 MB; when there are more, MLflow is slower than the sweep."""
ENVIRONMENT = "MLFLOW_TRACKING_URI"
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
"""How the URI of a database begins."""


def tracking_uri(config: TrackingConfig, results: Path) -> str:
    """Where MLflow keeps the runs: the given URI, that of the environment, or mlflow.db in the folder of all sweeps.

    The one of the environment may hold a password: it goes to MLflow only.
    """
    return given_uri(config) or f"sqlite:///{(results / STORE).resolve()}"


def artifacts_of(uri: str, results: Path) -> str | None:
    """Where the files of runs go: into mlartifacts beside SQLite's file, for another database in the folder of all results. None
    for a server, which chooses the place itself.
    """
    if not uri.startswith(DATABASES):
        return None
    file = sqlite_file(uri)
    return ((file.parent if file else results) / "mlartifacts").resolve().as_uri()


def given_uri(config: TrackingConfig) -> str | None:
    """The URI that somebody chose, in the settings or in the environment; None when nobody did."""
    return config.uri or os.environ.get(ENVIRONMENT) or None


def page_in(store: Path, folder: Path | None = None) -> Page | None:
    """The page in MLflow's web interface of the sweep in a results folder, or of the newest one, in a database of ours; None when
    that has none.
    """
    return page_of(connect(f"sqlite:///{store}"), key_of(read_ledger(folder)[0]) if folder else None)


class _Behind(Exception):
    """More events wait than are kept."""


class Tracker:
    """A ledger listener. Its thread starts at once, so that MLflow's slow first start overlaps with Ray's."""

    def __init__(
        self,
        config: TrackingConfig,
        results: Path,
        name: str,
        note: Callable[[str], None] = warnings.warn,
        past: Sequence[Event] = (),
        is_known_to_be_away: bool = False,
    ) -> None:
        """Connects in the background; `note` tells the user when MLflow is lost, unless the user knows, back, or given up.

        `past` is what the ledger of a resumed sweep, `results`/`name`, holds already: what MLflow lacks of it is sent before the
        first new event.
        """
        self._uri, self._experiment, self._name, self._note = tracking_uri(config, results), config.experiment, name, note
        self._shown, self._folder = without_password(self._uri), results / name
        self._artifacts = artifacts_of(self._uri, results)
        self._registered_model = config.registered_model or re.sub("[/:]", "_", name)  # which MLflow does not allow
        self._events: queue.Queue[Event | None] = queue.Queue()
        self._runs: MlflowRuns | None = None
        self._run_ids: dict[str, str] = {}
        self._past, self._is_known_to_be_away = past, is_known_to_be_away
        self._lock, self._is_behind, self._skipped = threading.Lock(), False, 0
        """When MLflow is too slow, events are skipped, and what MLflow lacks is read from the ledger; the last one skipped."""
        self._own_from = len(past)
        self._taken: int | None = None
        self._over = False
        self._closing, self._closed_at, self._failing_since = threading.Event(), 0.0, 0.0
        self._given_up = False
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        """Takes an event; returns at once."""
        if self.error is not None:
            return
        with self._lock:
            if self._is_behind or self._events.qsize() >= MOST_WAITING:
                self._is_behind, self._skipped = True, event["n"]
            else:
                self._events.put(event)

    def close(self, timeout_s: float = 60) -> None:
        """Waits until everything has been sent and no run of the sweep is RUNNING, at most `timeout_s`."""
        self._events.put(None)
        self._closed_at = time.monotonic()
        self._closing.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._give_up(f"MLflow at {self._shown} has not taken everything after {timeout_s:.0f} s; the ledger has it")

    @property
    def is_connected(self) -> bool:
        """Whether MLflow has answered."""
        return self._runs is not None

    def pages(self) -> list[tuple[str, str]]:
        """The sweep's pages in MLflow's web interface, below its address, each after its name; none before MLflow has them."""
        return self._runs.pages() if self._runs else []

    def _run(self) -> None:
        lost, failures, pause_s = self._is_known_to_be_away, 0, FIRST_PAUSE_S
        while True:
            try:
                runs = self._connected()
                failures = 0
                if lost:
                    self._tell(f"MLflow at {self._shown} is back, and has everything of the ledger")
                    lost, pause_s = False, FIRST_PAUSE_S
                while (event := self._next(runs)) is not None:
                    runs.send(event)
                runs.finish()
                for refusal in runs.refused:
                    self._tell(f"MLflow at {self._shown} {refusal}; the results folder has it")
                return
            except _Behind:
                self._catch_up()
            except Exception as error:
                if not may_pass(error):
                    self._end(
                        error, f"tracking to {self._shown} ended: {error}; the sweep goes on, and the ledger has everything"
                    )
                    return
                failures += 1
                if failures == 1:
                    self._failing_since = time.monotonic()
                if failures > 1 and not lost and not self._closing.is_set():  # a single request may fail
                    lost = True
                    self._tell(
                        f"MLflow at {self._shown} cannot be reached: {error}; the sweep goes on, and MLflow is tried again"
                    )
                if not self._pause(pause_s):
                    what = "did not come back" if lost else f"cannot be reached: {error}"
                    self._end(error, f"MLflow at {self._shown} {what}; the ledger has everything")
                    return
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _connected(self) -> MlflowRuns:
        """The runs in MLflow, where everything has arrived that was taken from the queue so far."""
        runs = MlflowRuns(
            connect(self._uri),
            self._experiment,
            self._artifacts,
            self._name,
            self._folder,
            self._run_ids,
            self._registered_model,
            self._may_send,
        )
        self._runs = runs
        runs.catch_up(self._past if self._taken is None else read_ledger(self._folder).up_to(self._taken + 1))
        return runs

    def _next(self, runs: MlflowRuns) -> Event | None:
        while self._is_behind or not self._over:
            if self._is_behind:
                raise _Behind
            try:
                event = self._events.get(timeout=FLUSH_S)
            except queue.Empty:
                runs.flush()
                continue
            self._take(event)
            return event
        return None

    def _take(self, event: Event | None) -> None:
        if event is None:
            self._over = True
        else:
            self._taken, self._past = event.get("n"), ()

    def _catch_up(self) -> None:
        """Takes everything from the queue, and what was skipped as well: it is read from the ledger."""
        with self._lock:
            while not self._events.empty():
                self._take(self._events.get_nowait())
            self._taken, self._is_behind = max(self._taken or 0, self._skipped), False

    def _pause(self, seconds: float) -> bool:
        """Waits before the next try; returns whether there is one. What comes meanwhile leaves the queue: the ledger has it."""
        if self._closing.wait(seconds):
            if time.monotonic() - max(self._closed_at, self._failing_since) > LAST_TRIES_S:
                return False
            time.sleep(FIRST_PAUSE_S)
        with contextlib.suppress(queue.Empty):
            while True:
                self._take(self._events.get_nowait())
        return True

    def _may_send(self, event: ExportEvent | CompareEvent) -> bool:
        """Whether an export's files may be read: this process wrote them, or they lie inside the results folder."""
        return event["n"] >= self._own_from or uploadable(self._folder, event["path"])

    def _end(self, error: Exception, text: str) -> None:
        self.error = error
        self._give_up(text)

    def _give_up(self, text: str) -> None:
        """Notes that tracking has ended, once."""
        if not self._given_up:
            self._given_up = True
            self._tell(text)

    def _tell(self, text: str) -> None:
        """Must not raise: where warnings are errors, `note` does."""
        with contextlib.suppress(Exception):
            self._note(without_password(text))
