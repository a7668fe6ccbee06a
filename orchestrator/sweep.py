"""Runs a sweep: many trials over a space, tracked, compared, and the best one exported.

    python -m orchestrator.sweep [SWEEP.yaml] [key=value ...] [--name N] [--results DIR] [--dry-run]

Exit codes: 0 done; 1 failed; 2 the input was wrong, nothing started; 130 interrupted, the state is saved.
"""

import argparse
import functools
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

# Ray, torch and MLflow take seconds to import: a wrong input is answered before any of them is loaded.
from orchestrator.config import SweepConfig, read_sweep_with_origin
from trainables.config_file import ConfigError, Origin, dump_yaml

if TYPE_CHECKING:
    from orchestrator.ledger import Ledger

DEFAULT_SWEEP = Path(str(files("search_spaces") / "digits_lt.yaml"))


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    given = parse(arguments)
    try:
        if given.resume:
            raise ConfigError("command line: --resume comes with a later version; until then run the sweep under another --name")
        config, origin = read_sweep_with_origin(given.sweep, given.overrides)
        name = given.name or given.sweep.stem
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ConfigError(
                f"command line: --name is {name!r}; allowed: letters, digits, '.', '_' and '-', a letter or digit first"
            )
        folder = given.results / name
        return plan(config, folder, origin) if given.dry_run else run(config, folder, origin)
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
    parser.add_argument("--resume", action="store_true", help="not there yet")
    given = parser.parse_intermixed_args(arguments)
    has_file = given.words and "=" not in given.words[0]
    given.sweep = Path(given.words[0]) if has_file else DEFAULT_SWEEP
    given.overrides = given.words[1:] if has_file else given.words
    return given


def plan(config: SweepConfig, folder: Path, origin: Origin) -> int:
    """Prints what would run: splits, trials, time."""
    from rich.console import Console

    from orchestrator.preflight import check_data, check_folder, check_machine, check_weights
    from orchestrator.summary import print_plan

    check_folder(folder, config)
    data = check_data(config, origin)
    check_weights(config, data, origin)
    try:
        warnings = check_machine(config, origin)
    except ConfigError as error:  # a plan for another machine is a plan
        warnings = [f"this machine would refuse it: {error}"]
    try:
        print_plan(Console(), config, folder, data, warnings)
    except ValueError as error:  # an image, most likely, that nobody has looked at before
        raise ConfigError(f"{origin.file}: trial.{error}") from error
    return 0


def run(config: SweepConfig, folder: Path, origin: Origin) -> int:
    """Runs the sweep into `folder`, exports its best trial and prints the outcome."""
    from rich.console import Console

    from orchestrator.preflight import check_data, check_folder, check_machine, check_weights, claim_folder
    from orchestrator.summary import print_interrupted, print_note, print_outcome, print_start

    console, ctrl_c = Console(), CtrlC()
    note = functools.partial(print_note, console)
    if check_folder(folder, config):
        print(f"{folder} holds this very sweep already; nothing was started. Run it anew with another --name.")
        return print_outcome(console, folder, config)
    data = check_data(config, origin)
    check_weights(config, data, origin)
    print_start(console, folder.name, config, data, check_machine(config, origin))

    from orchestrator.tracking import Tracker

    tracker = Tracker(config.tracking, folder.parent, folder.name, note) if config.tracking.mlflow else None  # while Ray starts

    from orchestrator.ledger import Ledger
    from orchestrator.progress import Progress
    from orchestrator.runner import local_ray, run_trials, sweep_facts

    with local_ray():
        ctrl_c.check()
        claim_folder(folder)
        (folder / "sweep.yaml").write_text(f"# From {origin.file}\n{dump_yaml(config.model_dump())}", encoding="utf-8")
        with Ledger(folder, note=note) as ledger:
            with Progress(config, folder.name, console) as progress:
                for listener in (progress, tracker):
                    if listener:
                        ledger.listen(listener)
                ledger.append("sweep_start", **sweep_facts(config, data, git_commit()))
                status = run_trials(config, folder, ledger, note)
            ctrl_c.ignore()
            status = conclude(folder, ledger, status, len(data.test), ctrl_c)
    if tracker:
        tracker.close()
    if status == "interrupted":
        return print_interrupted(console, folder)
    return print_outcome(console, folder, config, tracker if tracker and not tracker.error else None)


def conclude(folder: Path, ledger: "Ledger", status: str, num_test: int, ctrl_c: "CtrlC") -> str:
    """Tables, export and the sweep's last event. Returns how the sweep ended: as it did, failed when no trial finished, or
    interrupted when the export was.
    """
    from orchestrator.export import NothingToExport, export_best
    from orchestrator.results import write_tables

    write_tables(folder)
    if status != "interrupted":
        print(f"exporting the best trial; its test set, {num_test} images, is read once", flush=True)
        try:
            with ctrl_c.heeded():
                export_best(folder, ledger)
        except NothingToExport:
            status = "failed"
        except KeyboardInterrupt:
            status = "interrupted"
    ledger.append("sweep_end", status=status)
    return status


class CtrlC:
    """Ctrl-C that cannot get lost: some libraries swallow a KeyboardInterrupt that reaches them while they are being imported."""

    def __init__(self) -> None:
        self._pressed = False
        signal.signal(signal.SIGINT, self._handle)

    def check(self) -> None:
        """Raises KeyboardInterrupt when Ctrl-C has been pressed."""
        if self._pressed:
            raise KeyboardInterrupt

    def ignore(self) -> None:
        """From now on Ctrl-C does nothing: what is left takes seconds, and half of it would be worth nothing."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """But inside this block it counts: a large test set takes a while, and an export that was cut off is begun anew."""
        signal.signal(signal.SIGINT, self._handle)
        try:
            yield
        finally:
            self.ignore()

    def _handle(self, number: int, frame: object) -> None:
        self._pressed = True
        raise KeyboardInterrupt


def git_commit() -> str | None:
    """The commit of this program's own repository, marked when files differ from it; None for an installed package."""
    here = Path(__file__)

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(here.parent), *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # the package may lie inside another project's environment
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
