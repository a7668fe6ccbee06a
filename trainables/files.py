"""Atomic writing of files, retries while a disk is full, and digests of files. Pure Python."""

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def replace_text(path: Path, text: str) -> None:
    """Writes a small file atomically: readers see the old or the new text, never a part."""
    replace_files(path.parent, {path.name: text.encode()})


def replace_files(folder: Path, contents: dict[str, bytes]) -> None:
    """Writes files, given by name, atomically: readers see the old or the new content of each file, never a part.

    Old files are replaced after all new files are written. If a file cannot be written, all partial files are deleted, because
    they would occupy the space that the next attempt needs.
    """
    partial = {name: folder / f"{name}.partial" for name in contents}
    try:
        for name, content in contents.items():
            partial[name].write_bytes(content)
            sync(partial[name])  # without fsync, a power failure could leave the new name with empty content
        for name in contents:
            os.replace(partial[name], folder / name)
        sync(folder)
    except BaseException as error:
        for path in partial.values():
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = error.filename or str(folder)  # the error of a full disk has no file name
        raise


def remove_place(place: Path, with_parent: bool) -> None:
    """Removes a file, or a folder with all that is in it; with `with_parent` the folder above, too, if it is empty then."""
    if place.is_dir():
        shutil.rmtree(place, ignore_errors=True)
    else:
        with suppress(OSError):
            place.unlink(missing_ok=True)
    if with_parent:
        with suppress(OSError):  # it holds others
            place.parent.rmdir()


def sync(path: Path) -> None:
    """fsync: waits until the content of a file, or the names in a folder, are on the disk."""
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
    """Calls `write` and returns its result. While the disk is full or a quota is used up, calls `write` again after a pause.

    Args:
        write: can be repeated after a failure, as `replace_files` and `write_checkpoint` can.
        waiting: called before each pause with a message; an exception that it raises ends the waiting.
        pause_s: seconds between two attempts.
        sleep: called for each pause with `pause_s`.

    Raises:
        OSError: when `write` fails for another reason.
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
    """A function that passes its first text on to `tell` and ignores later ones."""
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


def shown(file: str | os.PathLike[str] | bytes) -> str:
    """The name of a file, for people: a name that is invalid in every encoding is shown with escapes."""
    return "the image" if isinstance(file, bytes) else os.fsencode(file).decode(errors="backslashreplace")


def one_line(text: str) -> str:
    """Text for a line of a terminal: what would break the line or steer the terminal, as in a file's name, becomes an escape."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
