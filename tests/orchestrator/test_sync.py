"""`orchestrator.sync` against real stores; what exactly MLflow then holds is in tracking/test_tracker.py."""

import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import mlflow
import pytest
from recorded import sweep_in

from orchestrator.ledger.ledger import Ledger, read_ledger
from orchestrator.sync import main

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")


def runs_in(store: Path) -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow uses what SQLAlchemy deprecates
        client = mlflow.MlflowClient(f"sqlite:///{store}")
        return list(client.search_runs([client.get_experiment_by_name("tailtune").experiment_id]))


def test_an_empty_store_gets_the_whole_sweep_from_the_ledger_alone_and_only_once(
    tmp_path: Path, mlflow_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep_in(tmp_path)
    shutil.copy(mlflow_store, tmp_path / "mlflow.db")
    for _ in range(2):
        assert main([str(folder)]) == 0
        assert capsys.readouterr().out == f"MLflow has everything of {folder}\n"
        runs = runs_in(tmp_path / "mlflow.db")
        ended = [event for event in read_ledger(folder) if event["event"] == "trial_end"]
        assert len(runs) == 1 + len(ended)
        best = {run.data.tags["trial_id"]: run.data.metrics["best/val/acc"] for run in runs if "trial_id" in run.data.tags}
        assert best == {event["trial_id"]: event["best_value"] for event in ended}


def test_another_store_can_be_named(tmp_path: Path, mlflow_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, elsewhere = sweep_in(tmp_path / "results"), tmp_path / "elsewhere" / "mlflow.db"
    elsewhere.parent.mkdir()
    shutil.copy(mlflow_store, elsewhere)
    monkeypatch.chdir(tmp_path)
    assert main([str(folder), f"tracking.uri=sqlite:///{elsewhere}"]) == 0
    assert len(runs_in(elsewhere)) > 6
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["demo"]
    assert {path.name for path in tmp_path.iterdir()} == {"results", "elsewhere"}
    assert list((tmp_path / "elsewhere" / "mlartifacts").rglob("sweep.yaml"))


def test_what_cannot_be_sent_is_refused_or_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    folder = sweep_in(tmp_path)
    assert main([str(folder), "search.trials=3"]) == 2
    assert "search.trials=3 is no setting of tracking; allowed: tracking.uri=" in capsys.readouterr().err
    with Ledger(folder):
        assert main([str(folder)]) == 2  # the sweep runs, and sends itself
    assert "is in use by another process" in capsys.readouterr().err
    assert not (tmp_path / "mlflow.db").exists()


def test_a_server_that_is_away_leaves_something_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("orchestrator.tracking.tracker.LAST_TRIES_S", 0.0)
    assert main([str(sweep_in(tmp_path)), "tracking.uri=http://127.0.0.1:9"]) == 1
    assert "cannot be reached" in capsys.readouterr().err


def test_the_filters_of_the_docs_are_filters(tmp_path: Path, mlflow_store: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "tracking.md").read_text()
    filters = re.findall(r"\| ``(.+?)`` \|", text)
    assert len(filters) > 4
    folder = sweep_in(tmp_path)
    shutil.copy(mlflow_store, tmp_path / "mlflow.db")
    assert main([str(folder)]) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("tailtune").experiment_id
        key = next(run.data.tags["tailtune.of"] for run in client.search_runs([experiment]) if "trial_id" in run.data.tags)
        found = {text: len(client.search_runs([experiment], text.replace("KEY", key))) for text in filters}
    assert found["tags.role = 'reference'"] == 2
    assert found["tags.`tailtune.of` = 'KEY' and params.`method.name` = 'difficulty_net'"] >= 6


def test_a_folder_is_the_same_by_any_name(
    tmp_path: Path, mlflow_store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep_in(tmp_path)
    shutil.copy(mlflow_store, tmp_path / "mlflow.db")
    monkeypatch.chdir(folder)
    assert main(["."]) == 0
    assert not (folder / "mlflow.db").exists()
    assert {run.info.run_name for run in runs_in(tmp_path / "mlflow.db")} >= {"demo"}
    capsys.readouterr()
