"""What all verbs with --json promise: one object on stdout whatever happens, and quick answers to wrong input."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator import ablate, doctor, export, rerun, suspects, sweep, verify
from orchestrator.ledger.ledger import Ledger
from orchestrator.report import __main__ as report

VERBS: dict[str, Callable[[list[str]], int]] = {
    "sweep": sweep.main,
    "ablate": ablate.main,
    "export": export.main,
    "report": report.main,
    "doctor": doctor.main,
    "verify": verify.main,
    "rerun": rerun.main,
    "suspects": suspects.main,
}
READERS = {"export": [], "report": [], "verify": [], "suspects": [], "rerun": ["t0000"]}
"""Verbs that take a results folder, with what else they need."""


@pytest.mark.parametrize("verb", VERBS)
def test_a_command_line_that_is_refused_is_answered_in_json(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        VERBS[verb](["--json", "--no-such-option"])
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert (stop.value.code, answer["exit_code"]) == (2, 2)
    assert answer["error"].startswith("command line: ")
    assert answer["error"].removeprefix("command line: ") in err


@pytest.mark.parametrize("verb", VERBS)
def test_an_error_in_a_command_itself_is_answered_in_json(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        print("a line for people")
        raise ZeroDivisionError("of ours")

    inner = {"sweep": "read_request", "ablate": "read_ablation", "doctor": "examine"}.get(verb, "read_ledger")
    monkeypatch.setattr(sys.modules[VERBS[verb].__module__], inner, fail)
    (tmp_path / "ledger.jsonl").touch()
    words = [str(tmp_path), *READERS[verb]] if verb in READERS else []
    with pytest.raises(ZeroDivisionError):
        VERBS[verb]([*words, "--json"])
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert (answer["error"], answer["exit_code"]) == ("ZeroDivisionError: of ours", 1)
    assert "a line for people" in err


@pytest.mark.parametrize("verb", READERS)
@pytest.mark.parametrize("kind", ["nothing", "a file", "no sweep", "not begun", "another schema", "torn", "damaged"])
def test_a_folder_that_is_no_results_folder_is_answered_in_json(
    verb: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, begun = tmp_path / "place", '{"schema":%s,"n":0,"time":0,"event":"sweep_start","prev":"%s"}\n'
    if kind == "a file":
        folder.touch()
    elif kind != "nothing":
        folder.mkdir()
    if kind == "not begun":
        with Ledger(folder):
            pass
    written = {"another schema": begun % (2, ""), "torn": '{"schema"', "damaged": begun % (3, "ab")}
    if kind in written:
        (folder / "ledger.jsonl").write_text(written[kind])
    code = VERBS[verb]([str(folder), *READERS[verb], "--json"])
    out, err = capsys.readouterr()
    answer = json.loads(out)
    said = answer["error"] or answer["mismatch"]
    assert answer["exit_code"] == code == (1 if answer.get("mismatch") else 2)
    assert said in err
    words = {"nothing": ("holds ", "place"), "a file": ("holds ",), "no sweep": ("holds ",), "another schema": ("schema 2",)}
    assert all(word in said for word in words.get(kind, ("ledger",)))


@pytest.mark.slow
@pytest.mark.parametrize("words", [*([name, ".", *more] for name, more in READERS.items()), ["predict", "here", "x.png"]])
def test_wrong_input_is_answered_before_what_takes_seconds_is_loaded(words: list[str], tmp_path: Path) -> None:
    module = {"report": "orchestrator.report.__main__", "predict": "trainables.predict"}.get(words[0], f"orchestrator.{words[0]}")
    (tmp_path / "here").mkdir()
    code = (
        f"import sys; from {module} import main; code = main(sys.argv[1:]); "
        "heavy = ('torch', 'ray', 'mlflow', 'optuna', 'pyarrow', 'scipy', 'plotly', 'numpy'); "
        "print(code, [m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *words[1:]], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "2 []\n", done.stderr
    assert done.stderr.startswith("error: ")
