"""What came of a sweep or an ablation, as plain values: for programs that run it with `--json`."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.ledger.events import Kind, Role, Status
from orchestrator.ledger.ledger import last, read_ledger
from orchestrator.outcome.confirmation import Row, confirmation, verdict
from orchestrator.outcome.suspect_files import SHEET
from orchestrator.outcome.tables import best_trial, trial_rows


def outcome_of(folder: Path) -> dict[str, Any]:
    """The outcome of a results folder.

    Returns:
        `folder`; `status` and `complete`, as the sweep last ended; `trials`, how many ended how; of a sweep `best`, `references`,
        `confirmation`, `test`, the reading of the sealed test set for the exported model, and `suspects`, the sheet of suspicious
        labels; of an ablation `variants`. What
        there is not, or not yet since the sweep went on, is None.

    Raises:
        LedgerError: when the folder holds no sweep.
    """
    events = read_ledger(folder)
    end, rows = last(events, Kind.SWEEP_END, Kind.SWEEP_RESUME), trial_rows(events)
    has_ended = end.get("event") == Kind.SWEEP_END
    found: dict[str, Any] = {
        "folder": str(folder),
        "status": end["status"] if has_ended else Status.RUNNING,
        "complete": end["complete"] if has_ended else False,
        "trials": dict(Counter(row["status"] for row in rows)),
    }
    begun = last(events, Kind.SWEEP_START, Kind.SWEEP_RESUME)
    if begun["config"].get("ablation") is not None:
        return found | {"variants": _since(begun, last(events, Kind.COMPARE)).get("rows")}
    best, export = best_trial(rows), _since(begun, last(events, Kind.EXPORT))
    return found | {
        "best": None if best is None else _trial(best),
        "references": {row["variant"]: _trial(row) for row in rows if row["role"] == Role.REFERENCE},
        "confirmation": _confirmed(rows),
        "exported": export.get("path"),
        "suspects": _sheet(export.get("path")),
        "test": {name: value for name, value in export.get("metrics", {}).items() if name.startswith("test")} or None,
    }


def _sheet(exported: str | None) -> str | None:
    sheet = None if exported is None else Path(exported) / SHEET
    return str(sheet) if sheet and sheet.is_file() else None


def _since(begun: Mapping[str, Any], event: Mapping[str, Any]) -> Mapping[str, Any]:
    """An event of the sweep's last process. What an earlier one exported or compared is out of date: other trials came since."""
    return event if event.get("n", -1) > begun["n"] else {}


def _trial(row: Row) -> dict[str, Any]:
    """A trial at its best epoch; without numbers where it has none."""
    select_by = row["config/select_by"]
    known = {name: row[name] for name in ("trial_id", "role", "variant", "seed", "status", "stop_reason")}
    return known | {"epoch": row.get("best/epoch"), select_by: row.get(f"best/{select_by}")}


def _confirmed(rows: list[Row]) -> dict[str, Any] | None:
    found = confirmation(rows)
    if found is None or found.comparison is None:
        return None
    comparison = found.comparison
    return {
        "num_seeds": comparison.num_seeds,
        "configurations": [summary._asdict() for summary in comparison.summaries],
        "indistinguishable": comparison.indistinguishable,
        "verdict": verdict(comparison),
        "left_out": found.left_out,
    }
