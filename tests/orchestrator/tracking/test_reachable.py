import threading
import time
from pathlib import Path

import pytest
from http_server import http_server

from orchestrator.config.sweep_config import TrackingConfig
from orchestrator.tracking import reachable
from orchestrator.tracking.reachable import notes_on_credentials, tracking_notes

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "does not take this user and password; put the right ones into"),
        (403, "does not let this user see the experiment 'mine'"),
        (404, "answers, but not as MLflow does"),
        (500, "cannot be reached"),
    ],
)
def test_what_a_server_refuses_is_noted_with_a_cure(status: int, said: str) -> None:
    with http_server(lambda request: request.send_error(status)) as uri:
        (note,) = tracking_notes(TrackingConfig(uri=uri, experiment="mine"))
    assert note.startswith(f"MLflow at {uri} {said}")
    assert "\n" not in note
    assert note.endswith("; the sweep runs without it, and --resume sends it everything later")


def test_a_server_that_is_not_there_is_noted_and_a_password_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:sesame@127.0.0.1:9")
    (note,) = tracking_notes(TrackingConfig())
    assert note.startswith("MLflow at http://***@127.0.0.1:9 cannot be reached: Connection refused; start it")


def test_a_silent_server_costs_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reachable, "ANSWER_S", 0.5)
    over = threading.Event()
    with http_server(lambda _: over.wait(60)) as uri:
        began = time.monotonic()
        (note,) = tracking_notes(TrackingConfig(uri=uri))
        assert time.monotonic() - began < 10
        over.set()
    assert "cannot be reached: no answer after" in note


def test_nobody_is_asked_without_a_server() -> None:
    assert tracking_notes(TrackingConfig()) == []
    assert tracking_notes(TrackingConfig(uri="sqlite:////nowhere/mlflow.db")) == []
    assert tracking_notes(TrackingConfig(mlflow=False, uri="http://127.0.0.1:9")) == []


def test_a_password_that_others_can_read_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    server = TrackingConfig(uri="http://127.0.0.1:9")
    assert notes_on_credentials(server) == []
    file = tmp_path / ".mlflow" / "credentials"
    file.parent.mkdir()
    file.touch(mode=0o600)
    assert notes_on_credentials(server) == []
    file.chmod(0o640)
    (note,) = notes_on_credentials(server)
    assert note == f"{file} has the mode 640, so that others can read the password; chmod 600 {file}"
    assert notes_on_credentials(TrackingConfig(uri="sqlite:////nowhere/mlflow.db")) == []
