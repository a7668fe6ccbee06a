"""Runs all tests, in two processes at a time: those that start sweeps, servers or a browser wait for these most of the time.
Those of clusters (tests/cluster) have a command of their own.

python tests/run.py [arguments of pytest]
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

WAITING = [
    "tests/orchestrator/test_sweep.py",
    "tests/orchestrator/test_fused_sweep.py",
    "tests/orchestrator/run/test_groups.py",
    "tests/benchmarks/test_chaos.py",
    "tests/orchestrator/config/test_search_spaces.py",
    "tests/orchestrator/test_api.py",
    "tests/orchestrator/test_ablate.py",
    "tests/orchestrator/run/test_copied_sweep.py",
    "tests/trainables/workers/test_worker_group.py",
    "tests/trainables/test_plugins.py",
    "tests/orchestrator/tracking",
    "tests/orchestrator/report",
]
"""Tests that wait for Ray, MLflow or Chromium, the longest files first. They run one after the other: two would take each other's
cores."""


def main(arguments: list[str]) -> int:
    """Returns 0 when all tests have passed."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "output")
        with output.open("wb") as file:
            waiting = subprocess.Popen([*PYTEST, *WAITING, *arguments], stdout=file, stderr=subprocess.STDOUT)
        try:
            others = subprocess.run(
                [*PYTEST, *(f"--ignore={file}" for file in [*WAITING, "tests/cluster"]), *arguments]
            ).returncode
            print(f"tests that wait for other processes ({', '.join(Path(file).stem for file in WAITING)}):", flush=True)
            follow(waiting, output)
        finally:  # Ctrl-C reaches both processes; whatever else ends this one ends the other
            waiting.terminate()
            waiting.wait()
    return others or waiting.returncode


def follow(process: subprocess.Popen[bytes], output: Path) -> None:
    """Prints what a process has written and still writes, until it ends."""
    with output.open(encoding="utf-8", errors="replace") as file:
        ended = False
        while not ended:
            ended = process.poll() is not None  # asked first: what it wrote last is printed, too
            print(file.read(), end="", flush=True)
            time.sleep(0.5)


PYTEST = [sys.executable, "-X", "faulthandler", "-m", "pytest"]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
