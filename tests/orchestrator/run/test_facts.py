import hashlib
import os
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.run.facts import __file__ as facts_file
from orchestrator.run.facts import sweep_facts
from trainables.data import build_data


def test_the_commit_is_that_of_the_repository_that_holds_the_program(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def facts() -> dict[str, Any]:
        program = runpy.run_path(str(tmp_path / "facts.py"))["own_program"]()
        program.keep_changes(folder, print)
        found: dict[str, Any] = program.facts
        assert found.pop("versions")["torch"]
        assert found.pop("machine")["cores"] == os.cpu_count()
        return found

    folder = tmp_path / "results" / "demo"
    folder.mkdir(parents=True)
    shutil.copy(facts_file, tmp_path / "facts.py")
    (tmp_path / ".gitignore").write_text("results\n__pycache__\n")
    git("init")
    git("commit", "--allow-empty", "-m", "another project, which has installed ours")
    assert facts() == {"git_commit": None}
    git("add", ".")
    git("commit", "-m", "ours")
    assert facts() == {"git_commit": git("rev-parse", "HEAD")}
    (tmp_path / "facts.py").write_text((tmp_path / "facts.py").read_text() + "# fran\u00e7ais\n")
    (tmp_path / "new.py").touch()
    found = facts()
    assert found["git_commit"] == git("rev-parse", "HEAD") + "+changes"
    changes = folder / found["changes"]
    assert found["changes"] == f"changes-{hashlib.sha256(changes.read_bytes()).hexdigest()[:12]}.diff"
    assert changes.read_text().startswith("# not in the repository: new.py\n")
    assert facts() == found
    assert [path.name for path in folder.iterdir()] == [changes.name]
    changed = (tmp_path / "facts.py").read_text()
    git("checkout", "facts.py")
    git("apply", str(changes))  # the lines before the first "diff" are a comment
    assert (tmp_path / "facts.py").read_text() == changed


def test_the_first_event_holds_all_samples_by_set(config: SweepConfig) -> None:
    data = build_data(config.trial.data, config.trial.seed)
    facts = sweep_facts(config, data)
    assert facts["split_sha256"] == data.sha256
    for name in ("train", "meta", "val", "test"):
        assert sorted(facts["split"][name]) == sorted(getattr(data, name).ids.tolist())
