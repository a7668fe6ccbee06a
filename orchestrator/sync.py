"""Sends a sweep to MLflow again, as far as MLflow lacks it: after a server was away, or to another or an empty server.

python -m orchestrator.sync RESULTS/NAME [tracking.uri=http://... tracking.experiment=NAME]
"""

import argparse
import functools
import sys

from orchestrator.config.sweep_config import read_sweep
from orchestrator.ledger.ledger import Ledger, read_ledger
from orchestrator.run.session import send_again
from trainables.command_line import ended_like_ctrl_c, steady_output, typed_path
from trainables.config_file import ConfigError

NO_LIMIT_S = 1e7


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0 when MLflow has everything of the ledger, 1 when it has not, 2 when there is nothing to send."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.sync", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=typed_path, help="results folder of a sweep or an ablation")
    parser.add_argument(
        "overrides", nargs="*", metavar="tracking.KEY=VALUE", help="where to send it, if not as its sweep.yaml says"
    )
    with steady_output(), ended_like_ctrl_c():
        given = parser.parse_args(arguments)
        try:
            read_ledger(given.folder)  # opening a Ledger creates a file also in a folder that holds no sweep
            if wrong := [change for change in given.overrides if not change.startswith("tracking.")]:
                raise ConfigError(
                    f"command line: {wrong[0]} is no setting of tracking; allowed: tracking.uri=..., tracking.experiment=..."
                )
            config = read_sweep(given.folder / "sweep.yaml", [*given.overrides, "tracking.mlflow=true"])
            with Ledger(given.folder):  # a sweep that runs sends itself
                tracker = send_again(config, given.folder, functools.partial(print, file=sys.stderr), NO_LIMIT_S)
        except (ConfigError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("\ninterrupted; the same command sends the rest", file=sys.stderr)
            return 130
    if tracker.error is not None:
        return 1
    print(f"MLflow has everything of {given.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
