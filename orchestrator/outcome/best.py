"""Exports the best trial of a sweep to a folder: configuration, model, card, metrics, split and provenance."""

import itertools
import json
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.ledger.events import Event, Kind, Role, Status
from orchestrator.ledger.ledger import Ledger, last, start_of
from orchestrator.ledger.paths import inside
from orchestrator.ledger.trial_states import Checkpoint, TrialStates, trial_states_of
from orchestrator.outcome.card import Readings, card
from orchestrator.outcome.confirmation import Row, confirmation, verdict
from orchestrator.outcome.tables import best_runs, trial_rows
from trainables.checkpoint import DamagedCheckpoint, read_checkpoint, unpack
from trainables.config import TrialConfig
from trainables.config_file import Origin, check, dump_yaml
from trainables.files import file_sha256

if TYPE_CHECKING:
    from trainables.data import LongTailedData


ReadTest = Callable[[Path], dict[str, float]]
"""Reads the sealed test set for a model's file."""


def read_test_here(model: Path) -> dict[str, float]:
    """Reads it in this process."""
    from trainables.export_model import read_test

    return read_test(model)


class NothingToExport(RuntimeError):
    """No trial has finished."""


class Winner(NamedTuple):
    """The trial to export."""

    row: Row
    """The trial's row in the table of trials."""
    config: TrialConfig
    checkpoint: Checkpoint
    """The trial's last checkpoint."""


class ExportSource(NamedTuple):
    """The sweep that a trial is exported from."""

    folder: Path
    ledger: Ledger
    events: Sequence[Event]
    trials: TrialStates
    rows: list[Row]
    readings: Readings
    read_test: ReadTest


def export_best(folder: Path, ledger: Ledger, out: Path | None = None, read_test: ReadTest = read_test_here) -> Path:
    """Exports the best finished trial of a sweep, completely or not at all.

    The test set is read once for each trial. Later exports repeat the value in the ledger.

    Args:
        folder: results folder of the sweep.
        ledger: of the sweep, open for writing.
        out: the new folder; None means `folder`/best.
        read_test: reads the test set, in this process or elsewhere.

    Returns: the new folder.

    Raises:
        NothingToExport: when no trial has finished.
        FileExistsError: when `out` exists already.
        DamagedCheckpoint: when no intact checkpoint holds the best epoch.
    """
    events = ledger.events
    readings: Readings = {event["trial_id"]: event["metrics"] for event in events if event["event"] == Kind.TEST_READ}
    source = ExportSource(folder, ledger, events, trial_states_of(events), trial_rows(events), readings, read_test)
    winner = _winner(source)
    out = out or folder / "best"
    if out.exists():
        raise FileExistsError(f"{out} exists already; nothing was changed; choose another --out")
    # A crash leaves the partial folder behind, which the next export removes; `out` appears by one rename.
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    metrics = _write_model_and_metrics(source, winner, partial)
    _write_config(source, winner, partial, out)
    (partial / "card.md").write_text(card(folder, out, winner.config, metrics, events, readings), encoding="utf-8")
    provenance = _provenance(source, winner)
    # Last, because provenance.json holds the SHA-256 of all other files.
    provenance["files"] = {path.name: file_sha256(path) for path in sorted(partial.iterdir())}
    (partial / "provenance.json").write_text(json.dumps(provenance, indent=1), encoding="utf-8")
    os.rename(partial, out)
    flat = {f"best/{winner.config.select_by}": metrics["best"][winner.config.select_by]} | metrics["test"]
    ledger.append(Kind.EXPORT, trial_id=winner.row["trial_id"], path=str(out.resolve()), metrics=flat)
    return out


def set_aside(best: Path) -> None:
    """Renames an earlier export, because a sweep that continues may find a better trial."""
    if best.exists():
        number = next(number for number in itertools.count(1) if not best.with_name(f"best.{number}").exists())
        best.rename(best.with_name(f"best.{number}"))


