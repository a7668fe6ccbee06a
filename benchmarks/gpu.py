"""Measures Difficulty-Net on CIFAR-100-LT on one GPU: cost of a step, time of a run, and Table 5 of the paper over several seeds.

    python -m benchmarks.gpu --prepare ../shared/data/cifar100 [--data .gpu_data]
    python -m benchmarks.gpu --part step [--out FOLDER]
    python -m benchmarks.gpu --part tests|packing|streams [--out FOLDER]
    python -m benchmarks.gpu --part run|table5 --minutes 8 [--data .gpu_data] [--out FOLDER] [--at-once 4] [--seeds 4]

Needs torch and the other dependencies of `trainables`, but not Ray. `--prepare` writes the balanced sets and the training images
for imbalance 10; these contain the images for imbalance 20 to 200. A part stops before `--minutes` are over, with a checkpoint of
each run that has begun. The next call of the part continues from the checkpoints. When a run is done, its test accuracy is read.
Each part writes FOLDER/<part>.json. The part `tests` runs the tests that need a GPU (`-m gpu`), with pytest alone. The
part `packing` compares ways to train several trials on one GPU at a time (benchmarks/packing.py). The part `streams` compares
where streamed images are decoded and augmented (benchmarks/streams.py).
"""

import argparse
import itertools
import json
import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import packing, streams
from benchmarks.step_cost import Machine, measure, versions
from trainables.classifier_config import ResNetCifarConfig
from trainables.config import ComputeConfig, OptimConfig, TrialConfig
from trainables.data.profiles import exponential
from trainables.data_config import ParquetConfig
from trainables.engine.health import TrialEnded
from trainables.export_model import read_test, write_model
from trainables.files import replace_text
from trainables.machine import num_cores
from trainables.method_config import DifficultyNetConfig
from trainables.trial_run import TrialRun

ROOT = Path(__file__).parents[1]
LAMBDAS = (0.0, 0.3, 0.6, 0.9, 1.0)
"""Values of lambda in Table 5."""
MAX_BYTES = 48_000_000
TEST_PER_CLASS = 50


@dataclass(frozen=True)
class Job:
    """One training run."""

    imbalance_factor: float
    driver_weight: float
    seed: int

    def setting(self) -> str:
        return f"if{self.imbalance_factor:g}_lambda{self.driver_weight:g}"

    def name(self) -> str:
        return f"{self.setting()}_seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """What all runs of a part share."""

    data: Path
    out: Path
    epochs: int
    deadline: float
    """In time.time(), because processes do not share a monotonic clock."""

    def config(self, job: Job) -> TrialConfig:
        """ResNet-32 with the recipe of the advisor paper; half a cosine replaces the recipe's steps of the learning rate."""
        cuda = torch.cuda.is_available()
        return TrialConfig(
            seed=job.seed,
            epochs=self.epochs,
            data=ParquetConfig(root=str(self.data), imbalance_factor=job.imbalance_factor, test_per_class=TEST_PER_CLASS),
            classifier=ResNetCifarConfig(depth=32),
            method=DifficultyNetConfig(driver_weight=job.driver_weight),
            optim=OptimConfig(lr=0.1, momentum=0.9, weight_decay=5e-4, batch_size=128),
            compute=ComputeConfig(precision="tf32", channels_last=True, cuda_graphs=cuda),
        )


