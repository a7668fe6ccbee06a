"""Lists of images to leave out: one name on each line, then a tab and a remark.

A name is a path below `data.root`, or for parquet `file.parquet, row 7`. Names that would break a line, and names that are no
text, are written as JSON strings. Lines that begin with # are comments.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path


def read_skip_list(file: Path) -> dict[str, int]:
    """The names in a list, each with its line.

    Raises:
        ValueError: when the list cannot be read; the message names the file and the line.
    """
    try:
        lines = os.fsdecode(file.read_bytes()).removeprefix("\ufeff").split("\n")
    except OSError as error:
        raise ValueError(f"data.skip: {file} cannot be read: {error.strerror}") from error
    names: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        name = line.rstrip("\r").partition("\t")[0].rstrip()
        if not name or name.startswith("#"):
            continue
        if name.startswith('"'):
            try:
                name = json.loads(name)
            except ValueError as error:
                allowed = "a path below data.root, or a JSON string of one"
                raise ValueError(f"data.skip: {file}, line {number} is {name!r}; allowed: {allowed}") from error
        names.setdefault(os.path.normpath(name) if "/" in name else name, number)
    return names


def write_skip_list(file: Path, heading: str, entries: Iterable[tuple[str, str]]) -> None:
    """Writes names, each with a remark, to a new file.

    Raises:
        OSError: when the file exists or cannot be written.
    """
    lines = [f"# {line}" for line in heading.splitlines()]
    lines += [f"{_as_written(name)}\t{' '.join(remark.split())}" for name, remark in entries]
    with file.open("xb") as out:
        out.write(os.fsencode("\n".join(lines) + "\n"))


def _as_written(name: str) -> str:
    plain = name.isprintable() and name == name.strip() and not name.startswith(("#", '"'))
    return name if plain else json.dumps(name)
