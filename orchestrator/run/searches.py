"""Runs an ablation that repeats a search: whole sweeps, one after another, each with another seed.

Every search has a folder and a ledger of its own, like any sweep. The ledger of the ablation holds the plan and the comparison.
Prints nothing: the caller decides what a person sees.
"""

from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.decide.conductor import decision_hash
from orchestrator.ledger.events import Kind, Status
from orchestrator.ledger.ledger import Ledger
from orchestrator.outcome.searches import end_of, search_folder
from orchestrator.run.connection import check_ray
from orchestrator.run.facts import own_program
from orchestrator.run.interrupts import Interrupts
from orchestrator.run.preflight import Found, check_folder, is_unbegun
from orchestrator.run.prepare import Note, Prepared, SweepRequest
from orchestrator.run.session import (
    Ending,
    begin,
    beginning,
    check_unchanged,
    compare,
    copy_again,
    copying,
    report_on,
    send_again,
    tracking,
    write_settings,
)


def run_searches(prepared: Prepared, run_search: Callable[[SweepRequest], None], note: Note, interrupts: Interrupts) -> Ending:
    """Runs the searches, or what is left of them, and compares what their arms have reached.

    Args:
        prepared: the ablation.
        run_search: runs one search to its end, or until it is interrupted; its ledger tells which.
        note: tells a person of a search that failed.
        interrupts: active; Ctrl-C ends the search that runs, and so the ablation, as interrupted.

    Raises:
        ConfigError: when a folder or the data changed since `prepare`, or this process is connected to Ray already.
    """
    request, config, folder = prepared.request, prepared.request.config, prepared.request.folder
    check_ray()
    folder.mkdir(parents=True, exist_ok=True)
    with Ledger(folder, note=note) as ledger:  # its lock keeps other processes out
        check_unchanged(ledger.past, prepared)
        with copying(request, ledger, note, interrupts) as copier, tracking(prepared, ledger.past, note) as tracker:
            if tracker:
                ledger.listen(tracker)
            settings = write_settings(request, note)
            program = own_program()
            program.keep_changes(folder, note)
            begin(ledger, beginning(prepared, settings, program), None, None)
            status, reason = _run_all(request, run_search, note)
            interrupts.ignore()
            status = compare(folder, config, ledger, status, note)
            complete = status != Status.INTERRUPTED and reason is None
            decided = decision_hash(ledger.events)
            ledger.append(Kind.SWEEP_END, status=status, reason=reason, complete=complete, decisions_sha256=decided)
            report_on(folder, note)
    copied = (copier is None or copier.complete) and copy_searches(request, note)
    return Ending(status, tracker if tracker and not tracker.error else None, copied)


def copy_searches(request: SweepRequest, note: Note) -> bool:
    """Copies what the store lacks of each search that has begun, if the request is for an ablation that repeats one. Returns
    whether the store has everything then.
    """
    searches = requests_of(request) if request.config.repeats_search else []
    complete = [copy_again(search, note) for search in searches if search.resume]  # all are tried
    return all(complete)


def _run_all(request: SweepRequest, run_search: Callable[[SweepRequest], None], note: Note) -> tuple[Status, str | None]:
    """Runs the searches that are not complete. Returns how this ended, and why searches are left; None when none are."""
    reason = None
    for number, search in enumerate(requests_of(request)):
        end = _run_one(search, run_search, note)
        if end.get("status", Status.INTERRUPTED) == Status.INTERRUPTED:
            return Status.INTERRUPTED, None
        if not end["complete"]:
            reason = f"search {number} has trials left: {end['reason']}"
        if end["status"] == Status.FAILED:
            note(f"search {number} failed: {end['reason'] or 'no trial finished whose model could be exported'}")
    return Status.FINISHED, reason


def _run_one(search: SweepRequest, run_search: Callable[[SweepRequest], None], note: Note) -> Mapping[str, Any]:
    """Runs a search unless it is complete. Returns its last event, without a status if it has not ended."""
    if check_folder(search.folder, search.config, search.resume) is not Found.COMPLETE:
        try:
            run_search(search)
        except KeyboardInterrupt:  # before the first event of the search, or while its tables were written
            return {}
    elif search.resume and search.config.tracking.mlflow:
        send_again(search.config, search.folder, note)
    return end_of(search.folder)


def requests_of(request: SweepRequest) -> list[SweepRequest]:
    """The sweep of each search, in a folder of its own inside the ablation's; one that has begun is resumed.

    Args:
        request: for an ablation that repeats a search.
    """
    found = []
    for number, config in enumerate(request.config.searches()):
        folder = search_folder(request.folder, number)
        store = request.store and request.store.inside(folder.name)
        begun = not is_unbegun(folder)
        found.append(SweepRequest(config, request.origin, folder, resume=begun, cluster=request.cluster, store=store))
    return found
