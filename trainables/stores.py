"""Folders in stores, such as s3://bucket/folder: reached through pyarrow's file systems, and patiently.

A store answers with errors when it is asked too much, and may be gone for a while. Both pass. Other errors are answers: there is
no such bucket, or no permission.
"""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "file")
SMALL_AT_ONCE = "allow_delayed_open=true"
"""Lets Arrow write a small file with one request in place of three."""
PATIENCE_S = 300.0
"""How long a store may fail before what needs it fails."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0
ANSWERS = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)
REFUSALS = re.compile(
    # S3, by the names that Arrow gives to its errors. Without one it shows the HTTP status: 408 and 429 pass, the others stay.
    r"AWS Error (ACCESS_DENIED|NO_SUCH_BUCKET|NO_SUCH_KEY|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|UNRECOGNIZED_CLIENT"
    r"|(MISSING|INCOMPLETE|INVALID)_(SIGNATURE|AUTHENTICATION_TOKEN)|SIGNATURE_DOES_NOT_MATCH|OPT_IN_REQUIRED)"
    r"|HTTP status (3\d\d|4(?!08|29)\d\d)|Bucket '.*' not found"
    # Google's and Azure's.
    r"|Status\((PERMISSION_DENIED|UNAUTHENTICATED|NOT_FOUND|INVALID_ARGUMENT)"
    r"|(AuthenticationFailed|AuthorizationFailure|AuthorizationPermissionMismatch|ContainerNotFound|FilesystemNotFound)"
)
"""What the message of an error contains that would come again however often one asks."""


def is_store(address: str | Path) -> bool:
    """Whether an address means a folder in a store rather than one on this machine."""
    return "://" in str(address)


def open_store(address: str, patience_s: float = 0.0) -> tuple[Any, str]:
    """The pyarrow file system that an address means, and the folder there.

    Args:
        address: as s3://bucket/folder, or file:///folder. Credentials come from where the store's own tools look for them.
        patience_s: seconds for which a store may fail that is asked for the bucket's region.

    Raises:
        ValueError: when it is no such address, or its scheme is unknown.
    """
    import pyarrow as pa
    from pyarrow import fs

    given, scheme = address, address.partition("://")[0]
    if scheme not in SCHEMES:
        raise ValueError(f"{address!r} is no address of a store; allowed: {', '.join(f'{name}://' for name in SCHEMES)}")
    if scheme == "s3" and SMALL_AT_ONCE not in address:
        address += f"{'&' if '?' in address else '?'}{SMALL_AT_ONCE}"
    try:
        system, folder = patiently(lambda: fs.FileSystem.from_uri(address), patience_s=patience_s)
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"{given!r} cannot be opened: {error}") from error
    return system, folder.rstrip("/")


def patiently(
    action: Callable[[], T],
    note: Callable[[str], None] = lambda text: None,
    patience_s: float = PATIENCE_S,
    sleep: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """The result of `action`, which is repeated after growing pauses while it raises an OSError.

    A missing file and a refusal are answers, not failures of the store, and are raised at once.

    Args:
        action: may be called again after a failure.
        note: told of the first failure.
        patience_s: seconds from the first failure after which the last error is raised.
        sleep: called for each pause.
        clock: seconds.
    """
    since: float | None = None
    pause = FIRST_PAUSE_S
    while True:
        try:
            return action()
        except OSError as error:
            now = clock()
            if is_answer(error) or now - (now if since is None else since) + pause > patience_s:
                raise
            if since is None:
                since = now
                note(f"{error}; trying again")
        sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_S)


def is_answer(error: OSError) -> bool:
    """Whether an error of a store would come again however often one asks: something is missing, or not allowed."""
    return isinstance(error, ANSWERS) or bool(REFUSALS.search(str(error)))
