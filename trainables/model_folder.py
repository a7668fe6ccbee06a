"""The folder of an exported model, as far as it can be checked without torch, which takes seconds to import."""

import shlex
from pathlib import Path

from trainables.config_file import ConfigError
from trainables.shown_commands import shown_command

MODEL = "model.safetensors"
PROVENANCE = "provenance.json"
"""Holds the SHA-256 of every file of an export, by name, below `files`."""


def check_model_folder(folder: Path) -> None:
    """Sees that a folder holds a model.

    Raises:
        ConfigError: when it does not; the message says where the model is, or what makes one.
    """
    if (folder / MODEL).is_file():
        return
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "there is no such folder"
        raise ConfigError(f"{folder}: {what}; allowed: the folder of an export, as results/NAME/best")
    if (folder / "best" / MODEL).is_file():
        raise ConfigError(f"{folder} is a results folder; its exported model is in {folder / 'best'}")
    cure = (
        f"; `{shown_command('orchestrator.export', shlex.quote(str(folder)))}` makes one"
        if (folder / "ledger.jsonl").is_file()
        else ""
    )
    raise ConfigError(f"{folder} holds no {MODEL}; allowed: the folder of an export, as results/NAME/best{cure}")
