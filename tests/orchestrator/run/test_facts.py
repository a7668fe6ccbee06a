import runpy
import shutil
import subprocess
from pathlib import Path

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.run.facts import __file__ as facts_file
from orchestrator.run.facts import sweep_facts
from trainables.data import build_data


def test_the_commit_is_that_of_the_repository_that_holds_the_program(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit() -> str | None:
        found: str | None = runpy.run_path(str(tmp_path / "facts.py"))["git_commit"]()
        return found

    shutil.copy(facts_file, tmp_path / "facts.py")
    git("init")
    git("commit", "--allow-empty", "-m", "another project, which has installed ours")
    assert commit() is None
    git("add", "facts.py")
    git("commit", "-m", "ours")
    assert commit() == git("rev-parse", "HEAD")
    (tmp_path / "facts.py").write_text((tmp_path / "facts.py").read_text() + "\n")
    assert commit() == git("rev-parse", "HEAD") + "+changes"


def test_the_first_event_holds_all_samples_by_set(config: SweepConfig) -> None:
    data = build_data(config.trial.data, config.trial.seed)
    facts = sweep_facts(config, data, "abc")
    assert (facts["split_sha256"], facts["git_commit"]) == (data.sha256, "abc")
    for name in ("train", "meta", "val", "test"):
        assert sorted(facts["split"][name]) == sorted(getattr(data, name).ids.tolist())
