"""Paths and ids in a ledger: which are allowed, and whether they stay inside the results folder.

A results folder may come from somebody else. What its ledger names is read, sent to MLflow and removed, so every name is checked
when the ledger is read (`fault_of`), and every path again just before it is used (`inside`).
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainables.config_file import ConfigError

TRIAL_ID = r"t\d+"
CHANGES = r"changes-[0-9a-f]{12}\.diff"
"""Names of files with the changes to the program; the digits are of their SHA-256."""
FORMS = {
    "trial_id": (TRIAL_ID, "a trial's id, as t0007"),
    "replaces": (TRIAL_ID, "a trial's id, as t0007"),
    "confirms": (TRIAL_ID, "a trial's id, as t0007"),
    "donor": (TRIAL_ID, "a trial's id, as t0007"),
    "path": (rf"checkpoints/{TRIAL_ID}/\d+-\d+", "checkpoints/TRIAL/EPOCH-ATTEMPT, as checkpoints/t0007/0012-1"),
    "changes": (CHANGES, "changes-DIGITS.diff, as changes-0123456789ab.diff"),
    "class_arrays": (rf"parts/{TRIAL_ID}\.parquet", "parts/TRIAL.parquet, as parts/t0007.parquet"),
}
"""The fields of events that name a trial or a path: a pattern, and the same in words."""
ABSOLUTE = ("export", "export_other", "compare")
"""Events whose `path` is an absolute one: an export may lie anywhere. Nothing is removed there; see `uploadable`."""


def is_changes(name: str) -> bool:
    """Whether a file of this name holds changes to the program."""
    return re.fullmatch(CHANGES, name, re.ASCII) is not None


class UnsafePath(ConfigError):
    """A path leads out of the results folder, or over a symbolic link."""


def fault_of(event: Mapping[str, Any]) -> str | None:
    """What is wrong with an event's ids and paths, as `path is '/etc'; allowed: ...`; None when nothing is."""
    parent = event.get("parent")
    named = {**event, "trial_id of parent": parent.get("trial_id")} if isinstance(parent, Mapping) else event
    for key, given in named.items():
        pattern, words = FORMS.get(key.partition(" ")[0], ("", ""))
        if not pattern or given is None or (key == "path" and event.get("event") in ABSOLUTE):
            continue
        if not isinstance(given, str) or not re.fullmatch(pattern, given, re.ASCII):
            return f"{key} is {given!r}; allowed: {words}"
    return None


def inside(folder: Path, path: str | Path) -> Path:
    """`folder`/`path`, which may be read or removed.

    Args:
        folder: results folder; may itself be a symbolic link.
        path: relative to the folder, or absolute.

    Raises:
        UnsafePath: when the path leads out of the folder, is the folder, or a part of it is a symbolic link.
    """
    wanted = folder / path
    base, resolved = folder.resolve(), wanted.resolve()
    steps = os.path.relpath(os.path.abspath(wanted), os.path.abspath(folder))
    if base not in resolved.parents or base / steps != resolved:
        raise UnsafePath(f"{wanted} leads to {resolved}; allowed: a path inside {folder} without symbolic links")
    return wanted


def uploadable(folder: Path, path: str) -> bool:
    """Whether an export that a ledger names, and that this process may not have written, can be sent to MLflow: it lies inside
    the results folder, and no symbolic link leads out of it.
    """
    try:
        return inside(folder.resolve(), Path(path).resolve()).is_dir() and not any(_links(Path(path)))
    except UnsafePath:
        return False


def refuse_links(folder: Path) -> None:
    """Sees that a results folder contains no symbolic link, over which a sweep would write or remove files elsewhere.

    Raises:
        UnsafePath: naming the first link.
    """
    for link in _links(folder):
        raise UnsafePath(
            f"{link} is a symbolic link to {os.readlink(link)}; allowed in a results folder: files and folders of its own; "
            "nothing was changed"
        )


def _links(folder: Path) -> Iterator[Path]:
    """The symbolic links inside a folder, at any depth, in the order of their names."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        yield from (path for name in sorted([*folders, *files]) if (path := Path(place, name)).is_symlink())
