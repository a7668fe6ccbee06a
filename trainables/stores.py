"""Folders in stores, such as s3://bucket/folder: reached through pyarrow's file systems, and patiently.

A store answers with errors when it is asked too much, and may be gone for a while. Both pass.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "file")
PATIENCE_S = 300.0
"""How long a store may fail before what needs it fails."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0


def is_store(address: str | Path) -> bool:
    """Whether an address means a folder in a store rather than one on this machine."""
    return "://" in str(address)


def open_store(address: str) -> tuple[Any, str]:
    """The pyarrow file system that an address means, and the folder there.

    Args:
        address: as s3://bucket/folder, or file:///folder. Credentials come from where the store's own tools look for them.

    Raises:
        ValueError: when it is no such address, or its scheme is unknown.
    """
    import pyarrow as pa
    from pyarrow import fs

    scheme = address.partition("://")[0]
    if scheme not in SCHEMES:
        raise ValueError(f"{address!r} is no address of a store; allowed: {', '.join(f'{name}://' for name in SCHEMES)}")
    try:
        system, folder = fs.FileSystem.from_uri(address)
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"{address!r} cannot be opened: {error}") from error
    return system, folder.rstrip("/")


def patiently(
    action: Callable[[], T],
    note: Callable[[str], None] = lambda text: None,
    patience_s: float = PATIENCE_S,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """The result of `action`, which is repeated after growing pauses while it raises an OSError.

    A missing file is an answer, not a failure of the store, and is raised at once.

    Args:
        action: may be called again after a failure.
        note: told of the first failure.
        patience_s: seconds after which the last error is raised.
        sleep: called for each pause.
        clock: seconds.
    """
    since, pause, told = clock(), FIRST_PAUSE_S, False
    while True:
        try:
            return action()
        except FileNotFoundError:
            raise
        except OSError as error:
            if clock() - since + pause > patience_s:
                raise
            if not told:
                note(f"{error}; trying again")
                told = True
        sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_S)
