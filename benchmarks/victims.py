"""The sweeps that the fault campaign kills, and the process of such a sweep."""

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from orchestrator.ledger.ledger import LEDGER
from trainables.config_file import dump_yaml

LIMIT_S = 600
"""Longest time in seconds from one event of a sweep to the next, or to the end."""
INTERRUPTED = 130
"""Exit code of a sweep that Ctrl-C has ended."""
POLL_S, LOOK_S = 0.001, 0.5
"""Seconds between two looks at the ledger (short, because an export is short), and between two looks at the processes."""
SPACE = {
    "method.driver_weight": {"type": "float", "low": 0.0001, "high": 1.0, "log": True, "or_exactly": 0.0},
    "method.meta_lr": {"type": "float", "low": 0.0001, "high": 0.1, "log": True},
}
WIDTH = {"method.hidden_width": {"type": "int", "low": 4, "high": 64, "log": True}}
TRIAL = {
    "epochs": 8,
    "data": {
        "source": "digits",
        "imbalance_factor": 50,
        "n_max": 90,
        "meta_per_class": 10,
        "val_per_class": 24,
        "test_per_class": 50,
    },
    "classifier": {"name": "small_cnn", "widths": [4, 8]},
    "method": {"name": "difficulty_net"},
    "optim": {"lr": 0.05, "batch_size": 32},
}
COMMON = {
    "failures": {"max_failed_fraction": 1.0},
    "resources": {"max_concurrent": 2, "heartbeat_timeout_s": 5},
    "tracking": {"mlflow": False},
}


class Kind(NamedTuple):
    """A kind of sweep."""

    synthetic: bool
    deterministic: bool
    sweep: dict[str, Any]
    """The settings that differ from COMMON."""


KINDS = {
    "digits": Kind(
        False,
        True,
        {
            "trial": TRIAL | {"epochs": 6},
            "space": SPACE | WIDTH,
            "search": {"trials": 9, "deterministic": True, "references": {"plain": {"method.name": "cross_entropy"}}},
            "scheduler": {"name": "asha", "grace_epochs": 2, "reduction_factor": 2},
            "resources": {"max_concurrent": 2, "heartbeat_timeout_s": 60},
        },
    ),
    "promotion": Kind(
        True,
        True,
        {
            "trial": TRIAL,
            "space": SPACE | WIDTH,
            "search": {"trials": 12, "deterministic": True},
            "scheduler": {"name": "promotion", "grace_epochs": 2, "reduction_factor": 2},
        },
    ),
    "pbt": Kind(
        True,
        True,
        {
            "trial": TRIAL,
            "space": SPACE,
            "search": {"trials": 8, "deterministic": True, "sampler": "random"},
            "scheduler": {"name": "pbt", "interval_epochs": 2},
        },
    ),
    "asynchronous": Kind(
        True,
        False,
        {
            "trial": TRIAL,
            "space": SPACE | WIDTH,
            "search": {"trials": 14},
            "scheduler": {"name": "asha", "grace_epochs": 2, "reduction_factor": 2},
            "tracking": {"mlflow": True},
        },
    ),
}


class Moment(NamedTuple):
    """When a sweep is killed: a delay after the ledger holds something."""

    words: str
    reached: Callable[[bytes], bool]
    """Takes the bytes that the process has written to the ledger; returns whether the moment has come."""
    delay_s: float = 0.0
    latest_s: float = math.inf
    """Seconds after which the moment comes at the latest."""
    midway: bool = False
    """Whether the sweep is in the middle of its trials at that moment."""


