"""Exports the best trial of a sweep: configuration, model, card, metrics, provenance. Reads the sealed test set once.

python -m orchestrator.export RESULTS/NAME [--out DIR] [--top K | --pareto | --trial T] [--read-test] [--onnx] [--json]
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from orchestrator.config.sweep_config import read_sweep
from orchestrator.ledger.ledger import Ledger, read_ledger
from orchestrator.outcome.best import ExportSource, export_choices, source_of
from orchestrator.outcome.choice import Choice, NothingToExport, best, certain, pareto, top
from trainables.checkpoint import DamagedCheckpoint
from trainables.command_line import add_json, answering, steady_output, typed_path
from trainables.config_file import ConfigError


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m orchestrator.export", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("folder", type=typed_path, help="results folder of a sweep")
    parser.add_argument("--out", type=typed_path, help="where to write (default: FOLDER/best)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--top", type=int, metavar="K", help="the K best configurations, to FOLDER/best_1 ... or OUT/1 ...")
    which.add_argument("--pareto", action="store_true", help="all trials of the Pareto front of search.objectives")
    which.add_argument("--trial", metavar="T", help="a certain trial, as t0007, to FOLDER/export_T")
    parser.add_argument(
        "--read-test", action="store_true", help="read the test set for every exported trial, not for the best one alone"
    )
    parser.add_argument("--onnx", action="store_true", help="write the model as model.onnx, too; needs the extra onnx")
    add_json(parser)
    with steady_output():
        given = parser.parse_args(arguments)
        with answering(given.json) as answer:
            answer |= {"folder": str(given.folder), "exported": [], "error": None}
            answer["exit_code"] = code = export(given, answer)
        return code


def export(given: argparse.Namespace, answer: dict[str, Any]) -> int:
    """Exports what the command line asks for, and fills the answer for programs. Returns the exit code."""
    folder = given.folder
    try:
        check_onnx(given.onnx)
        # Checked first, because opening a Ledger creates a file also in a folder that holds no sweep.
        read_ledger(folder)
        read_sweep(folder / "sweep.yaml")
        with Ledger(folder) as ledger:
            source = source_of(folder, ledger, note=lambda text: print(f"note: {text}", file=sys.stderr))
            for place in export_choices(source, chosen(given, source), given.read_test, given.onnx):
                print(f"exported {place}")
                answer["exported"].append(place)
    except (ConfigError, OSError, NothingToExport, DamagedCheckpoint) as error:
        print(f"error: {error}", file=sys.stderr)
        answer["error"] = str(error)
        return 2 if isinstance(error, ConfigError | OSError) else 1
    return 0


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


def chosen(given: argparse.Namespace, source: ExportSource) -> list[Choice]:
    """The trials that the command line asks for."""
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
