"""Sends a sweep to MLflow again, as far as MLflow lacks it: after a server was away, or to another or an empty server.

python -m orchestrator.sync RESULTS/NAME [tracking.uri=http://... tracking.experiment=NAME]
"""

import functools
import sys
from pathlib import Path

from orchestrator import parsers
from orchestrator.config.sweep_config import read_sweep
from orchestrator.ledger.ledger import LEDGER, Ledger, read_ledger
from orchestrator.run.session import send_again
from trainables.command_line import ended_like_ctrl_c, steady_output
from trainables.config_file import ConfigError

NO_LIMIT_S = 1e7


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0 when MLflow has everything of the ledger, 1 when it has not, 2 when there is nothing to send."""
    with steady_output(), ended_like_ctrl_c():
        given = parsers.sync().parse_args(arguments)
        try:
            folder = given.folder.absolute()
            read_ledger(folder)  # opening a Ledger creates a file also in a folder that holds no sweep
            if wrong := [change for change in given.overrides if not change.startswith("tracking.")]:
                raise ConfigError(
                    f"command line: {wrong[0]} is no setting of tracking; allowed: tracking.uri=..., tracking.experiment=..., "
                    "tracking.registered_model=..."
                )
            # An ablation of whole searches has a ledger, and each search has one of its own.
            parts = [folder, *sorted(part.parent for part in folder.glob(f"search_*/{LEDGER}"))]
            is_complete = all(send(part, given.overrides) for part in parts)
        except (ConfigError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("\ninterrupted; the same command sends the rest", file=sys.stderr)
            return 130
    if is_complete:
        print(f"MLflow has everything of {given.folder}")
    return 0 if is_complete else 1


def send(folder: Path, overrides: list[str]) -> bool:
    """Sends a ledger; whether MLflow has everything of it.

    Raises:
        ConfigError: when the settings are wrong, or the sweep runs: then it sends itself.
    """
    config = read_sweep(folder / "sweep.yaml", [*overrides, "tracking.mlflow=true"])
    with Ledger(folder):
        return send_again(config, folder, functools.partial(print, file=sys.stderr), NO_LIMIT_S).error is None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
