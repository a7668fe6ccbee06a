"""Runs a sweep: many trials over a space, tracked, compared, and the best one exported.

    python -m orchestrator.sweep [SWEEP.yaml] [key=value ...] [--name N] [--results DIR] [--resume] [--warm-start OLD] [--dry-run]
        [--address auto] [--cluster CLUSTER.yaml] [--down always|success|never]

Trials run on this machine, or with --address on a running Ray cluster. With --cluster alone, the cluster is started from here.

Exit codes: 0 done; 1 failed; 2 the input was wrong, nothing started; 130 interrupted, the state is saved.
"""

import argparse
import functools
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

# Ray, torch and MLflow take seconds to import: a wrong input is answered before any of them is loaded.
from orchestrator.config.sweep_config import read_sweep_with_origin
from trainables.command_line import steady_output, typed_path
from trainables.config_file import ConfigError
from trainables.stores import is_store

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.cluster.cluster_file import Cluster
    from orchestrator.copy.results_store import ResultsStore
    from orchestrator.ledger.events import Event
    from orchestrator.run.interrupts import Interrupts
    from orchestrator.run.prepare import SweepRequest
    from orchestrator.run.session import Watch
    from orchestrator.run.trial import Trial

NAME, NAME_IN_WORDS = r"[A-Za-z0-9][A-Za-z0-9._-]*", "letters, digits, '.', '_' and '-', a letter or digit first"
"""What may be the name of a sweep and of its folder."""
RESULTS = Path("results")
"""The folder of all results, unless another one is named."""
DEFAULT_SWEEP = Path(str(files("search_spaces") / "digits_lt.yaml"))


def main(arguments: list[str], trainable: "type[Trial] | None" = None) -> int:
    """Returns the exit code. `trainable`: the class that trials run in, in place of Trial."""
    with steady_output():
        given = parse(arguments)

        def start() -> int:
            sweep = given.sweep if given.has_file else None
            launches, results = launches_cluster(given)
            request = read_request(sweep, given.overrides, given.name, results, given.resume, given.warm_start)
            if launches:
                return launch_cluster(given, request, "sweep", arguments)
            request = request._replace(cluster=read_place(given.address, given.cluster))
            return plan(request) if given.dry_run else run(request, trainable)

        return exit_code_of(start, "sweep")


def exit_code_of(start: Callable[[], int], what: str) -> int:
    """The exit code of `start`, which runs a sweep or an ablation; wrong input and an early Ctrl-C are answered in a line."""
    try:
        return start()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ninterrupted before the {what} began; nothing was started in its folder", file=sys.stderr)
        return 130


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line. `sweep` is the file (default: the digits sweep inside the package), `overrides` the changes to it."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.sweep", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("words", nargs="*", metavar="SWEEP.yaml | key=value", help="the sweep's file, then settings to change")
    add_options(parser, "sweep", more="trials")
    parser.add_argument(
        "--warm-start", type=typed_path, metavar="OLD", help="results folder of a sweep whose trials the sampler is told"
    )
    given = parser.parse_intermixed_args(arguments)
    file, given.overrides = file_and_overrides(given.words)
    given.has_file, given.sweep = file is not None, file or DEFAULT_SWEEP
    return given


def add_options(parser: argparse.ArgumentParser, what: str, more: str) -> None:
    """Adds the options that sweeps and ablations share: names and folders, going on, and where trials run.

    Args:
        parser: of the command line.
        what: a sweep or an ablation, in a word.
        more: what a resumption may have more of.
    """
    parser.add_argument("--name", help=f"name of the {what} and of its results folder (default: the file's name)")
    parser.add_argument(
        "--results",
        type=typed_results,
        default=RESULTS,
        metavar="DIR | ADDRESS",
        help="folder of all results (default: results); to an address, as s3://bucket/folder, they are copied while it runs",
    )
    parser.add_argument("--dry-run", action="store_true", help="show the plan and the estimated time; start nothing")
    parser.add_argument(
        "--resume",
        action="store_true",
        help=f"go on with what was interrupted or killed, or with more {more} or another budget; the file may be left out",
    )
    parser.add_argument(
        "--address",
        metavar="auto | HOST:PORT",
        help="run the trials on this running Ray cluster (default: on this machine); auto is the cluster of this machine",
    )
    parser.add_argument(
        "--cluster",
        type=typed_path,
        metavar="CLUSTER.yaml",
        help=f"start this cluster, run the {what} on it and fetch the results; with --address: the file of the running cluster, "
        "which says how many machines may come (default: ~/ray_bootstrap_config.yaml, which `ray up` puts on the head)",
    )
    parser.add_argument(
        "--down",
        choices=("always", "success", "never"),
        help=f"with --cluster: when the cluster is ended after the {what}, once the results are here (default: never)",
    )


