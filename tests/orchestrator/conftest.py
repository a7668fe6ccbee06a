from pathlib import Path

import pytest

from orchestrator.config.sweep_config import SweepConfig, read_sweep


@pytest.fixture
def config() -> SweepConfig:
    """The default sweep."""
    return read_sweep(Path(__file__).parents[2] / "search_spaces" / "digits_lt.yaml")
