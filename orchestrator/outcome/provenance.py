"""provenance.json: what an export was made of, and how: program, data, machine, seeds, ledger, command."""

import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.ledger.events import Event, Kind
from orchestrator.ledger.ledger import last, start_of
from orchestrator.ledger.paths import is_changes
from orchestrator.ledger.trial_states import Checkpoint
from trainables.config import TrialConfig
from trainables.files import file_sha256
from trainables.machine import this_machine
from trainables.settings import without_password

LOCK = "requirements.lock"


def provenance(
    folder: Path, events: Sequence[Event], ledger_head: str, trial_id: str, config: TrialConfig, checkpoint: Checkpoint
) -> dict[str, Any]:
    """What can be said before the files of the export are written.

    Args:
        folder: results folder.
        events: its ledger.
        ledger_head: digest of the ledger's last line.
        trial_id: the exported trial.
        config: of the trial.
        checkpoint: the trial's last one.
    """
    start = last(events, Kind.SWEEP_START, Kind.SWEEP_RESUME)  # code and versions of the process that ran last
    return {
        "sweep": folder.name,
        "trial_id": trial_id,
        "exported": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(),
        "git_commit": start["git_commit"],
        "versions": start["versions"],
        "requirements_lock_sha256": lock_sha256(),
        "machine": this_machine(),
        "seeds": {"trial": config.seed, "sweep": start["config"]["trial"]["seed"], "split": config.data.split_seed},
        "split_sha256": start_of(events)["split_sha256"],
        "resumed": sum(event["event"] == Kind.SWEEP_RESUME for event in events),
        "sweep_yaml_sha256": file_sha256(folder / "sweep.yaml"),
        "workers": start["config"]["resources"]["workers"],
        "workers_lost": sum(event["event"] == Kind.GROUP_LOST and event["trial_id"] == trial_id for event in events),
        "checkpoint_sha256": checkpoint.sha256,
        "ledger_head_sha256": ledger_head,
    }


def command() -> str:
    """The command line of this process, without the path of Python and without passwords."""
    return without_password(shlex.join(["python", *sys.orig_argv[1:]]))


def lock_sha256() -> str | None:
    """Digest of the pinned dependencies beside this program; None for an installed package, which has no such file."""
    lock = Path(__file__).parents[2] / LOCK
    return file_sha256(lock) if lock.is_file() else None


def changes_of(folder: Path) -> list[Path]:
    """The files with what the program differed in from its commit, one for each time that the sweep began or went on so."""
    return sorted(file for file in folder.glob("*.diff") if is_changes(file.name))
