"""Runs a prepared sweep and concludes it. Prints nothing: the caller decides what a person sees.

The story of a sweep has three parts: `prepare` (prepare.py) refuses what cannot run, before anything starts; `run` runs what is
left of the sweep; `conclude` writes tables and export, and the ledger's last event.
"""

import functools
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.cluster.machines import Machines
from orchestrator.cluster.placement import needs_of_worker
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.copy.copier import Copier
from orchestrator.copy.fetch import fetch
from orchestrator.decide.conductor import decision_hash
from orchestrator.ledger.events import Event, Kind, Status
from orchestrator.ledger.ledger import SETTINGS, Ledger, Listener, read_ledger
from orchestrator.outcome.ablation_files import FOLDER, write_outcome
from orchestrator.outcome.best import ListSuspects, ReadTest, export_best, read_test_here, set_aside
from orchestrator.outcome.choice import NothingToExport
from orchestrator.outcome.searches import rows_of
from orchestrator.outcome.tables import write_tables
from orchestrator.report.suspects_sheet import examine_here, list_suspects
from orchestrator.run.connection import check_ray, connected
from orchestrator.run.facts import Program, own_program, sweep_facts
from orchestrator.run.interrupts import Interrupts
from orchestrator.run.preflight import check_split
from orchestrator.run.prepare import Note, Prepared, SweepRequest, changed_rounding
from orchestrator.run.probe import check_worker
from orchestrator.run.remote_call import CallLost
from orchestrator.run.runner import run_trials
from orchestrator.run.sealed_test import examine_on_worker, read_test_on_worker
from orchestrator.run.trial import Trial
from orchestrator.tracking.local_store import home_of
from orchestrator.tracking.tracker import Tracker
from trainables.checkpoint import DamagedCheckpoint
from trainables.config_file import ConfigError, dump_yaml
from trainables.files import file_sha256, once, remove_place, replace_text, wait_for_space
from trainables.shown_commands import shown_command


class Watch(NamedTuple):
    """Who watches a sweep."""

    note: Note
    display: Callable[[Sequence[Event]], AbstractContextManager[Listener]]
    """Makes a listener from the events that the ledger holds already; entered while trials run."""
    export_begins: Callable[[int], None] = lambda num_test: None
    """Called with the number of test images before they are read."""
    phase: Callable[[str], None] = lambda text: None
    """Told what is done from now on, before each step that takes a while."""


class Ending(NamedTuple):
    """How a sweep ended, for now or for good."""

    status: Status
    tracker: Tracker | None
    """Knows the sweep's pages in MLflow; None where nothing was sent."""
    copied: bool = True
    """Whether the store, if there is one, holds all results."""


def run(prepared: Prepared, watch: Watch, interrupts: Interrupts, trainable: type[Trial] | None = None) -> Ending:
    """Runs a sweep, or what is left of it, and concludes it. Whatever happens, the ledger says where it stands.

    Args:
        prepared: the sweep.
        watch: who is told what happens.
        interrupts: active; Ctrl-C before the first trial raises KeyboardInterrupt, later it ends the sweep as interrupted.
        trainable: the class that trials run in, in place of `Trial`.

    Raises:
        ConfigError: when the folder or the data changed since `prepare`, or this process is connected to Ray already.
        KeyboardInterrupt: when Ctrl-C came before the first event.
    """
    request, config, folder = prepared.request, prepared.request.config, prepared.request.folder
    check_ray()
    folder.mkdir(parents=True, exist_ok=True)
    with Ledger(folder, note=watch.note) as ledger:  # its lock keeps other processes out
        check_unchanged(ledger.past, prepared)
        if request.store:
            watch.note(f"the results are copied to {request.store}")
        # MLflow connects while Ray starts.
        watch.phase("joining the cluster" if request.cluster else "starting Ray")
        with (
            copying(request, ledger, watch.note, interrupts) as copier,
            tracking(prepared, ledger.past, watch.note) as tracker,
            connected(request.cluster and request.cluster.address),
        ):
            interrupts.check()
            machines = Machines(needs_of_worker(config), request.cluster.file) if request.cluster else None
            if machines:
                look = functools.partial(_look, interrupts, machines)
                check_worker(config, prepared.data.sha256, watch.note, look)
            settings = write_settings(request, watch.note)
            with watch.display(ledger.past) as display:
                ledger.listen(display)
                if tracker:
                    ledger.listen(tracker)
                program = own_program()
                program.keep_changes(folder, watch.note)
                facts = beginning(prepared, settings, program)
                begin(ledger, facts, request.warm_start, prepared.earlier)
                remove = copier.remove if copier else remove_place
                status, reason = run_trials(
                    config, folder, ledger, watch.note, interrupts.ignore, trainable or Trial, machines, remove
                )
            interrupts.ignore()
            read_test = functools.partial(read_test_on_worker, config, watch.note) if request.cluster else read_test_here
            examine = functools.partial(examine_on_worker, config, watch.note) if request.cluster else examine_here
            list_them = functools.partial(list_suspects, examine)
            num_test = len(prepared.data.test)
            status = conclude(folder, config, ledger, status, reason, num_test, interrupts, watch, read_test, list_them)
    return Ending(status, tracker if tracker and not tracker.error else None, copier is None or copier.complete)


