"""What commands share: output that never decides about the work, signals that end it, paths as people type them. Pure Python.

A reader that goes away (`| head`), a closed terminal, a full disk under a log or a letter that the terminal cannot show must not
end a sweep or a training run.
"""

import argparse
import io
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from types import FrameType
from typing import Any, TextIO, cast


class SteadyStream:
    """A text stream whose `write` and `flush` raise no error of the stream below. All else is the stream's.

    Args:
        stream: where text goes; None, as Python has it where stdout is closed, drops all text.
        lost: called with the reason when text is lost for the first time.
    """

    def __init__(self, stream: TextIO | None, lost: Callable[[str], None] = lambda reason: None) -> None:
        self._stream = cast(TextIO, _Nowhere()) if stream is None else stream
        self._lost = lost
        self.broken = False

    def write(self, text: str) -> int:
        """Writes `text` or drops it. Letters that the stream's encoding lacks are written as escapes."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            self._attempt(lambda: self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding)))
        except (OSError, ValueError) as error:  # ValueError: the stream was closed
            self._note(error)
        return len(text)

    def flush(self) -> None:
        """Flushes, if the stream below can."""
        self._attempt(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        """What is not written here is the stream's: `isatty`, `encoding`, `fileno`."""
        return getattr(self._stream, name)

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except (OSError, ValueError) as error:
            self._note(error)

    def _note(self, error: Exception) -> None:
        if not self.broken:
            self.broken = True
            self._lost(error.strerror or str(error) if isinstance(error, OSError) else str(error))


class _Nowhere(io.TextIOBase):
    """A stream that drops all text."""

    def write(self, text: str) -> int:
        return len(text)


def steady(stream: TextIO | None) -> TextIO:
    """`stream` as a stream that raises no errors; a lost line is told on stderr, once."""
    return stream if isinstance(stream, SteadyStream) else cast(TextIO, SteadyStream(stream, _tell))


def _tell(reason: str) -> None:
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"note: the output cannot be written ({reason}); the work goes on without it\n")
        sys.stderr.flush()


@contextmanager
def steady_output() -> Iterator[None]:
    """Inside this block `print` and everything else that writes to sys.stdout or sys.stderr goes on when they are gone.

    For a command's main function. Afterwards a broken stream leads nowhere: otherwise Python's own last flush, when the process
    ends, would fail and change the exit code.
    """
    before = sys.stdout, sys.stderr
    out, error = steady(sys.stdout), cast(TextIO, SteadyStream(sys.stderr))
    sys.stdout, sys.stderr = out, error
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in (out, error):
            stream.flush()
            if getattr(stream, "broken", False):
                _lead_nowhere(stream)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds the option --json to a command line."""
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end; all else goes to stderr")


@contextmanager
def answering(in_json: bool) -> Iterator[dict[str, Any]]:
    """Gives a dict for a command's answer. With `in_json`, the dict is printed as one line of JSON at the end of the block, and
    everything that is printed inside it goes to stderr.
    """
    answer: dict[str, Any] = {}
    if not in_json:
        yield answer
        return
    out = sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield answer
    finally:
        print(json.dumps(_plain(answer)), file=out, flush=True)


def _plain(value: Any) -> Any:
    """A value as every reader of JSON takes it: without NaN, with text for what JSON does not know."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _lead_nowhere(stream: TextIO) -> None:
    with suppress(OSError, ValueError, AttributeError):  # a stream that is no file
        descriptor = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


@contextmanager
def ended_like_ctrl_c() -> Iterator[None]:
    """Inside this block SIGTERM (the machine is needed) and SIGHUP (the terminal is gone) raise KeyboardInterrupt, so that what
    was begun is cleared away. Signals that somebody else handles, or that are ignored as under nohup, stay as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    taken = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in taken:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def typed_path(text: str) -> Path:
    """A path as somebody typed it: `~` is the home folder, also in `--out=~/x`, where most shells leave it.

    Without a home folder, `~` stays.
    """
    return Path(os.path.expanduser(text))
