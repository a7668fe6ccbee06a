"""MLflow's own server as a process on this machine."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

HOST = "127.0.0.1"
START_S = 120.0
"""Seconds that the server may take to start."""
LEAN = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
"""By itself the server starts ten processes for jobs that we do not have."""


def start(
    store: str,
    artifacts: Path,
    port: int,
    said: IO[bytes],
    environment: Mapping[str, str] = os.environ,
    python: str = sys.executable,
    **options: Any,
) -> "subprocess.Popen[bytes]":
    """Starts the server, and returns at once.

    Args:
        store: URI of the database.
        artifacts: where files of new experiments go.
        port: on this machine alone.
        said: takes what the server prints.
        environment: of the server.
        python: the interpreter, whose MLflow it is.
        options: of subprocess.Popen.
    """
    command = [python, "-m", "mlflow", "server", "--backend-store-uri", store, "--host", HOST, "--port", str(port)]
    command += [
        "--default-artifact-root",
        artifacts.resolve().as_uri(),
        "--workers",
        "1",
        "--uvicorn-opts",
        "--log-level warning",
    ]
    return subprocess.Popen(command, env={**environment, **LEAN}, stdout=said, stderr=said, **options)


def wait_for(server: "subprocess.Popen[bytes]", port: int) -> bool:
    """Waits until the server answers; returns whether it does. It has ended, or takes too long, otherwise."""
    deadline = time.monotonic() + START_S
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy leads to this machine
    while server.poll() is None and time.monotonic() < deadline:
        try:
            opener.open(f"http://{HOST}:{port}/health", timeout=1).close()
            return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    return False
