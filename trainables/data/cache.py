"""The cache folder of this machine: where it is, and how several processes make a folder in it once, whatever ends them."""

import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from trainables.alive import alive
from trainables.stores import PATIENCE_S

CACHE = "TAILTUNE_CACHE"
"""The environment variable that names the cache's folder."""
LOCK, PARTIAL = "lock", ".partial"
ABANDONED_S = 2 * PATIENCE_S
"""Age of another machine's partial file from which its writer must be dead."""
LOCK_POLL_S = 0.2


def cache_folder() -> Path:
    """Where copies lie: $TAILTUNE_CACHE, or `tailtune/data` in the user's cache folder."""
    if given := os.environ.get(CACHE):
        return Path(os.path.abspath(os.path.expanduser(given)))
    usual = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.path.abspath(usual), "tailtune", "data")


@contextmanager
def locked(place: Path) -> Iterator[bool]:
    """Holds the lock of a folder, which is made if it is missing. The value is False where the file system has no locks."""
    import fcntl  # not every system has it

    while True:
        place.mkdir(parents=True, exist_ok=True)
        with open(place / LOCK, "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                alive()
                time.sleep(LOCK_POLL_S)
            except OSError:
                yield False
                return
            else:
                if is_file_of(place / LOCK, lock):  # otherwise the folder was removed meanwhile
                    yield True
                    return


def is_file_of(path: Path, opened: IO[str]) -> bool:
    """Whether the path still leads to the opened file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(opened.fileno()))
    except FileNotFoundError:
        return False


def partial_name(place: Path) -> Path:
    """A new name for a file that is being written; it begins with the machine's name."""
    return place / f"{_machine()}.{secrets.token_hex(8)}{PARTIAL}"


def _machine() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:64]


def remove_partials(place: Path, alone: bool) -> None:
    """Removes what killed writers have left. Locks may not reach other machines, whose partial files must have a certain age.

    Args:
        place: the folder.
        alone: whether this process holds the folder's lock.
    """
    for file in place.glob(f"*{PARTIAL}"):
        mine = alone and file.name.startswith(f"{_machine()}.")
        try:
            if mine or time.time() - file.stat().st_mtime > ABANDONED_S:
                file.unlink()
        except FileNotFoundError:
            continue
