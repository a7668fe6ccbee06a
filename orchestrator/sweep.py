"""Runs a sweep: many trials over a space, tracked, compared, and the best one exported.

    python -m orchestrator.sweep [SWEEP.yaml] [key=value ...] [--name N] [--results DIR] [--resume] [--warm-start OLD] [--dry-run]

Exit codes: 0 done; 1 failed; 2 the input was wrong, nothing started; 130 interrupted, the state is saved.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

# Ray, torch and MLflow take seconds to import: a wrong input is answered before any of them is loaded.
from orchestrator.config.sweep_config import read_sweep_with_origin
from trainables.config_file import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.ledger.events import Event
    from orchestrator.run.interrupts import Interrupts
    from orchestrator.run.prepare import SweepRequest
    from orchestrator.run.session import Watch
    from orchestrator.run.trial import Trial

DEFAULT_SWEEP = Path(str(files("search_spaces") / "digits_lt.yaml"))


def main(arguments: list[str], trainable: "type[Trial] | None" = None) -> int:
    """Returns the exit code. `trainable`: the class that trials run in, in place of Trial."""
    given = parse(arguments)
    try:
        sweep = given.sweep if given.has_file else None
        request = read_request(sweep, given.overrides, given.name, given.results, given.resume, given.warm_start)
        return plan(request) if given.dry_run else run(request, trainable)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted before the sweep began; nothing was started in its folder", file=sys.stderr)
        return 130


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line. `sweep` is the file (default: the digits sweep inside the package), `overrides` the changes to it."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.sweep", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("words", nargs="*", metavar="SWEEP.yaml | key=value", help="the sweep's file, then settings to change")
    parser.add_argument("--name", help="name of the sweep and of its results folder (default: the file's name)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of all sweeps (default: results)")
    parser.add_argument("--dry-run", action="store_true", help="show plan, splits and estimated time; start nothing")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with a sweep that was interrupted or killed, or with more trials or another budget; its file may be left out",
    )
    parser.add_argument(
        "--warm-start", type=Path, metavar="OLD", help="results folder of a sweep whose trials the sampler is told"
    )
    given = parser.parse_intermixed_args(arguments)
    given.has_file = bool(given.words) and "=" not in given.words[0]
    given.sweep = Path(given.words[0]) if given.has_file else DEFAULT_SWEEP
    given.overrides = given.words[1:] if given.has_file else given.words
    return given


def read_request(
    sweep: Path | None,
    overrides: Sequence[str],
    name: str | None,
    results: Path,
    resume: bool = False,
    warm_start: Path | None = None,
) -> "SweepRequest":
    """What somebody asks for, with its settings read and checked.

    Args:
        sweep: the file; None means the default sweep, or with `resume` the file in the results folder.
        overrides: `key=value` changes to the file.
        name: of the sweep; None means the file's name.
        results: folder of all sweeps.
        resume: whether to go on with a sweep.
        warm_start: results folder of a sweep whose trials the sampler is told.

    Raises:
        ConfigError: naming what is wrong.
    """
    name = name or (sweep or DEFAULT_SWEEP).stem
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigError(
            f"command line: --name is {name!r}; allowed: letters, digits, '.', '_' and '-', a letter or digit first"
        )
    folder = results / name
    if resume and warm_start:
        raise ConfigError("command line: --resume goes on with a sweep, --warm-start begins one; allowed: one of them")
    if resume and sweep is None:
        sweep = folder / "sweep.yaml"
        if not sweep.is_file():
            raise ConfigError(f"{folder} holds no sweep that could go on; leave --resume out to begin one")
    config, origin = read_sweep_with_origin(sweep or DEFAULT_SWEEP, overrides)
    from orchestrator.run.prepare import SweepRequest  # loads numpy, which a wrong setting does not need

    return SweepRequest(config, origin, folder, resume, warm_start)


def plan(request: "SweepRequest") -> int:
    """Prints what would run: splits, trials, time. Returns the exit code."""
    from rich.console import Console

    from orchestrator.run.estimate import estimate
    from orchestrator.run.preflight import check_data, check_folder, check_machine, check_weights
    from orchestrator.terminal.plan import print_estimate, print_plan

    config, origin, console = request.config, request.origin, Console()
    check_folder(request.folder, config, request.resume)
    data = check_data(config, origin)
    check_weights(config, data, origin)
    try:
        warnings = check_machine(config, origin)
    except ConfigError as error:  # a plan for another machine is a plan
        warnings = [f"this machine would refuse it: {error}"]
    print_plan(console, request.folder.name, config, data, warnings)
    console.print("timing some steps of the sweep's own trial ...", style="dim")
    try:
        print_estimate(console, config, estimate(config))
    except ValueError as error:  # most likely an image that was not read before
        raise ConfigError(f"{origin.file}: trial.{error}") from error
    text = f"Results would go to {request.folder}. Nothing was started."
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    return 0


def run(request: "SweepRequest", trainable: "type[Trial] | None" = None) -> int:
    """Runs the sweep, or what is left of it, and prints the outcome. Returns the exit code."""
    from rich.console import Console

    from orchestrator.run.interrupts import Interrupts

    with Interrupts() as interrupts:
        return run_in_terminal(request, Console(), interrupts, trainable)


def run_in_terminal(
    request: "SweepRequest", console: "Console", interrupts: "Interrupts", trainable: "type[Trial] | None" = None
) -> int:
    """Prepares, runs and concludes a sweep before a person's eyes. Returns the exit code."""
    from orchestrator.run.prepare import prepare
    from orchestrator.terminal.plan import print_going_on, print_start

    folder, config = request.folder, request.config
    watch_note = note_to(console)
    prepared = prepare(request, watch_note)
    if prepared:
        print_start(console, folder.name, config, prepared.data, prepared.warnings)

    from orchestrator.ledger.events import Status
    from orchestrator.ledger.ledger import read_ledger
    from orchestrator.run.session import run as run_session
    from orchestrator.run.session import send_again
    from orchestrator.terminal.summary import print_interrupted, print_outcome

    if prepared is None:
        print(f"{folder} holds this very sweep already, with nothing left to do. Run it anew with another --name.")
        if request.resume and config.tracking.mlflow:
            send_again(config, folder, watch_note)
        return print_outcome(console, folder, config)
    if request.resume:
        print_going_on(console, read_ledger(folder))
    ending = run_session(prepared, watch_on(console, request), interrupts, trainable)
    if ending.status == Status.INTERRUPTED:
        return print_interrupted(console, folder)
    return print_outcome(console, folder, config, ending.tracker)


def note_to(console: "Console") -> Callable[[str], None]:
    """Prints notes. A closed terminal, or a log on a full disk, does not end a sweep."""
    from orchestrator.terminal.lines import print_note

    def note(text: str) -> None:
        with suppress(Exception):
            print_note(console, text)

    return note


def watch_on(console: "Console", request: "SweepRequest") -> "Watch":
    """A live display in a terminal, plain lines elsewhere."""
    from orchestrator.run.session import Watch
    from orchestrator.terminal.progress import Progress

    def export_begins(num_test: int) -> None:
        with suppress(OSError):
            print(f"exporting the best trial; its test set, {num_test} images, is read once", flush=True)

    def display(past: "Sequence[Event]") -> Progress:
        return Progress(request.config, request.folder.name, console, past)

    return Watch(note_to(console), display, export_begins)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