def _look(interrupts: Interrupts, machines: Machines) -> None:
    """Done while the first machine is waited for: its boot costs as well."""
    interrupts.check()
    machines.look()


@contextmanager
def copying(request: SweepRequest, ledger: Ledger, note: Note, interrupts: Interrupts) -> Iterator[Copier | None]:
    """Copies the results folder to the store of the request, if it has one; the copy is complete when the block ends, or a
    person is told that it is not.
    """
    if request.store is None:
        yield None
        return
    copier = Copier(request.folder, request.store, note)
    ledger.listen(copier)
    try:
        yield copier
    finally:
        with suppress(KeyboardInterrupt), interrupts.heeded():
            copier.close()
        if not copier.complete:
            note(
                f"{request.store} lacks a part of the results, which are whole in {request.folder}; the same command with "
                "--resume copies the rest"
            )


@contextmanager
def tracking(prepared: Prepared, past: Sequence[Event], note: Note) -> Iterator[Tracker | None]:
    """Sends the ledger to MLflow in the background, if the sweep wants that; everything is sent when the block ends."""
    request = prepared.request
    if not request.config.tracking.mlflow:
        yield None
        return
    tracker = tracker_of(request.config, request.folder, note, past, prepared.is_mlflow_away)
    try:
        yield tracker
    finally:
        tracker.close()


def tracker_of(
    config: SweepConfig, folder: Path, note: Note, past: Sequence[Event], is_known_to_be_away: bool = False
) -> Tracker:
    """Sends the ledger of a results folder to MLflow; a search of an ablation has the name `<ablation>/search_<number>` there."""
    home = home_of(folder)
    return Tracker(config.tracking, home, folder.relative_to(home).as_posix(), note, past, is_known_to_be_away)


def check_unchanged(past: Sequence[Event], prepared: Prepared) -> None:
    """Sees that the folder, which is locked now, holds what it held when it was checked, and the images are the same.

    Raises:
        ConfigError: when they are not.
    """
    request = prepared.request
    if bool(past) != request.resume:
        raise ConfigError(f"{request.folder} was changed by another process meanwhile; nothing was started")
    if request.resume:
        check_split(past, prepared.data, request.folder)


def write_settings(request: SweepRequest, note: Note) -> dict[str, str]:
    """Writes the sweep's settings, complete, as a file that runs again; returns the file's digest, for the ledger."""
    text = f"# From {request.origin.file}\n{dump_yaml(request.config.model_dump())}"
    wait_for_space(lambda: replace_text(request.folder / SETTINGS, text), once(note))
    return {"settings_sha256": file_sha256(request.folder / SETTINGS)}


def beginning(prepared: Prepared, settings: dict[str, Any], program: Program) -> dict[str, Any]:
    """The facts of how a sweep begins, with what was written of its settings."""
    entered = prepared.request.entered
    facts = sweep_facts(prepared.request.config, prepared.data) | settings | program.facts
    return facts if entered is None else facts | {"entered": entered}


def begin(ledger: Ledger, facts: dict[str, Any], warm_start: Path | None, earlier: list[dict[str, Any]] | None) -> None:
    """Appends how the sweep begins, or begins again.

    Args:
        ledger: of the sweep.
        facts: as `beginning` gives them.
        warm_start: where the sampler learns from.
        earlier: the trials that it learns.
    """
    if ledger.past:
        segment = 2 + sum(event["event"] == Kind.SWEEP_RESUME for event in ledger.past)
        wanted = ("config", "settings_sha256", "git_commit", "versions", "machine", "changes", "entered")
        kept = {key: facts[key] for key in wanted if key in facts}
        changed = changed_rounding(ledger.past, facts["config"])
        ledger.append(Kind.SWEEP_RESUME, segment=segment, **kept, **({"note": changed} if changed else {}))
        return
    learnt = {"warm_start": earlier, "warm_start_from": str(warm_start)} if earlier else {}
    ledger.append(Kind.SWEEP_START, **facts, **learnt)


