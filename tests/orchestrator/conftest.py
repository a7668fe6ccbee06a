import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.config import SweepConfig, read_sweep

SPACES = Path(__file__).parents[2] / "search_spaces"


@pytest.fixture
def config() -> SweepConfig:
    """The default sweep."""
    return read_sweep(SPACES / "digits_lt.yaml")


Sweep = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Runs `python -m orchestrator.sweep` as a user would, with a Ray folder of its own."""

    def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "orchestrator.sweep", *arguments]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)

    return run
