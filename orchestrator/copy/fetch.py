"""Fetches a sweep's results from a store, so that the sweep can go on where they are not, or only an older state of them."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from orchestrator.copy.results_store import CHUNK_BYTES, OWNER, PARTIAL, SEGMENT, STATE_FILE, ResultsStore, segments
from orchestrator.ledger.head import HEAD
from orchestrator.ledger.ledger import LEDGER, LedgerError, may_precede, read_ledger
from orchestrator.ledger.paths import refuse_links
from trainables.config_file import ConfigError
from trainables.stores import patiently

FETCHED = f"fetched{PARTIAL}"
"""A folder in the results folder with the fetched ledger, until everything that it names is there."""
ANSWER_S = 20.0
"""Seconds for which a store may fail before a sweep is refused."""
PROBE = "probe"
SEARCH = re.compile(r"search_\d+", re.ASCII)
"""The folder of a search inside that of its ablation, with a ledger and a copy of its own."""


def check_store(store: ResultsStore, folder: Path, resume: bool) -> None:
    """Sees that a sweep can write to a store, and that nothing else is there.

    Args:
        store: of the sweep.
        folder: its results folder.
        resume: whether the sweep goes on; otherwise the store must hold no sweep of that name.

    Raises:
        ConfigError: when the store does not answer or cannot be written, holds a sweep already or other files, or lies in the
            results folder.
    """
    own, there = folder.resolve(), store.place and store.place.resolve()
    if there and (own == there or own in there.parents or there in own.parents):
        raise ConfigError(
            f"command line: --results: {store} and the results folder {folder} lie in one another; nothing was started; allowed: "
            "an address outside; results that are only to be written there need no address: --results FOLDER"
        )
    try:
        files = patiently(store.files, patience_s=ANSWER_S)
        strange = sorted(name for name in files if not _may_precede(name))
        if strange and OWNER not in files:
            raise ConfigError(
                f"{store} holds files that are no copy of a sweep ({strange[0]}); nothing was started; choose another --name, or "
                "another folder"
            )
        patiently(lambda: store.put(PROBE, b"TailTune can write here."), patience_s=ANSWER_S)
        store.remove(PROBE)
    except OSError as error:
        raise ConfigError(
            f"command line: --results: {store} cannot be written: {error}; nothing was started; allowed: a folder of a bucket "
            "that exists, with credentials where the store's own tools find them"
        ) from error
    if segments(files) and not resume:
        raise ConfigError(f"{store} holds a sweep already; nothing was started; choose another --name, or go on with --resume")


def fetch(store: ResultsStore, folder: Path, note: Callable[[str], None]) -> bool:
    """Brings a results folder to where its copy in a store stands. What the folder has beyond the copy stays.

    Args:
        store: holds the copy.
        folder: results folder; need not exist.
        note: tells a person.

    Returns: whether the copy had more.

    Raises:
        ConfigError: when the folder has symbolic links or holds no sweep, the store cannot be read, its ledger is not what was
            written, or folder and copy hold two sweeps.
    """
    refuse_links(folder)
    try:
        files = patiently(store.files, note)
        inner = {name for path in files if SEARCH.fullmatch(name := path.partition("/")[0])}
        own = {path: size for path, size in files.items() if path.partition("/")[0] not in inner}
        is_new = bool(segments(own)) and _fetch_newer(store, own, folder, note)
    except OSError as error:
        raise ConfigError(
            f"command line: --results: {store} cannot be fetched: {error}; nothing was started; the same command goes on"
        ) from error
    of_searches = [fetch(store.inside(name), folder / name, note) for name in sorted(inner)]
    return is_new or any(of_searches)


def _fetch_newer(store: ResultsStore, files: dict[str, int], folder: Path, note: Callable[[str], None]) -> bool:
    """Fetches the results of one ledger if that has lines which our own lacks; the ledger comes last."""
    fetched, is_empty = folder / FETCHED, not folder.exists()
    begun = is_empty or fetched.exists() or (folder / LEDGER).exists()
    if not begun and (strange := [path.name for path in folder.iterdir() if not _may_precede(path.name)]):
        raise ConfigError(
            f"{folder} holds files that are no sweep ({min(strange)}); nothing was changed; move them away, or go on in another "
            "folder"
        )
    shutil.rmtree(fetched, ignore_errors=True)
    fetched.mkdir(parents=True)
    try:
        _fetch_ledger(store, files, fetched, note)
        is_new = _is_longer(fetched / LEDGER, folder / LEDGER, store)
    except ConfigError:
        shutil.rmtree(folder if is_empty else fetched)
        raise
    if is_new:
        note(f"fetching the results from {store}")
        _fetch_files(store, files, folder, note)
        os.replace(fetched / LEDGER, folder / LEDGER)
        if HEAD in files:
            os.replace(fetched / HEAD, folder / HEAD)
    shutil.rmtree(fetched)
    return is_new


def _may_precede(name: str) -> bool:
    """Whether a sweep may have left a file of this name that ended before its first event."""
    return name in (OWNER, PROBE) or may_precede(name)


def _fetch_ledger(store: ResultsStore, files: dict[str, int], into: Path, note: Callable[[str], None]) -> None:
    """Puts the ledger's segments together, and checks every line."""
    with (into / LEDGER).open("wb") as ledger:
        for path, first in segments(files).items():
            if first != ledger.tell():
                raise ConfigError(f"{store}: the ledger's bytes from {ledger.tell()} to {first} are missing; nothing was changed")
            ledger.write(patiently(lambda path=path: store.get(path), note))  # type: ignore[misc]
    if HEAD in files:
        (into / HEAD).write_bytes(patiently(lambda: store.get(HEAD), note))
    try:
        read_ledger(into)
    except LedgerError as error:
        text = str(error).partition("; nothing was changed")[0]
        raise ConfigError(
            f"{store}: the copied ledger is not what was written: {text}; nothing was changed; allowed: --resume without it "
            "where the results themselves are"
        ) from error


def _is_longer(fetched: Path, own: Path, store: ResultsStore) -> bool:
    """Whether the fetched ledger has lines that our own lacks.

    Raises:
        ConfigError: when neither is the beginning of the other.
    """
    if not own.exists():
        return True
    with fetched.open("rb") as there, own.open("rb") as here:
        while (theirs := there.read(CHUNK_BYTES)) and (ours := here.read(CHUNK_BYTES)):
            if theirs == ours:
                continue
            shared = next((n for n, (one, other) in enumerate(zip(theirs, ours, strict=False)) if one != other), len(ours))
            torn = b"\n" not in ours[shared:] and not here.read(1)  # our last line, which was being written
            if shared < min(len(theirs), len(ours)) and not torn:
                raise ConfigError(
                    f"{own} and its copy in {store} went on in two ways; nothing was changed; allowed: to move {own.parent} "
                    "away, and go on from the copy, or another --results"
                )
            return shared < len(theirs)
        return bool(theirs)


def _fetch_files(store: ResultsStore, files: dict[str, int], folder: Path, note: Callable[[str], None]) -> None:
    """Fetches all files but the ledger, and but the states that are there."""
    for path, size in sorted(files.items()):
        place = folder / path
        if path in (OWNER, HEAD, PROBE) or SEGMENT.fullmatch(path):
            continue
        if STATE_FILE.fullmatch(path) and place.is_file() and place.stat().st_size == size:
            continue  # it never changes, and is compared with the ledger when it is read
        partial = place.with_name(f"{place.name}{PARTIAL}")
        patiently(lambda path=path, partial=partial: store.fetch(path, partial), note)  # type: ignore[misc]
        os.replace(partial, place)
