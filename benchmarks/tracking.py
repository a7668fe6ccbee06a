"""Measures what MLflow costs a sweep: how fast a ledger is sent, what the driver pays for it, and what a dead server changes.

    python -m benchmarks.tracking [--trials 200] [--epochs 100] [--pairs 5] [--json]

`direct_points_per_s`: metric values that arrive in a second in a database (SQLite) on this machine. `http_points_per_s`: the same
through MLflow's server. Both count from the first event to the end of the last run, runs, parameters and files included.
`mlflow_points_per_s`: MLflow alone, with bare runs and the largest batches that it takes, into such a database.
`driver_ms_per_report`: milliseconds of the sweep's own thread for handing over an epoch. `dead_server_slowdown`: the time of a
real small sweep whose MLflow server does not answer over that of one whose server does, the median of pairs. `alive_spread`: the
largest over the smallest time of those whose server answers.
"""

import argparse
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.config.sweep_config import SweepConfig, TrackingConfig, read_sweep
from orchestrator.ledger.events import Event, Kind
from orchestrator.ledger.ledger import Ledger, read_ledger
from orchestrator.tracking.mlflow_runs import MAX_BATCH, connect, find_or_make
from orchestrator.tracking.server import start as start_server
from orchestrator.tracking.server import wait_for
from orchestrator.tracking.tracker import Tracker

METRICS = 12
SMALL = ["search.trials=4", "trial.epochs=6", "search.references={}", "scheduler.name=none"]
DIGITS = Path(__file__).parents[1] / "search_spaces" / "digits_lt.yaml"


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tracking", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=200, help="of the ledger that is sent")
    parser.add_argument("--epochs", type=int, default=100, help="of each trial")
    parser.add_argument("--pairs", type=int, default=5, help="of real sweeps")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="tt-tracking-") as place:
        folder = Path(place)
        ledger = write_ledger(folder / "demo", given.trials, given.epochs)
        points = given.trials * given.epochs * METRICS
        bare_s = send_bare(f"sqlite:///{folder / 'bare.db'}", given.trials, given.epochs * METRICS)
        direct_s, handing_s = send(ledger, folder, f"sqlite:///{folder / 'direct.db'}")
        with server(folder / "http.db") as uri:
            http_s, _ = send(ledger, folder, uri)
        found = {
            "direct_points_per_s": points / direct_s,
            "http_points_per_s": points / http_s,
            "mlflow_points_per_s": points / bare_s,
            "driver_ms_per_report": 1000 * handing_s / (given.trials * given.epochs),
        } | compare_sweeps(folder, given.pairs)
    if given.json:
        print(json.dumps({name: round(value, 4) for name, value in found.items()}))
        return 0
    for name, value in found.items():
        print(f"{name:<22} {value:.4g}")
    return 0


def write_ledger(folder: Path, trials: int, epochs: int) -> list[Event]:
    """The ledger of a sweep whose trials report random numbers."""
    folder.mkdir()
    config: SweepConfig = read_sweep(DIGITS, [f"search.trials={trials}", f"trial.epochs={epochs}"])
    numbers, trial = random.Random(0), config.trial.model_dump()
    with Ledger(folder) as ledger:
        facts: dict[str, Any] = {"split_sha256": "0" * 64, "split": {}, "class_counts": [], "git_commit": None, "versions": {}}
        ledger.append(Kind.SWEEP_START, config=config.model_dump(), **facts)
        for number in range(trials):
            trial_id = f"t{number:04d}"
            ledger.append(Kind.SUGGEST, trial_id=trial_id, role="search", variant="", seed=0, config=trial)
            ledger.append(Kind.TRIAL_START, trial_id=trial_id, attempt=1)
            for epoch in range(1, epochs + 1):
                metrics = {"val/acc": numbers.random()} | {f"val/m{index}": numbers.random() for index in range(METRICS - 1)}
                ledger.append(Kind.EPOCH, trial_id=trial_id, epoch=epoch, attempt=1, metrics=metrics)
            best = {"best_epoch": epochs, "best_value": 0.5}
            ledger.append(Kind.TRIAL_END, trial_id=trial_id, status="finished", stop_reason=None, **best)
        ledger.append(Kind.SWEEP_END, status="finished", reason=None, complete=True, decisions_sha256="")
    return list(read_ledger(folder))


def send(events: list[Event], results: Path, uri: str) -> tuple[float, float]:
    """Seconds until MLflow has all events, and seconds of those in which epochs were handed over.

    They are handed over faster than MLflow takes them: what is skipped is read from the ledger in `results`/demo, as in a sweep.
    """
    tracker = Tracker(TrackingConfig(uri=uri), results, "demo")
    while not tracker.is_connected:  # a new database takes seconds, which are not what is measured
        time.sleep(0.05)
    began, handing = time.perf_counter(), 0.0
    for event in events:
        since = time.perf_counter()
        tracker(event)
        handing += (time.perf_counter() - since) * (event["event"] == Kind.EPOCH)
    tracker.close(1e6)
    if tracker.error:
        raise tracker.error
    return time.perf_counter() - began, handing


def send_bare(uri: str, runs: int, points: int) -> float:
    """Seconds for `points` metric values in each of `runs` runs, with nothing else."""
    from mlflow.entities import Metric

    client, numbers = connect(uri), random.Random(0)
    experiment = find_or_make(client, "bare", None)
    began = time.perf_counter()
    for _ in range(runs):
        run_id = client.create_run(experiment).info.run_id
        metrics = [Metric(f"m{index % METRICS}", numbers.random(), index, index // METRICS) for index in range(points)]
        for start in range(0, points, MAX_BATCH):
            client.log_batch(run_id, metrics=metrics[start : start + MAX_BATCH], synchronous=True)
        client.set_terminated(run_id)
    return time.perf_counter() - began


@contextmanager
def server(store: Path) -> Iterator[str]:
    """MLflow's server, and its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryFile() as said:
        process = start_server(f"sqlite:///{store}", store.parent / "artifacts", port, said)
        try:
            assert wait_for(process, port), "MLflow's server does not start"
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def compare_sweeps(folder: Path, pairs: int) -> dict[str, float]:
    """How much longer real sweeps take when MLflow's server is dead."""
    alive, ratios = [], []
    with server(folder / "sweeps.db") as uri:
        for pair in range(pairs):
            alive.append(seconds_of(folder / f"alive{pair}", uri))
            ratios.append(seconds_of(folder / f"dead{pair}", "http://127.0.0.1:9") / alive[-1])
    if not alive:
        return {}
    return {"dead_server_slowdown": statistics.median(ratios), "alive_spread": max(alive) / min(alive)}


def seconds_of(results: Path, uri: str) -> float:
    """From the sweep's first event to its last."""
    command = [sys.executable, "-m", "orchestrator.sweep", str(DIGITS), "--results", str(results), "--name", "demo", *SMALL]
    subprocess.run([*command, f"tracking.uri={uri}"], capture_output=True, check=True)
    events = read_ledger(results / "demo")
    return float(events[-1]["time"] - events[0]["time"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
