"""Asks an MLflow server for an answer before a sweep begins, so that a wrong password is told before trials start."""

import os
import queue
import re
import threading
from pathlib import Path
from typing import Any

from orchestrator.config.sweep_config import TrackingConfig
from orchestrator.tracking.mlflow_runs import connect
from orchestrator.tracking.tracker import given_uri
from trainables.settings import without_password

ANSWER_S = 5.0
"""Seconds that the server may take: a sweep does not wait longer for what it can do without."""
REFUSED = {
    "UNAUTHENTICATED": "does not take this user and password; put the right ones into the environment variables "
    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or into ~/.mlflow/credentials",
    "PERMISSION_DENIED": "does not let this user see the experiment {experiment!r}; its owner may grant that, or choose another "
    "tracking.experiment",
    "ENDPOINT_NOT_FOUND": "answers, but not as MLflow does; choose another address",
}
"""What is wrong and what helps, by the code of MLflow's error."""
AFTERWARDS = "the sweep runs without it, and --resume sends it everything later"


def tracking_notes(config: TrackingConfig) -> list[str]:
    """A note when the MLflow server of a sweep does not answer or refuses this user; none where no server is asked for."""
    uri = given_uri(config) or ""
    if not config.mlflow or not uri.startswith("http"):
        return []
    client = connect(uri)  # imports mlflow, which the tracker needs as well
    answers: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
    threading.Thread(target=_ask, args=(client, config.experiment, answers), name="mlflow", daemon=True).start()
    try:
        error = answers.get(timeout=ANSWER_S)
    except queue.Empty:
        error = TimeoutError(f"no answer after {ANSWER_S:.0f} s")
    return [] if error is None else [without_password(f"MLflow at {uri} {_what_helps(error, config.experiment)}; {AFTERWARDS}")]


def notes_on_credentials(config: TrackingConfig) -> list[str]:
    """A note when others can read the file in which MLflow's clients look for a password."""
    file = Path(os.path.expanduser("~/.mlflow/credentials"))
    if not config.mlflow or not (given_uri(config) or "").startswith("http") or not file.is_file():
        return []
    mode = file.stat().st_mode & 0o777
    return [f"{file} has the mode {mode:o}, so that others can read the password; chmod 600 {file}"] if mode & 0o077 else []


def _ask(client: Any, experiment: str, answers: "queue.SimpleQueue[Exception | None]") -> None:
    try:
        client.get_experiment_by_name(experiment)
        answers.put(None)
    except Exception as error:
        answers.put(error)


def _what_helps(error: Exception, experiment: str) -> str:
    if known := REFUSED.get(getattr(error, "error_code", "")):
        return known.format(experiment=experiment)
    said = re.findall(r"\] (\w[\w ]*\w)", str(error))  # the system's words, at the end of a long chain of Python's
    reason = said[-1] if said else str(error)[:200]
    return f"cannot be reached: {reason}; start it (on a cluster's head: clusters/mlflow_server.sh) or choose another address"
