"""The MLflow server of a cluster's head, as clusters/mlflow_server.sh starts it, on a PostgreSQL of the test's own.

Needs postgresql, curl, and root.
"""

import base64
import configparser
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import mlflow
import psutil
import pytest
from postgres import postgres, unavailable
from tools import need

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "clusters" / "mlflow_server.sh"
SWEEP = [
    "search.trials=3", "search.references={}", "trial.epochs=2", "scheduler.grace_epochs=1", "trial.data.n_max=20",
    "trial.data.imbalance_factor=5", "trial.classifier.widths=[4, 8]",
]  # fmt: skip


def missing() -> str:
    """Why there can be no such server here; empty when there can."""
    tools = [tool for tool in ("psql", "curl") if shutil.which(tool) is None]
    return unavailable() or (f"missing: {', '.join(tools)}" if tools else "")


@pytest.fixture(scope="module")
def database() -> Iterator[dict[str, str]]:
    """The environment that leads to an empty PostgreSQL."""
    need(missing())
    with postgres() as environment:
        yield environment


class Head(NamedTuple):
    """A user's home on a machine that runs an MLflow server."""

    home: Path
    uri: str
    environment: dict[str, str]

    def run(self) -> "subprocess.CompletedProcess[str]":
        """Runs the script, as `ray up` would."""
        return subprocess.run([SCRIPT], env=self.environment, cwd="/", capture_output=True, text=True, timeout=300)

    def shell(self, command: str) -> str:
        """What a command says that Ray runs on the head."""
        words = ["bash", "--login", "-c", "-i", f"source ~/.bashrc; {command}"]  # as Ray's command runner has them
        done = subprocess.run(
            words, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=300, start_new_session=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def processes(self) -> list[psutil.Process]:
        """The server's."""
        first = psutil.Process(int((self.home / ".mlflow" / "server.pid").read_text()))
        return [first, *first.children(recursive=True)]

    def stop(self) -> None:
        """Ends the server as the script's head says."""
        found = self.processes()
        os.killpg(found[0].pid, signal.SIGTERM)
        _, alive = psutil.wait_procs(found, timeout=30)
        for process in alive:
            process.kill()

    def credentials(self) -> tuple[str, str]:
        parser = configparser.ConfigParser()
        parser.read(self.home / ".mlflow" / "credentials")
        return parser["mlflow"]["mlflow_tracking_username"], parser["mlflow"]["mlflow_tracking_password"]

    def files(self) -> dict[str, tuple[int, int, bytes]]:
        """Name, mode, time and content of the files in the home, except what the server writes while it runs."""
        found = [path for path in self.home.rglob("*") if path.is_file() and "artifacts" not in path.parts]
        return {
            path.name: (path.stat().st_mode & 0o777, path.stat().st_mtime_ns, path.read_bytes())
            for path in found
            if path.name != "server.log"
        }


@contextmanager
def head(folder: Path, database: dict[str, str]) -> Iterator[Head]:
    """A head without a server; one that is started ends with the block."""
    home = folder / "home"
    home.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    found = Head(home, f"http://127.0.0.1:{port}", inherited | database | {"HOME": str(home), "MLFLOW_PORT": str(port)})
    try:
        yield found
    finally:
        if (home / ".mlflow" / "server.pid").exists():
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                found.stop()


def status(uri: str, user: str = "", password: str = "") -> int:
    """The HTTP status of a call that lists experiments."""
    request = urllib.request.Request(f"{uri}/api/2.0/mlflow/experiments/search?max_results=1")
    if user:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def runs_at(uri: str) -> list[mlflow.entities.Run]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = mlflow.MlflowClient(uri)
        return list(client.search_runs([client.get_experiment_by_name("tailtune").experiment_id]))


def test_a_sweep_on_the_head_logs_to_a_server_that_wants_a_password_and_outlives_a_restart(
    database: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with head(tmp_path, database) as here:
        first = here.run()
        assert first.returncode == 0, first.stdout + first.stderr
        user, password = here.credentials()
        assert len(password) >= 32

        assert status(here.uri) == 401
        assert status(here.uri, user, "password1234") == 401
        assert status(here.uri, user, password) == 200

        commands = [" ".join(process.cmdline()) for process in here.processes()]
        assert password not in "".join([first.stdout, first.stderr, *commands, (here.home / ".mlflow/server.log").read_text()])
        assert {mode for mode, *_ in here.files().values()} == {0o600}
        heard = [
            connection.laddr.ip
            for process in here.processes()
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert set(heard) == {"127.0.0.1"}

        words = " ".join(f"'{word}'" for word in ["--results", str(tmp_path / "results"), *SWEEP])
        said = here.shell(f"{sys.executable} -m orchestrator.sweep {words}")
        assert "3 trials in" in said
        assert here.uri in said
        monkeypatch.setenv("HOME", str(here.home))  # where MLflow's client finds user and password
        runs = runs_at(here.uri)
        assert sorted(run.data.tags["tailtune.kind"] for run in runs) == ["sweep", "trial", "trial", "trial"]
        assert {run.info.status for run in runs} <= {"FINISHED", "KILLED"}
        assert not (tmp_path / "results" / "mlflow.db").exists()
        assert list((here.home / ".mlflow" / "artifacts").rglob("card.md"))

        before, processes = here.files(), here.processes()
        assert here.run().stdout == first.stdout
        assert here.files() == before
        assert here.processes() == processes  # with the same times of creation

        here.stop()
        assert here.run().returncode == 0
        assert here.credentials() == (user, password)
        assert status(here.uri) == 401
        assert len(runs_at(here.uri)) == 4


def test_a_server_that_does_not_start_is_a_failure_with_the_end_of_its_log(database: dict[str, str], tmp_path: Path) -> None:
    with head(tmp_path, database) as here, socket.create_server(("127.0.0.1", int(here.environment["MLFLOW_PORT"]))) as other:
        other.settimeout(60)

        def hang_up() -> None:
            while True:
                try:
                    other.accept()[0].close()
                except OSError:
                    return

        thread = threading.Thread(target=hang_up)
        thread.start()
        began = time.monotonic()
        done = here.run()
        assert done.returncode == 1
        assert "Address already in use" in done.stderr
        assert f"MLflow does not answer at {here.uri}; the lines above are the end of" in done.stderr
        assert time.monotonic() - began < 120
        other.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_machine_that_can_install_nothing_is_told_what_is_missing(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname"):
        (tools / name).symlink_to(shutil.which(name) or "")
    environment = {"HOME": str(tmp_path), "PATH": str(tools)}
    done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "PostgreSQL or curl is missing; install both, start PostgreSQL, and run this again" in done.stderr
    assert not (tmp_path / ".mlflow").exists()
