"""The file ledger.head beside a ledger: how many lines were on the disk at the last fsync, and the digest of the last of them.

The hash chain shows a line that is changed or missing in the middle. Lines cut off at the end leave a chain that is whole; this
file shows them. It is written after the fsync of the lines that it counts, so a kill or a power cut leaves at most an older head,
which a longer ledger agrees with. A head that cannot be read says nothing.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

HEAD = "ledger.head"


class Head(NamedTuple):
    """What a ledger held at the last fsync."""

    lines: int
    sha256: str
    """Of the last line."""
    file: str = HEAD

    def content(self) -> bytes:
        """What the file holds."""
        return json.dumps({"lines": self.lines, "sha256": self.sha256}).encode()

    @property
    def cure(self) -> str:
        """What a person can do when the ledger disagrees."""
        return (
            "nothing was changed. Restore the ledger from a copy. If there is none, remove the file "
            f"{self.file}: the sweep then goes on from what is left, and what the missing lines held is done again"
        )


def write_head(folder: Path, head: Head) -> None:
    """Replaces the head atomically. On a full disk the older one stays, which is true as well."""
    partial = folder / f"{HEAD}.partial"
    with suppress(OSError):
        partial.write_bytes(head.content())
        os.replace(partial, folder / HEAD)


def read_head(folder: Path) -> Head | None:
    """The head of a folder's ledger; None when there is none, or it cannot be read."""
    path = folder / HEAD
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        return Head(int(read["lines"]), str(read["sha256"]), str(path))
    except (OSError, ValueError, KeyError, TypeError):
        return None
