"""Writes the report of a sweep again and again while the sweep runs."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.ledger.events import Kind
from orchestrator.ledger.ledger import LEDGER, last, read_ledger
from orchestrator.report.writing import write_report

REFRESH_S = 10
"""Seconds after which the page loads itself again."""
LOOK_S = 1.0
"""Seconds between two looks at the ledger."""
SHARE = 0.2
"""Share of the time that is spent on writing: the sweep needs the processor more."""


def watch(
    folder: Path,
    trials: Sequence[str] = (),
    written: Callable[[Path], None] = lambda path: None,
    look_s: float = LOOK_S,
    refresh_s: float = REFRESH_S,
) -> None:
    """Returns when the sweep has ended, with a last report that stands still.

    Args:
        folder: results folder.
        trials: further trials to show class by class.
        written: is told of the first report.
        look_s: seconds between two looks.
        refresh_s: seconds between two reports, at least.

    Raises:
        ConfigError: as `write_report` does.
    """
    seen, next_time, is_first = -1, 0.0, True
    while not is_over(folder):
        size = (folder / LEDGER).stat().st_size
        if size != seen and time.monotonic() >= next_time:
            began, seen = time.monotonic(), size
            path = write_report(folder, trials, max(1, round(refresh_s)), with_figures=False)
            next_time = time.monotonic() + max(refresh_s, (time.monotonic() - began) / SHARE)
            if is_first:
                written(path)
                is_first = False
        time.sleep(look_s)
    path = write_report(folder, trials)
    if is_first:
        written(path)


def is_over(folder: Path) -> bool:
    """Whether the sweep has ended, if only until it is resumed."""
    end = last(read_ledger(folder), Kind.SWEEP_END, Kind.SWEEP_START, Kind.SWEEP_RESUME)
    return bool(end.get("event") == Kind.SWEEP_END)
