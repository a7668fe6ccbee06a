"""Recomputes everything in a results folder that follows from its ledger. Each check says what it saw, or what does not match."""

import json
import shlex
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.conductor import decision_hash
from orchestrator.ledger.class_arrays import class_tables
from orchestrator.ledger.events import Event, Kind
from orchestrator.ledger.head import HEAD, read_head
from orchestrator.ledger.ledger import LEDGER, SETTINGS, last
from orchestrator.ledger.paths import inside
from orchestrator.outcome.ablation_files import FOLDER, write_outcome
from orchestrator.outcome.bundle import PROVENANCE, Mismatch, check_bundle, read_provenance
from orchestrator.outcome.confirmation import Row
from orchestrator.outcome.leaderboard import FILES, leaderboard, leaderboard_texts
from orchestrator.outcome.searches import rows_of
from orchestrator.outcome.tables import TABLES, trial_rows, write_tables
from trainables.checkpoint import DamagedCheckpoint, check_checkpoint
from trainables.config_file import Origin, check
from trainables.files import file_sha256
from trainables.shown_commands import shown_command
from trainables.words import plural

METRICS = "metrics.json"
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


def check_head(source: Source) -> str:
    """The file that shows lines cut off at the ledger's end. What it says was compared when the ledger was read."""
    file = source.folder / HEAD
    if not file.exists():
        return f"no {HEAD}: lines that were cut off at the ledger's end would not show"
    head = read_head(source.folder)
    if head is None or file.read_bytes() != head.content():
        raise Mismatch(f"{file} is not what was written: it does not say how many lines the ledger had")
    return f"{HEAD}, which the ledger agrees with"


def check_settings(source: Source) -> str:
    """The sweep's file, against the digest in the ledger."""
    digest = last(source.events, Kind.SWEEP_START, Kind.SWEEP_RESUME).get("settings_sha256")
    if digest is None:
        return f"{SETTINGS} is not compared: the version that wrote the ledger did not note its digest"
    file = source.folder / SETTINGS
    if not file.is_file() or file_sha256(file) != digest:
        raise Mismatch(f"{file} is missing or was changed after it was written")
    return f"{SETTINGS}, as the ledger says"


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
            check_checkpoint(inside(source.folder, path), digests[path])
        except DamagedCheckpoint as error:
            raise Mismatch(str(error)) from error
    return f"{plural(len(there), 'checkpoint')}, as the ledger says"


def check_changes(source: Source) -> str:
    """The differences between program and commit, against the digests in their names."""
    begun = [event for event in source.events if event["event"] == Kind.SWEEP_START or event["event"] == Kind.SWEEP_RESUME]
    names = {event["changes"] for event in begun if "changes" in event}
    for name in sorted(names):
        path = source.folder / name
        if not path.is_file() or f"changes-{file_sha256(path)[:12]}.diff" != name:
            raise Mismatch(f"{path} is missing or was changed after it was written")
    return plural(len(names), "file", " with changes to the program") if names else "no changes to the program"


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
    if _config(source).repeats_search:
        return "the tables are those of the searches"
    begun = [event for event in source.events if event["event"] == Kind.SWEEP_START or event["event"] == Kind.SWEEP_RESUME]
    writers = {f"parquet-cpp-arrow version {event['versions'].get('pyarrow')}" for event in begun}
    with tempfile.TemporaryDirectory() as scratch:
        write_tables(source.folder, source.events, Path(scratch))
        rows = []
        for name in TABLES:
            file, again = source.folder / f"{name}.parquet", Path(scratch, f"{name}.parquet")
            try:
                is_same = _is_same_table(file, again, writers)
            except Exception as error:  # with damaged bytes pyarrow raises exceptions of many types
                raise Mismatch(f"{file} cannot be read ({type(error).__name__}: {error})") from error
            if not is_same:
                raise Mismatch(f"{file} is not what the ledger gives")
            rows.append(f"{name} {pq.ParquetFile(again).metadata.num_rows}")
    return f"tables as the ledger gives them: rows of {', '.join(rows)}"


def _is_same_table(file: Path, again: Path, writers: Collection[str]) -> bool:
    """Whether two files are equal, byte for byte, or in all values where another version of pyarrow wrote one of them: the first
    one was written by one of `writers`.
    """
    if file.read_bytes() == again.read_bytes():
        return True
    writer, ours = (pq.ParquetFile(path).metadata.created_by for path in (file, again))
    is_other = writer != ours and writer in writers
    return is_other and bool(pq.read_table(file, partitioning=None).equals(pq.read_table(again, partitioning=None)))


def _config(source: Source) -> SweepConfig:
    return check(SweepConfig, last(source.events, Kind.SWEEP_START, Kind.SWEEP_RESUME)["config"], Origin(str(source.folder)))


