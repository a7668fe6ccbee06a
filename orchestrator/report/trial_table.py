"""The tables of a report as HTML: all trials, and the variants of an ablation. Every text from outside is escaped here."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.ledger.trial_states import number_of
from orchestrator.outcome.ablation import Compared, tables_by_condition
from orchestrator.outcome.ablation_files import HEADS, cells_of
from orchestrator.outcome.confirmation import Row
from orchestrator.report.sentences import in_words, last_line
from trainables.words import brief

LONGEST = 300
"""Letters of a reason that are shown."""


def trials_table(config: SweepConfig, rows: Sequence[Row], runs: Mapping[str, str]) -> str:
    """A row for each trial.

    Args:
        config: of the sweep.
        rows: of all trials.
        runs: the address of each trial's run in MLflow, as far as it is known.
    """
    scores = [f"best/{name}" for name in dict.fromkeys([config.trial.select_by, *config.objectives()])]
    settings = [name for name in config.space if any(row.get(f"config/{name}") is not None for row in rows)]
    last = ["MLflow"] if runs else []
    heads = ["trial", "role", "variant", "seed", "status", *scores, "best epoch", "epochs", "seconds", *settings, "why", *last]
    lines = []
    for row in rows:
        cells = [
            _cell(row["trial_id"]),
            _cell(row["role"]),
            _cell(row["variant"]),
            _cell(row["seed"]),
            _cell(in_words(row["status"])),
        ]
        cells += [_cell(row.get(name), 4) for name in scores]
        cells += [_cell(row.get("best/epoch")), _cell(row["epochs"]), _cell(row["wall_s"], 1)]
        cells += [_cell(row.get(f"config/{name}")) for name in settings]
        cells.append(f'<td class="text">{escaped(last_line(row["stop_reason"] or row["collapse"] or "")[:LONGEST])}</td>')
        if runs:
            address = runs.get(row["trial_id"])
            cells.append(f'<td><a href="{escaped(address)}">run</a></td>' if address else "<td></td>")
        number = number_of(row["trial_id"])
        lines.append(
            f'<tr tabindex="0" data-trial="{number}" data-status="{escaped(in_words(row["status"]))}">{"".join(cells)}</tr>'
        )
    head = "".join(f'<th scope="col"><button type="button">{escaped(name)}</button></th>' for name in heads)
    return f'<div class="table" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def variants_table(lines: Sequence[Compared]) -> str:
    """The table of an ablation, one for each combination of the factors' levels."""
    found = []
    for condition, of in tables_by_condition(lines).items():
        title = f"<h3>{escaped(condition)}</h3>" if condition else ""
        head = "".join(f'<th scope="col"><span>{escaped(name)}</span></th>' for name in HEADS)
        body = "".join(f"<tr>{''.join(f'<td>{escaped(cell)}</td>' for cell in cells_of(line))}</tr>" for line in of)
        found.append(
            f'{title}<div class="table" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )
    return "".join(found)


def escaped(text: object) -> str:
    """Text as HTML shows it letter by letter, also inside quotes."""
    return html.escape(str(text))


def _cell(value: Any, digits: int | None = None) -> str:
    if value is None:
        return "<td></td>"
    if isinstance(value, float):
        text = f"{value:.{digits}f}" if digits else brief(value)
        exact = "" if digits else f' data-value="{value:.7g}"'
        return f"<td{exact}>{text}</td>"
    return f"<td>{escaped(value)}</td>"
