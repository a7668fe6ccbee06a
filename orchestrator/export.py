"""Exports the best trial of a sweep: configuration, model, card, metrics, provenance. Reads the sealed test set once.

python -m orchestrator.export RESULTS/NAME [--out DIR] [--top K | --pareto | --trial T] [--read-test] [--onnx] [--json]
"""

import argparse
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Tables and torch take seconds to import: a wrong input is answered before any of them is loaded.
from orchestrator import parsers
from orchestrator.config.sweep_config import read_sweep
from orchestrator.ledger.ledger import Ledger, read_ledger, start_of
from trainables.command_line import answered
from trainables.config_file import ConfigError

if TYPE_CHECKING:
    from orchestrator.outcome.best import ExportSource
    from orchestrator.outcome.choice import Choice


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    return answered(parsers.export(), arguments, _exported)


def _exported(given: argparse.Namespace, answer: dict[str, Any]) -> int:
    answer |= {"folder": str(given.folder), "exported": []}
    try:
        export(given, answer)
    except (ConfigError, FileExistsError) as error:
        code, text = 2, f"error: {error}"
    except (OSError, ValueError, RuntimeError) as error:  # images that are gone, a full disk, no trial that has finished
        code, text = 1, f"error: {error}"
    except KeyboardInterrupt:
        code, text = 130, "interrupted; nothing was exported"
    else:
        return 0
    print(text, file=sys.stderr)
    answer["error"] = text.removeprefix("error: ")
    return code


def export(given: argparse.Namespace, answer: dict[str, Any]) -> None:
    """Exports what the command line asks for, and fills the answer for programs.

    Raises:
        ConfigError: when the folder holds no sweep, or no such trial.
        FileExistsError: when something is there already.
        NothingToExport: when no trial has finished.
        DamagedCheckpoint: when a trial's state is gone.
        ValueError: when the data are not those of the sweep any more.
    """
    folder = given.folder
    check_onnx(given.onnx)
    # Checked first, because opening a Ledger creates a file also in a folder that holds no sweep.
    start_of(read_ledger(folder))
    read_sweep(folder / "sweep.yaml")
    from orchestrator.outcome.best import export_choices, source_of
    from orchestrator.report.suspects_sheet import examine_here, list_suspects

    with Ledger(folder) as ledger:
        note, list_them = (lambda text: print(f"note: {text}", file=sys.stderr)), functools.partial(list_suspects, examine_here)
        source = source_of(folder, ledger, note=note, list_suspects=list_them)
        for place in export_choices(source, chosen(given, source), given.read_test, given.onnx):
            print(f"exported {place}")
            answer["exported"].append(place)


def check_onnx(wanted: bool) -> None:
    """Sees that a model can be written as an ONNX file, if one is wanted.

    Raises:
        ConfigError: when a package is missing.
    """
    if not wanted:
        return
    from trainables.export_program import ONNX_PACKAGES, has_onnx

    if not has_onnx():
        cure = "pip install 'tailtune[onnx]'"
        raise ConfigError(f"command line: --onnx needs the packages {', '.join(ONNX_PACKAGES)}, and one is missing; {cure}")


def chosen(given: argparse.Namespace, source: "ExportSource") -> "list[Choice]":
    """The trials that the command line asks for."""
    from orchestrator.outcome.choice import best, certain, pareto, top

    folder: Path = given.folder
    if given.trial is not None:
        return certain(folder, source.rows, source.trials, given.trial, given.out)
    if given.pareto:
        return pareto(folder, source.rows, read_sweep(folder / "sweep.yaml"), given.out)
    if given.top is not None:
        return top(folder, source.rows, given.top, given.out)
    return best(folder, source.rows, given.out)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
