import io
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import pytest

from trainables.command_line import SteadyStream, WrongCommand, answering, asks_for_json, typed_path


@pytest.fixture(params=["reader gone", "disk full", "closed"])
def broken(request: pytest.FixtureRequest) -> Iterator[TextIO]:
    """A stream that takes nothing."""
    if request.param == "disk full":
        stream = open("/dev/full", "w", buffering=1)  # noqa: SIM115
    else:
        reading, writing = os.pipe()
        os.close(reading)
        stream = os.fdopen(writing, "w", buffering=1)
    if request.param == "closed":
        stream.close()
    yield stream
    with suppress(OSError):
        stream.close()


def test_a_stream_that_takes_nothing_is_told_once_and_raises_nothing(broken: TextIO) -> None:
    told: list[str] = []
    stream = SteadyStream(broken, told.append)
    for _ in range(3):
        print("a line", file=stream, flush=True)
    assert len(told) == 1
    assert stream.broken


def test_without_a_stream_text_goes_nowhere() -> None:
    assert print("a line", file=SteadyStream(None), flush=True) is None


def test_letters_that_a_terminal_lacks_are_written_as_escapes() -> None:
    below = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print("m\u00fcde \u2588 \udcff", file=SteadyStream(below), flush=True)
    assert below.buffer.getvalue() == b"m\\xfcde \\u2588 \\udcff\n"


@pytest.mark.parametrize("target", ["pipe", "/dev/full"])
def test_a_command_ends_with_its_own_exit_code_whatever_became_of_its_output(target: str) -> None:
    program = """
import sys
from trainables.command_line import steady_output
def main():
    with steady_output():
        for number in range(20000):
            print(number)
    return 3
sys.exit(main())
"""
    with open("/dev/full", "w") as full:
        out = subprocess.PIPE if target == "pipe" else full
        running = subprocess.Popen([sys.executable, "-c", program], stdout=out, stderr=subprocess.PIPE, text=True)
        if running.stdout:
            running.stdout.readline()
            running.stdout.close()
        assert running.stderr
        said = running.stderr.read()
        running.stderr.close()
        assert running.wait(60) == 3
    assert said.count("\n") == 1
    assert "the work goes on without it" in said


def test_a_tilde_is_the_home_folder_also_behind_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert typed_path("~/x") == Path("/somewhere/x")
    assert typed_path("x/~") == Path("x/~")


def test_an_answer_for_programs_stands_alone_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(True) as answer:
        print("a line for people")
        name = os.fsdecode(b"\xff")  # a file may have a name that is no text
        answer |= {"number": float("nan"), "place": Path("a/b"), "rows": [(1, True, None)], "word": "Ü", "name": name}
    out, err = capsys.readouterr()
    assert err == "a line for people\n"
    assert json.loads(out) == {"number": None, "place": "a/b", "rows": [[1, True, None]], "word": "Ü", "name": "\\xff"}


@pytest.mark.parametrize(
    ("reason", "error", "code"),
    [
        (RuntimeError("broken"), "RuntimeError: broken", 1),
        (KeyboardInterrupt(), "interrupted", 130),
        (WrongCommand("command line: no such option"), "command line: no such option", 2),
        (SystemExit(), None, 0),
        (SystemExit(3), None, 3),
        (SystemExit("words"), None, 1),
    ],
)
def test_whatever_ends_a_command_the_answer_has_the_reason_and_the_exit_code(
    reason: BaseException, error: str | None, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def end() -> None:
        with answering(True) as answer:
            answer["done"] = 1
            raise reason

    with pytest.raises(type(reason)):
        end()
    assert json.loads(capsys.readouterr().out) == {"done": 1, "error": error, "exit_code": code}


@pytest.mark.parametrize(("given", "asked"), [(["--json"], True), (["x", "--js"], True), (["--", "--"], False), (["-j"], False)])
def test_a_command_line_is_asked_for_json_before_it_is_parsed(given: list[str], asked: bool) -> None:
    assert asks_for_json(given) == asked


def test_what_other_processes_print_does_not_reach_an_answer() -> None:
    program = """
        import os
        from trainables.command_line import answering, steady_output
        with steady_output(), answering(True) as answer:
            os.system("echo of another process")
            os.write(1, b"of a library\\n")
            print("of this one")
        print("afterwards")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert done.stdout == "{}\nafterwards\n"
    assert sorted(done.stderr.splitlines()) == ["of a library", "of another process", "of this one"]


def test_without_the_option_nothing_is_added(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(False) as answer:
        print("a line for people")
        answer["number"] = 1
    assert capsys.readouterr() == ("a line for people\n", "")
