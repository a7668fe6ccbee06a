"""Measures whole sweeps on feature vectors: trials that are trained together, beside trials one at a time.

    python -m benchmarks.fused_sweeps [--rounds 3] [--size 16] [--trials 64] [--alone 16] [--json]

A sweep has a linear head, Difficulty-Net with the exact meta-gradient, and TPE over alpha, the weight decay, lambda, beta and the
hidden width. A trial is 20 epochs on about 10,000 training vectors of 256 numbers in 100 classes, with batch 128 and meta batch
100, evaluation and checkpoints included. Two processes with one thread each train side by side. `fused` is a sweep of `--trials`
trials with `resources.fused` of `--size`, `unfused` one of `--alone` trials without it. Both take turns, so that other load on
the machine falls on both. The time of a sweep runs from the start of its first trial to the end of its last one: proposals,
ledger, MLflow and Ray are part of it, the start of the processes and the export are not. A trial that ends early, because its
meta-gradient is dead, counts as the part of a trial that was trained. Figures are medians over rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml

from orchestrator.ledger.events import Kind

CLASSES, NUMBERS, LARGEST, HELD_OUT = 100, 256, 440, 35
"""Classes, numbers in a vector, training vectors of the largest class, and vectors of a class in the other sets together."""
EPOCHS = 20
TRIAL = {
    "epochs": EPOCHS,
    "device": "cpu",
    "threads": 1,
    "data": {"source": "features", "imbalance_factor": 100, "n_max": LARGEST, "val_per_class": 15, "test_per_class": 10},
    "classifier": {"name": "linear"},
    "method": {"name": "difficulty_net"},
    "optim": {"batch_size": 128, "schedule": "cosine"},
}
SPACE = {
    "optim.lr": {"type": "float", "low": 0.001, "high": 0.1, "log": True},
    "optim.weight_decay": {"type": "float", "low": 1e-5, "high": 1e-2, "log": True},
    "method.driver_weight": {"type": "float", "low": 1e-4, "high": 1.0, "log": True},
    "method.meta_lr": {"type": "float", "low": 1e-5, "high": 1e-3, "log": True},
    "method.hidden_width": {"type": "int", "low": 64, "high": 128, "log": True},
}


def write_vectors(folder: Path) -> None:
    """Vectors of classes that overlap, in the files of `data.source: features`."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), LARGEST + HELD_OUT)
    means = random.normal(size=(CLASSES, NUMBERS)) / 4
    folder.mkdir()
    np.save(folder / "features.npy", (means[labels] + random.normal(size=(len(labels), NUMBERS))).astype(np.float32))
    np.save(folder / "labels.npy", labels)


def trials_per_minute(vectors: Path, size: int, trials: int) -> float:
    """Runs a sweep to its end, with `size` trials at once in each of two processes.

    Raises:
        RuntimeError: when the sweep fails.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        resources = {"max_concurrent": 2} | ({"fused": size} if size > 1 else {})
        sweep = {"trial": TRIAL, "space": SPACE, "search": {"trials": trials}, "scheduler": {"name": "none"}}
        file = Path(place, "sweep.yaml")
        file.write_text(yaml.safe_dump(sweep | {"resources": resources}))
        command = [sys.executable, "-m", "orchestrator.sweep", str(file), f"trial.data.root={vectors}", "--results", place]
        done = subprocess.run(command, env=os.environ | ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with exit code {done.returncode}:\n{done.stdout[-4000:]}")
        return rate(Path(place, "sweep", "ledger.jsonl"))


def rate(ledger: Path) -> float:
    """Trials in a minute, from the first start of a trial to the last end, counted in epochs."""
    events = [json.loads(line) for line in ledger.read_text().splitlines()]
    times = {kind: [event["time"] for event in events if event["event"] == kind] for kind in Kind}
    minutes = (max(times[Kind.TRIAL_END]) - min(times[Kind.TRIAL_START])) / 60
    return len(times[Kind.EPOCH]) / EPOCHS / minutes


ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "RAY_USAGE_STATS_ENABLED": "0"}


def measure(rounds: int, arms: dict[str, tuple[int, int]]) -> dict[str, float]:
    """Runs the arms, each with its size and its number of trials, in turns."""
    rates: dict[str, list[float]] = {arm: [] for arm in arms}
    with tempfile.TemporaryDirectory() as place:
        write_vectors(vectors := Path(place, "vectors"))
        for number in range(rounds):
            for arm, (size, trials) in arms.items():
                rates[arm].append(trials_per_minute(vectors, size, trials))
                print(f"round {number + 1} of {rounds}: {arm} {rates[arm][-1]:.1f} trials a minute", file=sys.stderr, flush=True)
    found = {f"{arm}_sweep_trials_per_minute": statistics.median(of) for arm, of in rates.items()}
    ratio = found["fused_sweep_trials_per_minute"] / found["unfused_sweep_trials_per_minute"]
    return found | {"fused_over_unfused_sweep": ratio}


def main(arguments: list[str]) -> None:
    """Measures and prints the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fused_sweeps")
    parser.add_argument("--rounds", type=int, default=3, help="turns that each arm takes (default: 3)")
    parser.add_argument("--size", type=int, default=16, help="trials that are trained together (default: 16)")
    parser.add_argument("--trials", type=int, default=64, help="trials of the fused sweep (default: 64)")
    parser.add_argument("--alone", type=int, default=16, help="trials of the other sweep (default: 16)")
    parser.add_argument("--json", action="store_true", help="print one flat JSON object")
    given = parser.parse_args(arguments)
    if given.size < 2 or min(given.rounds, given.trials, given.alone) < 1:
        parser.error(f"--size is {given.size}; allowed: 2 or more; --rounds, --trials and --alone: 1 or more")
    found = measure(given.rounds, {"fused": (given.size, given.trials), "unfused": (1, given.alone)})
    found["fused_size"] = given.size
    if given.json:
        from benchmarks.step_cost import versions

        print(json.dumps(found | versions()))
    else:
        print("\n".join(f"{name:<34} {value:>12.2f}" for name, value in found.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
