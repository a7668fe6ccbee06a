"""Exports trials of a sweep to folders: configuration, model, program, card, metrics, split and provenance."""

import itertools
import json
import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from orchestrator.ledger.events import Event, Kind, Role, Status
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.paths import inside
from orchestrator.ledger.trial_states import Checkpoint, TrialState, TrialStates, trial_states_of
from orchestrator.outcome.bundle import PROVENANCE, sealed
from orchestrator.outcome.card import Exported, Readings, card
from orchestrator.outcome.choice import Choice, best, check_new
from orchestrator.outcome.confirmation import Row, confirmation, verdict
from orchestrator.outcome.provenance import changes_of, provenance
from orchestrator.outcome.suspect_files import LIST, SHEET
from orchestrator.outcome.tables import trial_rows
from trainables.checkpoint import DamagedCheckpoint, pack, read_checkpoint, unpack
from trainables.config import TrialConfig
from trainables.config_file import Origin, check, dump_yaml
from trainables.data.manifest import MANIFEST, write_manifest
from trainables.files import NO_SPACE, file_sha256
from trainables.shown_commands import shown_command

if TYPE_CHECKING:
    from trainables.data import LongTailedData
    from trainables.data.loader import ImageFormat

MODEL = "model.safetensors"
CLASSES = "classes.json"
"""The names of the classes, a list in the order of the probabilities."""

ReadTest = Callable[[Path], dict[str, float]]
"""Reads the sealed test set for a model's file."""


ListSuspects = Callable[[Path, bytes | None, Path, str], dict[str, Any]]
"""Lists the training images whose labels a model doubts: takes the folder with the model, where the list goes, the model's epoch
and theta, packed, or None, the results folder and the trial. Returns numbers about the list."""


def read_test_here(model: Path) -> dict[str, float]:
    """Reads it in this process."""
    from trainables.export_model import read_test

    return read_test(model)


class Winner(NamedTuple):
    """A trial to export."""

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
    note: Callable[[str], None]
    list_suspects: ListSuspects | None


def export_best(
    folder: Path,
    ledger: Ledger,
    out: Path | None = None,
    read_test: ReadTest = read_test_here,
    note: Callable[[str], None] = print,
    list_suspects: ListSuspects | None = None,
) -> Path:
    """Exports the best finished trial of a sweep, completely or not at all.

    The test set is read once for each trial. Later exports repeat the value in the ledger.

    Args:
        folder: results folder of the sweep.
        ledger: of the sweep, open for writing.
        out: the new folder; None means `folder`/best.
        read_test: reads the test set, in this process or elsewhere.
        note: tells a person what is left out.
        list_suspects: lists the training images whose labels the model doubts; None for no list.

    Returns: the new folder.

    Raises:
        NothingToExport: when no trial has finished.
        FileExistsError: when `out` exists already.
        DamagedCheckpoint: when no intact checkpoint holds the best epoch.
    """
    source = source_of(folder, ledger, read_test, note, list_suspects)
    return export_choices(source, best(folder, source.rows, out))[0]


def source_of(
    folder: Path,
    ledger: Ledger,
    read_test: ReadTest = read_test_here,
    note: Callable[[str], None] = print,
    list_suspects: ListSuspects | None = None,
) -> ExportSource:
    """What trials of the sweep in `folder` are exported from; the arguments are those of `export_best`."""
    events = ledger.events
    readings: Readings = {event["trial_id"]: event["metrics"] for event in events if event["event"] == Kind.TEST_READ}
    trials, rows = trial_states_of(events), trial_rows(events)
    return ExportSource(folder, ledger, events, trials, rows, readings, read_test, note, list_suspects)


def export_choices(
    source: ExportSource, choices: Sequence[Choice], read_all: bool = False, with_onnx: bool = False
) -> list[Path]:
    """Exports trials, all of them or none.

    The test set is read for the sweep's best trial alone: every other model was looked at because of its val numbers, and each
    reading makes the test set less of a judge. A value that the ledger holds is repeated.

    Args:
        source: the sweep.
        choices: what is exported, and where to.
        read_all: whether the test set is read for all of them; each reading is an event in the ledger.
        with_onnx: whether the models are written as ONNX files, too.

    Returns: the new folders.

    Raises:
        FileExistsError: when one of the folders exists already.
        DamagedCheckpoint: when a trial has no checkpoint any more, or no intact one holds its best epoch.
    """
    check_new(choices)
    winners = [_winner(source, choice) for choice in choices]
    partials = [choice.partial for choice in choices]  # the new folders appear by renames
    written = []
    try:
        for choice, winner, partial in zip(choices, winners, partials, strict=True):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            written.append(_write(source, choice, winner, partial, read_all or choice.is_best, with_onnx))
    except BaseException:
        for partial in partials:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    for choice, winner, partial, metrics in zip(choices, winners, partials, written, strict=True):
        os.rename(partial, choice.out)
        said = {"trial_id": winner.row["trial_id"], "path": str(choice.out.resolve())}
        if choice.is_best:
            key = winner.config.select_by
            source.ledger.append(Kind.EXPORT, **said, metrics={f"best/{key}": metrics["best"][key]} | (metrics["test"] or {}))
        else:
            source.ledger.append(Kind.EXPORT_OTHER, **said)
    return [choice.out for choice in choices]