def launches_cluster(given: argparse.Namespace) -> tuple[bool, Path | str]:
    """Whether the command starts a cluster of its own, and the folder of all results on this machine. The options that others
    read are made to fit: a dry run is one on the cluster.

    Raises:
        ConfigError: when --down is given without a cluster that would be started.
    """
    starts = given.cluster is not None and given.address is None
    if given.down and not starts:
        raise ConfigError(
            f"command line: --down is {given.down}, but no cluster is started; allowed: --cluster FILE without --address"
        )
    if starts and given.dry_run:
        given.address = "auto"
    launches = starts and not given.dry_run
    # What goes to a store is brought there by the head: this machine need not reach the store.
    return launches, RESULTS if launches and isinstance(given.results, str) else given.results


def launch_cluster(given: argparse.Namespace, request: "SweepRequest", verb: str, arguments: Sequence[str]) -> int:
    """Starts the cluster and runs the sweep on it. Returns the exit code.

    Args:
        given: the options.
        request: what is to run; its file is brought to the head.
        verb: `sweep` or `ablate`.
        arguments: the whole command line, for the command that follows the sweep again.
    """
    from orchestrator.cluster.cluster_file import read_cluster
    from orchestrator.cluster.launch import launch
    from orchestrator.cluster.launch_checks import Down, Launch
    from orchestrator.terminal.lines import python_command

    return launch(
        Launch(
            verb=verb,
            name=request.folder.name,
            file=Path(request.origin.file),
            overrides=given.overrides,
            config=request.config,
            cluster=read_cluster(given.cluster),
            results=request.folder,
            store=given.results if isinstance(given.results, str) else None,
            resume=given.resume,
            warm_start=request.warm_start,
            down=Down(given.down or Down.NEVER),
            again=f"{python_command()} -m orchestrator.{verb} {shlex.join(resuming(arguments))}",
        )
    )


def resuming(arguments: Sequence[str]) -> list[str]:
    """The command line that goes on with a sweep, from the one that began it."""
    kept, earlier = [], ""
    for word in arguments:
        value = earlier.startswith("--w") and "=" not in earlier
        if not word.startswith("--w") and not value:  # --warm-start is for what begins
            kept.append(word)
        earlier = word
    return kept if "--resume" in kept else [*kept, "--resume"]


def read_place(address: str | None, file: Path | None) -> "Cluster | None":
    """The cluster on which trials run; None means on this machine.

    Raises:
        ConfigError: when the file cannot be used.
    """
    if address is None:
        if file is not None:
            raise ConfigError(
                f"command line: --cluster is {file}, but --address is missing; allowed: --address auto on the cluster's head"
            )
        return None
    if "://" in address:
        raise ConfigError(
            f"command line: --address is {address}; allowed: auto, or HOST:PORT; from a laptop use `ray job submit`"
        )
    from orchestrator.cluster.cluster_file import LOCAL, Cluster, read_cluster

    own = Path("~/ray_bootstrap_config.yaml").expanduser()
    file = file or (own if own.is_file() else None)
    found = read_cluster(file) if file else None
    return Cluster(address, None if found and found.provider == LOCAL else found)  # its machines are up, and say what they have


