"""The one command: its verbs, help, names of shipped files, completion, and a wheel in an empty environment."""

import contextlib
import os
import pty
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

import pytest
from own_wheel import build_wheel
from tools import need

from orchestrator import completion, resume
from orchestrator.__main__ import main
from orchestrator.config.reference import setting_names
from orchestrator.ledger.ledger import Ledger
from orchestrator.parsers import VERBS
from orchestrator.settings import main as settings
from trainables import shown_commands
from trainables.config import TrialConfig
from trainables.config_file import ConfigError, read_settings
from trainables.shown_commands import program, python_command, shipped, shown_command, typed_file

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "ray", "mlflow", "optuna", "pyarrow", "numpy", "pydantic", "rich", "yaml")


def test_all_verbs_are_listed_each_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["help"]):
        assert main(words) == 0
        lines = capsys.readouterr().out.splitlines()
        for verb in VERBS:
            (line,) = (line for line in lines if line.startswith(f"  {verb} "))
            assert re.fullmatch(rf"  {verb} +[A-Z].*\.", line)


def test_every_verb_has_a_module_that_says_the_same() -> None:
    for verb, (module, parser) in VERBS.items():
        path = ROOT / f"{module.replace('.', '/')}.py"
        assert "def main(arguments: " in path.read_text(), verb
        assert parser().prog.removeprefix("python -m ") == module.removesuffix(".__main__")


@pytest.mark.parametrize(("word", "hint"), [("sweeep", "did you mean sweep?"), ("xyz", "allowed: sweep, ablate")])
def test_a_word_that_is_no_verb_is_refused(word: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 2
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_whole_sentences_with_examples_and_loads_nothing(verb: str) -> None:
    code = (
        f"import sys; from orchestrator.__main__ import main; code = main([{verb!r}, '--help']); "
        f"print(code, [m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
    assert "\nExamples:\n  " in done.stdout
    for action in VERBS[verb].parser()._actions[1:]:
        assert re.match(r"[A-Z].*\.$", action.help or "", re.DOTALL), (verb, action.dest, action.help)


def test_commands_are_shown_as_they_can_be_typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "bin/tailtune"), "sweep"])
    assert program("orchestrator.sweep") == "tailtune sweep"
    assert program("trainables.to_parquet") == "tailtune to-parquet"
    monkeypatch.setattr(shown_commands.shutil, "which", lambda name: str(tmp_path / "bin/tailtune"))
    assert shown_command("orchestrator.ui", "results/a") == "tailtune ui results/a"
    monkeypatch.setattr(shown_commands.shutil, "which", lambda name: None if name == "tailtune" else name)
    monkeypatch.chdir(tmp_path)
    assert shown_command("orchestrator.ui") == "bin/tailtune ui"
    monkeypatch.setattr(sys, "argv", ["/somewhere/orchestrator/sweep.py"])
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv/bin/python"))
    assert shown_command("orchestrator.ui", "x") == ".venv/bin/python -m orchestrator.ui x"


def test_the_interpreters_command_can_be_typed_into_a_shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", "/my programs/python")
    monkeypatch.setattr(shown_commands.shutil, "which", lambda name: None)
    assert python_command() == "'/my programs/python'"


