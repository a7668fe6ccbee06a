"""Real MLflow servers that are killed while a sweep runs, and a driver that is killed once: MLflow has what the ledger says."""

import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest
from postgres import postgres, unavailable
from recorded import sweep_in
from tools import need

from orchestrator.ledger.events import Kind
from orchestrator.ledger.ledger import LEDGER, read_ledger
from orchestrator.sync import main as sync
from orchestrator.tracking.page import STAR, logarithms
from orchestrator.tracking.server import start, wait_for
from trainables.settings import flatten

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
DRIVER = [sys.executable, str(Path(__file__).parents[1] / "mlflow_driver.py")]
SEED = 20261127


class Server:
    """MLflow's server on a database, which can be killed and started again."""

    def __init__(self, folder: Path, store: str, environment: dict[str, str], python: str = sys.executable) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._folder, self._store, self._environment, self._python = folder, store, environment, python
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns at once."""
        everything, artifacts = os.environ | self._environment, self._folder / "artifacts"
        with (self._folder / "server.log").open("ab") as said:
            self._process = start(self._store, artifacts, self._port, said, everything, self._python, start_new_session=True)

    def wait(self) -> None:
        """Waits until it answers."""
        assert self._process
        assert wait_for(self._process, self._port), "MLflow's server does not start"

    def kill(self) -> None:
        """With all its processes."""
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@contextmanager
def sqlite(folder: Path, empty: Path) -> Iterator[Server]:
    store = folder / "mlflow.db"
    store.write_bytes(empty.read_bytes())
    yield Server(folder, f"sqlite:///{store}", {})


@contextmanager
def postgresql(folder: Path, empty: Path) -> Iterator[Server]:
    need(unavailable())
    with postgres(auth="trust") as environment:
        place = f"host={environment['PGHOST']}&port={environment['PGPORT']}&user=postgres"
        yield Server(folder, f"postgresql+psycopg2:///postgres?{place}", environment)


def in_words(settings: dict[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in settings.items()}


def expected(folder: Path) -> dict[str, Any]:
    """What MLflow is to hold of the sweep and of each trial, from the ledger alone."""
    found: dict[str, Any] = {}
    space: dict[str, Any] = {}
    confirms: dict[str, str] = {}
    for event in read_ledger(folder):
        if event["event"] == Kind.SWEEP_START:
            space = event["config"]["space"]
            sweep = {"params": in_words(flatten(event["config"])), "points": {}, "files": ["sweep.yaml", "versions.txt"]}
            found["sweep"] = sweep | {"run": "FINISHED", "status": None, "star": None}
        elif event["event"] == Kind.SUGGEST:
            params = flatten(event["config"])
            trial = {"params": in_words(params | logarithms(space, params)), "points": {}, "files": ["config.yaml"]}
            found[event["trial_id"]] = trial | {"run": "FINISHED", "star": None}
            if "confirms" in event:
                confirms[event["trial_id"]] = event["confirms"]
        elif event["event"] == Kind.EPOCH:
            for name, value in event["metrics"].items():
                if value is not None:
                    point = (name, event["epoch"])
                    found[event["trial_id"]]["points"][point] = (int(event["time"] * 1000), value)
        elif event["event"] == Kind.TRIAL_END:
            trial, stamp = found[event["trial_id"]], int(event["time"] * 1000)
            trial["status"] = event["status"]
            values = {epoch: value for (name, epoch), (_, value) in trial["points"].items() if name == "val/acc"}
            trial["points"]["best/val/acc", 0] = (stamp, event["best_value"])
            trial["points"]["last/val/acc", 0] = (stamp, values[max(values)])
            if chosen := confirms.get(event["trial_id"]):
                again = [found[other] for other, confirmed in confirms.items() if confirmed == chosen]
                scores = [other["points"]["best/val/acc", 0][1] for other in again if "status" in other]
                if (number := len(scores)) > 1:
                    middle, sd = statistics.mean(scores), statistics.stdev(scores)
                    half = {2: 12.7062047364, 3: 4.3026527299}[number] * sd / number**0.5  # Student's t, from a table
                    of_seeds = {"n": number, "mean": middle, "sd": sd, "low": middle - half, "high": middle + half}
                    found[chosen]["points"] |= {(f"seeds/{name}", number): (stamp, value) for name, value in of_seeds.items()}
        elif event["event"] == Kind.EXPORT:
            stamp = int(event["time"] * 1000)
            found["sweep"]["points"] |= {(name, 0): (stamp, value) for name, value in event["metrics"].items()}
            found["sweep"]["files"] = ["best", "sweep.yaml", "tables", "versions.txt"]
            found[event["trial_id"]]["star"] = STAR
    return {
        name: trial | {"points": {point: (stamp, pytest.approx(value)) for point, (stamp, value) in trial["points"].items()}}
        for name, trial in found.items()
    }


def shown(client: mlflow.MlflowClient) -> dict[str, Any]:
    """What MLflow holds of the sweep and of each trial. Fails when a point or a run is doubled."""
    experiment = client.get_experiment_by_name("tailtune").experiment_id
    found: dict[str, Any] = {}
    for run in client.search_runs([experiment]):
        trial_id = run.data.tags.get("trial_id", "sweep")
        assert trial_id not in found, "a trial has two runs"
        points = {}
        for name in run.data.metrics:
            for point in client.get_metric_history(run.info.run_id, name):
                assert (name, point.step) not in points, f"{name} of epoch {point.step} is there twice"
                points[name, point.step] = (point.timestamp, point.value)
        found[trial_id] = {
            "params": run.data.params,
            "points": points,
            "files": [file.path for file in client.list_artifacts(run.info.run_id)],
            "run": run.info.status,
            "status": run.data.tags.get("status"),
            "star": run.data.tags.get("best"),
        }
        if trial_id == "sweep":
            description = run.data.tags["mlflow.note.content"]
    assert f"{len(found) - 1} trials: " in description
    return found


def wait_until_written(folder: Path, number: int) -> None:
    """Waits until the ledger has a number of lines."""
    deadline, ledger = time.monotonic() + 120, folder / LEDGER
    while not ledger.exists() or ledger.read_bytes().count(b"\n") < number:
        assert time.monotonic() < deadline, "the driver stands still"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("database", [sqlite, postgresql])
def test_after_kills_of_the_server_and_of_the_driver_mlflow_has_what_the_ledger_says(
    database: Callable[[Path, Path], Any], tmp_path: Path, mlflow_store: Path
) -> None:
    chance = random.Random(SEED)
    with database(tmp_path, mlflow_store) as server:
        server.start()
        server.wait()
        folder = tmp_path / "results" / "demo"
        try:
            for attempt, events in enumerate([(50, 150, 270), (290, 390)]):  # the first driver is killed, the second one goes on
                with subprocess.Popen([*DRIVER, str(folder), server.uri]) as driver:
                    for number in events[:2]:
                        wait_until_written(folder, number + chance.randrange(100))
                        server.kill()
                        time.sleep(chance.uniform(0, 3))
                        server.start()
                    if attempt == 0:
                        wait_until_written(folder, events[2])
                        driver.kill()
                assert driver.wait(120) == (-signal.SIGKILL if attempt == 0 else 0)
            server.wait()
            assert sync([str(folder), f"tracking.uri={server.uri}"]) == 0
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert shown(mlflow.MlflowClient(server.uri)) == expected(folder)
        finally:
            server.kill()


@pytest.mark.slow
def test_a_server_two_minor_versions_older_takes_everything(tmp_path: Path) -> None:
    uv, old = Path(sys.executable).parent / "uv", tmp_path / "old" / "bin" / "python"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, tmp_path / "old"], check=True)
    major, minor, _ = (int(number) for number in mlflow.__version__.split("."))
    install = [uv, "pip", "install", "--quiet", "--python", old, f"mlflow=={major}.{minor - 2}.*"]
    done = subprocess.run(install, capture_output=True, text=True)
    need(f"no older MLflow to be had here: {done.stderr[-300:]}" if done.returncode else "")
    folder = sweep_in(tmp_path / "results")
    server = Server(tmp_path, f"sqlite:///{tmp_path / 'old.db'}", {}, str(old))
    server.start()
    try:
        server.wait()
        assert sync([str(folder), f"tracking.uri={server.uri}"]) == 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert shown(mlflow.MlflowClient(server.uri)) == expected(folder)
    finally:
        server.kill()
