import shutil
from pathlib import Path

import pytest
from recorded import sweep_in
from sqlalchemy import make_url

from orchestrator.ledger.ledger import read_ledger
from orchestrator.sync import main as sync
from orchestrator.tracking.local_store import runs_in_store, sqlite_file


@pytest.mark.parametrize(
    ("uri", "file"),
    [
        ("sqlite:////data/my runs/mlflow.db", "/data/my runs/mlflow.db"),
        ("sqlite:///results/mlflow.db", "results/mlflow.db"),
        ("sqlite+pysqlite:////data/mlflow.db?timeout=5", "/data/mlflow.db"),
        ("sqlite:///file:/data/mlflow.db?mode=ro&uri=true", "/data/mlflow.db"),
        ("postgresql://host/mlflow.db", None),
        ("http://host:5000", None),
    ],
)
def test_the_file_of_a_database_is_the_one_that_sqlalchemy_opens(uri: str, file: str | None) -> None:
    assert sqlite_file(uri) == (None if file is None else Path(file))
    if file is not None:
        assert (make_url(uri).database or "").removeprefix("file:") == file


@pytest.mark.slow
def test_each_trial_s_run_is_found_in_the_database_without_mlflow(tmp_path: Path, mlflow_store: Path) -> None:
    """Against MLflow itself."""
    from orchestrator.tracking.mlflow_runs import connect

    folder = sweep_in(tmp_path / "results", "search.trials=2")
    shutil.copy(mlflow_store, tmp_path / "results" / "mlflow.db")
    assert sync([str(folder)]) == 0
    client = connect(f"sqlite:///{tmp_path / 'results' / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, "tags.`tailtune.kind` = 'trial'")
    expected = {run.data.tags["trial_id"]: f"/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}" for run in runs}
    assert len(expected) == 4
    assert runs_in_store(folder, read_ledger(folder)[0]) == expected
    assert runs_in_store(folder, {**read_ledger(folder)[0], "git_commit": "another sweep"}) == {}


def test_without_a_database_of_ours_there_are_no_runs(tmp_path: Path) -> None:
    assert runs_in_store(tmp_path / "results" / "demo", {}) == {}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "mlflow.db").write_text("no database")
    assert runs_in_store(tmp_path / "results" / "demo", {}) == {}
