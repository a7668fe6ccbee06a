"""Measures sweeps on a cluster whose machines come and go: how soon they begin, how busy the GPU slots are, how soon machines go.

    python -m benchmarks.cluster [--trials 20] [--seconds 20] [--json]

The cluster is a fake one (fake_cluster.py): machines are processes on this machine, and come in about 15 seconds. A trial is a
real small one that sleeps after each of its four epochs, `--seconds` in all, so that what is measured is the waiting between
trials. Each trial has two workers with a GPU each, so that four machines make two slots. `asynchronous` starts a trial as soon as
a slot is free, `waves` is `search.deterministic`.

Figures: `first_epoch_s` from the start of the command to the end of the first epoch less its sleep, boot and start of Ray
included; `busy` the share of the slots' time that trials took, from when all slots have their machines to the end of the last
trial; `empty_s` from the end of the last trial until the last machine has gone, of which `idle_timeout_s` is the cluster's
patience.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.fake_cluster import fake_cluster, unavailable

IDLE_S = 20.0
EPOCHS = 4
SLOTS = 2
SWEEP = [
    "search.references={}", "scheduler.name=none", f"trial.epochs={EPOCHS}", "trial.method={name: cross_entropy}",
    "trial.classifier.widths=[4, 8]", "trial.data.n_max=20", "trial.data.imbalance_factor=5", "trial.device=cpu", "space={}",
    "space.optim.lr={type: float, low: 1.0e-3, high: 0.1, log: true}", "tracking.mlflow=false",
    "resources.gpus_per_worker=1", "resources.cpus_per_worker=0.5", "resources.workers=2", f"resources.slots={SLOTS}",
]  # fmt: skip


def sleeping_sweep(words: list[str], seconds: float) -> int:
    """Runs a sweep whose trials sleep; in a process of its own, among the cluster's. Returns the exit code."""
    from orchestrator.run.trial import Trial
    from orchestrator.sweep import main as sweep

    class SleepingTrial(Trial):
        """A trial that sleeps after each epoch."""

        def step(self) -> dict[str, Any]:
            """One epoch, and a nap."""
            found = super().step()
            time.sleep(seconds / EPOCHS)
            return found

    return sweep(words, SleepingTrial)


def measure(mode: str, trials: int, seconds: float) -> dict[str, float]:
    """One sweep on a cluster of its own."""
    with fake_cluster(idle_timeout_minutes=IDLE_S / 60) as cluster, tempfile.TemporaryDirectory() as results:
        place = ["--address", cluster.address, "--cluster", str(cluster.file), "--results", results, "--name", mode]
        changes = [f"search.trials={trials}", f"search.deterministic={str(mode == 'waves').lower()}"]
        words = json.dumps(["search_spaces/digits_lt.yaml", *place, *SWEEP, *changes])
        began = time.time()
        process = cluster.start("-m", "benchmarks.cluster", "--sweep", words, str(seconds), stdout=subprocess.DEVNULL)
        most = 0
        while process.poll() is None:
            most = max(most, len(cluster.machines()))
            time.sleep(0.5)
        if process.returncode:
            raise RuntimeError(f"the sweep ended with {process.returncode}")
        ledger = Path(results, mode, "ledger.jsonl").read_text(encoding="utf-8")
        events = [json.loads(line) for line in ledger.splitlines()]
        last = max(event["time"] for event in events if event["event"] == "trial_end")
        while cluster.machines():
            time.sleep(0.5)
        return {
            "first_epoch_s": next(event["time"] for event in events if event["event"] == "epoch") - began - seconds / EPOCHS,
            "busy": busy(events),
            "empty_s": time.time() - last,
            "idle_timeout_s": IDLE_S,
            "machines": most,
        }


def busy(events: Sequence[dict[str, Any]]) -> float:
    """The share of the slots' time in which a trial was in them, from when all had machines to the end of the last trial."""
    first = dict[int, float]()
    for event in events:
        if event["event"] == "group_start":
            first.setdefault(event["slot"], event["time"])
    begun = sorted(first.values())[SLOTS - 1]
    ended = max(event["time"] for event in events if event["event"] == "trial_end")
    taken, since = 0.0, dict[str, float]()
    for event in events:
        if event["event"] == "trial_start":
            since[event["trial_id"]] = event["time"]
        elif event["event"] == "trial_end":
            taken += max(0.0, event["time"] - max(begun, since[event["trial_id"]]))
    return taken / (SLOTS * (ended - begun))


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=20, help="of each sweep")
    parser.add_argument("--seconds", type=float, default=20.0, help="that a trial sleeps")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.add_argument("--sweep", nargs=2, metavar=("WORDS", "SECONDS"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.sweep:
        return sleeping_sweep(json.loads(given.sweep[0]), float(given.sweep[1]))
    if reason := unavailable():
        print(f"there can be no fake cluster here: {reason}", file=sys.stderr)
        return 2
    found = {mode: measure(mode, given.trials, given.seconds) for mode in ("asynchronous", "waves")}
    if given.json:
        print(json.dumps(found))
        return 0
    for mode, numbers in found.items():
        print(f"{mode:<14} " + "  ".join(f"{name} {value:.2f}" for name, value in numbers.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
