"""Shows trials in MLflow's web interface, and names the page of a sweep.

python -m orchestrator.ui [RESULTS | RESULTS/NAME] [--port 5000]
"""

import shlex
import socket
import sys
import tempfile
from pathlib import Path

from orchestrator import parsers
from orchestrator.ledger.ledger import LEDGER
from orchestrator.tracking.local_store import STORE, home_of
from orchestrator.tracking.server import HOST, start, wait_for
from orchestrator.tracking.tracker import page_in
from trainables.command_line import ended_like_ctrl_c, steady_output
from trainables.config_file import ConfigError
from trainables.shown_commands import shown_command


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    with steady_output(), ended_like_ctrl_c():
        given = parsers.ui().parse_args(arguments)
        try:
            return show(given.folder, given.port)
        except ConfigError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 0


def show(folder: Path, port: int) -> int:
    """Starts a server, prints the page of the sweep in `folder`, or of the newest one, and waits for Ctrl-C.

    Raises:
        ConfigError: when there is nothing to show, or the port is taken.
    """
    folder = folder.absolute()
    sweep = folder if (folder / LEDGER).exists() else None
    home = home_of(sweep) if sweep else folder
    store = (home / STORE).resolve()
    if not store.is_file():
        raise ConfigError(
            f"{home / STORE} is missing: MLflow has nothing of {folder}; allowed: a folder of sweeps that were tracked there, "
            "as results after a sweep. A sweep with a tracking.uri is at that address"
        )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise ConfigError(f"--port is {port}: {error}; allowed: a free port, as --port {port + 50}") from error
    print("MLflow's web interface starts, which takes some seconds", flush=True)
    with tempfile.TemporaryFile() as said:
        server = start(f"sqlite:///{store}", home / "mlartifacts", port, said)
        try:
            page = page_in(store, sweep)  # while the server starts
            if sweep and page is None:
                cure = shown_command("orchestrator.sync", shlex.quote(str(sweep)))
                raise ConfigError(f"{store} has nothing of {sweep}; allowed: first {cure}")
            if not wait_for(server, port):
                said.seek(0)
                raise ConfigError(f"MLflow's server did not start: {said.read().decode(errors='replace')[-2000:].strip()}")
            print(f"{page.sweep if page else 'MLflow'}: http://{HOST}:{port}{page.address if page else ''}", flush=True)
            print("Ctrl-C stops it", flush=True)
            return server.wait()
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
