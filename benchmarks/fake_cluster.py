"""A Ray cluster with an autoscaler on this machine: machines are processes, GPUs are invented (clusters/fake.yaml).

All processes live in a pid namespace of their own, so nothing of them is left, and no other Ray is touched. Needs util-linux's
`unshare` and the right to make namespaces.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import yaml

ROOT = Path(__file__).parents[1]
FILE = ROOT / "clusters" / "fake.yaml"
START_S = 90.0


class FakeCluster(NamedTuple):
    """A running fake cluster."""

    address: str
    file: Path
    """The cluster's file."""
    environment: dict[str, str]
    """For processes that use the cluster."""
    log: Path
    inside: list[str]
    """How a command begins that runs among the cluster's processes: Ray takes no driver from another namespace."""

    def start(self, *words: str, cwd: Path = ROOT, **options: Any) -> subprocess.Popen[str]:
        """Starts this Python with `words` in the folder `cwd`, among the cluster's processes."""
        command = [*self.inside, f"--wdns={cwd}", sys.executable, *words]
        return subprocess.Popen(command, env=self.environment, text=True, start_new_session=True, **options)

    def machines(self) -> list[psutil.Process]:
        """The machines that are up beside the head: for each, the process that stands for it."""
        found = []
        for process in psutil.process_iter(["name"]):
            with suppress(psutil.Error):
                if process.info["name"] == "raylet" and str(self.file.parent) in " ".join(process.cmdline()):
                    found += [process] if "RAY_NODE_TYPE_NAME" in process.environ() else []
        return found


def unavailable() -> str:
    """Why there can be no fake cluster here; empty when there can."""
    if shutil.which("unshare") is None:
        return "unshare (util-linux) is missing"
    done = subprocess.run([*NAMESPACE, "true"], capture_output=True, text=True)
    return "" if done.returncode == 0 else f"no namespace may be made here: {done.stderr.strip()}"


NAMESPACE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


@contextmanager
def fake_cluster(port: int = 6399, **changes: Any) -> Iterator[FakeCluster]:
    """Starts a head without a GPU; machines come when they are asked for.

    Args:
        port: of the head.
        changes: of the cluster's file, at its top.
    """
    folder = Path(tempfile.mkdtemp(prefix="tt-fake-", dir="/tmp"))  # sockets need a short name
    tree = yaml.safe_load(FILE.read_text(encoding="utf-8")) | changes
    tree["provider"]["gcs_address"] = f"127.0.0.1:{port}"
    file, log = folder / "cluster.yaml", folder / "head.log"
    file.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    # Ray counts the GPUs in CUDA_VISIBLE_DEVICES, and these are not real.
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"} | {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "AUTOSCALER_HEARTBEAT_TIMEOUT_S": "10",  # a machine that is silent for so long is replaced
    }
    command = [
        *NAMESPACE, str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={port}", "--num-cpus=4",
        "--node-ip-address=127.0.0.1", "--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}",
        f"--autoscaling-config={file}", "--object-store-memory=200000000",
    ]  # fmt: skip
    with log.open("wb") as output:
        head = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        deadline = time.monotonic() + START_S
        while b"Ray runtime started" not in log.read_bytes():
            if head.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no head came up: {log.read_text(errors='replace')}")
            time.sleep(0.2)
        first = Path(f"/proc/{head.pid}/task/{head.pid}/children").read_text().split()[0]
        inside = ["nsenter", f"--target={first}", "--pid", "--mount"]
        yield FakeCluster(f"127.0.0.1:{port}", file, environment, log, inside)
    finally:
        head.kill()
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)
