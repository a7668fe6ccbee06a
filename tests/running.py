"""A sweep in a process of its own, for tests that watch it and take its processes away."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.ledger.ledger import read_ledger


class Running:
    """A sweep in a process of its own, and all that it started."""

    def __init__(self, home: Path, *arguments: str, **how: Any) -> None:
        """`how`: arguments of Popen, in place of a pipe that is read to the end."""
        command = [sys.executable, "-m", "orchestrator.sweep", *arguments, "--name", "demo"]
        self.folder = home / "results" / "demo"
        how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **how}
        self.process = subprocess.Popen(command, cwd=home, text=True, start_new_session=True, **how)
        self.started: dict[int, psutil.Process] = {}

    def wait_for(self, condition: Callable[[list[dict[str, object]]], bool]) -> None:
        """Waits until the ledger fulfils `condition`."""
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and self.process.poll() is None:
            self.started |= {child.pid: child for child in psutil.Process(self.process.pid).children(recursive=True)}
            if (self.folder / "ledger.jsonl").exists() and condition(read_ledger(self.folder)):
                return
            time.sleep(0.1)
        self.process.kill()
        pytest.fail(f"the ledger never got there: {self.process.communicate()[0]}")

    def end(self) -> tuple[int, str]:
        """Exit code and output; nothing that the sweep started may be left a little later."""
        output = self.process.communicate(timeout=300)[0] or ""
        _, alive = psutil.wait_procs(list(self.started.values()), timeout=60)
        assert not alive, alive
        return self.process.returncode, output


def is_slot(process: psutil.Process) -> bool:
    """Whether a process serves trials. Ray calls it by Tune's name at first, then by that of our class."""
    try:
        return process.cmdline()[0].startswith(("ray::ResourceTrainable", "ray::Trial"))
    except (psutil.Error, IndexError):
        return False
