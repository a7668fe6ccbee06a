"""Whole sweeps, run as a user runs them: real Ray, Optuna, MLflow and processes."""

import fcntl
import hashlib
import json
import os
import re
import select
import shutil
import signal
import stat
import subprocess
import sys
import termios
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import miniatures
import mlflow
import psutil
import pyarrow.parquet as pq
import pytest
from running import Running, is_slot

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.ledger.ledger import Ledger, read_ledger, start_of
from orchestrator.request import read_request
from orchestrator.rerun import main as rerun
from orchestrator.sweep import main, parse
from orchestrator.verify import main as verify
from trainables.config_file import dump_yaml
from trainables.train import main as train

SHORT = ["trial.epochs=8", "scheduler.grace_epochs=6"]
FINISHED = [*SHORT, "search.trials=4", "search.references.blow_up={optim.lr: 1.0e+30}", "search.deterministic=false"]
"""Two references that train, one that diverges, and four searched trials, of which one is to lose its process."""
SEARCH_LR = ["space={}", "space.optim.lr={type: float, low: 0.01, high: 0.1}"]
DATA = "trial.data={source: generated, meta_per_class: 2}"
PLAIN = [DATA, "trial.method={name: cross_entropy}", *SEARCH_LR, "search.references={}"]
"""Trials that are little work and import little, for what is not about trials."""
ONE_SLOT = "resources.max_concurrent=1"
MLFLOW = {"finished": "FINISHED", "stopped_early": "FINISHED", "diverged": "FAILED", "failed": "FAILED"}


def statuses(folder: Path) -> dict[str, str]:
    return {row["trial_id"]: row["status"] for row in pq.read_table(folder / "trials.parquet").to_pylist()}


