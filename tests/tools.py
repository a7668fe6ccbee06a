"""Programs that some tests need and that are no Python packages."""

import os

import pytest


def need(missing: str) -> None:
    """Skips a test because of what is missing, or fails it where TOOLS=required, as in .ci/run. Goes on when that is empty."""
    if missing and os.environ.get("TOOLS") == "required":
        pytest.fail(missing)
    if missing:
        pytest.skip(missing)
