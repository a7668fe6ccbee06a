"""Prints what a person sees of an ablation: its variants before it starts, and the table at the end."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from orchestrator.config.ablation_config import PATH
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.ledger.events import Status
from orchestrator.outcome.ablation import Compared, compared, explanation, findings, tables_by_condition, unit_of
from orchestrator.outcome.ablation_files import FOLDER, cells_of
from orchestrator.outcome.confirmation import Row
from orchestrator.terminal.lines import entry, print_note, tables_entry
from trainables.settings import named_values
from trainables.words import plural


def print_variants(console: Console, config: SweepConfig) -> None:
    """Prints the variants of a plan, each with what it changes."""
    plan = config.comparison
    table = Table("variant", "differs from trial in", title="variants", title_justify="left")
    own = named_values(config.trial)
    for cell, trial in config.trials_of_cells().items():
        settings = named_values(trial)
        changed = [f"{name}={value}" for name, value in settings.items() if name in own and own[name] != value]
        changed = [f"method.name={trial.method.name}"] if trial.method.name != config.trial.method.name else changed
        table.add_row(cell, ", ".join(changed) or "nothing")
    console.print(table)
    if plan.kind == PATH:
        others = plan.num_cells() - len(plan.cells())
        print_note(console, f"and {others} sets of components between these, as the path goes")


def print_table(console: Console, config: SweepConfig, rows: list[Row]) -> None:
    """Prints the table of an ablation, and what its numbers mean."""
    unit = unit_of(config)
    for condition, lines in tables_by_condition(compared(config, rows)).items():
        console.print(table_of(lines, condition, unit))
    for sentence in findings(config, rows):
        console.print(sentence, style="bold", highlight=False)
    for sentence in explanation(config):
        console.print(sentence, style="dim", highlight=False)
    failed = [row for row in rows if row["status"] in (Status.FAILED, Status.DIVERGED)]
    if failed:
        variants = ", ".join(sorted({row["variant"] for row in failed}))
        lost = plural(len(failed), "arm", " of searches") if config.repeats_search else plural(len(failed), "trial")
        print_note(console, f"without a result: {lost}, of {variants}; for these, fewer {unit} are compared")
    if collapsed := sorted({row["variant"] for row in rows if row["collapse"]}):
        print_note(console, f"the weighting collapsed in trials of {', '.join(collapsed)} (column collapse of trials.parquet)")


def table_of(lines: list[Compared], condition: str, unit: str) -> Table:
    """The table of one combination of levels. It fits into 80 columns."""
    seeds = sorted({line.row.num_seeds for line in lines})
    title = f"{condition + ', ' if condition else ''}{' to '.join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))} {unit}"
    table = Table(title=title, title_justify="left", pad_edge=False, padding=(0, 2, 0, 0), box=None, header_style="underline")
    for head in ("variant", "mean", "diff.", "95 % interval", "p corr.", "verdict"):
        table.add_column(
            head, no_wrap=head != "variant", overflow="fold", justify="left" if head in "variant verdict" else "right"
        )
    for line in lines:
        name, _, mean, _, difference, interval, _, p_corrected, *_, verdict, more = cells_of(line)
        words = f"{verdict} +{more}" if more else verdict
        style = {"better": "green", "worse": "red", "equivalent": "blue"}.get(verdict, "")
        table.add_row(name, mean, difference, interval, p_corrected, words, style=style)
    return table


def files_of(folder: Path, config: SweepConfig) -> list[str]:
    """Lines about where the files of an ablation are."""
    place = folder / FOLDER
    searches = entry("searches", f"{folder}/search_0, ...", "each as the folder of any sweep")
    return [
        "",
        *entry("table", str(place / "table.md"), "and as .tex, .csv and .parquet"),
        *entry("picture", str(place / "forest.svg"), "and as .pdf"),
        *entry("report", str(folder / "report.html"), "to look at in a browser"),
        *(searches if config.repeats_search else tables_entry(folder)),
    ]
