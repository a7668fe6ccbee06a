"""Text that several printing modules share: styles, short forms of values and times, and the commands that are shown."""

import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from orchestrator.config.space import METHOD
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.ledger.events import Status
from trainables.command_line import steady
from trainables.settings import flatten
from trainables.shown_commands import shown_command
from trainables.words import brief

STYLES = {
    Status.FINISHED: "green",
    Status.STOPPED_EARLY: "dim",
    Status.DIVERGED: "red",
    Status.FAILED: "red",
    Status.INTERRUPTED: "yellow",
}
"""Colours of the statuses, in the order in which they are counted."""


NAME_WIDTH = len("best configuration") + 3


def terminal_console() -> Console:
    """The console of all commands. Output that cannot be written is dropped, and text is shown as it is: class names, paths and
    errors may hold what rich takes for markup or emoji, such as `[red]fox` and `:cat:`.
    """
    return Console(file=steady(sys.stdout), markup=False, emoji=False, highlight=False)


def print_note(console: Console, text: str) -> None:
    """Prints a note: something that the user should know, and that does not stop the sweep."""
    print_text(console, f"note: {text}", "yellow")


def print_text(console: Console, text: str, style: str | None = None) -> None:
    """Prints a sentence: in a terminal it goes on in the next line after a word, as far in as it began; elsewhere it stays one
    line, for programs.
    """
    if console.is_terminal:
        words = text.lstrip(" ")
        console.print(Padding(Text(words, style or ""), (0, 0, 0, len(text) - len(words))))
    else:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def entry(name: str, *lines: str) -> list[str]:
    """Lines about a thing that a command leaves: its name, where it is, and what there is to know."""
    return [f"{name:<{NAME_WIDTH}}{lines[0]}", *(" " * NAME_WIDTH + line for line in lines[1:])]


def tables_entry(folder: Path) -> list[str]:
    """Lines about the tables in a results folder."""
    return entry("tables", f"{folder}/trials.parquet, epochs.parquet,", "classes.parquet; everything: ledger.jsonl")


def describe_values(config: SweepConfig, trial: dict[str, object], arm: str = "") -> str:
    """The searched settings that a trial has, in short form: `driver_weight=0 meta_lr=0.0123`; `optim.lr` and `stages.1.optim.lr`
    keep their whole names. The name of the arm, if there is one, takes the place of the method's: `crt optim.lr=0.05`.
    """
    flat, last = flatten(trial), Counter(name.split(".")[-1] for name in config.space)
    short_names = {name: name.split(".")[-1] if last[name.split(".")[-1]] == 1 else name for name in config.space}
    values = {short_names[name]: flat[name] for name in config.space if name in flat and not (arm and name == METHOD)}
    words = [f"{name}={brief(value)}" if isinstance(value, float) else f"{name}={value}" for name, value in values.items()]
    return " ".join([arm, *words] if arm else words)


def last_line(text: str) -> str:
    """The last line of a text, such as the error of a traceback."""
    return (text.strip().splitlines() or [""])[-1]


def short(value: Any, digits: int | None = None) -> str:
    """A value for a table: `-` for None, numbers with `digits` decimals or three significant digits."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.{digits}f}" if digits else brief(value)
    return str(value)


def resume_command(folder: Path, config: SweepConfig, place: str = "") -> str:
    """The command that resumes a sweep or an ablation. `place`: options that say where it runs and is copied to."""
    if folder.parent != Path("results"):
        place = f" --results {shlex.quote(str(folder.parent))}{place}"
    verb = "ablate" if config.ablation else "sweep"
    return shown_command(f"orchestrator.{verb}", f"--name {shlex.quote(folder.name)}{place} --resume")
