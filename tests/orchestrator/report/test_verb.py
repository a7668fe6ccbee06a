"""python -m orchestrator.report: what it writes, what it refuses, and how it follows a sweep that runs."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from orchestrator.ledger.ledger import Ledger
from orchestrator.report.__main__ import main
from orchestrator.report.paper_figures import FIGURES
from orchestrator.report.watching import watch


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures for papers take seconds."""
    monkeypatch.setattr("orchestrator.report.writing.write_paper_figures", lambda material, place: [])


@pytest.mark.slow
def test_it_writes_a_page_and_figures_for_papers(
    folder_of: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(folder_of("larger"), tmp_path / "sweep", ignore=shutil.ignore_patterns("report.html"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main([str(folder)]) == 0
    assert f"report    {folder}/report.html" in capsys.readouterr().out
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {
        path.relative_to(folder).as_posix() for path in before
    }
    names = ["history", "importance", "learning_curves", "class_accuracy", "bands", "confusion"]
    names += ["difficulty_by_class", "difficulty_uniformity", "class_weights"]
    assert written == {"report.html", *(f"figures/{name}.{ending}" for name in names for ending in ("svg", "pdf"))}
    assert all(path.read_bytes() == content for path, content in before.items())


def test_the_same_sweep_gives_the_same_figures(
    folder_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("importance", "learning_curves", "class_accuracy", "bands", "difficulty_by_class", "class_weights"):
        monkeypatch.delitem(FIGURES, name)  # each takes a second
    folder = shutil.copytree(folder_of("one_trial"), tmp_path / "sweep")
    assert main([str(folder)]) == 0
    first = {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
    assert main([str(folder)]) == 0
    assert {path.name: path.read_bytes() for path in (folder / "figures").iterdir()} == first


@pytest.mark.slow
def test_it_needs_neither_ray_nor_mlflow_nor_torch(folder_of: Callable[[str], Path]) -> None:
    program = (
        "import sys; from orchestrator.report.__main__ import main; code = main(sys.argv[1:]); "
        "assert not {'ray', 'mlflow', 'torch'} & set(sys.modules), set(sys.modules) & {'ray', 'mlflow', 'torch'}; sys.exit(code)"
    )
    subprocess.run([sys.executable, "-c", program, str(folder_of("one_trial"))], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.usefixtures("without_figures")
def test_another_trial_is_shown_closely_when_a_person_asks(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    """In a search of more than ten trials with a result, the last one is not among those that are shown anyway."""
    folder = shutil.copytree(folder_of("larger"), tmp_path / "sweep")
    rows = pq.read_table(folder / "trials.parquet").to_pylist()
    searched = sorted((row for row in rows if row["role"] == "search"), key=lambda row: -row["best/val/acc"])
    last, option = searched[-1]["trial_id"], f'<option value="{searched[-1]["trial_id"]}, searched">'
    assert main([str(folder)]) == 0
    assert option not in (folder / "report.html").read_text()
    assert main([str(folder), "--trial", last]) == 0
    assert option in (folder / "report.html").read_text()


def test_what_cannot_be_reported_is_refused(
    folder_of: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 2
    assert f"{tmp_path} holds no sweep: ledger.jsonl is missing" in capsys.readouterr().err
    folder = folder_of("plain")
    assert main([str(folder), "--trial", "t9999"]) == 2
    assert f"command line: 't9999' is no trial of {folder}; allowed: t0000 to t0007" in capsys.readouterr().err
    older = tmp_path / "older"
    older.mkdir()
    (older / "ledger.jsonl").write_text(json.dumps({"schema": 2, "event": "sweep_start", "prev": ""}) + "\n")
    assert main([str(older)]) == 2
    assert "the events have schema 2; allowed: 3" in capsys.readouterr().err
    begun = tmp_path / "begun"
    begun.mkdir()
    with Ledger(begun):
        pass
    (begun / "sweep.yaml").write_text((folder / "sweep.yaml").read_text())
    assert main([str(begun)]) == 2
    assert "the ledger does not begin with the start of a sweep" in capsys.readouterr().err


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("name", ["trials.parquet", "epochs.parquet", "classes.parquet"])
def test_a_damaged_table_is_an_error_that_says_what_finds_it(
    folder_of: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder = Path(shutil.copytree(folder_of("one_trial"), tmp_path / "sweep"))
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    assert main([str(folder), "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["exit_code"] == 1
    assert "the report cannot be made (Arrow" in answer["error"]
    assert f"python -m orchestrator.verify {folder} names what was changed" in answer["error"]


@pytest.mark.usefixtures("without_figures")
def test_a_damaged_export_leaves_the_classes_without_names(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folder_of("one_trial"), tmp_path / "sweep"))
    (folder / "best").mkdir(exist_ok=True)
    (folder / "best" / "model.safetensors").write_bytes(b"\xff" * 100)
    assert main([str(folder)]) == 0


@pytest.mark.usefixtures("without_figures")
def test_a_sweep_that_was_killed_is_reported_from_its_ledger(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folder_of("none_finished"), tmp_path / "killed")
    with (folder / "ledger.jsonl").open("a") as file:
        file.write('{"torn')
    assert main([str(folder)]) == 0
    assert "The sweep is not over" in (folder / "report.html").read_text()
    assert not list(folder.glob("*.parquet"))  # they belong to the sweep


@pytest.mark.slow
@pytest.mark.usefixtures("without_figures")
def test_the_report_follows_a_sweep_until_it_ends(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folder_of("none_finished"), tmp_path / "running")
    told: list[Path] = []
    watcher = threading.Thread(target=lambda: watch(folder, (), told.append, look_s=0.05, refresh_s=0.1))
    watcher.start()
    try:
        wait_for(lambda: bool(told))
        assert 'data-refresh="1"' in (folder / "report.html").read_text()
        with Ledger(folder) as ledger:
            first = (folder / "report.html").stat().st_mtime_ns
            ledger.append("slots", slots=1, gpus_per_slot=0.0)  # type: ignore[arg-type]
            wait_for(lambda: (folder / "report.html").stat().st_mtime_ns > first)
            ledger.append("sweep_end", status="interrupted", reason=None, complete=False, decisions_sha256="")  # type: ignore[arg-type]
    finally:
        watcher.join(60)
    assert not watcher.is_alive()
    assert 'data-refresh="0"' in (folder / "report.html").read_text()
    assert told == [folder / "report.html"]


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.usefixtures("without_figures")
def test_open_shows_the_page_in_a_browser(
    folder_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, opened = shutil.copytree(folder_of("failures"), tmp_path / "sweep"), []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert main([str(folder), "--open"]) == 0
    assert opened == [(folder / "report.html").resolve().as_uri()]
