"""Runs a sweep: many trials over a space, tracked, compared, and the best one exported.

    python -m orchestrator.sweep [SWEEP.yaml] [key=value ...] [--name N] [--results DIR] [--resume] [--warm-start OLD] [--dry-run]
        [--quick] [--json] [--address auto] [--cluster CLUSTER.yaml] [--down always|success|never]

Trials run on this machine, or with --address on a running Ray cluster. With --cluster alone, the cluster is started from here.

Exit codes: 0 done; 1 failed; 2 the input was wrong, nothing started; 3 the store of --results lacks a part of the results;
130 interrupted, the state is saved.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

# Ray, torch and MLflow take seconds to import: a wrong input is answered before any of them is loaded.
from orchestrator import parsers
from orchestrator.ledger.ledger import LEDGER
from orchestrator.quick import NO_RESULT, quick_overrides
from orchestrator.request import (
    DEFAULT_SWEEP,
    file_and_overrides,
    launch_cluster,
    launches_cluster,
    read_place,
    read_request,
)
from trainables.command_line import answering, asks_for_json, steady_output
from trainables.config_file import ConfigError
from trainables.machine import process_began
from trainables.words import plural

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.ledger.events import Event
    from orchestrator.run.interrupts import Interrupts
    from orchestrator.run.prepare import SweepRequest
    from orchestrator.run.session import Watch
    from orchestrator.run.trial import Trial
    from orchestrator.terminal.display import Display


NOT_COPIED = 3
"""The exit code when the store lacks a part of the results, which are whole on this machine."""


def main(arguments: list[str], trainable: "type[Trial] | None" = None, entered: float | None = None) -> int:
    """Returns the exit code.

    Args:
        arguments: the command line.
        trainable: the class that trials run in, in place of Trial.
        entered: when a person entered the command, in seconds since 1970; None means now.
    """
    entered = entered or time.time()

    def start(given: argparse.Namespace, found: list[Path]) -> int:
        sweep = given.sweep if given.has_file else None
        launches, results = launches_cluster(given)
        if given.quick:
            given.name = given.name or f"{given.sweep.stem}_quick"
            if not given.resume:  # the file in the folder of a sweep that goes on is small already
                given.overrides = quick_overrides(given.sweep, given.overrides)
            print(f"{NO_RESULT}; the results folder is {results}/{given.name}")
        request = read_request(sweep, given.overrides, given.name, results, given.resume, given.warm_start)
        found.append(request.folder)
        if launches:
            return launch_cluster(given, request, "sweep", arguments)
        request = request._replace(cluster=read_place(given.address, given.cluster), entered=entered)
        code = plan(request) if given.dry_run else run(request, trainable)
        if given.quick and code == 0:
            print(NO_RESULT)
        return code

    return exit_code_of(arguments, parse, start, "sweep")


def exit_code_of(
    arguments: list[str],
    parse: Callable[[list[str]], argparse.Namespace],
    start: Callable[[argparse.Namespace, list[Path]], int],
    what: str,
) -> int:
    """The exit code of `start`, which runs a sweep or an ablation; wrong input and an early Ctrl-C are answered in a line.

    Args:
        arguments: the command line; with --json, the outcome is printed for programs.
        parse: reads the command line.
        start: takes what was read, and a list, to which it adds the results folder as soon as it is known.
        what: a sweep or an ablation, in a word.
    """
    with steady_output(), answering(asks_for_json(arguments)) as answer:
        given, folders = parse(arguments), list[Path]()
        answer["error"] = None
        try:
            code = start(given, folders)
        except ConfigError as error:
            print(f"error: {error}", file=sys.stderr)
            answer["error"], code = str(error), 2
        except KeyboardInterrupt:
            print(f"\ninterrupted before the {what} began; nothing was started in its folder", file=sys.stderr)
            code = 130
        answer["exit_code"] = code
        if given.json and code != 2 and not given.dry_run and any((folder / LEDGER).exists() for folder in folders):
            from orchestrator.outcome.answer import outcome_of

            answer |= outcome_of(folders[0])
    return code


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line. `sweep` is the file (default: the digits sweep inside the package), `overrides` the changes to it."""
    given = parsers.sweep().parse_intermixed_args(arguments)
    file, given.overrides = file_and_overrides(given.words)
    given.has_file, given.sweep = file is not None, file or DEFAULT_SWEEP
    return given


