"""MLflow's web interface as it opens, in a real browser (Chromium, headless)."""

import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from recorded import sweep_in
from tools import need

from orchestrator.ledger.ledger import read_ledger
from orchestrator.sync import main as sync
from orchestrator.ui import main as ui

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, mlflow_store: Path) -> Path:
    results = tmp_path_factory.mktemp("ui") / "results"
    folder = sweep_in(results)
    shutil.copy(mlflow_store, results / "mlflow.db")
    assert sync([str(folder)]) == 0
    return results


@pytest.fixture(scope="module")
def page(results: Path) -> Iterator[str]:
    """The page that `orchestrator.ui` names."""
    command = [sys.executable, "-m", "orchestrator.ui", str(results), "--port", str(free_port())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        said = next(line for line in process.stdout if "http" in line)
        yield said.split()[-1]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def seen(address: str) -> str:
    """The text of a page in a browser, after its scripts have run."""
    need("" if BROWSER else "no Chromium here (Debian: apt install chromium)")
    assert BROWSER
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1700,1000", "--dump-dom"]
    command += ["--virtual-time-budget=60000", "--timeout=90000", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    return re.sub(r"\s+", " ", re.sub(r"<(script|style).*?</\1>|<[^>]+>", " ", done.stdout, flags=re.DOTALL))


def test_the_charts_show_the_four_searched_settings_and_the_objective(page: str) -> None:
    text = seen(page)
    assert "Parallel Coordinates" in text
    labels = ["log10 driver_weight", "log10 meta_lr", "log10 hidden_width", "log10", "best/val/acc"]  # long names are cut
    found = [text.find(label, text.find("Parallel Coordinates")) for label in labels]
    assert -1 not in found
    assert "matching runs" in text


def test_the_table_has_all_trials_the_best_first(page: str, results: Path) -> None:
    text = seen(page.replace("CHART", "TABLE"))
    ended = {event["trial_id"]: event["best_value"] for event in read_ledger(results / "demo") if event["event"] == "trial_end"}
    assert f"{len(ended)} matching runs" in text
    rows = [trial_id for trial_id in re.findall(r"t\d{4}", text) if trial_id in ended]
    shown = list(dict.fromkeys(rows))
    assert [ended[trial_id] for trial_id in shown] == sorted(ended.values(), reverse=True)
    for column in ("best/val/acc", "method.meta_lr", "method.driver"):
        assert column in text


def test_what_cannot_be_shown_is_refused(tmp_path: Path, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ui([str(tmp_path)]) == 2
    assert "mlflow.db is missing" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert ui([str(results), "--port", str(port)]) == 2
    assert f"--port is {port}: " in capsys.readouterr().err
    assert ui([str(results), "--port", "70000"]) == 2
    capsys.readouterr()
