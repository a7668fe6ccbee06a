"""Prints how important each searched setting was to the sweep whose winner is taken apart."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from orchestrator.decide.importance import importances
from orchestrator.outcome.parts import searched_trials
from orchestrator.terminal.lines import print_note


def print_importances(console: Console, folder: Path) -> None:
    """Prints the table, or a note on why there is none: it is no condition of the ablation.

    Args:
        console: to print on; the table fits into 80 columns.
        folder: results folder of the sweep.
    """
    space, trials = searched_trials(folder)
    try:
        found = importances(space, trials)
    except ValueError as error:
        print_note(console, f"no importances of the searched settings: {error}")
        return
    title = f"importance of the searched settings in {folder.resolve().name}"
    table = Table(title=title, title_justify="left", pad_edge=False, padding=(0, 2, 0, 0), box=None, header_style="underline")
    for head in ("setting", "PED-ANOVA", "interval", "fANOVA", "interval"):
        table.add_column(head, no_wrap=head != "setting", overflow="fold", justify="left" if head == "setting" else "right")
    for name, *numbers, _ in found:
        first, low, high, second, lowest, highest = (f"{number:.2f}" for number in numbers)
        table.add_row(name, first, f"{low} to {high}", second, f"{lowest} to {highest}")
    console.print(table)
    console.print(
        f"Intervals are 90 % bootstrap intervals over {len(trials)} trials, those stopped early included; the ablation that "
        "follows is the check by re-training.",
        style="dim",
        highlight=False,
    )
