"""Lists the training images of a sweep whose labels are suspicious, and shows the first hundred on one page.

    python -m orchestrator.suspects RESULTS/NAME [--folds K] [--out DIR] [--json]

Without --folds the exported model judges the images that it was trained on. With --folds the best configuration is trained K
times, each time without a part of the images, and judges that part.

Exit codes: 0 done; 1 a model diverged, or the images are not those of the sweep; 2 the input was wrong; 130 interrupted.
"""

import argparse
import functools
import shlex
import sys
from pathlib import Path
from typing import Any

# Tables and torch take seconds to import: a wrong input is answered before any of them is loaded.
from orchestrator import parsers
from orchestrator.ledger.ledger import read_ledger, start_of
from orchestrator.outcome.bundle import Mismatch, check_bundle
from orchestrator.outcome.suspect_files import LIST, SHEET, extent
from trainables.command_line import answered
from trainables.config import TrialConfig
from trainables.config_file import ConfigError, read_settings
from trainables.model_folder import MODEL
from trainables.shown_commands import shown_command

BEST = "best"
"""The folder of the exported trial."""


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    return answered(parsers.suspects(), arguments, _listed)


def _listed(given: argparse.Namespace, answer: dict[str, Any]) -> int:
    answer |= {"folder": str(given.folder), "list": None, "sheet": None}
    try:
        suspects(given, answer)
    except ConfigError as error:
        code, text = 2, f"error: {error}"
    except (OSError, ValueError, RuntimeError, Mismatch) as error:  # images that are gone, a full disk, a model that diverges
        code, text = 1, f"error: {error}"
    except KeyboardInterrupt:
        code, text = 130, "interrupted; nothing was written"
    else:
        return 0
    print(text, file=sys.stderr)
    answer["error"] = text.removeprefix("error: ")
    return code


def suspects(given: argparse.Namespace, answer: dict[str, Any]) -> None:
    """Writes the list and the sheet, and fills the answer for programs.

    Raises:
        ConfigError: when there is no sweep or no exported trial, or the folds are too few or too many.
        Mismatch: when the export was changed.
        ValueError: when the data are not those of the sweep any more.
        TrialEnded: when a model diverges.
    """
    folder, best = given.folder, given.folder / BEST
    start_of(read_ledger(folder))
    if not (best / MODEL).is_file():
        command = shown_command("orchestrator.export", shlex.quote(str(folder)))
        raise ConfigError(f"{folder} has no exported trial; `{command}` exports the best one")
    config = read_settings(TrialConfig, best / "config.yaml")
    trial_id = str(check_bundle(best)[0]["trial_id"])
    check_folds(given.folds, config)
    out = given.out or folder / ("suspects" if given.folds is None else f"suspects_{given.folds}_folds")
    check_out(out)
    from orchestrator.report.suspects_sheet import write_suspects

    if given.folds is None:
        from trainables.suspects import examine

        found, judge = examine(best / MODEL, best_epoch_of(folder, trial_id)), f"the model of {trial_id}"
    else:
        from trainables.suspects import cross_examine

        tell = functools.partial(print_epoch, given.folds, config.epochs)
        found, judge = cross_examine(config, given.folds, tell), f"{given.folds} models with the settings of {trial_id}"
    out.mkdir(parents=True, exist_ok=True)
    facts = write_suspects(out, found, folder, judge)
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"Suspicious labels: {out / SHEET} shows {extent(facts)}")
    answer |= {"list": out / LIST, "sheet": out / SHEET, **facts}


def check_folds(number: int | None, config: TrialConfig) -> None:
    """Sees that the images can be divided into so many folds.

    Raises:
        ConfigError: when they cannot.
    """
    if number is None:
        return
    from trainables.data import build_data

    try:
        images = len(build_data(config.data, config.seed).train)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not 2 <= number <= images:
        raise ConfigError(f"command line: --folds is {number}; allowed: 2 to {images}, the number of training images")


def check_out(out: Path) -> None:
    """Sees that a list may be written to a folder: it is new, or holds an earlier list and nothing else.

    Raises:
        ConfigError: when it holds other things.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"command line: --out is {out}, which is a file; allowed: a new folder")
    others = sorted({path.name for path in out.iterdir()} - {LIST, SHEET}) if out.is_dir() else []
    if others:
        raise ConfigError(
            f"command line: --out is {out}, which holds {others[0]}; allowed: a new folder, or that of an earlier list"
        )


def best_epoch_of(folder: Path, trial_id: str) -> bytes | None:
    """The epoch and theta of the exported model, packed; None when the trial's state is gone."""
    from orchestrator.ledger.trial_states import trial_states_of
    from orchestrator.outcome.best import state_with_best_epoch
    from trainables.checkpoint import DamagedCheckpoint, pack

    try:
        best = state_with_best_epoch(folder, trial_states_of(read_ledger(folder))[trial_id])["best"]
    except DamagedCheckpoint as error:
        print(f"note: the list has no weights, because the state of {trial_id} is gone: {error}", file=sys.stderr)
        return None
    return pack({"epoch": best["epoch"], "theta": best["theta"]}) if best.get("theta") is not None else None


def print_epoch(folds: int, epochs: int, fold: int, epoch: int) -> None:
    """Says which epoch of which fold begins."""
    print(f"fold {fold + 1}/{folds}: epoch {epoch}/{epochs}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
