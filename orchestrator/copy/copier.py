"""Copies a results folder to a store while the sweep runs: a thread that makes one pass after another.

A pass copies the files, then the ledger's lines that were there when the pass began, and then removes what these lines no longer
need, here and in the store. So whatever the copied ledger names lies in the store, too, whenever the head is lost.
"""

import hashlib
import os
import re
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from orchestrator.copy.results_store import (
    CHUNK_BYTES,
    OWNER,
    PARTIAL,
    SEGMENT_BYTES,
    STATE_FILE,
    ResultsStore,
    segment_name,
    segments,
)
from orchestrator.ledger.events import Event
from orchestrator.ledger.head import HEAD, Head
from orchestrator.ledger.ledger import LEDGER
from trainables.files import remove_place
from trainables.stores import patiently

T = TypeVar("T")
AT_ONCE = 8
"""Files that are copied side by side: a store takes long to answer, not long to write."""
PASS_S = 3.0
"""Seconds between two passes."""
RETRY_S = 5.0
"""Seconds from a pass that failed to the next one."""
ANSWER_S = 20.0
"""Seconds for which one file is tried again before the pass has failed."""
LAST_S = 300.0
"""Seconds for which the last pass is tried again at the end of a sweep."""
LINES_FILE = re.compile(r"parts/t\d+\.jsonl", re.ASCII)
LEFT_OUT = (LEDGER, HEAD, PARTIAL)
"""How the names of files and folders end that are not copied as they are."""


class Foreign(Exception):
    """The store holds another sweep of this name, or another process goes on with this one."""


