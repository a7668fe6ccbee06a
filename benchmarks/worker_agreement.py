"""Compares trials over several workers with trials on one worker.

    python -m benchmarks.worker_agreement [--workers 2] [--configurations 8] [--seeds 5] [--json]

First part: the digits sweep runs twice, by its command, once with one worker and once with several. It runs in float64 with the
BatchNorm statistics of the whole batch (`compute.batch_norm: sync`), the same configurations and no scheduler. The figure is the
largest difference of any metric in any epoch.

Second part: the default trial runs unchanged on some seeds. The figure is val/acc of the best epoch with several workers, each of
which normalises its own share of a batch (`compute.batch_norm: local`), minus val/acc with one worker.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.step_cost import versions

FIXED = ["search.sampler=random", "scheduler.name=none", "tracking.mlflow=false", "resources.cpus_per_worker=0.5"]
REFERENCES = 2
"""Of the default sweep."""
EXACT = ["trial.compute.precision=float64", "trial.compute.batch_norm=sync"]


def sweep(results: Path, name: str, *changes: str) -> Path:
    """Runs a digits sweep and returns its folder.

    Raises:
        subprocess.CalledProcessError: when the sweep failed.
    """
    command = [sys.executable, "-m", "orchestrator.sweep", "--results", str(results), "--name", name, *FIXED, *changes]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return results / name


def largest_difference(one: Path, several: Path) -> tuple[float, int]:
    """The largest difference over all metrics of all epochs, times excluded, and the number of compared values.

    Raises:
        ValueError: when the sweeps do not hold the same trials and epochs.
    """
    tables = [
        pq.read_table(folder / "epochs.parquet").sort_by([("trial_id", "ascending"), ("epoch", "ascending")])
        for folder in (one, several)
    ]
    if any(tables[0][key] != tables[1][key] for key in ("trial_id", "epoch")):
        raise ValueError(f"{one} and {several} hold other trials or epochs")
    metrics = [name for name in tables[0].column_names if "/" in name and not name.startswith("time/")]
    pairs = [
        (a, b)
        for name in metrics
        for a, b in zip(tables[0][name].to_pylist(), tables[1][name].to_pylist(), strict=True)
        if not (a is None and b is None)
    ]
    return max(math.inf if a is None or b is None else abs(a - b) for a, b in pairs), len(pairs)


def best_accuracy(folder: Path) -> float:
    """val/acc of the best epoch of the sweep's only trial."""
    return float(pq.read_table(folder / "trials.parquet")["best/val/acc"][0].as_py())


def measure(workers: int, configurations: int, seeds: int) -> dict[str, float]:
    """Runs both parts; returns all figures."""
    with tempfile.TemporaryDirectory() as folder:
        results, several = Path(folder), f"resources.workers={workers}"
        exact = [
            sweep(results, f"exact_{n}", *EXACT, f"search.trials={configurations - REFERENCES}", f"resources.workers={n}")
            for n in (1, workers)
        ]
        difference, numbers = largest_difference(*exact)
        differences = []
        for seed in range(seeds):
            alone = ["search.references={}", "search.trials=1", "space={}", f"trial.seed={seed}"]
            pair = [sweep(results, f"{name}_{seed}", *alone, *change) for name, change in (("one", []), ("several", [several]))]
            differences.append(best_accuracy(pair[1]) - best_accuracy(pair[0]))
    return {
        "workers": workers,
        "configurations": configurations,
        "numbers_compared": numbers,
        "largest_difference": difference,
        "seeds": seeds,
        "local_batch_norm_difference_mean": statistics.mean(differences),
        "local_batch_norm_difference_sd": statistics.stdev(differences),
        "local_batch_norm_difference_largest": max(differences, key=abs),
    }


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worker_agreement", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, default=2, help="workers of a trial (default: 2)")
    parser.add_argument("--configurations", type=int, default=8, help="trials of the first part (default: 8)")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of the second part, at least 2 (default: 5)")
    parser.add_argument("--json", action="store_true", help="print one flat JSON object")
    given = parser.parse_args(arguments)
    result = measure(given.workers, given.configurations, given.seeds)
    if given.json:
        print(json.dumps(result | versions()))
    else:
        print("\n".join(f"{name:<40} {value:12.3g}" for name, value in result.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
