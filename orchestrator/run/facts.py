"""What the ledger notes about the program and the data when a sweep begins."""

import hashlib
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from orchestrator.config.sweep_config import SweepConfig
from trainables.data import LongTailedData
from trainables.files import once, replace_files, wait_for_space
from trainables.machine import this_machine
from trainables.program import PACKAGES

OWN_FILE = Path(__file__)


def sweep_facts(config: SweepConfig, data: LongTailedData) -> dict[str, Any]:
    """What the ledger's first event says of the data and the settings: the configuration, and the split with all sample ids."""
    return {
        "config": config.model_dump(),
        "split_sha256": data.sha256,
        "split": data.split.manifest(),
        "class_counts": data.class_counts.tolist(),
        "val_counts": np.bincount(data.val.labels, minlength=len(data.class_counts)).tolist(),
    }


class Program(NamedTuple):
    """This program, as it runs now."""

    facts: dict[str, Any]
    """For the ledger: the commit of the program's own repository, marked where files differ from it and None for an installed
    package, the file with the differences, the versions of packages, and the machine."""
    changes: bytes = b""
    """The differences."""

    def keep_changes(self, folder: Path, note: Callable[[str], None]) -> None:
        """Writes the differences into a results folder, where there are any."""
        if name := self.facts.get("changes"):
            wait_for_space(lambda: replace_files(folder, {name: self.changes}), once(note))


def own_program() -> Program:
    """This program."""
    facts = {"git_commit": None, "versions": {name: version(name) for name in PACKAGES}, "machine": this_machine()}
    try:
        _git("ls-files", "--error-unmatch", OWN_FILE.name)  # the package may lie inside another project's environment
        commit, status = (_git(*words).decode().strip() for words in (("rev-parse", "HEAD"), ("status", "--porcelain")))
        if not status:
            return Program(facts | {"git_commit": commit})
        unknown = "".join(f"# not in the repository: {line[3:]}\n" for line in status.splitlines() if line.startswith("??"))
        changes = unknown.encode() + _git("diff", "--no-color", "--no-ext-diff", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return Program(facts)
    name = f"changes-{hashlib.sha256(changes).hexdigest()[:12]}.diff"
    return Program(facts | {"git_commit": f"{commit}+changes", "changes": name}, changes)


def _git(*words: str) -> bytes:
    return subprocess.run(["git", "-C", str(OWN_FILE.parent), *words], capture_output=True, check=True).stdout