def file_and_overrides(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The file that a command line begins with, if any, and the settings to change."""
    # A file that exists is a file, also with "=" in its path: multirun/lr=0.1/sweep.yaml.
    if words and ("=" not in words[0] or os.path.isfile(os.path.expanduser(words[0]))):
        return typed_path(words[0]), list(words[1:])
    return None, list(words)


def read_request(
    sweep: Path | None,
    overrides: Sequence[str],
    name: str | None,
    results: Path | str,
    resume: bool = False,
    warm_start: Path | None = None,
    ablation: bool = False,
) -> "SweepRequest":
    """What somebody asks for, with its settings read and checked.

    Args:
        sweep: the file; None means the default sweep, or with `resume` the file in the results folder.
        overrides: `key=value` changes to the file.
        name: of the sweep; None means the file's name.
        results: folder of all sweeps; or the address of one in a store, to which RESULTS is copied, and from where it is fetched.
        resume: whether to go on with a sweep.
        warm_start: results folder of a sweep whose trials the sampler is told.
        ablation: whether the file is the plan of an ablation.

    Raises:
        ConfigError: naming what is wrong.
    """
    store, results = (results, RESULTS) if isinstance(results, str) else (None, results)
    folder = results / name_of(sweep or DEFAULT_SWEEP, name, longest_name(results))
    if resume and warm_start:
        raise ConfigError("command line: --resume goes on with a sweep, --warm-start begins one; allowed: one of them")
    copy = store_of(store, folder, resume) if store else None
    if resume and sweep is None:
        sweep = folder / "sweep.yaml"
        if not os.path.isfile(sweep):
            raise ConfigError(f"{folder} holds no sweep that could go on; leave --resume out to begin one")
    config, origin = read_sweep_with_origin(sweep or DEFAULT_SWEEP, overrides)
    if ablation != bool(config.ablation):
        state, verb = ("missing", "sweep") if ablation else ("there", "ablate")
        raise ConfigError(
            f"{origin.file}: the section `ablation` is {state}; allowed: python -m orchestrator.{verb} {origin.file}"
        )
    from orchestrator.run.prepare import SweepRequest  # loads numpy, which a wrong setting does not need

    return SweepRequest(config, origin, folder, resume, warm_start, store=copy)


def store_of(results: str, folder: Path, resume: bool) -> "ResultsStore":
    """Where a sweep is copied to. One that goes on gets what the store has and `folder` has not.

    Raises:
        ConfigError: when the store cannot be reached, or holds another sweep than the folder.
    """
    from orchestrator.copy.fetch import fetch
    from orchestrator.copy.results_store import ResultsStore

    store = ResultsStore(results).inside(folder.name)
    if resume:
        fetch(store, folder, lambda text: print(text, file=sys.stderr))
    return store


def typed_results(text: str) -> Path | str:
    """The folder of all results as somebody typed it, or the address of one in a store."""
    return text if is_store(text) else typed_path(text)


def name_of(sweep: Path, name: str | None, longest: int) -> str:
    """The name of a sweep: `name`, or that of its file; at most `longest` letters.

    Raises:
        ConfigError: when it is no name of a sweep.
    """
    wanted = sweep.stem if name is None else name
    if len(wanted) > longest:
        given = f"{sweep}: the name of the file, and so of the sweep," if name is None else "command line: --name"
        raise ConfigError(f"{given} has {len(wanted)} letters; allowed: at most {longest}, as for every folder here (--name)")
    if re.fullmatch(NAME, wanted):
        return wanted
    if name is None:
        cure = re.sub(r"[^A-Za-z0-9._-]+", "_", wanted).strip("._-") or "sweep"
        raise ConfigError(
            f"{sweep}: the name of the file, {wanted!r}, would be the name of the sweep, which may have {NAME_IN_WORDS}; give it "
            f"another: --name {cure}"
        )
    raise ConfigError(f"command line: --name is {name!r}; allowed: {NAME_IN_WORDS}")


def longest_name(results: Path) -> int:
    """The number of bytes that a folder's name may have in `results`, or where that would be created."""
    existing = next(place for place in (results.absolute(), *results.absolute().parents) if os.path.exists(place))
    try:
        return os.pathconf(existing, "PC_NAME_MAX")
    except OSError:  # the file system does not say
        return 255


def plan(request: "SweepRequest") -> int:
    """Prints what would run: splits, trials, time. Returns the exit code."""
    from orchestrator.run.estimate import estimate
    from orchestrator.run.preflight import check_data, check_folder, check_place, check_weights
    from orchestrator.terminal.lines import terminal_console
    from orchestrator.terminal.plan import print_estimate, print_plan

    config, origin, console = request.config, request.origin, terminal_console()
    check_folder(request.folder, config, request.resume)
    data = check_data(config, origin)
    check_weights(config, data, origin)
    try:
        warnings = check_place(config, origin, request.cluster)
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
    from orchestrator.run.prepare import prepare
    from orchestrator.terminal.plan import print_going_on, print_start

    folder, config = request.folder, request.config
    watch_note = note_to(console)
    prepared = prepare(request, watch_note)
    if prepared:
        print_start(console, folder.name, config, prepared.data, prepared.warnings)

    from orchestrator.ledger.events import Status
    from orchestrator.ledger.ledger import read_ledger
    from orchestrator.run.searches import run_searches
    from orchestrator.run.session import copy_again, send_again
    from orchestrator.run.session import run as run_session
    from orchestrator.terminal.summary import print_interrupted, print_outcome

    if prepared is None:
        console.print(
            f"{folder} holds this very sweep already, with nothing left to do. Run it anew with another --name.", soft_wrap=True
        )
        if request.resume and config.tracking.mlflow:
            send_again(config, folder, watch_note)
        if request.store:
            copy_again(request, watch_note)
        return print_outcome(console, folder, config, place=request.options())
    if config.repeats_search:
        ending = run_searches(prepared, functools.partial(run_search, console, trainable), watch_note, interrupts)
    else:
        if request.resume:
            print_going_on(console, read_ledger(folder))
        ending = run_session(prepared, watch_on(console, request), interrupts, trainable)
    if ending.status == Status.INTERRUPTED:
        return print_interrupted(console, folder, request.options())
    return print_outcome(console, folder, config, ending.tracker, request.options())


def run_search(console: "Console", trainable: "type[Trial] | None", search: "SweepRequest") -> None:
    """Runs one search of an ablation, as any sweep; its ledger says how it ended."""
    from orchestrator.run.interrupts import Interrupts

    console.print()
    with Interrupts() as interrupts:  # of the search alone: a sweep ignores further signals when its trials have ended
        run_in_terminal(search, console, interrupts, trainable)


def note_to(console: "Console") -> Callable[[str], None]:
    """Prints notes."""
    from orchestrator.terminal.lines import print_note

    return functools.partial(print_note, console)


def watch_on(console: "Console", request: "SweepRequest") -> "Watch":
    """A live display in a terminal, plain lines elsewhere."""
    from orchestrator.run.session import Watch
    from orchestrator.terminal.progress import Progress

    def export_begins(num_test: int) -> None:
        console.print(f"exporting the best trial; its test set, {num_test} images, is read once", soft_wrap=True)

    def display(past: "Sequence[Event]") -> Progress:
        return Progress(request.config, request.folder.name, console, past)

    return Watch(note_to(console), display, export_begins)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
