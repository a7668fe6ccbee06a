import hashlib
import sys
from pathlib import Path

import pytest

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.trial_states import Checkpoint
from orchestrator.outcome.provenance import changes_of, command, lock_sha256, provenance

ROOT = Path(__file__).parents[3]


def test_the_command_has_neither_the_place_of_python_nor_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["/home/me/.venv/bin/python", "-m", "orchestrator.sweep", "my sweep.yaml", "tracking.uri=http://me:secret@host"]
    monkeypatch.setattr(sys, "orig_argv", words)
    assert command() == "python -m orchestrator.sweep 'my sweep.yaml' tracking.uri=http://***@host"


def test_the_dependencies_are_those_of_the_lock() -> None:
    assert lock_sha256() == hashlib.sha256((ROOT / "requirements.lock").read_bytes()).hexdigest()


def test_an_installed_package_has_no_lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("orchestrator.outcome.provenance.__file__", str(tmp_path / "orchestrator" / "outcome" / "provenance.py"))
    assert lock_sha256() is None


def test_the_seeds_and_what_began_last_are_noted(tmp_path: Path, config: SweepConfig) -> None:
    (tmp_path / "sweep.yaml").write_text("a: 1")
    with Ledger(tmp_path) as ledger:
        facts = {"config": config.model_dump(), "versions": {"torch": "1"}}
        ledger.append("sweep_start", **facts, git_commit="first", split_sha256="ab")
        ledger.append("sweep_resume", **facts, git_commit="second")
        trial = config.trial.model_copy(update={"seed": 7})
        found = provenance(tmp_path, ledger.events, ledger.head, "t0003", trial, Checkpoint(4, "checkpoints/t0003/0004-1", "cd"))
    assert found["seeds"] == {"trial": 7, "sweep": config.trial.seed, "split": config.trial.data.split_seed}
    assert (found["git_commit"], found["split_sha256"], found["resumed"]) == ("second", "ab", 1)
    assert (found["checkpoint_sha256"], found["ledger_head_sha256"]) == ("cd", ledger.head)
    assert found["sweep_yaml_sha256"] == hashlib.sha256(b"a: 1").hexdigest()


def test_the_changes_of_every_segment_are_found(tmp_path: Path) -> None:
    ours = ["changes-0123456789ab.diff", "changes-ba9876543210.diff"]
    for name in (*ours, "changes.diff", "changes-of-mine.diff", "changes-0123456789ab.diff.txt", "other.diff"):
        (tmp_path / name).touch()
    assert [file.name for file in changes_of(tmp_path)] == ours  # a person's own files are not published with a model
