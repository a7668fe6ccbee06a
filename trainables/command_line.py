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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO, cast

STDOUT, STDERR = 1, 2
"""File descriptors of a process."""


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


class WrongCommand(SystemExit):
    """A command line that argparse refuses: exit code 2, as argparse has it.

    Args:
        words: what is wrong.
    """

    def __init__(self, words: str) -> None:
        super().__init__(2)
        self.words = words


class CommandLine(argparse.ArgumentParser):
    """The parser of a verb. What is wrong with the command line goes into the answer of --json, too.

    Args:
        program: the words that start the verb.
        sentence: what the verb does.
        examples: what may come after `program`.
        more: text after the options.
    """

    def __init__(self, program: str, sentence: str, examples: Sequence[str], more: str = "") -> None:
        shown = "\n".join(["Examples:", *(f"  {program} {words}".rstrip() for words in examples)])
        super().__init__(
            prog=program,
            description=sentence,
            epilog=f"{more}\n\n{shown}".strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.sentence = sentence

    def options(self) -> list[str]:
        """The names of its options, as `--dry-run`."""
        return [name for action in self._actions for name in action.option_strings if name.startswith("--")]

    def error(self, message: str) -> NoReturn:
        """Says on stderr what is wrong, and raises WrongCommand."""
        self.print_usage(sys.stderr)
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        raise WrongCommand(f"command line: {message}")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds the option --json to a command line."""
    parser.add_argument("--json", action="store_true", help="Print one JSON object at the end; all else goes to stderr.")


def asks_for_json(arguments: Sequence[str]) -> bool:
    """Whether a command line has the option --json, shortened as argparse allows; also one that argparse refuses."""
    return any(len(word) > 2 and "--json".startswith(word) for word in arguments)


@contextmanager
def answering(in_json: bool) -> Iterator[dict[str, Any]]:
    """Gives a dict for a command's answer. With `in_json`, the dict is printed as one line of JSON at the end of the block, and
    everything that is written to stdout inside it goes to stderr, also by processes that are started there.

    Whatever ends the block, the answer has `exit_code` and `error`.
    """
    answer: dict[str, Any] = {}
    if not in_json:
        yield answer
        return
    out = sys.stdout
    try:
        with _led_to_stderr(out), redirect_stdout(sys.stderr):
            yield answer
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        answer |= {"error": getattr(stop, "words", None), "exit_code": code}
        raise
    except KeyboardInterrupt:
        answer |= {"error": "interrupted", "exit_code": 130}
        raise
    except BaseException as error:
        answer |= {"error": f"{type(error).__name__}: {error}", "exit_code": 1}
        raise
    finally:
        print(json.dumps(_plain(answer)), file=out, flush=True)


def answered(parser: CommandLine, arguments: Sequence[str], act: Callable[[argparse.Namespace, dict[str, Any]], int]) -> int:
    """Reads the command line of a verb and acts on it: output never decides, signals end it like Ctrl-C, --json is answered.

    Args:
        parser: of the verb, which has --json.
        arguments: the words after the verb.
        act: takes what was read, and the answer to fill, and returns the exit code.

    Returns: the exit code.
    """
    with steady_output(), ended_like_ctrl_c(), answering(asks_for_json(arguments)) as answer:
        given = parser.parse_intermixed_args(arguments)
        answer["error"] = None
        answer["exit_code"] = code = act(given, answer)
    return code


@contextmanager
def _led_to_stderr(out: TextIO) -> Iterator[None]:
    """Leads the process's stdout to its stderr, if `out` is the process's stdout."""
    kept = None
    with suppress(OSError, ValueError, AttributeError):  # a stream that is no file, or a stderr that is closed
        if out.fileno() == STDOUT:
            out.flush()
            kept = os.dup(STDOUT)
            os.dup2(STDERR, STDOUT)
    try:
        yield
    finally:
        if kept is not None:
            os.dup2(kept, STDOUT)
            os.close(kept)


def _plain(value: Any) -> Any:
    """A value as every reader of JSON takes it: without NaN, with text for what JSON does not know."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, bool | int):
        return value
    return str(value).encode(errors="surrogateescape").decode(errors="backslashreplace")  # a file's name may be no text


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