def _write(
    source: ExportSource, choice: Choice, winner: Winner, partial: Path, read_test: bool, with_onnx: bool
) -> dict[str, Any]:
    """Writes all files of an export; returns the metrics."""
    row, config = winner.row, winner.config
    data, form, best_epoch = _write_model_of(source, row, partial / MODEL)
    write_manifest(partial / MANIFEST, config.data, config.seed, data)
    (partial / CLASSES).write_text(json.dumps(data.class_names, indent=1, ensure_ascii=False), encoding="utf-8")
    programs = _write_programs(partial, source.note, with_onnx)
    metrics = _write_metrics(source, row, partial, read_test)
    if metrics["test"] is None:
        source.note(f"the test set was not read for {row['trial_id']}; --read-test reads it, which the ledger counts")
    suspects = _list_suspects(source, row, partial, best_epoch)
    _write_config(source, winner, partial, choice.out)
    val_counts = np.bincount(data.val.labels, minlength=len(data.class_names)).tolist()
    exported = Exported(
        folder=source.folder,
        out=choice.out,
        config=config,
        choice=choice.words,
        metrics=metrics,
        class_names=data.class_names,
        val_counts=val_counts,
        num_test=len(data.test),
        image_shape=form.shape,
        programs=programs,
        framing="" if form.framing is None else form.framing.words(),
    )
    (partial / "card.md").write_text(card(exported, source.events, source.readings), encoding="utf-8")
    for file in changes_of(source.folder):
        shutil.copy(file, partial)
    found = provenance(source.folder, source.events, source.ledger.head, row["trial_id"], config, winner.checkpoint)
    found |= {"programs": programs, "test_readings": len(source.readings), "suspects": suspects}
    # Last, because provenance.json holds the SHA-256 of all other files.
    found["files"] = {path.name: file_sha256(path) for path in sorted(partial.iterdir())}
    (partial / PROVENANCE).write_bytes(sealed(found))
    return metrics


def set_aside(best: Path) -> None:
    """Renames an earlier export, because a sweep that continues may find a better trial."""
    if best.exists():
        number = next(number for number in itertools.count(1) if not best.with_name(f"best.{number}").exists())
        best.rename(best.with_name(f"best.{number}"))


def _winner(source: ExportSource, choice: Choice) -> Winner:
    """The run that is exported.

    Raises:
        DamagedCheckpoint: when no run of the choice has a checkpoint.
    """
    # Without `checkpoints.keep: all`, the first run of a configuration may have lost its state before the second run began.
    row = next((run for run in choice.runs if _has_state(source, run)), None)
    if row is None:
        trial_id = choice.runs[0]["trial_id"]
        raise DamagedCheckpoint(
            f"there is no checkpoint of {trial_id} any more (checkpoints.keep says which trials keep theirs); nothing was "
            "written; this trains the trial again and exports it: "
            + shown_command("orchestrator.rerun", shlex.quote(str(source.folder)), trial_id, "--export")
        )
    return Winner(row, _config_of(source, row["trial_id"]), source.trials[row["trial_id"]].checkpoints[-1])


def _has_state(source: ExportSource, run: Row) -> bool:
    return any(inside(source.folder, checkpoint.path).is_dir() for checkpoint in source.trials[run["trial_id"]].checkpoints)


def _write_programs(partial: Path, note: Callable[[str], None], with_onnx: bool) -> dict[str, Any]:
    """Writes the model as programs that run without this project, as far as that is possible.

    Returns: by file, how near the program is to the model, or why the file is left out.
    """
    from trainables.export_program import ONNX, PROGRAM, TOLERANCE, ProgramRefused, write_onnx, write_program

    found: dict[str, Any] = {}
    for name, write in {PROGRAM: write_program, **({ONNX: write_onnx} if with_onnx else {})}.items():
        try:
            found[name] = {**write(partial)._asdict(), "allowed_difference": TOLERANCE}
        except ProgramRefused as error:
            note(str(error))
            found[name] = {"left_out": str(error)}
    return found


