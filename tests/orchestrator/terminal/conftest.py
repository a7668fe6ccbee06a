import pytest
from rich.console import Console


@pytest.fixture
def console() -> Console:
    return Console(width=150, record=True, force_terminal=False)
