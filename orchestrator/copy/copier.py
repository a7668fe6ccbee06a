"""Copies a results folder to a store while the sweep runs: a thread that makes one pass after another.

A pass copies the files, then the ledger's lines that were there when the pass began, and then removes what these lines no longer
need, here and in the store. So whatever the copied ledger names lies in the store, too, whenever the head is lost.
"""

import hashlib
import os
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from orchestrator.copy.results_store import CHUNK_BYTES, OWNER, SEGMENT_BYTES, ResultsStore, segment_name, segments
from orchestrator.ledger.events import Event
from orchestrator.ledger.head import HEAD, Head
from orchestrator.ledger.ledger import LEDGER
from trainables.files import remove_folder
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
STATES = "checkpoints/"
PASSING = (STATES, "parts/")
"""Folders whose files a sweep removes when it needs them no longer."""
LEFT_OUT = (LEDGER, HEAD, ".partial")
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
        self._there: dict[str, int] = {}
        """What the store may hold: size by path."""
        self._is_ours = False
        self._segment = self._sent = self._lines_before = 0
        """The ledger's bytes and lines before the last segment, and the bytes that the store has."""
        self._dispensable: dict[Path, bool] = {}
        self._lock, self._wake, self._closing = threading.Lock(), threading.Event(), threading.Event()
        self._given_up = threading.Event()
        self._fails, self._is_foreign = False, False
        self._thread = threading.Thread(target=self._work, name="results-copy", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        """Lets a pass begin soon."""
        self._wake.set()

    def remove(self, place: Path, with_parent: bool) -> None:
        """Removes a checkpoint's folder as soon as the copied ledger does not need it any more.

        Args:
            place: the folder.
            with_parent: whether the folder above is removed, too, if it is empty then.
        """
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
            return self._finish(patience_s)
        except BaseException:
            self._given_up.set()
            raise

    def _finish(self, patience_s: float) -> bool:
        self._thread.join()
        deadline = time.monotonic() + patience_s
        while not (complete := self._try()) and not self._is_foreign and time.monotonic() < deadline:
            time.sleep(RETRY_S)
        return complete

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
            self._is_foreign = True
            self._note(
                f"another process goes on with this sweep in {self._store}, or began another one there: nothing more is copied; "
                "end one of the two"
            )
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

    def _pass(self) -> None:
        with self._lock:
            dispensable = dict(self._dispensable)
        if not self._is_ours:
            self._take_over()
        elif self._ask(lambda: self._store.get(OWNER)) != self._token:
            raise Foreign
        lines = self._new_lines()
        here = self._files(set(dispensable))
        new = {path: state for path, state in here.items() if self._copied.get(path) != state}
        self._copy_files(new)
        self._copy_ledger(lines)
        self._remove(dispensable, here)

    def _copy_files(self, new: dict[str, tuple[int, int]]) -> None:
        # Before they are copied: a store may keep a file although it answers with an error.
        self._there |= {path: size for path, (size, _) in new.items()}
        with ThreadPoolExecutor(AT_ONCE) as threads:
            done = {threads.submit(self._copy, path): path for path in new}
            try:
                for copied in as_completed(done):
                    copied.result()
                    self._copied[done[copied]] = new[done[copied]]
            except Exception:
                threads.shutdown(cancel_futures=True)  # the others would wait for the store in vain, one after the other
                raise

    def _take_over(self) -> None:
        """Finds what the store holds already, and says that this process writes there now."""
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
        for path, (size, changed) in self._files(set()).items():
            if path.startswith(STATES) and there.get(path) == size:  # a state never changes, and was compared when it was copied
                self._copied[path] = size, changed
        self._there, self._is_ours = there, True

    def _copy(self, path: str) -> None:
        try:
            self._put(path, self._folder / path)
        except FileNotFoundError:
            if (self._folder / path).exists():
                raise
            # It was removed meanwhile: the arrays of a trial that has just ended are in another file now.

    def _put(self, path: str, content: bytes | Path) -> None:
        self._ask(lambda: self._store.put(path, content))

    def _ask(self, action: Callable[[], T]) -> T:
        """The store's answer. A pass goes on after a failure or two: it may have more files than a bad store answers in a row."""
        return patiently(action, patience_s=ANSWER_S, sleep=self._pause)

    def _pause(self, seconds: float) -> None:
        if self._given_up.wait(seconds):
            raise OSError(f"{self._store} is waited for no longer")

    def _files(self, without: set[Path]) -> dict[str, tuple[int, int]]:
        """Size and time of change of each file that is to be copied, by its path."""
        found = {}
        for place, folders, files in os.walk(self._folder):
            here = Path(place)
            folders[:] = [name for name in folders if self._is_ours_alone(here / name) and here / name not in without]
            for name in files:
                with suppress(FileNotFoundError):
                    status = (here / name).stat()
                    if not name.endswith(LEFT_OUT):
                        found[(here / name).relative_to(self._folder).as_posix()] = status.st_size, status.st_mtime_ns
        return found

    def _is_ours_alone(self, folder: Path) -> bool:
        """Whether a folder inside the results is whole, and is no search of an ablation, which has a copy of its own."""
        return not folder.name.endswith(LEFT_OUT) and not (folder / LEDGER).exists()

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

    def _remove(self, dispensable: dict[Path, bool], here: dict[str, tuple[int, int]]) -> None:
        """Removes what the copied ledger does not need, here and in the store."""
        for place, with_parent in dispensable.items():
            remove_folder(place, with_parent)
        gone = {path for path in self._there if path.startswith(PASSING)} - here.keys()
        # A state's folder is removed as a whole: Arrow leaves an empty object in place of a folder whose files it has deleted.
        places = {path.rpartition("/")[0] if path.startswith(STATES) else path for path in gone}
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(lambda place: self._ask(lambda: self._store.remove(place)), places))
        for path in gone:
            self._copied.pop(path, None)
            del self._there[path]
        with self._lock:
            for place in dispensable:
                self._dispensable.pop(place, None)
