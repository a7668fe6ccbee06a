"""Runs a sweep: many trials over a space, tracked, compared, and the best one exported.

    python -m orchestrator.sweep [SWEEP.yaml] [key=value ...] [--name N] [--results DIR] [--resume] [--warm-start OLD] [--dry-run]

Exit codes: 0 done; 1 failed; 2 the input was wrong, nothing started; 130 interrupted, the state is saved.
"""

import argparse
import itertools
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Ray, torch and MLflow take seconds to import: a wrong input is answered before any of them is loaded.
from orchestrator.config.sweep_config import SweepConfig, read_sweep_with_origin
from trainables.config_file import ConfigError, Origin, dump_yaml
from trainables.files import once, replace_text, wait_for_space

if TYPE_CHECKING:
    from orchestrator.ledger.ledger import Event, Ledger
    from orchestrator.run.trial import Trial

DEFAULT_SWEEP = Path(str(files("search_spaces") / "digits_lt.yaml"))


def main(arguments: list[str], trainable: "type[Trial] | None" = None) -> int:
    """Returns the exit code. `trainable`: what trials run in, when not in Trial."""
    given = parse(arguments)
    try:
        name = given.name or given.sweep.stem
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ConfigError(
                f"command line: --name is {name!r}; allowed: letters, digits, '.', '_' and '-', a letter or digit first"
            )
        folder = given.results / name
        if given.resume and given.warm_start:
            raise ConfigError("command line: --resume goes on with a sweep, --warm-start begins one; allowed: one of them")
        if given.resume and not given.has_file:
            given.sweep = folder / "sweep.yaml"
            if not given.sweep.is_file():
                raise ConfigError(f"{folder} holds no sweep that could go on; leave --resume out to begin one")
        config, origin = read_sweep_with_origin(given.sweep, given.overrides)
        if given.dry_run:
            return plan(config, folder, origin, given.resume)
        return run(config, folder, origin, given.resume, given.warm_start, trainable)
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


def plan(config: SweepConfig, folder: Path, origin: Origin, resume: bool) -> int:
    """Prints what would run: splits, trials, time."""
    from rich.console import Console

    from orchestrator.run.preflight import check_data, check_folder, check_machine, check_weights
    from orchestrator.terminal.summary import print_plan

    check_folder(folder, config, resume)
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


def run(
    config: SweepConfig,
    folder: Path,
    origin: Origin,
    resume: bool,
    warm_start: Path | None,
    trainable: "type[Trial] | None" = None,
) -> int:
    """Runs the sweep into `folder`, or what is left of it, exports its best trial and prints the outcome."""
    from rich.console import Console

    from orchestrator.run.preflight import Found, check_data, check_folder, check_machine, check_split, check_weights
    from orchestrator.terminal.summary import print_going_on, print_interrupted, print_note, print_outcome, print_start

    console, ctrl_c = Console(), CtrlC()

    def note(text: str) -> None:
        with suppress(Exception):  # somebody has closed the terminal, or the log is on a full disk: nothing to end a sweep for
            print_note(console, text)

    found = check_folder(folder, config, resume)
    if found is Found.COMPLETE:
        print(f"{folder} holds this very sweep already, with nothing left to do. Run it anew with another --name.")
        if resume and config.tracking.mlflow:
            send_again(config, folder, note)
        return print_outcome(console, folder, config)
    data = check_data(config, origin)
    check_weights(config, data, origin)
    earlier = read_warm_start(warm_start, config, note) if warm_start else None
    print_start(console, folder.name, config, data, check_machine(config, origin))

    from orchestrator.ledger.ledger import Ledger

    folder.mkdir(parents=True, exist_ok=True)
    with Ledger(folder, note=note) as ledger:  # its lock keeps others out
        past = ledger.past
        if bool(past) != resume:
            raise ConfigError(f"{folder} was changed by another process meanwhile; nothing was started")
        if resume:
            check_split(past, data, folder)
            print_going_on(console, past)

        from orchestrator.tracking.tracker import Tracker

        tracking = config.tracking
        tracker = Tracker(tracking, folder.parent, folder.name, note, past) if tracking.mlflow else None  # while Ray starts

        from orchestrator.run.runner import local_ray, run_trials, sweep_facts
        from orchestrator.terminal.progress import Progress

        facts = sweep_facts(config, data, git_commit())
        try:
            with local_ray():
                ctrl_c.check()
                text = f"# From {origin.file}\n{dump_yaml(config.model_dump())}"
                wait_for_space(lambda: replace_text(folder / "sweep.yaml", text), once(note))
                with Progress(config, folder.name, console, past) as progress:
                    for listener in (progress, tracker):
                        if listener:
                            ledger.listen(listener)
                    begun = begin(ledger, facts, warm_start, earlier)
                    options = {"trainable": trainable} if trainable else {}
                    status, reason = run_trials(config, folder, ledger, [*past, begun], note, ctrl_c.ignore, **options)
                ctrl_c.ignore()
                status = conclude(folder, ledger, status, reason, len(data.test), ctrl_c, note)
        finally:
            if tracker:
                tracker.close()
    if status == "interrupted":
        return print_interrupted(console, folder)
    return print_outcome(console, folder, config, tracker if tracker and not tracker.error else None)