def prepare(source: Path, folder: Path) -> int:
    """Writes folder/subset.parquet: of each class, as many unchanged rows as imbalance 10 and the balanced sets need."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    config = ParquetConfig(root=str(source), test_per_class=TEST_PER_CLASS)
    # In reverse order "train" comes before "test": test images are taken only where a class has too few training images.
    table = pa.concat_tables(
        [pq.read_table(file, columns=["image", "label"]) for file in sorted(source.glob("*.parquet"), reverse=True)]
    )
    labels = table["label"].to_numpy()
    held_out = sum(number or 0 for number in (config.meta_per_class, config.val_per_class, config.test_per_class))
    counts = exponential(int(labels.max()) + 1, config.n_max, imbalance_factor=10)
    rows = np.concatenate([np.flatnonzero(labels == c)[: count + held_out] for c, count in enumerate(counts)])
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "subset.parquet"
    pq.write_table(table.take(np.sort(rows)), file, compression="none")
    size = file.stat().st_size
    print(f"wrote {file}: {len(rows)} images, {size / 1e6:.1f} MB")
    if size > MAX_BYTES:
        print(f"error: that is more than {MAX_BYTES / 1e6:.0f} MB", file=sys.stderr)
        return 1
    return 0


def step_costs() -> dict[str, Any]:
    """The table of benchmarks.step_cost, eager and compiled; on a GPU also with captured steps, in float32 and in bf16."""
    cuda = torch.cuda.is_available()
    machines = {
        "eager": Machine(compiled=False, precision="float32", channels_last=False),
        "compiled": Machine(compiled=True, precision="float32", channels_last=True),
        "captured": Machine(compiled=True, precision="float32", channels_last=True, captured=True),
        "captured_bf16": Machine(compiled=True, precision="bf16", channels_last=True, captured=True),
    }
    rows: dict[str, Any] = {}
    for name in machines if cuda else ("eager", "compiled"):
        rows |= {f"{name}_{key}": value for key, value in measure(machines[name], repeats=30 if cuda else 3).items()}
        print(f"{name} done", file=sys.stderr)
        if name != "eager":
            rows[f"eager_double_backward_over_{name}_exact"] = rows["eager_double_backward_ms"] / rows[f"{name}_exact_ms"]
    return rows


def files_for_a_gpu() -> list[Path]:
    """The files with tests that need a GPU. Others are not collected, because some import Ray, MLflow or Optuna."""
    return sorted(
        file for file in (ROOT / "tests").rglob("test_*.py") if "@pytest.mark.gpu\n" in file.read_text(encoding="utf-8")
    )


def run_tests() -> dict[str, Any]:
    """Runs the tests that need a GPU in a process of their own. Returns pytest's exit code: 0 when all passed or were skipped."""
    # A benchmark plug-in of pytest, which such machines may have, warns about xdist, and warnings are errors here.
    command = [sys.executable, "-m", "pytest", "-p", "no:benchmark", "-p", "no:cacheprovider", "-m", "gpu", "-rs"]
    done = subprocess.run([*command, *map(str, files_for_a_gpu())], cwd=ROOT, stdout=sys.stderr, check=False)
    return {"exit_code": done.returncode}


def stream_speeds() -> dict[str, Any]:
    """Streamed images per second, by where they are decoded and augmented, with a reader for each core."""
    cuda = torch.cuda.is_available()
    return streams.measure_places(3, 2048 if cuda else 128, torch.device("cuda" if cuda else "cpu"), num_cores())


def train(job: Job, plan: Plan) -> dict[str, Any]:
    """Continues a job until it is done or another epoch would miss the deadline. Returns the job's record."""
    folder = plan.out / job.name()
    if (folder / "done.json").exists():
        done: dict[str, Any] = json.loads((folder / "done.json").read_text(encoding="utf-8"))
        return done
    config, run = plan.config(job), TrialRun()
    spent = folder / "seconds.json"
    seconds: list[float] = json.loads(spent.read_text(encoding="utf-8")) if spent.exists() else []
    new: list[float] = []
    if time.time() >= plan.deadline:
        return asdict(job) | {"epochs": len(seconds), "of": config.epochs, "seconds": sum(seconds), "done": False}
    folder.mkdir(parents=True, exist_ok=True)
    if seconds:
        run.load(folder / "checkpoint", config)
    else:
        run.start(config)
    while run.epoch < config.epochs and time.time() + 1.3 * max(seconds[-1:] + new, default=0) < plan.deadline:
        began = time.perf_counter()
        try:
            metrics = run.run_epoch()
        except TrialEnded as reason:
            record = asdict(job) | {"epochs": run.epoch, "of": config.epochs, "done": False, reason.status: str(reason)}
            replace_text(folder / "done.json", json.dumps(record))
            return record
        new.append(time.perf_counter() - began)
    record = asdict(job) | {"epochs": run.epoch, "of": config.epochs, "seconds": sum(seconds + new), "done": False}
    if new:
        record |= {"last_val_acc": metrics["val/acc"], "step_ms": metrics["time/step_ms"]}
        run.save(folder / "checkpoint")
        replace_text(spent, json.dumps(seconds + new))
    if run.epoch == config.epochs and run.best is not None:
        write_model(folder / "model.safetensors", run.best.phi, config, run.loaded.data, run.loaded.format, run.best.epoch)
        test_acc = read_test(folder / "model.safetensors")["test/acc"]
        record |= {"done": True, "best_epoch": run.best.epoch, "best_val_acc": run.best.metrics["val/acc"], "test_acc": test_acc}
        replace_text(folder / "done.json", json.dumps(record))
    return record


