"""Working folders of a sweep: removed at its end, and those of killed sweeps at the start of the next one."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainables.machine import ray_folder

SCRATCH, RAY = "tailtune-", "tt-ray-"
"""How the names of our folders begin: for heartbeats and what Tune writes, and for Ray's sockets and logs."""
LOCK = "lock"
"""A file that the sweep's process locks for as long as it lives. A process number would say less: containers that share a
temporary folder have numbers of their own."""


@contextmanager
def working_folder(prefix: str, where: str | None = None) -> Iterator[Path]:
    """A new folder in `where` (None: the usual temporary folder), removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=where))
    with open(folder / f"{LOCK}.new", "w") as lock:
        with suppress(OSError):  # without locks nobody takes the folder for a leftover
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(folder / f"{LOCK}.new", folder / LOCK)  # now that it is locked: others look at this name only
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers() -> None:
    """Removes the working folders of sweeps of this user whose processes are gone."""
    for folder in leftovers():
        shutil.rmtree(folder, ignore_errors=True)


def leftovers() -> list[Path]:
    """Working folders of this user that no process holds."""
    places = [(prefix, Path(place)) for prefix, place in ((SCRATCH, tempfile.gettempdir()), (RAY, ray_folder()))]
    return [folder for prefix, place in places for folder in sorted(place.glob(f"{prefix}*")) if is_left(folder)]


def is_left(folder: Path) -> bool:
    """Whether a folder is one of ours whose process is gone. In doubt it is not."""
    try:
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            return False
        with open(folder / LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, gone meanwhile, without a lock, or on a file system without locks
        return False
    return True
