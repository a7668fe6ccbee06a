"""Compares a sweep's best configuration with the sweep's references on fresh seeds, on which nothing was chosen.

    python -m benchmarks.seeds results/digits_lt [--seeds 5] [--json]

Each configuration is trained on the same fresh seeds. Each seed has its own split, initial weights and batches. The test set is
read once for each run, with the model of the best-val epoch. Differences are paired by seed.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from orchestrator.config.sweep_config import SweepConfig, apply_changes, read_sweep
from trainables.config import TrialConfig
from trainables.config_file import read_settings
from trainables.export_model import read_test, write_model
from trainables.trial_run import TrialRun


def configurations(folder: Path) -> dict[str, TrialConfig]:
    """The exported best trial and the references of a sweep, by name."""
    sweep: SweepConfig = read_sweep(folder / "sweep.yaml")
    search = sweep.search
    references = {name: apply_changes(sweep.trial, search.changes_of(name), name) for name in search.plain_references()}
    return {"best": read_settings(TrialConfig, folder / "best" / "config.yaml"), **references}


def val_and_test(config: TrialConfig) -> tuple[float, float]:
    """Trains a whole run; returns the val and test accuracy of the best-val epoch."""
    run = TrialRun()
    run.start(config)
    while run.epoch < config.epochs:
        run.run_epoch()
    assert run.best is not None
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.safetensors"
        write_model(model, run.best.phi, config, run.loaded.data, run.loaded.format, run.best.epoch)
        return run.best.metrics[config.select_by], read_test(model)["test/acc"]


def measure(folder: Path, num_seeds: int) -> dict[str, float]:
    """Means and standard deviations over the seeds, and paired differences of the best configuration from each reference."""
    chosen = configurations(folder)
    seeds = [chosen["best"].seed + 1 + i for i in range(num_seeds)]
    test: dict[str, list[float]] = {}
    result: dict[str, float] = {"num_seeds": num_seeds, "first_seed": seeds[0]}
    for name, config in chosen.items():
        pairs = [val_and_test(config.model_copy(update={"seed": seed})) for seed in seeds]
        test[name] = [pair[1] for pair in pairs]
        for part, values in (("val", [pair[0] for pair in pairs]), ("test", test[name])):
            result[f"{name}_{part}_mean"], result[f"{name}_{part}_sd"] = statistics.mean(values), statistics.stdev(values)
    for name in chosen.keys() - {"best"}:
        differences = [ours - theirs for ours, theirs in zip(test["best"], test[name], strict=True)]
        result[f"best_minus_{name}_test_mean"] = statistics.mean(differences)
        result[f"best_minus_{name}_test_se"] = statistics.stdev(differences) / num_seeds**0.5
    return result


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.seeds")
    parser.add_argument("folder", type=Path, help="results folder of a finished sweep")
    parser.add_argument("--seeds", type=int, default=5, help="fresh seeds, at least 2 (default: 5)")
    parser.add_argument("--json", action="store_true", help="print one flat JSON object")
    given = parser.parse_args(arguments)
    result = measure(given.folder, given.seeds)
    print(json.dumps(result) if given.json else "\n".join(f"{key:<40} {value:.4f}" for key, value in result.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
