"""Exports the best trial of a sweep: configuration, model, card, metrics, provenance. Reads the sealed test set once.

python -m orchestrator.export RESULTS/NAME [--out DIR]
"""

import argparse
import sys
from pathlib import Path

from orchestrator.config.sweep_config import read_sweep
from orchestrator.ledger.ledger import Ledger, read_ledger
from orchestrator.outcome.best import NothingToExport, export_best
from trainables.checkpoint import DamagedCheckpoint
from trainables.command_line import steady_output, typed_path
from trainables.config_file import ConfigError


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m orchestrator.export", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("folder", type=typed_path, help="results folder of a sweep")
    parser.add_argument("--out", type=typed_path, help="where to write (default: FOLDER/best)")
    with steady_output():
        given = parser.parse_args(arguments)
        return export(given.folder, given.out)


def export(folder: Path, out: Path | None) -> int:
    """Exports the best trial of the sweep in `folder`. Returns the exit code."""
    try:
        # Checked first, because opening a Ledger creates a file also in a folder that holds no sweep.
        read_ledger(folder)
        read_sweep(folder / "sweep.yaml")
        with Ledger(folder) as ledger:
            print(f"exported {export_best(folder, ledger, out)}")
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (NothingToExport, DamagedCheckpoint) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
