"""The door for Python, used as from a script: each sweep in a process of its own, with real Ray and MLflow."""

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import orchestrator
from orchestrator import Ablation, Best, ConfigError, Sweep, SweepFailed, run_ablation, run_sweep
from orchestrator.ledger.ledger import Ledger
from trainables.config import TrialConfig

ROOT = Path(__file__).parents[2]
SMALL = [
    "trial.epochs=3", "scheduler.grace_epochs=1", "search.trials=1", "trial.data={source: generated, meta_per_class: 2}",
]  # fmt: skip
ALONE = ["resources.max_concurrent=1", "tracking.mlflow=false"]
"""As few processes as possible, for what is not about them."""


def script(folder: Path, text: str) -> Any:
    """What a script prints last, as JSON; the folder of the repository is not where it runs."""
    file = folder / "script.py"
    file.write_text(f"import json, signal, sys\nSMALL, ALONE = {SMALL}, {ALONE}\n" + textwrap.dedent(text))
    done = subprocess.run([sys.executable, file.name], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder, and what a script saw of a sweep of three trials in it."""
    folder = tmp_path_factory.mktemp("door")
    return folder, script(
        folder,
        """
        from orchestrator import run_sweep
        before = [signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
        own = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
        sweep = run_sweep(overrides=SMALL, name="first")
        print(json.dumps({
            "status": sweep.status, "folder": str(sweep.folder), "trials": sweep.trials.to_pylist(),
            "val": sweep.best.metrics["best"]["val/acc"], "seed": sweep.best.config.seed, "model": str(sweep.best.model),
            "handlers": own == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
        }))
        """,
    )


def test_each_public_name_can_be_imported_and_no_other() -> None:
    assert {name: getattr(orchestrator, name).__name__ for name in orchestrator.__all__} == {
        "Best": Best.__name__,
        "ConfigError": ConfigError.__name__,
        "Sweep": Sweep.__name__,
        "SweepFailed": SweepFailed.__name__,
        "Ablation": Ablation.__name__,
        "run_ablation": run_ablation.__name__,
        "run_sweep": run_sweep.__name__,
    }
    assert set(dir(orchestrator)) >= set(orchestrator.__all__)
    with pytest.raises(AttributeError, match="it has Ablation, Best, ConfigError, Sweep"):
        orchestrator.run_swep  # noqa: B018


@pytest.mark.slow
def test_a_sweep_from_python_gives_what_its_folder_holds(told: tuple[Path, Any]) -> None:
    folder, seen = told
    sweep = Sweep.open(folder / "results" / "first")
    assert (seen["status"], sweep.status, Path(seen["folder"])) == ("finished", "finished", Path("results/first"))
    assert [row["role"] for row in seen["trials"]] == ["reference", "reference", "search"]
    assert sweep.trials.to_pylist() == seen["trials"] == pq.read_table(sweep.folder / "trials.parquet").to_pylist()
    for name, table in (("epochs", sweep.epochs), ("classes", sweep.classes)):
        assert isinstance(table, pa.Table)
        assert table == pq.read_table(sweep.folder / f"{name}.parquet")
    values = [row["best/val/acc"] for row in seen["trials"] if row["status"] == "finished"]
    assert seen["val"] == max(values)
    best = sweep.best
    assert best is not None
    assert isinstance(best.config, TrialConfig)
    assert best.config.epochs == 3
    assert best.model.is_file()
    assert sweep.config.search.trials == 1
    assert repr(sweep) == f"Sweep('{sweep.folder}', finished)"


@pytest.mark.slow
def test_the_callers_signal_handlers_are_as_before(told: tuple[Path, Any]) -> None:
    assert told[1]["handlers"]


@pytest.mark.slow
def test_a_complete_sweep_is_not_run_again_and_an_unfinished_one_is_refused(told: tuple[Path, Any]) -> None:
    folder, _ = told
    results = folder / "results"
    ledger = (results / "first" / "ledger.jsonl").read_bytes()
    assert run_sweep(overrides=SMALL, name="first", results=results).status == "finished"
    with pytest.raises(ConfigError, match=r"search.trials: 1 there, 2 here"):
        run_sweep(overrides=[*SMALL, "search.trials=2"], name="first", results=results)
    assert (results / "first" / "ledger.jsonl").read_bytes() == ledger


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a script saw of a sweep that is interrupted and goes on, and of one that fails."""
    return script(
        tmp_path_factory.mktemp("disturbed"),
        """
        import os, threading, time
        from orchestrator import Sweep, SweepFailed, run_sweep
        long = [*SMALL, *ALONE, "trial.epochs=100", "trial.method={name: cross_entropy}", "space={}", "search.references={}"]

        def interrupt():
            while True:
                time.sleep(0.05)
                try:
                    if Sweep.open("results/digits_lt").epochs.num_rows > 2:
                        return os.kill(os.getpid(), signal.SIGINT)
                except ValueError:
                    pass

        before = signal.getsignal(signal.SIGINT)
        threading.Thread(target=interrupt, daemon=True).start()
        try:
            run_sweep(overrides=long)
            words = "not interrupted"
        except KeyboardInterrupt as error:
            words = str(error)
        stood = Sweep.open("results/digits_lt").status
        same = signal.getsignal(signal.SIGINT) == before
        found = []
        thread = threading.Thread(target=lambda: found.append(run_sweep(overrides=long, resume=True).status))
        thread.start()
        thread.join()
        seen = {"words": words, "stood": stood, "same": same, "found": found}
        try:
            run_sweep(overrides=[*long, "trial.epochs=3", "trial.optim.lr=1.0e+30"], name="failed")
        except SweepFailed as error:
            seen |= {"failed": str(error), "reason": error.reason, "folder": str(error.folder)}
        print(json.dumps(seen))
        """,
    )


@pytest.mark.slow
def test_an_interrupt_saves_the_state_and_the_sweep_goes_on_in_another_thread(disturbed: Any) -> None:
    assert "its state is saved; go on with resume=True" in disturbed["words"]
    assert (disturbed["stood"], disturbed["same"], disturbed["found"]) == ("interrupted", True, ["finished"])


@pytest.mark.slow
def test_a_failed_sweep_raises_with_its_reason_and_folder(disturbed: Any) -> None:
    assert disturbed["folder"] == "results/failed"
    assert disturbed["reason"] == "no trial finished whose model could be exported"
    assert disturbed["failed"] == "no trial finished whose model could be exported (results: results/failed)"


@pytest.mark.slow
def test_a_method_from_a_plug_in_is_searched_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "my_methods.py").write_text((ROOT / "examples" / "inverse_frequency.py").read_text())
    seen = script(
        tmp_path,
        """
        from orchestrator import run_sweep
        sys.path.insert(0, "own")
        own = ["trial.plugins=[my_methods]", "trial.method.name=inverse_frequency", "search.references={}", "search.trials=3",
               "space={}", "space.method.strength={type: float, low: 0.1, high: 2.0}"]
        sweep = run_sweep(overrides=[*SMALL, *ALONE, *own])
        print(json.dumps({"trials": sweep.trials.to_pylist(), "plugins": sweep.best.config.plugins}))
        """,
    )
    assert {row["config/method.name"] for row in seen["trials"]} == {"inverse_frequency"}
    assert len({row["config/method.strength"] for row in seen["trials"]}) == 3
    assert "finished" in {row["status"] for row in seen["trials"]}
    assert seen["plugins"] == ["my_methods"]
    command = [sys.executable, "-m", "trainables.train", "results/digits_lt/best/config.yaml", "epochs=1", "--out", "again"]
    found = {**os.environ, "PYTHONPATH": str(tmp_path / "own")}
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=found)
    assert again.returncode == 0, again.stderr


def test_wrong_input_is_refused_before_anything_starts(tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(ConfigError, match=r"search.trils is not a setting \(did you mean trials\?\)"):
        run_sweep(overrides=["search.trils=3"], results=tmp_path)
    with pytest.raises(ConfigError, match="--resume goes on with a sweep, --warm-start begins one"):
        run_sweep(results=tmp_path, resume=True, warm_start=tmp_path)
    with pytest.raises(ConfigError, match="is missing"):
        Sweep.open(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_process_that_is_connected_to_ray_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with caplog.at_level(logging.WARNING), pytest.raises(ConfigError, match=r"call ray.shutdown\(\) first"):
        run_sweep(overrides=["tracking.mlflow=false"], results=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_that_runs_or_was_killed_is_running_and_has_no_best_trial(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.append("sweep_start")
        assert (Sweep.open(tmp_path).status, Sweep.open(tmp_path).best) == ("running", None)
        ledger.append("sweep_end", status="interrupted")
        ledger.append("sweep_resume", segment=2)
    assert Sweep.open(tmp_path).status == "running"
