"""Files that appear whole or not at all, also on a disk that is full for a while, and their digests. Pure Python."""

import errno
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def replace_text(path: Path, text: str) -> None:
    """Writes a small file so that readers see the old or the new text, never a part."""
    replace_files(path.parent, {path.name: text.encode()})


def replace_files(folder: Path, contents: dict[str, bytes]) -> None:
    """Writes files, by name, so that readers see the old or the new content of each, never a part.

    The old ones are replaced when all new ones are written. When one cannot be, nothing stays of any: parts of files would hold
    the space that the next attempt needs.
    """
    partial = {name: folder / f"{name}.partial" for name in contents}
    try:
        for name, content in contents.items():
            partial[name].write_bytes(content)
            sync(partial[name])  # or a power cut could leave the new name with the content of nothing
        for name in contents:
            os.replace(partial[name], folder / name)
        sync(folder)
    except BaseException as error:
        for path in partial.values():
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = error.filename or str(folder)  # a disk that is full does not say for which file
        raise


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def wait_for_space(
    write: Callable[[], T],
    waiting: Callable[[str], None],
    pause_s: float = 1.0,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """What `write` returns; when the disk is full or a quota used up, it is called again until there is space.

    Args:
        write: may be called again after it has failed, as `replace_files` and `write_checkpoint` may.
        waiting: told before each pause what there is no space for; what it raises ends the waiting.
        pause_s: from one attempt to the next.
        sleep: makes the pauses.

    Raises:
        OSError: for all other reasons not to write.
    """
    while True:
        try:
            return write()
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            place = error.filename or "a file"
            waiting(f"{place}: no space left ({error.strerror}); trying again every {pause_s:g} s")
        sleep(pause_s)


def once(tell: Callable[[str], None]) -> Callable[[str], None]:
    """Passes on the first text only."""
    told: list[str] = []

    def tell_once(text: str) -> None:
        if not told:
            told.append(text)
            tell(text)

    return tell_once


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
