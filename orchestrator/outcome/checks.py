"""Recomputes everything in a results folder that follows from its ledger. Each check says what it saw, or what does not match."""

import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.conductor import decision_hash
from orchestrator.ledger.class_arrays import class_tables
from orchestrator.ledger.events import Event, Kind
from orchestrator.ledger.ledger import last
from orchestrator.ledger.paths import inside
from orchestrator.outcome.ablation_files import FOLDER, write_outcome
from orchestrator.outcome.bundle import PROVENANCE, Mismatch, check_bundle
from orchestrator.outcome.searches import rows_of
from orchestrator.outcome.tables import TABLES, trial_rows, write_tables
from trainables.checkpoint import DamagedCheckpoint, read_checkpoint
from trainables.config_file import Origin, check
from trainables.files import file_sha256

REPEATED = ("table.md", "table.tex", "table.csv")
"""Files of an ablation that are the same, byte for byte, whenever they are written."""


class Source(NamedTuple):
    """A results folder."""

    folder: Path
    events: Sequence[Event]
    lines: set[str]
    """The digests of the ledger's lines."""

    @property
    def is_concluded(self) -> bool:
        """Whether the sweep wrote its tables after the last epoch."""
        kinds = (Kind.SWEEP_END, Kind.EPOCH, Kind.TRIAL_END, Kind.SUGGEST, Kind.SWEEP_RESUME)
        return bool(last(self.events, *kinds).get("event") == Kind.SWEEP_END)


def check_arrays(source: Source) -> str:
    """The arrays by class, against the digests in the ledger."""
    number = sum(1 for _ in class_tables(source.folder, source.events))  # raises LedgerError
    return f"arrays by class of {number} trials, as the ledger says"


def check_checkpoints(source: Source) -> str:
    """The checkpoints that are there, against the digests in the ledger."""
    digests = {event["path"]: event["sha256"] for event in source.events if event["event"] == Kind.CHECKPOINT}
    there = [path for path in digests if inside(source.folder, path).is_dir()]
    for path in there:
        try:
            read_checkpoint(inside(source.folder, path), digests[path])
        except DamagedCheckpoint as error:
            raise Mismatch(str(error)) from error
    return f"{len(there)} checkpoints, as the ledger says"


def check_changes(source: Source) -> str:
    """The differences between program and commit, against the digests in their names."""
    begun = [event for event in source.events if event["event"] == Kind.SWEEP_START or event["event"] == Kind.SWEEP_RESUME]
    names = {event["changes"] for event in begun if "changes" in event}
    for name in sorted(names):
        path = source.folder / name
        if not path.is_file() or f"changes-{file_sha256(path)[:12]}.diff" != name:
            raise Mismatch(f"{path} is missing or was changed after it was written")
    return f"{len(names)} files with changes to the program" if names else "no changes to the program"


def check_decisions(source: Source) -> str:
    """The digest of all decisions that the sweep's last event holds."""
    if not source.is_concluded:
        return "the sweep goes on: nothing says yet what was decided"
    end = last(source.events, Kind.SWEEP_END)
    if (found := decision_hash(event for event in source.events if event["n"] < end["n"])) != end["decisions_sha256"]:
        raise Mismatch(f"the decisions in the ledger have the SHA-256 {found}, and its end says {end['decisions_sha256']}")
    return "the decisions are those that the sweep's end names"


def check_tables(source: Source) -> str:
    """The tables, made from the ledger again."""
    if not source.is_concluded:
        return "the sweep goes on: the tables are written at its end"
    with tempfile.TemporaryDirectory() as scratch:
        write_tables(source.folder, source.events, Path(scratch))
        rows = []
        for name in TABLES:
            file, again = source.folder / f"{name}.parquet", Path(scratch, f"{name}.parquet")
            try:
                is_same = _is_same_table(file, again)
            except (OSError, pa.ArrowInvalid) as error:
                raise Mismatch(f"{file} cannot be read: {error}") from error
            if not is_same:
                raise Mismatch(f"{file} is not what the ledger gives")
            rows.append(f"{name} {pq.ParquetFile(again).metadata.num_rows}")
    return f"tables as the ledger gives them: rows of {', '.join(rows)}"


def _is_same_table(file: Path, again: Path) -> bool:
    """Whether two files are equal, byte for byte, or in all values where another version of pyarrow wrote one of them."""
    if file.read_bytes() == again.read_bytes():
        return True
    writers = {pq.ParquetFile(path).metadata.created_by for path in (file, again)}
    return len(writers) > 1 and bool(pq.read_table(file, partitioning=None).equals(pq.read_table(again, partitioning=None)))


def check_ablation(source: Source) -> str:
    """The comparison of an ablation, made from the ledger again."""
    config = check(SweepConfig, last(source.events, Kind.SWEEP_START, Kind.SWEEP_RESUME)["config"], Origin(str(source.folder)))
    if not config.ablation or not source.is_concluded:
        return "no ablation" if not config.ablation else "the ablation goes on"
    with tempfile.TemporaryDirectory() as scratch:
        write_outcome(Path(scratch), config, rows_of(source.folder, config, source.events))
        for name in REPEATED:
            ours, again = source.folder / FOLDER / name, Path(scratch, FOLDER, name)
            if again.exists() and (not ours.is_file() or ours.read_bytes() != again.read_bytes()):
                raise Mismatch(f"{ours} is not what the ledger gives")
    return "the comparison of variants, as the ledger gives it"


def check_exports(source: Source) -> str:
    """Exported folders that are there: their digests, and their numbers against the ledger."""
    exports = [event for event in source.events if event["event"] == Kind.EXPORT or event["event"] == Kind.EXPORT_OTHER]
    named = {Path(event["path"]) for event in exports}
    places = sorted({place.resolve() for place in (*named, *source.folder.glob(f"*/{PROVENANCE}")) if place.exists()})
    folders = [place.parent if place.name == PROVENANCE else place for place in places]
    for folder in dict.fromkeys(folders):
        _check_export(source, folder)
    return f"{len(dict.fromkeys(folders))} exported folders, with the numbers of the ledger"


def _check_export(source: Source, folder: Path) -> None:
    provenance, _ = check_bundle(folder)
    if provenance["ledger_head_sha256"] not in source.lines:
        raise Mismatch(f"{folder} was exported from another ledger, or from one that went on in another way")
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    trial_id = metrics["trial_id"]
    row = next((row for row in trial_rows(source.events) if row["trial_id"] == trial_id), {})
    readings = [event["metrics"] for event in source.events if event["event"] == Kind.TEST_READ and event["trial_id"] == trial_id]
    for prefix in ("best", "last"):
        _check_numbers(folder, prefix, metrics[prefix], row)
    if metrics["test"] and metrics["test"] not in readings:
        raise Mismatch(f"{folder}/metrics.json has test numbers of {trial_id} that the ledger does not hold")


def _check_numbers(folder: Path, prefix: str, numbers: dict[str, Any], row: dict[str, Any]) -> None:
    for name, value in numbers.items():
        if row.get(f"{prefix}/{name}") != value:
            raise Mismatch(
                f"{folder}/metrics.json: {prefix}/{name} is {value!r}, and the ledger gives {row.get(f'{prefix}/{name}')!r}"
            )


CHECKS: Iterable[Callable[[Source], str]] = (
    check_arrays,
    check_checkpoints,
    check_changes,
    check_decisions,
    check_tables,
    check_ablation,
    check_exports,
)
"""In the order in which they are made."""