class Copier:
    """Copies a results folder; a listener of its ledger.

    Args:
        folder: results folder, whose ledger this process holds.
        store: where the copy lies. What another process began there goes on from here.
        note: tells a person that copying fails, and that it works again.
    """

    def __init__(self, folder: Path, store: ResultsStore, note: Callable[[str], None]) -> None:
        self._folder, self._store, self._note = folder.resolve(), store, note
        self._token = secrets.token_hex(16).encode()
        self._copied: dict[str, tuple[int, int]] = {}
        """Size and time of change of each file when it was copied."""
        self._is_ours = False
        self._segment = self._sent = self._lines_before = 0
        """The ledger's bytes and lines before the last segment, and the bytes that the store has."""
        self._dispensable: dict[Path, bool] = {}
        """What the ledger does not need, here or only in the store; and whether the folder above goes with it."""
        self._lock, self._wake, self._closing = threading.Lock(), threading.Event(), threading.Event()
        self._given_up = threading.Event()
        self._fails, self._is_foreign = False, False
        self.complete = False
        """Whether the store held everything when copying ended."""
        self._thread = threading.Thread(target=self._work, name="results-copy", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        """Lets a pass begin soon."""
        self._wake.set()

    def remove(self, place: Path, with_parent: bool) -> None:
        """Removes a file or folder as soon as the copied ledger does not need it any more.

        Args:
            place: the file or folder.
            with_parent: whether the folder above is removed, too, if it is empty then.
        """
        if self._is_foreign:
            remove_place(place, with_parent)
            return
        with self._lock:
            self._dispensable[place.resolve()] = with_parent
        self._wake.set()

    def close(self, patience_s: float = LAST_S) -> bool:
        """Copies what is left, tries for `patience_s` if the store fails, and ends. Returns whether the copy is complete.

        Raises:
            KeyboardInterrupt: when Ctrl-C ends the waiting.
        """
        self._closing.set()
        self._wake.set()
        try:
            self._thread.join()
            deadline = time.monotonic() + patience_s
            while not (complete := self._try()) and not self._is_foreign and time.monotonic() < deadline:
                time.sleep(RETRY_S)
            self.complete = complete
            return complete
        except BaseException:
            self._given_up.set()
            raise

    def _work(self) -> None:
        while not self._closing.is_set():
            self._wake.wait()
            self._wake.clear()
            if not self._try() and not self._closing.is_set():
                self._wake.set()
            self._closing.wait(RETRY_S if self._fails else PASS_S)

    def _try(self) -> bool:
        """Makes a pass; returns whether it was complete."""
        if self._is_foreign:
            return False
        try:
            self._pass()
        except Foreign:
            self._leave()
            return False
        except Exception as error:  # stores raise errors of many types, and none of them ends a sweep
            if not self._fails:
                self._note(f"the results are not copied to {self._store} at present, and are tried again: {error}")
            self._fails = True
            return False
        if self._fails:
            self._note(f"the results are copied to {self._store} again")
        self._fails = False
        return True

    def _leave(self) -> None:
        """Leaves the copy to another process. What was kept for the copy alone is removed."""
        self._is_foreign = True
        self._note(
            f"another process goes on with this sweep in {self._store}, or began another one there: nothing more is copied; "
            "end one of the two"
        )
        with self._lock:
            for place, with_parent in self._dispensable.items():
                remove_place(place, with_parent)
            self._dispensable.clear()

    def _pass(self) -> None:
        if not self._is_ours:
            self._take_over()
        with self._lock:
            dispensable = dict(self._dispensable)
        lines = self._new_lines()
        files = self._files(set(dispensable))
        self._copy_files({path: state for path, state in files.items() if self._copied.get(path) != state})
        self._check_owner()  # a pass may have taken long
        self._copy_ledger(lines)
        self._check_owner()
        self._remove(dispensable)
        self._check_owner()

    def _check_owner(self) -> None:
        """Sees that the copy is still ours. One that somebody has removed is made anew, from the next pass on."""
        try:
            if self._ask(lambda: self._store.get(OWNER)) != self._token:
                raise Foreign
        except FileNotFoundError:
            self._is_ours = False
            raise

    def _take_over(self) -> None:
        """Finds what the store holds already, and says that this process writes there now."""
        self._copied, self._segment, self._sent = {}, 0, 0
        there = self._ask(self._store.files)
        for path, first in segments(there).items():
            self._segment, self._sent = first, first + there[path]
        with (self._folder / LEDGER).open("rb") as file:
            before = (file.read(min(CHUNK_BYTES, left)) for left in range(self._segment, 0, -CHUNK_BYTES))
            self._lines_before = sum(chunk.count(b"\n") for chunk in before)
            ours = file.read(self._sent - self._segment)
        if self._sent and ours != self._ask(lambda: self._store.get(segment_name(self._segment))):
            raise Foreign
        self._put(OWNER, self._token)
        here = self._files(set())
        for path, size in there.items():
            is_state, is_open_part = bool(STATE_FILE.fullmatch(path)), bool(LINES_FILE.fullmatch(path))
            if path in here and is_state and here[path][0] == size:  # it was compared when it was copied, and never changes
                self._copied[path] = here[path]
            elif path not in here and (is_state or is_open_part):
                stale = path.rpartition("/")[0] if is_state else path
                with self._lock:
                    self._dispensable.setdefault(self._folder / stale, False)
        self._is_ours = True

    def _files(self, without: set[Path]) -> dict[str, tuple[int, int]]:
        """Size and time of change of each file that is to be copied, by its path.

        Raises:
            OSError: when a folder cannot be read.
        """
        found = {}
        for place, folders, files in os.walk(self._folder, onerror=_raise):
            here = Path(place)
            folders[:] = [name for name in folders if self._is_ours_alone(here / name) and here / name not in without]
            for name in files:
                if name.endswith(LEFT_OUT) or here / name in without:
                    continue
                with suppress(FileNotFoundError):  # a table that is just written anew
                    status = (here / name).stat()
                    found[(here / name).relative_to(self._folder).as_posix()] = status.st_size, status.st_mtime_ns
        return found

    def _is_ours_alone(self, folder: Path) -> bool:
        """Whether a folder inside the results is whole, and is no search of an ablation, which has a copy of its own."""
        return not folder.name.endswith(LEFT_OUT) and not (folder / LEDGER).exists()

    def _copy_files(self, new: dict[str, tuple[int, int]]) -> None:
        with ThreadPoolExecutor(AT_ONCE) as threads:
            done = {threads.submit(self._copy, path): path for path in new}
            try:
                for copied in as_completed(done):
                    copied.result()
                    self._copied[done[copied]] = new[done[copied]]
            except BaseException as error:
                if not isinstance(error, Exception):
                    self._given_up.set()
                threads.shutdown(cancel_futures=True)  # the others would wait for the store in vain, one after the other
                raise

    def _copy(self, path: str) -> None:
        self._pause(0)
        self._put(path, self._folder / path)

    def _put(self, path: str, content: bytes | Path) -> None:
        self._ask(lambda: self._store.put(path, content))

    def _ask(self, action: Callable[[], T]) -> T:
        """The store's answer. A pass goes on after a failure or two: it may have more files than a bad store answers in a row."""
        return patiently(action, patience_s=ANSWER_S, sleep=self._pause)

    def _pause(self, seconds: float) -> None:
        """Waits, and ends the work in hand once nobody waits for the store any longer."""
        if self._given_up.wait(seconds):
            raise OSError(f"{self._store} is waited for no longer")

    def _new_lines(self) -> bytes:
        """The whole lines of the ledger from the beginning of the segment that is not full."""
        with (self._folder / LEDGER).open("rb") as file:
            file.seek(self._segment)
            lines = file.read()
        return lines[: lines.rfind(b"\n") + 1]

    def _copy_ledger(self, lines: bytes) -> None:
        """Copies lines that are new; the file that says how many there are follows them."""
        end = self._segment + len(lines)
        if end <= self._sent:
            return
        self._put(segment_name(self._segment), lines)
        self._sent, number = end, self._lines_before + lines.count(b"\n")
        last = hashlib.sha256(lines[lines.rfind(b"\n", 0, -1) + 1 :]).hexdigest()
        self._put(HEAD, Head(number, last).content())
        if len(lines) >= SEGMENT_BYTES:
            self._segment, self._lines_before = end, number

    def _remove(self, dispensable: dict[Path, bool]) -> None:
        """Removes what the copied ledger does not need, in the store and here."""
        paths = [place.relative_to(self._folder).as_posix() for place in dispensable]
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(lambda path: self._ask(lambda: self._store.remove(path)), paths))
        for (place, with_parent), path in zip(dispensable.items(), paths, strict=True):
            remove_place(place, with_parent)
            for name in [name for name in self._copied if f"{name}/".startswith(f"{path}/")]:
                del self._copied[name]
        with self._lock:
            for place in dispensable:
                self._dispensable.pop(place, None)


def _raise(error: OSError) -> None:
    raise error