def test_shipped_files_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = ROOT / "search_spaces" / "digits_lt.yaml"
    for text in ("digits_lt", "digits_lt.yaml", "search_spaces/digits_lt.yaml"):
        assert typed_file(text) == file
    for text in ("other/digits_lt.yaml", "digits", "./x/digits_lt"):
        assert typed_file(text) == Path(text)
    Path("digits_lt.yaml").write_text("mine")
    assert typed_file("digits_lt.yaml") == Path("digits_lt.yaml")
    assert set(shipped()) == {path.stem for path in (ROOT / "search_spaces").glob("*.yaml")}


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["epochs=3", "optim.lr", "4"], r"did you mean optim.lr=4\?"),
        (["data.root=my", "folder"], r"a value with spaces needs quotes: did you mean 'data.root=my folder'\?"),
        (["nonsense"], r"for example trial.optim.lr=0.1$"),
    ],
)
def test_typing_mistakes_get_a_hint(words: list[str], hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        read_settings(TrialConfig, shipped()["digits_lt"], words, section="trial")


def test_a_missing_file_names_what_is_shipped(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digit_lt"]) == 2
    assert "shipped, by name: ablation_lambda" in capsys.readouterr().err


def test_settings_are_printed_with_type_default_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert settings(["search.trials"]) == 0
    out = capsys.readouterr().out
    assert "  search.trials\n      whole number; default: 22; allowed: ≥ 0" in out
    assert settings([]) == 0
    out = capsys.readouterr().out
    shown = {line.strip() for line in out.splitlines() if re.fullmatch(r"  \S+", line)}
    leaves = {name for name in setting_names() if not any(other.startswith(f"{name}.") for other in setting_names())}
    selectors = {name for name in leaves if name.endswith((".name", ".source", ".type"))}  # the headings say these
    assert shown >= leaves - selectors
    assert settings(["serch"]) == 2
    assert "allowed: for example search" in capsys.readouterr().err


def test_resume_knows_a_sweep_by_its_name_and_lists_what_is_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["resume"]) == 0
    assert capsys.readouterr().out == "nothing in results is unfinished\n"
    for name, plan in (("begun", "digits_lt"), ("plan", "ablation_table4"), ("done", "digits_lt")):
        folder = tmp_path / "results" / name
        folder.mkdir(parents=True)
        (folder / "sweep.yaml").write_text(shipped()[plan].read_text())
        with Ledger(folder) as ledger:
            ledger.append("sweep_start")
            if name == "done":
                ledger.append("sweep_end", status="finished", complete=True)
    assert main(["resume"]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["begun", "plan"]
    assert main(["resume", "begun", "--results", "elsewhere"]) == 2
    assert "'begun' is no results folder, nor the name of one in elsewhere" in capsys.readouterr().err
    assert main(["resume", "other"]) == 2
    assert "'other' is no results folder" in capsys.readouterr().err
    called = []
    for verb in ("sweep", "ablate"):
        monkeypatch.setattr(f"orchestrator.{verb}.main", lambda words, entered, verb=verb: called.append((verb, words)) or 0)
    (tmp_path / "results").rename(tmp_path / "elsewhere")
    assert resume.main(["begun", "--results=elsewhere", "--dry-run"]) == 0
    assert called == [("sweep", ["--name", "begun", "--resume", "--results=elsewhere", "--dry-run"])]
    called.clear()
    (tmp_path / "elsewhere").rename(tmp_path / "results")
    for words in (["begun", "search.trials=9", "--dry-run"], ["results/plan"], [str(tmp_path / "results" / "begun")]):
        assert resume.main(words) == 0
    assert called == [
        ("sweep", ["--name", "begun", "--resume", "search.trials=9", "--dry-run"]),
        ("ablate", ["--name", "plan", "--resume"]),
        ("sweep", ["--name", "begun", "--resume", "--results", str(tmp_path / "results")]),
    ]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["ver"], {"verify"}),
        (["sweep", "--dr"], {"--dry-run"}),
        (["sweep", "digi"], {"digits_lt"}),
        (["sweep", "search.confirm.s"], {"search.confirm.seeds="}),
        (["train", "optim.mom"], {"optim.momentum="}),
        (["ablate", "ablation_t"], {"ablation_table4"}),
        (["sweep", "search.trials=4"], set()),
    ],
)
def test_bash_completes(typed: list[str], offered: set[str], tmp_path: Path) -> None:
    script = tmp_path / "completion.bash"
    script.write_text(completion.bash())
    words = " ".join(["tailtune", *typed])
    typing = f"COMP_WORDS=({words}); COMP_CWORD={len(typed)}; _tailtune 2> /dev/null"
    program = f'source {script}; {typing}; printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "--norc", "-c", program], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == offered


