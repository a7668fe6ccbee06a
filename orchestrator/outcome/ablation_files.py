"""The files of an ablation's outcome: its table as Markdown, LaTeX, CSV and parquet, and its picture."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import csv

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.ledger.parquet_files import write_table
from orchestrator.outcome.ablation import Compared, compared, explanation, findings, tables_by_condition, unit_of
from orchestrator.outcome.confirmation import Row
from orchestrator.outcome.forest import draw_forest

FOLDER = "ablation"
"""In the results folder, with the files that `write_outcome` makes."""
HEADS = ("variant", "n", "mean", "sd", "difference", "95 % interval", "p", "p corrected", "d", "P(A>B)", "verdict", "more seeds")


def cells_of(line: Compared) -> list[str]:
    """A line in words, in the order of HEADS. Scores in percent."""
    row = line.row
    words = [line.label, str(row.num_seeds), _percent(row.mean), _percent(row.sd)]
    if row.difference is None:
        return [*words, *[""] * (len(HEADS) - len(words))]
    interval = "" if row.difference_low is None else f"{_signed(row.difference_low)} to {_signed(row.difference_high)}"
    words += [_signed(row.difference), interval, _p(row.p_t), _p(row.p_corrected)]
    words += ["" if value is None else f"{value:.2f}" for value in (row.effect_size, row.superiority)]
    return [*words, row.verdict or "", "" if row.further_seeds is None else str(row.further_seeds)]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+.2f}"


def _p(value: float | None) -> str:
    return "" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def markdown(lines: Sequence[Compared], sentences: Sequence[str]) -> str:
    """The tables and their explanation."""
    parts = []
    for condition, of_condition in tables_by_condition(lines).items():
        heads, rows = _with_more(of_condition)
        table = [heads, ["---"] * len(heads), *rows]
        parts.append((f"**{condition}**\n\n" if condition else "") + "\n".join(f"| {' | '.join(row)} |" for row in table))
    return "\n\n".join([*parts, *sentences]) + "\n"


def _with_more(lines: Sequence[Compared]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows with the means of other metrics, and with published numbers where there are some."""
    others = list(dict.fromkeys(name for line in lines for name in line.means))
    heads, rows = [*HEADS, *others], [[*cells_of(line), *(_percent(line.means.get(name)) for name in others)] for line in lines]
    if any(line.failed for line in lines):
        heads.append("failed")
        rows = [[*row, str(line.failed)] for row, line in zip(rows, lines, strict=True)]
    if any(line.published is not None for line in lines):
        heads += ["published", "ours minus published"]
        rows = [
            [*row, _percent(line.published), "" if line.published is None else _signed(line.row.mean - line.published)]
            for row, line in zip(rows, lines, strict=True)
        ]
    return heads, rows


def latex(lines: Sequence[Compared], sentences: Sequence[str]) -> str:
    """The tables and their explanation as LaTeX, for the package booktabs."""
    parts = []
    for condition, of_condition in tables_by_condition(lines).items():
        heads, rows = _with_more(of_condition)
        body = "\n".join(" & ".join(map(_escaped, row)) + r" \\" for row in rows)
        head = " & ".join(map(_escaped, heads)) + r" \\"
        title = f"% {condition}\n" if condition else ""
        columns = "l" + "r" * (len(heads) - 1)
        parts.append(
            f"{title}\\begin{{tabular}}{{{columns}}}\n\\toprule\n{head}\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"
        )
    return "\n".join([*parts, *(f"% {sentence}" for sentence in sentences)]) + "\n"


def _escaped(text: str) -> str:
    for letter in "_%&#":
        text = text.replace(letter, f"\\{letter}")
    return text.replace("<", "$<$").replace(">", "$>$")


def as_table(lines: Sequence[Compared]) -> pa.Table:
    """The numbers of all lines, unrounded, as fractions."""
    rows = []
    for line in lines:
        difference = None if line.published is None else line.row.mean - line.published
        rows.append(
            {"condition": line.condition, **line.row._asdict(), "failed": line.failed}
            | {f"mean/{name}": value for name, value in line.means.items()}
            | {"published": line.published, "minus_published": difference}
        )
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def write_outcome(folder: Path, config: SweepConfig, rows: Sequence[Row]) -> list[Compared]:
    """Writes table.md, table.tex, table.csv, table.parquet, forest.svg and forest.pdf into `folder`/ablation.

    Returns: the table.
    """
    plan, place = config.comparison, folder / FOLDER
    lines, sentences = compared(config, rows), [*findings(config, rows), *explanation(config)]
    place.mkdir(exist_ok=True)
    (place / "table.md").write_text(markdown(lines, sentences), encoding="utf-8")
    (place / "table.tex").write_text(latex(lines, sentences), encoding="utf-8")
    if lines:
        table = as_table(lines)
        write_table(table, place / "table.parquet")
        csv.write_csv(table, place / "table.csv")
        draw_forest(lines, plan, place, unit_of(config))
    return lines