def plan(request: "SweepRequest") -> int:
    """Prints what would run: splits, trials, time. Returns the exit code."""
    from orchestrator.run.estimate import estimate
    from orchestrator.run.preflight import check_data, check_folder, check_place, check_weights
    from orchestrator.terminal.lines import terminal_console
    from orchestrator.terminal.plan import print_estimate, print_plan
    from orchestrator.tracking.reachable import tracking_notes

    config, origin, console = request.config, request.origin, terminal_console()
    check_folder(request.folder, config, request.resume)
    data = check_data(config, origin)
    check_weights(config, data, origin)
    try:
        warnings = check_place(config, origin, request.cluster) + tracking_notes(config.tracking)
    except ConfigError as error:  # a plan for another machine is a plan
        warnings = [f"this {'cluster' if request.cluster else 'machine'} would refuse it: {error}"]
    print_plan(console, request.folder.name, config, data, warnings)
    where = " on a machine of the cluster, which may have to come first" if request.cluster else ""
    console.print(f"timing some steps of the sweep's own trial{where} ...", style="dim")
    one = config.searches()[0] if config.repeats_search else config
    try:
        print_estimate(console, one, estimate(one, request.cluster, note_to(console)))
    except ValueError as error:  # most likely an image that was not read before
        raise ConfigError(f"{origin.file}: trial.{error}") from error
    if config.repeats_search:
        console.print(f"This is one search of {len(config.searches())}; they run one after another.", highlight=False)
    text = f"Results would go to {request.folder}. {'No trial' if request.cluster else 'Nothing'} was started."
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    return 0


def run(request: "SweepRequest", trainable: "type[Trial] | None" = None) -> int:
    """Runs the sweep, or what is left of it, and prints the outcome. Returns the exit code."""
    from orchestrator.run.interrupts import Interrupts
    from orchestrator.terminal.lines import terminal_console

    with Interrupts() as interrupts:
        return run_in_terminal(request, terminal_console(), interrupts, trainable)


def run_in_terminal(
    request: "SweepRequest", console: "Console", interrupts: "Interrupts", trainable: "type[Trial] | None" = None
) -> int:
    """Prepares, runs and concludes a sweep before a person's eyes. Returns the exit code."""
    from orchestrator.terminal.display import Display

    folder, config = request.folder, request.config
    watch_note = note_to(console)
    with Display(console) as display:
        display.phase("loading the program")
        from orchestrator.run.prepare import prepare
        from orchestrator.terminal.plan import print_going_on, print_start

        prepared = prepare(request, watch_note, display.phase)
        if prepared:
            print_start(console, folder.name, config, prepared.data, prepared.warnings)
        display.phase("loading Ray and torch, which takes some seconds")
        from orchestrator.ledger.events import Status
        from orchestrator.ledger.ledger import read_ledger
        from orchestrator.run.searches import copy_searches, run_searches
        from orchestrator.run.session import copy_again, send_again
        from orchestrator.run.session import run as run_session
        from orchestrator.terminal.summary import print_interrupted, print_outcome

        if prepared and not config.repeats_search:
            if request.resume:
                print_going_on(console, read_ledger(folder))
            ending = run_session(prepared, watch_on(display, request), interrupts, trainable)
    if prepared is None:
        console.print(
            f"{folder} holds this very sweep already, with nothing left to do. Run it anew with another --name.", soft_wrap=True
        )
        if request.resume and config.tracking.mlflow:
            send_again(config, folder, watch_note)
        copied = copy_again(request, watch_note) and copy_searches(request, watch_note)
        code = print_outcome(console, folder, config, place=request.options())
        return code if copied else NOT_COPIED
    if config.repeats_search:
        ending = run_searches(prepared, functools.partial(run_search, console, trainable), watch_note, interrupts)
    if ending.status == Status.INTERRUPTED:
        code = print_interrupted(console, folder, request.options())
    else:
        code = print_outcome(console, folder, config, ending.tracker, request.options(), time.time())
    return code if ending.copied else NOT_COPIED


def run_search(console: "Console", trainable: "type[Trial] | None", search: "SweepRequest") -> None:
    """Runs one search of an ablation, as any sweep; its ledger says how it ended."""
    from orchestrator.run.interrupts import Interrupts

    console.print()
    search = search._replace(entered=time.time())
    with Interrupts() as interrupts:  # of the search alone: a sweep ignores further signals when its trials have ended
        run_in_terminal(search, console, interrupts, trainable)


def note_to(console: "Console") -> Callable[[str], None]:
    """Prints notes."""
    from orchestrator.terminal.lines import print_note

    return functools.partial(print_note, console)


def watch_on(display: "Display", request: "SweepRequest") -> "Watch":
    """A live display in a terminal, plain lines elsewhere."""
    from orchestrator.run.session import Watch
    from orchestrator.terminal.progress import Progress

    def export_begins(num_test: int) -> None:
        display.phase(f"exporting the best trial; its test set, {plural(num_test, 'image')}, is read once")

    def progress(past: "Sequence[Event]") -> Progress:
        return Progress(request.config, request.folder.name, display, past)

    return Watch(note_to(display.console), progress, export_begins, display.phase)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], entered=process_began()))
