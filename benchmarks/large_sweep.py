"""Measures what a large sweep costs the driver: memory, time for each event, disk, and the time to go on after a crash.

    python -m benchmarks.large_sweep [--trials 10000] [--epochs 100] [--classes 10] [--json]

Everything but the trials is real: ledger, conductor, usage, display, arrays by class and tables. The trials report random numbers
at once. Each part runs in a process of its own, whose peak memory (resident set) is measured; `nothing` is what the imports take.
`late_over_early` is the time for an epoch's events in the last tenth of the sweep over that in the first tenth.
"""

import argparse
import io
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.conductor import Conductor, decision_hash
from orchestrator.ledger.class_arrays import FOLDER, lines_file, seal
from orchestrator.ledger.events import Kind
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.usage import usage_of
from orchestrator.outcome.tables import write_tables
from orchestrator.terminal.display import Display
from orchestrator.terminal.progress import Progress
from trainables.config_file import Origin, check

METRICS = 20
"""Metrics of an epoch; a real trial on CIFAR-100-LT has 20 to 30."""
SLOTS = 8


def sweep_of(trials: int, epochs: int) -> SweepConfig:
    """Random search without a scheduler: every trial runs all its epochs, the most events that a sweep can have."""
    space = {"method.meta_lr": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True}}
    tree = {
        "trial": {"epochs": epochs},
        "space": space,
        "search": {"trials": trials, "sampler": "random", "deterministic": False},
        "scheduler": {"name": "none"},
        "resources": {"max_concurrent": SLOTS},
    }
    return check(SweepConfig, tree, Origin("benchmark"))


class Driver:
    """A sweep's driver without Ray."""

    def __init__(self, folder: Path, config: SweepConfig, ledger: Ledger, classes: int) -> None:
        self.folder, self.config, self.ledger, self.classes = folder, config, ledger, classes
        self.random = random.Random(0)
        self.seconds: list[float] = []

    def restore(self) -> None:
        """Takes over what the ledger holds."""
        past = self.ledger.past
        self.usage = usage_of(past)
        self.conductor = Conductor(self.config, SLOTS, self.append)
        self.ledger.listen(self.conductor.apply, essential=True)
        self.ledger.listen(self.usage.apply, essential=True)
        self.ledger.listen(Progress(self.config, "large", Display(Console(file=io.StringIO())), past))
        self.conductor.restore(past)

    def append(self, event: Kind, **fields: Any) -> Any:
        """Writes an event; a trial's end with its arrays by class."""
        if event != Kind.TRIAL_END:
            return self.ledger.append(event, **fields)
        trial_id, epochs = fields["trial_id"], range(1, self.config.trial.epochs + 1)
        written = self.ledger.append(event, **fields, **seal(self.folder, trial_id, epochs))
        lines_file(self.folder, trial_id).unlink(missing_ok=True)
        self.conductor.drop_checkpoints(trial_id)
        return written

    def run(self) -> None:
        """All trials, one after the other; notes the seconds that each epoch's events took."""
        while stints := self.conductor.next_stints():
            [stint] = stints
            trial_id = stint.trial_id
            self.append(Kind.TRIAL_START, trial_id=trial_id, attempt=stint.attempt)
            self.write_arrays(trial_id)
            for epoch in range(1, self.config.trial.epochs + 1):
                metrics = {f"metric/{number}": self.random.random() for number in range(METRICS)}
                metrics |= {"val/acc": self.random.random()}
                began = time.perf_counter()
                path = f"checkpoints/{trial_id}/{epoch:04d}-1"
                self.append(Kind.CHECKPOINT, trial_id=trial_id, epoch=epoch, path=path, sha256="0" * 64)
                self.append(Kind.EPOCH, trial_id=trial_id, epoch=epoch, attempt=1, metrics=metrics)
                self.conductor.drop_checkpoints(trial_id)
                self.seconds.append(time.perf_counter() - began)
                self.conductor.after_epoch(trial_id)

    def write_arrays(self, trial_id: str) -> None:
        """The arrays by class of all epochs, as the trial would write them one by one."""
        (self.folder / FOLDER).mkdir(exist_ok=True)
        names = ("accuracy", "meta_accuracy", "difficulty", "weight")
        with (self.folder / FOLDER / f"{trial_id}.jsonl").open("w") as file:
            for epoch in range(1, self.config.trial.epochs + 1):
                arrays: dict[str, Any] = {name: [self.random.random() for _ in range(self.classes)] for name in names}
                file.write(json.dumps({"epoch": epoch, **arrays, "train_count": list(range(self.classes))}) + "\n")


def run(folder: Path, config: SweepConfig, classes: int) -> dict[str, float]:
    """The sweep itself."""
    with Ledger(folder) as ledger:
        facts = {"split_sha256": "", "split": {}, "class_counts": [1], "git_commit": None, "versions": {}}
        ledger.append(Kind.SWEEP_START, config=config.model_dump(), **facts)
        driver = Driver(folder, config, ledger, classes)
        driver.restore()
        began = time.perf_counter()
        driver.run()
        seconds, tenth = time.perf_counter() - began, len(driver.seconds) // 10
    early, late = sum(driver.seconds[:tenth]) / tenth, sum(driver.seconds[-tenth:]) / tenth
    of_epoch = 1e6 * sum(driver.seconds) / len(driver.seconds)
    size = (folder / "ledger.jsonl").stat().st_size / 1e6
    return {"run_s": seconds, "epoch_us": of_epoch, "late_over_early": late / early, "ledger_mb": size}


def resume(folder: Path, config: SweepConfig, classes: int) -> dict[str, float]:
    """A new process takes the sweep over."""
    began = time.perf_counter()
    with Ledger(folder) as ledger:
        Driver(folder, config, ledger, classes).restore()
    return {"resume_s": time.perf_counter() - began}


def tables(folder: Path, config: SweepConfig, classes: int) -> dict[str, float]:
    """All tables, and the digest of all decisions."""
    began = time.perf_counter()
    with Ledger(folder) as ledger:
        write_tables(folder, ledger.events)
        decision_hash(ledger.events)
    size = sum(file.stat().st_size for file in folder.glob("*.parquet")) / 1e6
    return {"tables_s": time.perf_counter() - began, "tables_mb": size}


def nothing(folder: Path, config: SweepConfig, classes: int) -> dict[str, float]:
    """Only the imports."""
    return {}


PARTS = {"nothing": nothing, "run": run, "resume": resume, "tables": tables}


def measure(folder: Path, trials: int, epochs: int, classes: int) -> dict[str, float]:
    """All figures; peak memory in MB as `<part>_peak_mb`."""
    found: dict[str, float] = {"trials": trials, "epochs": epochs, "classes": classes}
    for part in PARTS:
        command = [sys.executable, "-m", "benchmarks.large_sweep", "--part", part, "--folder", str(folder)]
        command += ["--trials", str(trials), "--epochs", str(epochs), "--classes", str(classes)]
        found |= json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        print(f"{part}: {found[f'{part}_peak_mb']:.0f} MB at most", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.part:
        found = PARTS[given.part](given.folder, sweep_of(given.trials, given.epochs), given.classes)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(found | {f"{given.part}_peak_mb": peak}))
        return
    folder = Path(tempfile.mkdtemp(prefix="large-sweep-"))
    try:
        found = measure(folder, given.trials, given.epochs, given.classes)
    finally:
        shutil.rmtree(folder)
    print(json.dumps(found) if given.json else json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
