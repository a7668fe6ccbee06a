"""MLflow's database in the folder of all results, read without MLflow: where it lies, and which run a trial has there."""

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from orchestrator.ledger.ledger import LEDGER
from orchestrator.tracking.page import OF, key_of

STORE = "mlflow.db"
"""MLflow's database, in the folder of all results."""


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite database, from its URI, also in the form `sqlite:///file:NAME?mode=ro&uri=true`; None for others."""
    if not uri.startswith("sqlite"):
        return None
    return Path(uri.partition(":///")[2].partition("?")[0].removeprefix("file:"))


def home_of(folder: Path) -> Path:
    """The folder of all results that a sweep's folder lies in; a search of an ablation lies one level deeper."""
    return folder.parent.parent if (folder.parent / LEDGER).exists() else folder.parent


def runs_in_store(folder: Path, start: Mapping[str, Any]) -> dict[str, str]:
    """The page of each trial's run, below the address of a server, by trial; none where the database does not know the sweep.

    Args:
        folder: results folder of the sweep.
        start: the first event of its ledger.
    """
    store = (home_of(folder) / STORE).resolve()
    if not store.is_file():
        return {}
    question = (
        "SELECT trial.value, runs.experiment_id, runs.run_uuid FROM runs JOIN tags trial ON trial.run_uuid = runs.run_uuid "
        "AND trial.key = 'trial_id' JOIN tags of ON of.run_uuid = runs.run_uuid AND of.key = ? AND of.value = ? "
        "WHERE runs.lifecycle_stage = 'active' ORDER BY runs.start_time"
    )
    try:
        with closing(sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True, timeout=1)) as base:
            found = base.execute(question, (OF, key_of(start))).fetchall()
    except sqlite3.Error:  # in use, or written by another version of MLflow: a link is a convenience
        return {}
    return {trial_id: f"/#/experiments/{experiment}/runs/{run}" for trial_id, experiment, run in found}
