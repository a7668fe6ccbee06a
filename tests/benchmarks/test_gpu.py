import io
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clock import Clock
from PIL import Image

from benchmarks import gpu
from benchmarks.gpu import LAMBDAS, Job, Plan, files_for_a_gpu, jobs_of, main, summary, train
from trainables.config import OptimConfig, TrialConfig
from trainables.data.profiles import exponential
from trainables.method_config import DifficultyNetConfig


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Three epochs on the digits instead of 200 on CIFAR."""
    small = TrialConfig(epochs=3, method=DifficultyNetConfig(hidden_width=4))
    monkeypatch.setattr(Plan, "config", lambda self, job: small.model_copy(update={"seed": job.seed}))
    return Plan(tmp_path / "data", tmp_path / "out", epochs=3, deadline=time.time() + 600)


def test_a_run_that_was_stopped_in_time_goes_on_to_the_same_end(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(50, 0.3, seed=1)
    whole = train(job, Plan(plan.data, plan.out / "whole", plan.epochs, plan.deadline))
    run_epoch, clock = gpu.TrialRun.run_epoch, Clock()
    monkeypatch.setattr(gpu, "time", clock)

    def of_two_seconds(run: gpu.TrialRun) -> dict[str, float]:
        clock.now += 2
        return run_epoch(run)

    monkeypatch.setattr(gpu.TrialRun, "run_epoch", of_two_seconds)
    stopped = train(job, Plan(plan.data, plan.out, plan.epochs, deadline=clock.now + 4.5))  # 1.3 times 2 more would miss it
    assert (stopped["epochs"], stopped["seconds"], stopped["done"]) == (1, 2.0, False)
    finished = train(job, Plan(plan.data, plan.out, plan.epochs, deadline=clock.now + 100))
    assert (finished["epochs"], finished["seconds"], finished["done"]) == (3, 6.0, True)
    same = ("test_acc", "best_val_acc", "best_epoch", "epochs")
    assert [finished[key] for key in same] == [whole[key] for key in same]
    assert train(job, Plan(plan.data, plan.out, plan.epochs, deadline=clock.now - 1)) == finished  # done is done


@pytest.mark.slow
def test_nothing_here_needs_ray() -> None:
    program = "import sys; sys.modules.update(dict.fromkeys(['ray', 'mlflow', 'optuna', 'orchestrator'])); import benchmarks.gpu"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.slow
def test_the_tests_for_a_gpu_are_collected_without_ray_and_skipped_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    names = {file.name for file in files_for_a_gpu()}
    assert names >= {"test_cuda_graph.py", "test_numerics.py", "test_augment.py"}
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules.update(dict.fromkeys(['ray', 'mlflow', 'optuna']))\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["--part", "tests", "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "tests.json").read_text())["exit_code"] == 0
    assert "needs a GPU: python -m benchmarks.gpu --part tests" in capfd.readouterr().err


def test_after_the_deadline_nothing_starts(plan: Plan) -> None:
    record = train(Job(50, 0.3, seed=1), Plan(plan.data, plan.out, plan.epochs, deadline=time.time() - 1))
    assert (record["epochs"], record["done"]) == (0, False)
    assert not plan.out.exists()


def test_a_run_that_diverges_does_not_take_the_others_with_it(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    config = plan.config
    wild = config(Job(50, 0.3, 1)).model_copy(update={"optim": OptimConfig(lr=1e30)})
    monkeypatch.setattr(Plan, "config", lambda self, job: wild)
    record = train(Job(50, 0.3, seed=1), plan)
    assert not record["done"]
    assert "became" in record["diverged"]
    assert train(Job(50, 0.3, seed=1), plan) == record


def test_runs_of_another_length_are_not_taken_for_these(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    train(Job(50, 0.3, seed=1), plan)
    with pytest.raises(SystemExit, match="2"):
        main(["--part", "run", "--epochs", "200", "--out", str(plan.out)])
    assert "is of a run of 3; choose another --out" in capsys.readouterr().err


def test_table_5_is_every_lambda_on_both_imbalances_seed_by_seed() -> None:
    jobs = jobs_of("table5", 2)
    assert [job.driver_weight for job in jobs[:5]] == list(LAMBDAS)
    assert {(job.imbalance_factor, job.driver_weight) for job in jobs[:10]} == {
        (rho, lam) for rho in (100, 10) for lam in LAMBDAS
    }
    assert [job.seed for job in jobs] == [0] * 10 + [1] * 10


def test_the_summary_is_over_runs_that_are_done() -> None:
    record = {"imbalance_factor": 100.0, "driver_weight": 0.3, "seed": 0, "done": True, "seconds": 60.0}
    found = summary([record | {"test_acc": 0.4}, record | {"test_acc": 0.5}, record | {"done": False}])
    assert found["runs_done"] == found["if100_lambda0.3_seeds"] == 2
    assert found["if100_lambda0.3_test_acc_mean"] == pytest.approx(0.45)
    assert found["if100_lambda0.3_run_minutes_mean"] == 1.0


def test_the_subset_holds_what_every_imbalance_from_10_on_can_take(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2, 3), dtype=np.uint8)).save(pixels := io.BytesIO(), format="PNG")
    labels = np.repeat(np.arange(3), 600)
    (tmp_path / "source").mkdir()
    pq.write_table(pa.table({"image": [pixels.getvalue()] * len(labels), "label": labels}), tmp_path / "source" / "train.parquet")
    assert main(["--prepare", str(tmp_path / "source"), "--data", str(tmp_path / "data")]) == 0
    kept = np.bincount(pq.read_table(tmp_path / "data" / "subset.parquet")["label"].to_numpy())
    for factor in (10, 20, 50, 100, 200):
        assert all(kept >= np.array(exponential(3, 475, factor)) + 10 + 15 + 50)
    assert kept.tolist() == [475 + 75, 150 + 75, 47 + 75]


def test_a_part_writes_its_numbers_with_their_origin(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "train_all", lambda jobs, plan, at_once: (train(job, plan) for job in jobs))
    out = tmp_path / "numbers"
    assert main(["--part", "run", "--seeds", "2", "--minutes", "5", "--epochs", "3", "--out", str(out)]) == 0
    written = json.loads((out / "run.json").read_text())
    assert written["runs_done"] == len(written["records"]) == 2
    assert {"date", "hardware", "torch", "python"} <= set(written)