class Sweep:
    """A sweep in its folder, and its process while the sweep runs."""

    def __init__(self, base: Path, name: str, kind: Kind, only: str = "") -> None:
        self.kind, self.name, self.folder = kind, name, base / "results" / name / "sweep"
        self.scratch, self.faults = base / "scratch" / name, base / "faults" / name
        for folder in (self.scratch, self.faults, self.folder.parent):
            folder.mkdir(parents=True)
        self._file, self.log = base / f"{name}.yaml", base / f"{name}.log"
        self._file.write_text(dump_yaml(COMMON | kind.sweep))
        # Ray's folder has a short name, because the names of Ray's sockets are long and the length of a path is limited.
        own = {
            "TMPDIR": str(self.scratch),
            "RAY_TMPDIR": str(base),
            "TAILTUNE_FAULTS": str(self.faults),
            "TAILTUNE_FAULTS_ONLY": only,
        }
        self._environment = os.environ | own | {"OMP_NUM_THREADS": "1"}
        self._environment.pop("MLFLOW_TRACKING_URI", None)  # the campaign counts in a store of its own
        self._started: dict[int, psutil.Process] = {}
        self._looked = 0.0
        self.process: subprocess.Popen[str] | None = None

    def begin(self, log: Path | None = None) -> "subprocess.Popen[str]":
        """Starts the sweep, or resumes it when the ledger holds anything. Returns the process."""
        module = "benchmarks.synthetic" if self.kind.synthetic else "orchestrator.sweep"
        command = [sys.executable, "-m", module, str(self._file), "--results", str(self.folder.parent), "--name", "sweep"]
        if self.ledger():
            command.append("--resume")
        with (log or self.log).open("a") as output:
            return subprocess.Popen(
                command, env=self._environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, text=True
            )

    def ledger(self) -> bytes:
        """The bytes of the ledger; empty when there is no ledger."""
        try:
            return (self.folder / LEDGER).read_bytes()
        except FileNotFoundError:
            return b""

    def _size(self) -> int:
        try:
            return (self.folder / LEDGER).stat().st_size
        except FileNotFoundError:
            return 0

    def run_until(self, moment: Moment | None) -> bool:
        """Starts or resumes the sweep. Returns whether the moment came before the sweep's end.

        Raises:
            TimeoutError: when the sweep has written nothing for LIMIT_S seconds.
        """
        before, began = self.ledger(), time.monotonic()
        intact = before[: before.rfind(b"\n") + 1]  # the next event replaces a torn line
        self.process = self.begin()
        seen, changed, reached = len(before), began, False
        while self.process.poll() is None:
            if (size := self._size()) != seen:
                seen, changed, reached = size, time.monotonic(), bool(moment and moment.reached(self.ledger()[len(intact) :]))
            if moment and (reached or time.monotonic() - began > moment.latest_s):
                time.sleep(moment.delay_s)
                return self.process.poll() is None
            if time.monotonic() - changed > LIMIT_S:
                self.kill()
                raise TimeoutError(f"{self.name} has written nothing for {LIMIT_S} s; see {self.log}")
            if time.monotonic() - self._looked > LOOK_S:
                self._look_at_children()
            time.sleep(POLL_S)
        return False

    def kill(self) -> None:
        """Kills the sweep's own process only. The processes that it started have to notice by themselves."""
        assert self.process is not None
        self._look_at_children()
        self.process.kill()
        self.process.wait()

    def interrupt_twice(self, pause_s: float) -> str | None:
        """Presses Ctrl-C twice and waits for the end of the sweep's process. Returns what is wrong, or None."""
        assert self.process is not None
        self._look_at_children()
        self.process.send_signal(signal.SIGINT)
        time.sleep(pause_s)
        self.process.send_signal(signal.SIGINT)
        try:
            code = self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return f"the sweep had not ended {LIMIT_S} s after Ctrl-C was pressed twice"
        return None if code in (0, INTERRUPTED) else f"after Ctrl-C was pressed twice, the sweep ended with exit code {code}"

    def refuses_a_second(self) -> str | None:
        """Starts a second process of the same sweep while the first is suspended. Returns what is wrong, or None."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)
        log, before = self.scratch / "second.log", self.ledger()
        second = self.begin(log)
        try:
            code = second.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            second.kill()
            code = second.wait()
        if code == 2 and "is in use by another process; nothing was changed" in log.read_text() and self.ledger() == before:
            return None
        return f"a second process was not refused: exit code {code}, {log.read_text()[-500:]}"

    def sweep_up(self) -> None:
        """Kills the processes that are left. Some of Ray's processes would wait a minute for a server that is gone."""
        for process in [self.process, *self._started.values()] if self.process else []:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def _look_at_children(self) -> None:
        assert self.process is not None
        self._looked = time.monotonic()
        with contextlib.suppress(psutil.NoSuchProcess):
            self._started |= {child.pid: child for child in psutil.Process(self.process.pid).children(recursive=True)}