def test_fish_completes(tmp_path: Path) -> None:
    need("" if shutil.which("fish") else "fish is missing")
    script = tmp_path / "completion.fish"
    script.write_text(completion.fish())
    (tmp_path / "image.png").touch()
    for typed, offered in {
        "ver": "verify",
        "sweep --dr": "--dry-run",
        "sweep digi": "digits_lt",
        "sweep search.confirm.s": "search.confirm.seeds=",
        "predict ima": "image.png",
    }.items():
        done = subprocess.run(
            ["fish", "--no-config", "-c", f"source {script}; complete -C 'tailtune {typed}'"],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
        )
        assert done.stdout.split() == [offered]


def test_zsh_completes(tmp_path: Path) -> None:
    """In an interactive shell: the Tab key, then more of the word, then Enter."""
    need("" if shutil.which("zsh") else "zsh is missing")
    (tmp_path / "image.png").touch()
    (tmp_path / "ready.zsh").write_text(completion.zsh() + 'tailtune() { print -r -- "GOT $*" >> got }\n')
    ours, theirs = pty.openpty()
    environment = os.environ | {"ZDOTDIR": str(tmp_path), "TERM": "dumb"}
    shell = subprocess.Popen(["zsh", "-f", "-i"], stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path, env=environment)
    os.close(theirs)
    threading.Thread(target=read_to_the_end, args=[ours], daemon=True).start()
    for line in (
        "source ready.zsh\n",
        "tailtune ver\tx\n",
        "tailtune sweep --dr\tx\n",
        "tailtune sweep search.confirm.s\t7\n",
        "tailtune predict ima\tx\n",
        "exit\n",
    ):
        os.write(ours, line.encode())
    assert shell.wait(60) == 0
    os.close(ours)
    assert (tmp_path / "got").read_text().splitlines() == [
        "GOT verify x",
        "GOT sweep --dry-run x",
        "GOT sweep search.confirm.seeds=7",
        "GOT predict image.png x",
    ]


def read_to_the_end(terminal: int) -> None:
    with contextlib.suppress(OSError):  # its other end was closed
        while os.read(terminal, 4096):
            pass


@pytest.mark.slow
def test_a_wheel_in_an_empty_environment_has_the_command(tmp_path: Path) -> None:
    """What it depends on comes from this environment; what is ours comes from the wheel."""
    wheel = build_wheel(tmp_path)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python, script = tmp_path / "venv/bin/python", tmp_path / "venv/bin/tailtune"
    site = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True
        ).stdout.strip()
    )
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([str(uv), "pip", "install", "--quiet", "--no-deps", "--python", str(python), str(wheel)], check=True)
    others = Path(sysconfig.get_path("purelib"))
    shared = tmp_path / "shared"
    shared.mkdir()
    for entry_ in others.iterdir():  # but not this project, which is installed there as an editable one
        if "tailtune" not in entry_.name:
            (shared / entry_.name).symlink_to(entry_)
    (site / "others.pth").write_text(f"{shared}\n")
    empty = tmp_path / "empty"
    empty.mkdir()

    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}

    def run(*words: str, program: Path = script) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(program), *words], cwd=empty, capture_output=True, text=True, env=environment)

    where = run("-c", "import orchestrator; print(orchestrator.__file__)", program=python)
    assert str(site) in where.stdout
    assert "tailtune sweep digits_lt" in run("--help").stdout
    assert "search.confirm" in run("settings", "search").stdout
    done = run("sweep", "digits_lt", "--quick", "search.trials=1", "tracking.mlflow=false")
    assert done.returncode == 0, done.stdout + done.stderr
    commands = re.findall(rf"^  ({re.escape(str(script))} .*)$", done.stdout, re.MULTILINE)
    assert [command.split()[1] for command in commands] == ["train", "predict"]
    assert not (empty / "search_spaces").exists()


def test_a_folder_does_not_hide_the_shipped_file_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/features.md writes vectors to features/NAME, and then runs the sweep `features`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "features").mkdir()
    assert typed_file("features") == shipped()["features"]
    (tmp_path / "features.yaml").write_text("")
    assert typed_file("features.yaml") == Path("features.yaml")