def conclude(
    folder: Path,
    config: SweepConfig,
    ledger: Ledger,
    status: Status,
    reason: str | None,
    num_test: int,
    interrupts: Interrupts,
    watch: Watch,
    read_test: ReadTest = read_test_here,
    list_them: ListSuspects | None = None,
) -> Status:
    """Writes the tables, exports the best trial or compares an ablation's variants, appends the sweep's last event, and writes
    the report.

    Args:
        folder: results folder.
        config: of the sweep.
        ledger: of the folder.
        status: how the trials ended.
        reason: why trials are left; None when none are.
        num_test: images of the test set.
        interrupts: Ctrl-C during the export leaves it for later.
        watch: is told that the export begins.
        read_test: reads the test set for the export.
        list_them: lists the training images whose labels the best model doubts; None for no list.

    Returns: `status`, or failed when no trial finished, or interrupted when the export was.
    """
    watch.phase("writing the tables")
    wait_for_space(lambda: write_tables(folder, ledger.events), once(watch.note))
    if config.ablation:
        status = compare(folder, config, ledger, status, watch.note)
    elif status != Status.INTERRUPTED:
        watch.export_begins(num_test)
        try:
            set_aside(folder / "best")
            with interrupts.heeded():
                export = functools.partial(
                    export_best, folder, ledger, read_test=read_test, note=watch.note, list_suspects=list_them
                )
                wait_for_space(export, once(watch.note))
        except NothingToExport:
            status = Status.FAILED
        except DamagedCheckpoint as error:
            watch.note(f"the best trial cannot be exported: {error}")
            status = Status.FAILED
        except CallLost as error:
            watch.note(f"the test set could not be read: {error}; the best trial is exported by the same command with --resume")
            status = Status.INTERRUPTED
        except KeyboardInterrupt:
            status = Status.INTERRUPTED
    complete = status != Status.INTERRUPTED and reason is None
    decided = decision_hash(ledger.events)
    ledger.append(Kind.SWEEP_END, status=status, reason=reason, complete=complete, decisions_sha256=decided)
    watch.phase("writing the report")
    report_on(folder, watch.note)
    return status


def report_on(folder: Path, note: Note) -> None:
    """Writes report.html of a sweep or an ablation that has ended. What goes wrong is said, and changes nothing else."""
    from orchestrator.report.writing import write_report  # importing it takes a second, which no sweep needs before its end

    try:
        write_report(folder, with_figures=False)
    except Exception as error:  # the results are complete without it
        reason = " ".join(str(error).split()) or type(error).__name__
        note(
            f"the report was not written: {reason}; {shown_command('orchestrator.report', shlex.quote(str(folder)))} tries again"
        )


def compare(folder: Path, config: SweepConfig, ledger: Ledger, status: Status, note: Note) -> Status:
    """Writes the comparison of an ablation's variants. Returns `status`, or failed when the reference has no result."""
    rows = rows_of(folder, config, ledger.events)
    lines = wait_for_space(lambda: write_outcome(folder, config, rows), once(note))
    short = ("name", "num_seeds", "mean", "difference", "p_corrected", "verdict")
    table = [{"condition": line.condition} | {key: getattr(line.row, key) for key in short} for line in lines]
    files = {path.name: file_sha256(path) for path in sorted((folder / FOLDER).iterdir()) if path.is_file()}
    ledger.append(Kind.COMPARE, path=str((folder / FOLDER).resolve()), files=files, rows=table)
    has_reference = any(line.row.name == config.comparison.reference_name for line in lines)
    return status if has_reference or status == Status.INTERRUPTED else Status.FAILED


def copy_again(request: SweepRequest, note: Note) -> bool:
    """Copies what the store of the request lacks of a sweep that is over. Returns whether the store has everything then.

    Raises:
        ConfigError: when the store holds another sweep of this name.
    """
    if request.store is None:
        return True
    fetch(request.store, request.folder, note)
    with Ledger(request.folder, note=note) as ledger, copying(request, ledger, note, Interrupts()) as copier:
        pass
    return copier is None or copier.complete


def send_again(config: SweepConfig, folder: Path, note: Note, patience_s: float = 60) -> Tracker:
    """Sends MLflow what it lacks of a sweep that is over: the sweep may have been killed after its last event.

    Args:
        config: of the sweep.
        folder: its results folder.
        note: tells a person.
        patience_s: seconds that MLflow may take for everything.

    Returns: the tracker, closed; its `error` is None when MLflow has everything.
    """
    tracker = tracker_of(config, folder, note, read_ledger(folder))
    tracker.close(patience_s)
    return tracker