def begin(ledger: "Ledger", facts: dict[str, Any], warm_start: Path | None, earlier: list[dict[str, Any]] | None) -> "Event":
    """Appends how the sweep begins, or begins again; returns that event."""
    if ledger.past:
        segment = 2 + sum(event["event"] == "sweep_resume" for event in ledger.past)
        kept = {key: facts[key] for key in ("config", "git_commit", "versions")}
        return ledger.append("sweep_resume", segment=segment, **kept)
    learnt = {"warm_start": earlier, "warm_start_from": str(warm_start)} if earlier else {}
    return ledger.append("sweep_start", **facts, **learnt)


def send_again(config: SweepConfig, folder: Path, note: Callable[[str], None]) -> None:
    """Sends MLflow what it lacks of a sweep that is over: it may have been killed after its last event."""
    from orchestrator.ledger.ledger import read_ledger
    from orchestrator.tracking.tracker import Tracker

    Tracker(config.tracking, folder.parent, folder.name, note, read_ledger(folder)).close()


def read_warm_start(source: Path, config: SweepConfig, note: Callable[[str], None]) -> list[dict[str, Any]]:
    """The trials of an earlier sweep that the sampler can learn from; `note` tells where they are others than ours.

    Raises:
        ConfigError: when there is none, or it measured something else.
    """
    from orchestrator.decide.warm_start import earlier_trials, other_settings
    from orchestrator.ledger.ledger import read_ledger

    events = read_ledger(source)
    trials = earlier_trials(source, events, config)
    if other := other_settings(events, config):
        note(f"the trials of {source} had other settings, so that their values may mislead: {'; '.join(other)}")
    return trials


def conclude(
    folder: Path,
    ledger: "Ledger",
    status: str,
    reason: str | None,
    num_test: int,
    ctrl_c: "CtrlC",
    note: Callable[[str], None],
) -> str:
    """Tables, export and the sweep's last event. Returns how the sweep ended: as it did, failed when no trial finished, or
    interrupted when the export was. `reason`: why trials are left, if any.
    """
    from orchestrator.decide.conductor import decision_hash
    from orchestrator.export import NothingToExport, export_best
    from orchestrator.ledger.ledger import read_ledger
    from orchestrator.outcome.tables import write_tables
    from trainables.checkpoint import DamagedCheckpoint

    wait_for_space(lambda: write_tables(folder), once(note))
    if status != "interrupted":
        with suppress(OSError):
            print(f"exporting the best trial; its test set, {num_test} images, is read once", flush=True)
        try:
            set_aside(folder / "best")
            with ctrl_c.heeded():
                wait_for_space(lambda: export_best(folder, ledger), once(note))
        except NothingToExport:
            status = "failed"
        except DamagedCheckpoint as error:
            note(f"the best trial cannot be exported: {error}")
            status = "failed"
        except KeyboardInterrupt:
            status = "interrupted"
    complete = status != "interrupted" and reason is None
    ledger.append(
        "sweep_end", status=status, reason=reason, complete=complete, decisions_sha256=decision_hash(read_ledger(folder))
    )
    return status


def set_aside(best: Path) -> None:
    """Keeps an earlier export under another name: a sweep that goes on may find a better trial."""
    if best.exists():
        number = next(number for number in itertools.count(1) if not best.with_name(f"best.{number}").exists())
        best.rename(best.with_name(f"best.{number}"))


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