def mlflow_runs(results: Path) -> list[tuple[str, str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow uses what SQLAlchemy deprecates
        return _mlflow_runs(results)


def _mlflow_runs(results: Path) -> list[tuple[str, str]]:
    client = mlflow.MlflowClient(f"sqlite:///{results / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tailtune")
    return sorted(
        (run.info.status, run.data.tags.get("status", "sweep")) for run in client.search_runs([experiment.experiment_id])
    )


def digest(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


class Terminal:
    """A terminal that a process runs in, and that can be closed."""

    def __init__(self) -> None:
        self._own, self.end = os.openpty()
        self._closing = threading.Event()
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def take(self) -> None:
        """Called in the process: the terminal is its controlling one."""
        fcntl.ioctl(self.end, termios.TIOCSCTTY, 0)

    def close(self) -> None:
        self._closing.set()
        self._reading.join()
        os.close(self._own)

    def _read(self) -> None:
        while not self._closing.is_set():
            if select.select([self._own], [], [], 0.1)[0]:
                os.read(self._own, 4096)


def name_of(process: psutil.Process) -> str:
    """The name of a process; empty when it has ended."""
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


@pytest.fixture
def home(tmp_path: Path, mlflow_store: Path) -> Path:
    """A folder to start a sweep in, whose results folder has an MLflow database already."""
    (tmp_path / "results").mkdir()
    shutil.copy(mlflow_store, tmp_path / "results" / "mlflow.db")
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of a whole sweep; a process is killed while it serves one of the searched trials."""
    running = Running(tmp_path_factory.mktemp("home"), *FINISHED)

    def searching(events: list[dict[str, object]]) -> bool:
        seen = {(event["event"], event.get("trial_id")) for event in events}
        return seen >= {("trial_end", f"t000{number}") for number in range(3)} | {("epoch", "t0003")}

    running.wait_for(searching)
    next(child for child in running.started.values() if is_slot(child)).kill()
    code, output = running.end()
    assert code == 0, output
    return running.folder, output


@pytest.mark.slow
def test_a_sweep_leaves_the_promised_folder(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    for name in ("sweep.yaml", "ledger.jsonl", "trials.parquet", "epochs.parquet", "classes.parquet"):
        assert (folder / name).is_file(), name
    texts = {"card.md", "classes.json", "config.yaml", "metrics.json", "provenance.json", "split.json"}
    texts |= {"suspects.csv", "suspects.html"}
    changes = {path.name for path in folder.glob("changes*.diff")}  # where the program is not as it was committed
    assert {path.name for path in (folder / "best").iterdir()} == texts | {"model.safetensors", "model.pt2"} | changes
    mask = os.umask(0)
    os.umask(mask)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}
    assert modes == {0o666 & ~mask}  # nothing that another member of the group cannot read


@pytest.mark.slow
def test_a_sweep_says_where_its_suspicious_labels_are(finished: tuple[Path, str]) -> None:
    folder, output = finished
    number = len((folder / "best" / "suspects.csv").read_text().splitlines()) - 1
    line = f"suspicious labels results/demo/best/suspects.html shows the 100 most suspicious of {number} training images"
    assert line in " ".join(output.split())
    assert 'href="best/suspects.html"' in (folder / "report.html").read_text()
    assert number == sum(start_of(read_ledger(folder))["class_counts"])


@pytest.mark.slow
def test_every_trial_ends_and_the_references_run_to_the_end(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    ended = statuses(folder)
    assert list(ended) == [f"t{number:04d}" for number in range(7)]
    assert ended["t0000"] == ended["t0001"] == "finished"
    assert set(ended.values()) <= {"finished", "stopped_early", "diverged", "failed"}
    rows = pq.read_table(folder / "epochs.parquet").to_pylist()
    assert sum(row["trial_id"] == "t0000" for row in rows) == 8
    assert all(row["meta/grad_norm"] > 0 for row in rows if row["trial_id"] == "t0001")
    classes = pq.read_table(folder / "classes.parquet")
    assert len(classes) == 10 * len(rows)


@pytest.mark.slow
def test_a_killed_process_costs_no_trial_and_a_diverging_trial_fails_alone(finished: tuple[Path, str]) -> None:
    rows = pq.read_table(finished[0] / "trials.parquet").to_pylist()
    (diverged,) = (row for row in rows if row["status"] == "diverged")
    assert (diverged["trial_id"], diverged["variant"]) == ("t0002", "blow_up")
    assert "became" in diverged["stop_reason"]
    assert sum(row["status"] in ("finished", "stopped_early") for row in rows) == 6
    events = read_ledger(finished[0])
    (retry,) = (event for event in events if event["event"] == "retry")
    assert "died" in retry["reason"]  # Ray's words on a killed process
    epochs = [
        (event["epoch"], event["attempt"])
        for event in events
        if event.get("trial_id") == retry["trial_id"] and "metrics" in event
    ]
    assert [epoch for epoch, _ in epochs] == list(range(1, len(epochs) + 1))  # it went on where it had been
    assert [attempt for _, attempt in epochs] in ([1] * lost + [2] * (len(epochs) - lost) for lost in range(len(epochs)))


@pytest.mark.slow
def test_the_ledger_tells_the_whole_story(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    events = read_ledger(folder)
    assert events[0]["event"] == "sweep_start"
    assert (events[-1]["event"], events[-1]["status"]) == ("sweep_end", "finished")
    kinds = [event["event"] for event in events]
    assert kinds.count("suggest") == kinds.count("trial_end") == 7
    starts = [(event["trial_id"], event["attempt"]) for event in events if event["event"] == "trial_start"]
    retries = {(event["trial_id"], event["attempt"]) for event in events if event["event"] == "retry"}
    assert {attempt for _, attempt in set(starts) - retries} == {1}
    assert retries <= set(starts)
    assert len(starts) == len(set(starts))
    assert {trial_id for trial_id, _ in starts} == set(statuses(folder))
    assert kinds.count("test_read") == kinds.count("export") == 1
    samples = [sample for ids in events[0]["split"].values() for sample in ids]
    assert len(samples) == len(set(samples)) > 0


@pytest.mark.slow
def test_trials_run_side_by_side_although_they_are_shorter_than_a_process_takes_to_start(finished: tuple[Path, str]) -> None:
    running: set[str] = set()
    most = 0
    for event in read_ledger(finished[0]):
        if event["event"] == "trial_start":
            running.add(event["trial_id"])
        elif event["event"] in ("trial_end", "retry"):  # a process may die before its trial has started
            running.discard(event["trial_id"])
        most = max(most, len(running))
    assert most == min(2, os.cpu_count() or 1)


@pytest.mark.slow
def test_mlflow_holds_a_run_for_the_sweep_and_one_for_each_trial(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    expected = [("FINISHED", "sweep"), *((MLFLOW[status], status) for status in statuses(folder).values())]
    assert mlflow_runs(folder.parent) == sorted(expected)


@pytest.mark.slow
def test_the_end_compares_the_best_with_both_references(finished: tuple[Path, str]) -> None:
    folder, output = finished
    metrics = json.loads((folder / "best" / "metrics.json").read_text())
    for name in ("cross_entropy", "paper"):
        gain = metrics["best"]["val/acc"] - metrics["references"][name]["best"]["val/acc"]
        assert f"best vs {name}: {gain:+.4f} val/acc" in output
    assert f"read once: {metrics['test']['test/acc']:.4f}" in output
    assert "-m trainables.train" in output
    assert "shows the trials in MLflow, the best first" in output


@pytest.mark.slow
def test_the_exported_configuration_trains_again_to_the_same_accuracy(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = finished
    assert train([str(folder / "best" / "config.yaml")]) == 0
    assert "this run is the same" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("trial_id", ["t0001", "t0002", "t0003"])
def test_trials_of_the_sweep_are_bit_identical_when_they_are_trained_again(
    trial_id: str, finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The paper's setting, a reference that diverged, and the trial whose process was killed."""
    folder, _ = finished
    assert rerun([str(folder), trial_id]) == 0
    said = "ended again by its own numbers" if statuses(folder)[trial_id] == "diverged" else f"{trial_id}: bit-identical in "
    assert said in capsys.readouterr().out


@pytest.mark.slow
def test_the_exported_files_are_the_ones_in_the_provenance(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    provenance = json.loads((folder / "best" / "provenance.json").read_text())
    for name, sha256 in provenance["files"].items():
        assert hashlib.sha256((folder / "best" / name).read_bytes()).hexdigest() == sha256
    assert provenance["test_readings"] == 1
    assert provenance["split_sha256"] == read_ledger(folder)[0]["split_sha256"]


@pytest.mark.slow
def test_a_second_export_does_not_read_the_test_set_again(
    finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from orchestrator.export import main as export

    folder, _ = finished
    assert export([str(folder), "--out", str(tmp_path / "again")]) == 0
    assert [event["event"] for event in read_ledger(folder)].count("test_read") == 1
    first, second = (json.loads((path / "metrics.json").read_text()) for path in (folder / "best", tmp_path / "again"))
    assert first == second
    assert export([str(folder), "--json"]) == 2  # best/ is there and stays
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (answer["exported"], answer["exit_code"]) == ([], 2)
    assert "exists already" in answer["error"]


@pytest.mark.slow
def test_what_a_sweep_leaves_is_verified_where_it_was_copied_to_and_any_changed_file_is_named(
    finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(finished[0], tmp_path / "copy"))
    assert verify([str(copy)]) == 0
    out = capsys.readouterr().out
    for seen in (
        "sweep.yaml, as the ledger says",
        "ledger.head, which",
        "the decisions are those",
        "figures of report.html and its",
    ):
        assert seen in out
    exported = sorted((copy / "best").iterdir())
    for file in (copy / "sweep.yaml", copy / "report.html", *copy.glob("checkpoints/*/*/checkpoint.json"), *exported):
        content = file.read_bytes()
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        assert verify([str(copy / "best" if file in exported else copy)]) == 1, file
        assert str(file) in capsys.readouterr().err
        file.write_bytes(content)


@pytest.mark.slow
def test_the_same_command_again_starts_nothing(finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = finished
    (folder / "ledger.jsonl").write_bytes(b"".join((folder / "ledger.jsonl").read_bytes().splitlines(keepends=True)))
    before = digest(folder)
    command = [*FINISHED, "--results", str(folder.parent), "--name", "demo"]
    assert main(command) == 0
    assert "holds this very sweep already, with nothing left to do" in capsys.readouterr().out
    assert main([*command, "--resume"]) == 0
    assert "with nothing left to do" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    out, err = capsys.readouterr()
    assert "with nothing left to do" in err
    answer, rows = json.loads(out), pq.read_table(folder / "trials.parquet").to_pylist()
    best = max((row for row in rows if row["status"] == "finished"), key=lambda row: row["best/val/acc"])
    assert (answer["exit_code"], answer["status"], answer["best"]["val/acc"]) == (0, "finished", best["best/val/acc"])
    assert answer["trials"] == Counter(row["status"] for row in rows)
    assert answer["references"].keys() == {row["variant"] for row in rows if row["role"] == "reference"}
    assert answer["test"]["test/acc"] == json.loads((folder / "best" / "metrics.json").read_text())["test"]["test/acc"]
    assert main([*command, "trial.optim.lr=0.1", "--json"]) == 2
    out, err = capsys.readouterr()
    assert "trial.optim.lr: 0.05 there, 0.1 here" in err
    assert json.loads(out)["error"] in err
    assert digest(folder) == before


@pytest.mark.slow
def test_when_the_sweep_itself_is_killed_its_workers_end_too(tmp_path: Path) -> None:
    settings = [*PLAIN, "search.trials=1", "trial.epochs=2000", "resources.workers=2", "tracking.mlflow=false"]
    running = Running(tmp_path, *SHORT, *settings)
    running.wait_for(lambda events: sum(event["event"] == "epoch" for event in events) > 2)
    assert sum("RayTrainWorker" in child.cmdline()[0] for child in running.started.values() if child.is_running()) == 2
    running.process.kill()
    running.process.communicate(timeout=60)
    # All notice within seconds on an idle machine. On a busy one a helper of Ray's own may, as two agents always do, first try
    # for a minute to reach a server that is gone.
    agents = [child for child in running.started.values() if name_of(child) in ("ray::DashboardAgent", "ray::RuntimeEnvAgent")]
    _, alive = psutil.wait_procs([child for child in running.started.values() if child not in agents], timeout=100)
    assert not alive, alive
    for agent in agents:
        agent.kill()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`use_.*` is deprecated")
def test_ctrl_c_saves_the_state_and_prints_the_command_to_go_on(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    running = Running(home, *SHORT, *PLAIN, "search.trials=3", "trial.epochs=2000", "resources.workers=2")
    running.wait_for(lambda events: sum(event["event"] == "epoch" for event in events) > 2)
    os.killpg(running.process.pid, signal.SIGINT)
    time.sleep(1)
    os.killpg(running.process.pid, signal.SIGINT)  # an impatient second time must not cost the ending
    code, output = running.end()
    assert code == 130, output
    assert "Interrupted after" in output
    assert "-m orchestrator.sweep --name demo --resume" in output
    events = read_ledger(running.folder)
    assert (events[-1]["event"], events[-1]["status"]) == ("sweep_end", "interrupted")
    assert "interrupted" in statuses(running.folder).values()
    assert "running" not in statuses(running.folder).values()
    assert any(event["event"] == "checkpoint" for event in events)
    assert "RUNNING" not in [status for status, _ in mlflow_runs(running.folder.parent)]
    assert not (running.folder / "best").exists()
    trial_id = next(event["trial_id"] for event in events if event["event"] == "epoch")
    assert rerun([str(running.folder), trial_id]) == 0  # with two workers, too
    assert f"{trial_id}: bit-identical in " in capsys.readouterr().out


@pytest.mark.slow
def test_a_sweep_that_is_told_to_end_goes_on_later_where_it_was(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["trial.epochs=30", "search.trials=3", "search.references={}", "search.confirm={top: 1, seeds: 2}"]
    running = Running(home, *SHORT, DATA, *settings, ONE_SLOT)
    running.wait_for(lambda events: any(event["event"] == "sweep_start" for event in events))
    assert main(["--results", str(home / "results"), "--name", "demo", "--resume"]) == 2  # this process is another one
    assert "in use by another process" in capsys.readouterr().err
    running.wait_for(lambda events: any(event["event"] == "epoch" for event in events))
    running.process.send_signal(signal.SIGTERM)
    code, output = running.end()
    assert code == 130, output
    assert "RUNNING" not in [status for status, _ in mlflow_runs(running.folder.parent)]
    before = list(read_ledger(running.folder))
    shutil.rmtree(running.folder / "tune", ignore_errors=True)
    with (running.folder / "ledger.jsonl").open("ab") as ledger:
        ledger.write(b'{"n": 99, "event": "epo')  # a torn line
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow uses what SQLAlchemy deprecates, and may be imported here first
        assert main(["--results", str(home / "results"), "--name", "demo", "--resume", "search.trials=4"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert re.search(r"going on: \d of \d trials? ended, t000\d continues after epoch \d", output)
    events = read_ledger(running.folder)
    assert events[: len(before)] == before
    assert set(statuses(running.folder).values()) <= {"finished", "stopped_early"}
    assert len(statuses(running.folder)) == 4 + 2
    epochs = [(event["trial_id"], event["epoch"]) for event in events if event["event"] == "epoch"]
    assert len(epochs) == len(set(epochs))  # all had ended with an epoch, so none was done again
    assert len(mlflow_runs(running.folder.parent)) == 1 + 6
    assert "RUNNING" not in [status for status, _ in mlflow_runs(running.folder.parent)]
    metrics = json.loads((running.folder / "best" / "metrics.json").read_text())
    assert metrics["test_over_seeds"]["num_seeds"] == 2
    assert [event["event"] for event in events].count("test_read") == 2


@pytest.mark.slow
def test_a_reader_that_goes_away_does_not_end_the_sweep(tmp_path: Path) -> None:
    settings = [*PLAIN, "search.trials=1", "trial.epochs=6", ONE_SLOT, "tracking.mlflow=false"]
    running = Running(tmp_path, *SHORT, *settings, stderr=subprocess.PIPE)
    assert running.process.stdout
    assert "loading the program" in running.process.stdout.readline()
    running.process.stdout.close()  # as `| head -1` does
    assert running.process.stderr
    with running.process.stderr as errors:
        said = errors.read()
    assert running.process.wait(300) == 0, said
    assert "the output cannot be written (Broken pipe); the work goes on without it" in said
    assert "Traceback" not in said
    assert read_ledger(running.folder)[-1]["event"] == "sweep_end"
    assert (running.folder / "best" / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_terminal_that_is_closed_ends_the_sweep_in_order(home: Path) -> None:
    """The kernel sends SIGHUP to all processes of the terminal, and nothing can be printed any more."""
    terminal = Terminal()
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal.end)
    settings = [*SHORT, *PLAIN, "search.trials=1", "trial.epochs=2000", ONE_SLOT]
    running = Running(home, *settings, **streams, preexec_fn=terminal.take)
    os.close(terminal.end)
    running.wait_for(lambda events: sum(event["event"] == "epoch" for event in events) > 4)
    terminal.close()
    code, _ = running.end()
    events = read_ledger(running.folder)
    assert (code, events[-1]["event"], events[-1]["status"]) == (130, "sweep_end", "interrupted")
    assert events[-1]["reason"] == "the sweep was terminated"
    assert not [event for event in events if event["event"] == "retry"]  # the processes lived on to end their epochs
    assert "RUNNING" not in [status for status, _ in mlflow_runs(running.folder.parent)]


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of a sweep of images in files, in a temporary folder with a long name, whose MLflow server is
    away, so that all that can be said about that server is said.
    """
    home = tmp_path_factory.mktemp("streamed")
    scratch = home / ("a_scratch_folder_as_slurm_makes_it" * 3)
    scratch.mkdir()
    counts = miniatures.own_images(home / "images", endings=(".png",))
    data = [f"trial.data.{key}={value}" for key, value in counts.items()]
    settings = [f"trial.data.root={home / 'images'}", "trial.compute.readers=1", "trial.data.image_size=8", "space={}"]
    small = ["trial.epochs=1", "search.trials=1", "search.references={}", "search.confirm=null", "scheduler={name: none}"]
    machine = ["resources.gpus_per_worker=0", "trial.threads=1", "resources.max_concurrent=1"]
    classifier = ["trial.classifier={name: small_cnn, widths: [2, 2]}", "trial.optim.batch_size=4"]
    sweep = str(Path(__file__).parents[2] / "search_spaces" / "own_images.yaml")
    server = {"MLFLOW_TRACKING_URI": "http://someone:sesame@127.0.0.1:9", "MLFLOW_TRACKING_PASSWORD": "sesame"}
    environment = {**os.environ, **server, "TMPDIR": str(scratch)}
    running = Running(home, sweep, *data, *settings, *small, *machine, *classifier, env=environment)
    code, output = running.end()
    assert code == 0, output
    return running.folder, output


@pytest.mark.slow
def test_a_sweep_of_streamed_images_runs_with_any_temporary_folder(streamed: tuple[Path, str]) -> None:
    assert list(statuses(streamed[0]).values()) == ["finished"]


@pytest.mark.slow
def test_the_password_of_a_server_stands_in_no_file_and_in_no_line(streamed: tuple[Path, str]) -> None:
    folder, output = streamed
    assert "***@127.0.0.1:9" in output
    written = [path for path in folder.parent.rglob("*") if path.is_file()]
    assert {"ledger.jsonl", "sweep.yaml", "config.yaml"} <= {path.name for path in written}
    assert not [path for path in written if b"sesame" in path.read_bytes()]
    assert "sesame" not in output


def test_a_file_with_an_equals_sign_in_its_path_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("multirun") / "lr=0.1"
    folder.mkdir(parents=True)
    (folder / "sweep.yaml").write_text("search: {trials: 1}\n")
    given = parse([str(folder / "sweep.yaml"), "search.seed=4"])
    assert (given.has_file, given.sweep, given.overrides) == (True, folder / "sweep.yaml", ["search.seed=4"])
    given = parse(["search.seed=4"])
    assert (given.has_file, given.overrides) == (False, ["search.seed=4"])
    request = read_request(folder / "sweep.yaml", [], None, Path("results"))
    assert (request.config.search.trials, request.folder) == (1, Path("results/sweep"))


def test_a_tilde_is_the_home_folder_also_behind_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    given = parse(["--results=~/x", "--warm-start=~/old"])
    assert (given.results, given.warm_start) == (Path("/somewhere/x"), Path("/somewhere/old"))


def test_a_file_whose_name_is_no_sweeps_name_is_the_cause_and_the_cure_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "my sweep.yaml"
    file.write_text("search: {trials: 1}\n")
    assert main([str(file), "--results", str(tmp_path / "results")]) == 2
    error = capsys.readouterr().err
    assert f"{file}: the name of the file, 'my sweep', would be the name of the sweep" in error
    assert len(error.splitlines()) == 1
    (cure,) = re.findall(r"--name (\S+)", error)
    assert read_request(file, [], cure, tmp_path).folder == tmp_path / "my_sweep"


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="takes root and setpriv")
def test_without_a_home_folder_one_line_says_so_before_anything_starts(tmp_path: Path) -> None:
    capabilities = "+dac_override,+dac_read_search"
    user = ["setpriv", "--reuid=4242", "--regid=4242", "--clear-groups"]
    user += [f"--inh-caps={capabilities}", f"--ambient-caps={capabilities}"]
    command = [*user, sys.executable, "-m", "orchestrator.sweep", "--results", str(tmp_path / "results")]
    path = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    done = subprocess.run(command, cwd="/", env=path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: HOME is not set")
    assert "HOME=/tmp" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_a_folder_with_other_files_is_refused_also_for_a_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dry: list[str]
) -> None:
    (tmp_path / "digits_lt").mkdir()
    (tmp_path / "digits_lt" / "thesis.tex").touch()
    assert main(["--results", str(tmp_path), *dry]) == 2
    assert "holds files that are no sweep" in capsys.readouterr().err


def test_a_sweep_does_not_go_on_with_other_images(
    tmp_path: Path, config: SweepConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "digits_lt"
    folder.mkdir()
    (folder / "sweep.yaml").write_text(dump_yaml(config.model_dump()))
    with Ledger(folder) as ledger:
        ledger.append("sweep_start", config=config.model_dump(), split_sha256="others")
    before = digest(folder)
    assert main(["--results", str(tmp_path), "--name", "digits_lt", "--resume"]) == 2
    assert "the images or labels have changed since the sweep began" in capsys.readouterr().err
    assert digest(folder) == before


def test_a_folder_that_another_process_has_begun_meanwhile_is_left_alone(
    tmp_path: Path, config: SweepConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from orchestrator.run.preflight import Found

    (tmp_path / "digits_lt").mkdir()
    with Ledger(tmp_path / "digits_lt") as ledger:
        ledger.append("sweep_start", config=config.model_dump())
    before = digest(tmp_path)
    monkeypatch.setattr("orchestrator.run.prepare.check_folder", lambda *_: Found.NOTHING)  # what it was a moment ago
    assert main(["--results", str(tmp_path)]) == 2
    assert "was changed by another process meanwhile; nothing was started" in capsys.readouterr().err
    assert digest(tmp_path) == before


@pytest.mark.slow
def test_a_folder_in_use_is_left_alone(finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from orchestrator.export import main as export

    folder, _ = finished
    with Ledger(folder):
        assert export([str(folder), "--out", str(tmp_path / "again")]) == 2
    assert "in use by another process" in capsys.readouterr().err


@pytest.mark.slow
def test_a_damaged_ledger_is_named(finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(finished[0], tmp_path / "demo")
    lines = (tmp_path / "demo" / "ledger.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "demo" / "ledger.jsonl").write_text("".join(lines[:3] + lines[4:]))
    assert main([*FINISHED, "--results", str(tmp_path), "--name", "demo"]) == 2
    assert "line 4: the line before it was changed or is missing" in capsys.readouterr().err


@pytest.fixture
def nothing_started(tmp_path: Path) -> Iterator[Path]:
    """A results folder that has to stay away."""
    yield tmp_path / "results"
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trial.method.drver_weight=1"], "trial.method.drver_weight is not a setting (did you mean driver_weight?)"),
        (["trial.data.imbalance_factor=-50"], "trial.data.imbalance_factor is -50; allowed: greater than or equal to 1"),
        (["trial.data.meta_per_class=120"], "trial.data.meta_per_class is 120, "),
        (["trial.data.imbalance_factor=500"], "trial.data.imbalance_factor is 500 and data.n_max is 90"),
        (["search.sampler=foo"], "search.sampler is 'foo'; allowed: 'tpe', 'gp', 'cmaes'"),
        (["nothing.yaml"], "nothing.yaml: cannot be read: No such file or directory"),
        (["--name", "../x"], "--name is '../x'; allowed: letters, digits"),
        (["--name", ""], "--name is ''; allowed: letters, digits"),
        (["--name", "a" * 300], "--name has 300 letters; allowed: at most 255"),
        (["--results", "a" * 300], "is a name of 300 bytes; allowed: at most 255"),
        (["--name", "x/../y"], "--name is 'x/../y'; allowed: letters, digits"),
        (["trial.classifier={name: resnet, depth: 10, weights: gone.safetensors}"], "gone.safetensors cannot be read"),
        (["--resume"], "digits_lt holds no sweep that could go on; leave --resume out to begin one"),
        (["--resume", "--warm-start", "old"], "--resume goes on with a sweep, --warm-start begins one; allowed: one of them"),
        (["--warm-start", "old"], "old holds no sweep: ledger.jsonl is missing"),
        (["search.trials"], "search.trials: cannot be read"),
    ],
)
def test_wrong_input_starts_nothing_and_writes_nothing(
    nothing_started: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--results", str(nothing_started), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1


def test_an_unwritable_results_folder_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--results", "/proc/tailtune"]) == 2
    assert "cannot write to /proc" in capsys.readouterr().err


@pytest.mark.slow
def test_wrong_input_is_answered_before_ray_torch_or_mlflow_are_loaded() -> None:
    code = (
        "import sys; from orchestrator.sweep import main; code = main(['search.trials=x']); "
        "print(code, [m for m in ('ray', 'torch', 'mlflow', 'optuna') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "2 []"


@pytest.mark.slow
def test_a_dry_run_shows_the_plan_and_starts_nothing(nothing_started: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--results", str(nothing_started), "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "90 58 37 24 15 10 6 4 2 1" in output
    assert "method.driver_weight" in output
    assert "about 700 epochs in all" in output
    assert "of the time waiting" in " ".join(output.split())
    assert "Nothing was started" in output