def _list_suspects(source: ExportSource, row: Row, partial: Path, best_epoch: dict[str, Any]) -> dict[str, Any]:
    """Lists the training images whose labels the model doubts. An export is complete without the list: what goes wrong is said.

    Returns: numbers about the list, or why it is left out.
    """
    if source.list_suspects is None:
        return {}
    theta = best_epoch.get("theta")  # a state of an older version has none
    best = None if theta is None else pack({"epoch": best_epoch["epoch"], "theta": theta})
    try:
        return source.list_suspects(partial, best, source.folder, row["trial_id"])
    except Exception as error:
        for name in (LIST, SHEET):
            (partial / name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            raise  # the export waits for space as a whole
        reason = " ".join(str(error).split()) or type(error).__name__
        source.note(f"the list of suspicious labels was not written: {reason}")
        return {"left_out": reason}


def _write_metrics(source: ExportSource, row: Row, partial: Path, read_test: bool) -> dict[str, Any]:
    """Writes metrics.json, with the numbers of the test set if it is read or was read before; returns its content."""
    trial_id = row["trial_id"]
    known = read_test or trial_id in source.readings
    metrics = _metrics(row, source.rows, _test_of(source, trial_id, partial / MODEL) if known else None)
    if row["confirms"]:
        metrics |= _confirmed(source, row, partial, read_test)
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


def _write_model_of(source: ExportSource, row: Row, file: Path) -> "tuple[LongTailedData, ImageFormat, dict[str, Any]]":
    """Writes the model of a trial's best epoch.

    Returns: the data that the model was trained on, the format of its images, and the state of the epoch.
    """
    from trainables.data import build_data
    from trainables.data.loader import ImageFormat
    from trainables.export_model import write_model

    config = _config_of(source, row["trial_id"])
    state = state_with_best_epoch(source.folder, source.trials[row["trial_id"]])
    data = build_data(config.data, config.seed)
    form = ImageFormat.of_state(state["format"])
    write_model(file, state["best"]["phi"], config, data, form, state["best"]["epoch"])
    return data, form, state["best"]


def state_with_best_epoch(folder: Path, trial: TrialState) -> dict[str, Any]:
    """The state in the newest intact checkpoint of a trial, which must hold the trial's best epoch.

    An older checkpoint holds the same best epoch if it was written after that epoch.

    Args:
        folder: results folder.
        trial: the trial, which has ended.

    Raises:
        DamagedCheckpoint: when no intact checkpoint holds the best epoch.
    """
    damage: DamagedCheckpoint | None = None
    for checkpoint in reversed(trial.checkpoints):
        try:
            state = unpack(read_checkpoint(inside(folder, checkpoint.path), expected=checkpoint.sha256))
        except DamagedCheckpoint as error:
            damage = damage or error  # of the newest one: the older one may have been of no use, and so was removed
            continue
        if state["best"]["epoch"] == trial.best_epoch:
            return state
        break  # still older checkpoints hold earlier epochs
    else:
        raise damage or DamagedCheckpoint(f"{folder} holds no checkpoint of {trial.trial_id}")
    raise DamagedCheckpoint(
        f"{folder}: the last intact state of {trial.trial_id} is older than its best epoch, {trial.best_epoch}"
    )


def _test_of(source: ExportSource, trial_id: str, model: Path) -> dict[str, float | None]:
    """The test metrics of a trial's model. They are measured once, and kept in the ledger and in `source.readings`."""
    if trial_id not in source.readings:
        reading = source.ledger.append(Kind.TEST_READ, trial_id=trial_id, metrics=source.read_test(model))
        assert reading["event"] == Kind.TEST_READ
        source.readings[trial_id] = reading["metrics"]  # as in the ledger, where an empty band of classes is None
    return source.readings[trial_id]


def _confirmed(source: ExportSource, winner: Row, partial: Path, read_test: bool) -> dict[str, Any]:
    """Compares the confirmed configurations; with `read_test`, reads the test accuracy of the winner's runs on all seeds."""
    confirmed = confirmation(source.rows)
    assert confirmed is not None
    comparison = confirmed.comparison
    if comparison is None:  # somebody asked for a run of a confirmation that compared nothing
        return {}
    found: dict[str, Any] = {
        "configuration_of": winner["confirms"],
        "confirmation": [summary._asdict() for summary in comparison.summaries],
        "indistinguishable": comparison.indistinguishable,
        "verdict": verdict(comparison),
        "left_out": confirmed.left_out,
        "num_seeds": comparison.num_seeds,
    }
    if not read_test:
        return found
    model = partial / "of_another_seed.safetensors"
    tested: list[Any] = []
    for row in source.rows:
        if row["confirms"] == winner["confirms"] and row["status"] == Status.FINISHED:
            _write_model_of(source, row, model)
            tested.append(_test_of(source, row["trial_id"], model)["test/acc"])
    model.unlink()
    of_tests = {"num_seeds": len(tested), "mean": mean(tested), "sd": stdev(tested), "test/acc": tested}
    return found | {"test_over_seeds": of_tests}


def _config_of(source: ExportSource, trial_id: str) -> TrialConfig:
    """The settings of a trial, as its sweep last went on with them."""
    return check(TrialConfig, source.trials[trial_id].config, Origin(str(source.folder)))


def _metrics(winner: Row, rows: list[Row], test: dict[str, float | None] | None) -> dict[str, Any]:
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


def lineage_of(row: Row, rows: list[Row]) -> list[str]:
    """The trials from whose states a trial of a population continued, the nearest first."""
    by_id, found = {other["trial_id"]: other for other in rows}, []
    while parent := row["parent_trial"]:
        found.append(f"{parent} at epoch {row['parent_epoch']}")
        row = by_id[parent]
    return found
