"""How commands are shown to a person, who can type what is shown; and shipped files by their names. Pure Python."""

import os
import shlex
import shutil
import sys
from importlib.resources import files
from pathlib import Path

from trainables.command_line import typed_path

SCRIPT = "tailtune"
"""The console script."""


def verb_of(module: str) -> str:
    """The verb of a module: `to-parquet` of `trainables.to_parquet`."""
    return module.rpartition(".")[2].replace("_", "-")


def program(module: str) -> str:
    """The words that start a verb: `tailtune sweep` in the console script, otherwise `python -m orchestrator.sweep`."""
    return f"{SCRIPT} {verb_of(module)}" if _is_script() else f"python -m {module}"


def shown_command(module: str, *words: str) -> str:
    """A command that does something with a verb, in the form in which this process was started.

    Args:
        module: of the verb.
        words: what comes after it, with quotes where the shell needs them.
    """
    if _is_script():
        start = SCRIPT if shutil.which(SCRIPT) == shutil.which(sys.argv[0]) else _short(sys.argv[0])
        return " ".join([start, verb_of(module), *words])
    return " ".join([python_command(), "-m", module, *words])


def python_command() -> str:
    """The command that starts this interpreter from a shell in the working directory, with quotes where the shell needs them."""
    return "python" if shutil.which("python") == sys.executable else _short(sys.executable)


def _is_script() -> bool:
    return Path(sys.argv[0] if sys.argv else "").stem == SCRIPT


def _short(program: str) -> str:
    here = Path(os.path.abspath(program))
    return shlex.quote(str(here.relative_to(Path.cwd())) if here.is_relative_to(Path.cwd()) else program)


def shipped() -> dict[str, Path]:
    """The shipped sweeps and ablations, by name."""
    folder = Path(str(files("search_spaces") / "digits_lt.yaml")).parent  # of a package that may lie in several places
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def typed_file(text: str) -> Path:
    """A sweep's file as somebody typed it: a path, or the name of a shipped one where there is no such file. A folder is none, as
    the `features` that docs/features.md makes beside the sweep of that name.

    `digits_lt`, `digits_lt.yaml` and `search_spaces/digits_lt.yaml` mean the same shipped file.
    """
    path = typed_path(text)
    name = path.name.removesuffix(".yaml")
    if (not path.exists() or path.is_dir()) and path.parent in (Path("."), Path("search_spaces")) and name in shipped():
        return shipped()[name]
    return path
