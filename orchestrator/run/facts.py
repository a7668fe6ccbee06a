"""What the ledger notes about the program and the data when a sweep begins."""

import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from orchestrator.config.sweep_config import SweepConfig
from trainables.data import LongTailedData
from trainables.program import PACKAGES


def sweep_facts(config: SweepConfig, data: LongTailedData, git_commit: str | None) -> dict[str, Any]:
    """The content of the ledger's first event: the configuration, the split with all sample ids, and the versions."""
    return {
        "config": config.model_dump(),
        "split_sha256": data.sha256,
        "split": data.split.manifest(),
        "class_counts": data.class_counts.tolist(),
        "git_commit": git_commit,
        "versions": {name: version(name) for name in PACKAGES},
    }


def git_commit() -> str | None:
    """The commit of this program's own repository, marked when files differ from it; None for an installed package."""
    own_file = Path(__file__)

    def git(*words: str) -> str:
        command = ["git", "-C", str(own_file.parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", own_file.name)  # the package may lie inside another project's environment
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