def check_outcome(source: Source) -> str:
    """The comparison of an ablation: the digests of its files in the ledger, and its tables, made from the ledger again."""
    config = _config(source)
    if not config.ablation or not source.is_concluded:
        return "no ablation" if not config.ablation else "the ablation goes on"
    place = source.folder / FOLDER
    for name, digest in last(source.events, Kind.COMPARE).get("files", {}).items():
        if not (place / name).is_file() or file_sha256(place / name) != digest:
            raise Mismatch(f"{place / name} is missing or was changed after it was written")
    with tempfile.TemporaryDirectory() as scratch:
        write_outcome(Path(scratch), config, rows_of(source.folder, config, source.events))
        for name in REPEATED:
            ours, again = place / name, Path(scratch, FOLDER, name)
            if again.exists() and (not ours.is_file() or ours.read_bytes() != again.read_bytes()):
                raise Mismatch(f"{ours} is not what the ledger gives")
    return "the comparison of variants, as the ledger gives it"


def check_leaderboard(source: Source) -> str:
    """The rows for public tables, made from the ledger again."""
    places = [source.folder / name for name in FILES]
    if not any(place.exists() for place in places):
        return "no rows for public tables"
    rows = leaderboard(source.events)
    if not rows:
        raise Mismatch(f"{places[0]} or {places[1]} is there, and the ledger holds no reading of the sealed test set")
    for place, text in zip(places, leaderboard_texts(rows), strict=True):
        if not place.is_file() or place.read_bytes() != text.encode():
            command = shown_command("orchestrator.report", shlex.quote(str(source.folder)), "--leaderboard")
            raise Mismatch(f"{place} is not what the ledger gives; {command} writes it anew")
    return f"{' and '.join(FILES)}, as the ledger gives them"


def check_exports(source: Source) -> str:
    """Exported folders that are there: their digests, and their numbers against the ledger."""
    folders, gone = exported(source)
    rows: dict[str, Row] = {row["trial_id"]: row for row in trial_rows(source.events)} if folders else {}
    readings: dict[str, list[Any]] = {}
    for event in source.events:
        if event["event"] == Kind.TEST_READ:
            readings.setdefault(event["trial_id"], []).append(event["metrics"])
    for folder in folders:
        provenance, _ = check_bundle(folder)
        if provenance["ledger_head_sha256"] not in source.lines:
            raise Mismatch(f"{folder} was exported from another ledger, or from one that went on in another way")
        try:
            _check_numbers(folder / METRICS, rows, readings)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise Mismatch(f"{folder / METRICS} is not the file of an export ({type(error).__name__}: {error})") from error
    missing = f"; not there any more: {', '.join(gone)}" if gone else ""
    return f"{plural(len(folders), 'exported folder')}, with the numbers of the ledger{missing}"


def exported(source: Source) -> tuple[list[Path], list[str]]:
    """The exported folders that are there, in the results folder and elsewhere, and the names of those that are gone.

    A results folder may have been moved, or be a copy: the folders inside it count, not those with the same names where it was.
    """
    here = sorted(file.parent for file in source.folder.glob(f"*/{PROVENANCE}"))
    known, elsewhere, gone = {folder.resolve() for folder in here}, list[Path](), list[str]()
    named = [event for event in source.events if event["event"] == Kind.EXPORT or event["event"] == Kind.EXPORT_OTHER]
    for path in dict.fromkeys(Path(event["path"]) for event in named):
        if path.resolve() in known:
            continue
        if (path / PROVENANCE).is_file():
            is_of_another = (path.parent / LEDGER).is_file() and path.parent.resolve() != source.folder.resolve()
            if not is_of_another and read_provenance(path / PROVENANCE)["ledger_head_sha256"] in source.lines:
                elsewhere.append(path)
        elif path.name not in {folder.name for folder in here}:
            gone.append(str(path))
    return [*here, *elsewhere], gone


def _check_numbers(file: Path, rows: Mapping[str, Row], readings: Mapping[str, list[Any]]) -> None:
    """Compares the numbers of an export with those of the ledger: the model's, and those of the references beside it."""
    metrics = json.loads(file.read_text(encoding="utf-8"))
    trial_id, references = metrics["trial_id"], metrics["references"].values()
    for shown in (metrics, *references):
        row = rows.get(shown["trial_id"], {})
        for prefix in ("best", "last"):
            for name, value in shown[prefix].items():
                if (known := row.get(f"{prefix}/{name}")) != value:
                    where = f"{prefix}/{name} of {shown['trial_id']}"
                    raise Mismatch(f"{file}: {where} is {value!r}, and the ledger gives {known!r}")
    if metrics["test"] and metrics["test"] not in readings.get(trial_id, []):
        raise Mismatch(f"{file} has test numbers of {trial_id} that the ledger does not hold")


CHECKS: Iterable[Callable[[Source], str]] = (
    check_head,
    check_settings,
    check_arrays,
    check_checkpoints,
    check_changes,
    check_decisions,
    check_tables,
    check_outcome,
    check_leaderboard,
    check_exports,
)
"""In the order in which they are made."""