def _winner(source: ExportSource) -> Winner:
    runs = best_runs(source.rows)
    if not runs:
        raise NothingToExport(f"no trial of {source.folder} has finished, so there is no best one")
    # Without `checkpoints.keep: all`, the first run of a configuration may have lost its state before the second run began.
    row = next((run for run in runs if _has_state(source, run)), runs[0])
    checkpoints = source.trials[row["trial_id"]].checkpoints
    if not checkpoints:
        raise DamagedCheckpoint(f"the ledger holds no intact checkpoint of trial {row['trial_id']}")
    return Winner(row, _config_of(source, row["trial_id"]), checkpoints[-1])


def _has_state(source: ExportSource, run: Row) -> bool:
    return any(inside(source.folder, checkpoint.path).is_dir() for checkpoint in source.trials[run["trial_id"]].checkpoints)


def _write_model_and_metrics(source: ExportSource, winner: Winner, partial: Path) -> dict[str, Any]:
    """Writes model, split and metrics; returns the metrics."""
    from trainables.data.manifest import MANIFEST, write_manifest

    row, model = winner.row, partial / "model.safetensors"
    data = _write_model_of(source, row, model)
    write_manifest(partial / MANIFEST, winner.config.data, winner.config.seed, data)
    metrics = _metrics(row, source.rows, _test_of(source, row["trial_id"], model))
    if row["confirms"]:
        metrics |= _confirmed(source, row, partial)
    if lineage := lineage_of(row, source.rows):
        metrics["lineage"] = lineage
    (partial / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")
    return metrics


def _write_config(source: ExportSource, winner: Winner, partial: Path, out: Path) -> None:
    """Writes config.yaml. The header names the trial and the command that trains the configuration again."""
    head = f"# Trial {winner.row['trial_id']} of the sweep {source.folder.name}, chosen by {winner.config.select_by}.\n"
    head += f"# Train it again, without a cluster: python -m trainables.train {out}/config.yaml\n"
    if lineage := lineage_of(winner.row, source.rows):
        head += f"# The trial continued from the state of {' and that from '.join(lineage)}; training anew gives another model.\n"
    (partial / "config.yaml").write_text(head + dump_yaml(winner.config.model_dump()), encoding="utf-8")


def _write_model_of(source: ExportSource, row: Row, file: Path) -> "LongTailedData":
    """Writes the model of a trial's best epoch; returns the data that the model was trained on."""
    from trainables.data import build_data
    from trainables.data.loader import ImageFormat, Normalisation
    from trainables.export_model import write_model

    config = _config_of(source, row["trial_id"])
    state = _state_with_best_epoch(source, row)
    shape, mean, std = state["format"]
    data = build_data(config.data, config.seed)
    form = ImageFormat(tuple(shape), Normalisation(mean, std))
    write_model(file, state["best"]["phi"], config, data, form, state["best"]["epoch"])
    return data


def _state_with_best_epoch(source: ExportSource, row: Row) -> dict[str, Any]:
    """The state in the newest intact checkpoint of a trial, which must hold the trial's best epoch.

    An older checkpoint holds the same best epoch if it was written after that epoch.

    Raises:
        DamagedCheckpoint: when no intact checkpoint holds the best epoch.
    """
    trial_id = row["trial_id"]
    for checkpoint in reversed(source.trials[trial_id].checkpoints):
        try:
            state = unpack(read_checkpoint(inside(source.folder, checkpoint.path), expected=checkpoint.sha256))
        except DamagedCheckpoint as error:
            damage = error
            continue
        if state["best"]["epoch"] == row["best/epoch"]:
            return state
        break  # still older checkpoints hold earlier epochs
    else:
        raise damage
    raise DamagedCheckpoint(
        f"{source.folder}: the last intact state of {trial_id} is older than its best epoch, {row['best/epoch']}"
    )


def _test_of(source: ExportSource, trial_id: str, model: Path) -> dict[str, float | None]:
    """The test metrics of a trial's model. They are measured once, and kept in the ledger and in `source.readings`."""
    if trial_id not in source.readings:
        reading = source.ledger.append(Kind.TEST_READ, trial_id=trial_id, metrics=source.read_test(model))
        assert reading["event"] == Kind.TEST_READ
        source.readings[trial_id] = reading["metrics"]  # as in the ledger, where an empty band of classes is None
    return source.readings[trial_id]


def _confirmed(source: ExportSource, winner: Row, partial: Path) -> dict[str, Any]:
    """Compares the confirmed configurations, and reads the test accuracy of the winner's runs on all seeds."""
    confirmed = confirmation(source.rows)
    assert confirmed is not None
    assert confirmed.comparison is not None  # the comparison chose the winner
    comparison = confirmed.comparison
    model = partial / "of_another_seed.safetensors"
    tested: list[Any] = []
    for row in source.rows:
        if row["confirms"] == winner["confirms"] and row["status"] == Status.FINISHED:
            _write_model_of(source, row, model)
            tested.append(_test_of(source, row["trial_id"], model)["test/acc"])
    model.unlink()
    return {
        "configuration_of": winner["confirms"],
        "confirmation": [summary._asdict() for summary in comparison.summaries],
        "indistinguishable": comparison.indistinguishable,
        "verdict": verdict(comparison),
        "left_out": confirmed.left_out,
        "test_over_seeds": {"num_seeds": len(tested), "mean": mean(tested), "sd": stdev(tested), "test/acc": tested},
    }


def _config_of(source: ExportSource, trial_id: str) -> TrialConfig:
    """The settings of a trial, as its sweep last went on with them."""
    return check(TrialConfig, source.trials[trial_id].config, Origin(str(source.folder)))


def _metrics(winner: Row, rows: list[Row], test: dict[str, float | None]) -> dict[str, Any]:
    def part(row: Row, prefix: str) -> dict[str, Any]:
        return {key.removeprefix(prefix): value for key, value in row.items() if key.startswith(prefix)}

    references = [row for row in rows if row["role"] == Role.REFERENCE]
    return {
        "trial_id": winner["trial_id"],
        "role": winner["role"],
        "variant": winner["variant"],
        "selected_by": winner["config/select_by"],
        "best": part(winner, "best/"),
        "last": part(winner, "last/"),
        "test": test,
        "references": {
            row["variant"]: {key: row[key] for key in ("trial_id", "status")}
            | {"best": part(row, "best/"), "last": part(row, "last/")}
            for row in references
        },
    }


def _provenance(source: ExportSource, winner: Winner) -> dict[str, Any]:
    trial_id, events = winner.row["trial_id"], source.events
    start = last(events, Kind.SWEEP_START, Kind.SWEEP_RESUME)  # code and versions of the process that ran last
    return {
        "sweep": source.folder.name,
        "trial_id": trial_id,
        "exported": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": start["git_commit"],
        "versions": start["versions"],
        "machine": {"system": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count()},
        "split_sha256": start_of(events)["split_sha256"],
        "resumed": sum(event["event"] == Kind.SWEEP_RESUME for event in events),
        "sweep_yaml_sha256": file_sha256(source.folder / "sweep.yaml"),
        "workers": start["config"]["resources"]["workers"],
        "workers_lost": sum(event["event"] == Kind.GROUP_LOST and event["trial_id"] == trial_id for event in events),
        "checkpoint_sha256": winner.checkpoint.sha256,
        "ledger_head_sha256": source.ledger.head,
        "test_readings": len(source.readings),
    }


def lineage_of(row: Row, rows: list[Row]) -> list[str]:
    """The trials from whose states a trial of a population continued, the nearest first."""
    by_id, found = {other["trial_id"]: other for other in rows}, []
    while parent := row["parent_trial"]:
        found.append(f"{parent} at epoch {row['parent_epoch']}")
        row = by_id[parent]
    return found
