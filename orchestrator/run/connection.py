"""Connects a sweep's process to Ray: one of its own on this machine, or a cluster that runs already."""

import ctypes
import functools
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

# Ray reads this when it is imported: no usage reports.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray._private import worker as ray_worker
from ray._private.services import canonicalize_bootstrap_address_or_die

from orchestrator.run.leftovers import RAY, remove_leftovers, working_folder
from trainables.config_file import ConfigError
from trainables.machine import num_cores, ray_folder

ANSWER_S = 10.0
"""Seconds that the head of a cluster may take to answer."""


def connected(address: str | None) -> AbstractContextManager[None]:
    """Ray for as long as the block lasts.

    Args:
        address: of a cluster, as `auto` or HOST:PORT; None starts Ray on this machine.
    """
    return local_ray() if address is None else joined_ray(address)


def check_ray() -> None:
    """Sees that this process may start Ray.

    Raises:
        ConfigError: when it is connected to Ray already.
    """
    if ray.is_initialized():
        raise ConfigError(
            "this process is connected to Ray already, and a sweep starts Ray by itself; nothing was started; allowed: call "
            "ray.shutdown() first, or run the sweep in another process"
        )


@contextmanager
def importable_everywhere() -> Iterator[None]:
    """Processes that start in this block can import plug-ins from the same folders as this one. Ray itself passes on the starting
    folder only, not what a script or a notebook added to `sys.path`.
    """
    before = os.environ.get("PYTHONPATH")
    own = [os.path.abspath(folder) for folder in sys.path if folder and not folder.startswith((sys.prefix, sys.base_prefix))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([*own, *([before] if before else [])]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@contextmanager
def local_ray() -> Iterator[None]:
    """Ray on this machine, for as long as the block lasts. Other clusters on the machine are not touched."""
    remove_leftovers()
    with working_folder(RAY, ray_folder()) as folder:
        with importable_everywhere(), own_signals():
            ray.init(
                "local",
                num_cpus=num_cores(),
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                _temp_dir=str(folder),
            )
        with until_shut_down():
            yield


@contextmanager
def joined_ray(address: str) -> Iterator[None]:
    """The cluster at `address`, for as long as the block lasts. It runs on afterwards. Plug-ins must be installed on its
    machines, or lie in the folder in which this process was started.

    Raises:
        ConfigError: when there is none, or it does not let this process in.
    """
    with own_signals():
        try:
            ray.init(answering(address), log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise ConfigError(
                f"command line: --address is {address}: {str(error).splitlines()[0]}; nothing was started; allowed: auto on a "
                "machine of a running cluster, or HOST:PORT of its head. A cluster with token authentication wants "
                "RAY_AUTH_MODE=token and the token in ~/.ray/auth_token"
            ) from error
    ray_worker.print_to_stdstream = _nothing  # pages of the state of a machine that was lost, in the middle of our display
    with until_shut_down():
        yield


def machines_up() -> list[dict[str, float]]:
    """The resources of each machine of the connected cluster."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def answering(address: str) -> str:
    """HOST:PORT of the cluster that `address` means, which takes connections: Ray itself would try for minutes.

    Raises:
        OSError: when nobody answers, or `auto` means no cluster, or several.
        ValueError: when it is no address.
    """
    found: str = canonicalize_bootstrap_address_or_die(address)
    host, port = found.rsplit(":", 1)
    socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    return found


def _nothing(*_: object, **__: object) -> None:
    """Prints nothing; what a machine says stands in Ray's logs."""


@contextmanager
def until_shut_down() -> Iterator[None]:
    """Leaves Ray at the end of the block."""
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a failed trial's traceback goes into the ledger instead
    try:
        yield
    finally:
        ray.shutdown()
        end_without_destructors()


@functools.cache
def end_without_destructors() -> None:
    """Lets this process end without the destructors of C++ libraries.

    Threads of Ray outlive `ray.shutdown()`. One of them, when it logs through a logger that is destroyed already, would turn a
    sweep that has succeeded into a segmentation fault. All that belongs to Python, such as `atexit` and open files, ends as ever,
    and the exit code stays.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):  # of glibc
        libc.on_exit(libc._exit, None)


@contextmanager
def own_signals() -> Iterator[None]:
    """For the start of Ray: its processes do not take SIGHUP, which a closing terminal sends to all of them, so that trials can
    end their epochs; and the handler of SIGTERM, which Ray replaces, is ours again afterwards.
    """
    # Processes inherit the mask of blocked signals. This process has other threads, which still take the signal.
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        if main and handler is not None:
            signal.signal(signal.SIGTERM, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