def jobs_of(part: str, num_seeds: int) -> list[Job]:
    """`run`: imbalance 100 with the paper's lambda. `table5`: every lambda on imbalance 100 and 10, seed by seed."""
    if part == "run":
        return [Job(100, 0.3, seed) for seed in range(num_seeds)]
    return [Job(rho, lam, seed) for seed, rho, lam in itertools.product(range(num_seeds), (100, 10), LAMBDAS)]


def train_all(jobs: list[Job], plan: Plan, at_once: int) -> Iterator[dict[str, Any]]:
    """The records of the jobs, in the order of the jobs. `at_once` processes share the device."""
    with multiprocessing.get_context("spawn").Pool(at_once) as pool:
        pending = [pool.apply_async(train, (job, plan)) for job in jobs]
        for result in pending:
            yield result.get()


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and standard deviations over the finished seeds, of test accuracies and of the times of whole runs."""
    found: dict[str, Any] = {"runs_done": sum(record["done"] for record in records)}
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if record["done"]:
            job = Job(record["imbalance_factor"], record["driver_weight"], record["seed"])
            groups.setdefault(job.setting(), []).append(record)
    for name, group in groups.items():
        for key, values in (("test_acc", [r["test_acc"] for r in group]), ("run_minutes", [r["seconds"] / 60 for r in group])):
            found[f"{name}_{key}_mean"] = statistics.mean(values)
            found[f"{name}_{key}_sd"] = statistics.stdev(values) if len(values) > 1 else None
        found[f"{name}_seeds"] = len(group)
    return found


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prepare", type=Path, metavar="FOLDER", help="write the subset of the .parquet files in FOLDER")
    what.add_argument("--part", choices=["step", "tests", "packing", "streams", "run", "table5"])
    parser.add_argument("--data", type=Path, default=Path(".gpu_data"), help="where the subset is (default: .gpu_data)")
    parser.add_argument("--out", type=Path, default=Path("results/gpu"), help="where numbers and checkpoints go")
    parser.add_argument("--minutes", type=float, default=9.0, help="stop before this many minutes are over (default: 9)")
    parser.add_argument("--at-once", type=int, default=4, help="runs that share the device (default: 4)")
    parser.add_argument("--seeds", type=int, default=4, help="seeds of each run (default: 4)")
    parser.add_argument("--epochs", type=int, default=200, help="epochs of a run (default: 200)")
    given = parser.parse_args(arguments)
    if given.prepare:
        return prepare(given.prepare, given.data)
    given.out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"part": given.part, **versions()}
    if given.part == "step":
        result |= step_costs()
    elif given.part == "tests":
        result |= run_tests()
    elif given.part == "packing":
        result |= packing.measure(packing.Load(device="cuda" if torch.cuda.is_available() else "cpu"))
    elif given.part == "streams":
        result |= stream_speeds()
    else:
        for file in given.out.glob("*/done.json"):
            if (of := json.loads(file.read_text(encoding="utf-8"))["of"]) != given.epochs:
                parser.error(f"--epochs is {given.epochs}, but {file} is of a run of {of}; choose another --out")
        deadline = time.time() + given.minutes * 60 - 10  # 10 s for the last evaluation and the files
        plan = Plan(given.data, given.out, given.epochs, deadline)
        records = list(train_all(jobs_of(given.part, given.seeds), plan, given.at_once))
        result |= summary(records) | {"at_once": given.at_once, "records": records}
    replace_text(given.out / f"{given.part}.json", json.dumps(result, indent=1))
    print(json.dumps({key: value for key, value in result.items() if key != "records"}))
    return int(result.get("exit_code", 0) != 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
