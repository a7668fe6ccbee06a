"""What a fresh clone promises: a lock that any machine can use, a cluster file that Ray takes, a wheel that holds the sweeps."""

import itertools
import re
import tomllib
import zipfile
from pathlib import Path

import pytest
from own_wheel import build_wheel

from orchestrator.config.sweep_config import read_sweep
from trainables.config_file import read_yaml

ROOT = Path(__file__).parents[1]
SPACES = sorted((ROOT / "search_spaces").glob("*.yaml"))


def test_the_lock_pins_everything_with_hashes_and_names_no_index() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    pins = [line for line in lock.splitlines() if line and not line.startswith((" ", "#"))]
    assert len(pins) > 100
    assert all(re.match(r"[\w.\-]+(\[[\w,\-]+\])?==", pin) and pin.endswith("\\") for pin in pins)


def test_the_lock_holds_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = {re.split(r"[\[>=<]", name)[0].lower().replace("_", "-") for name in wanted}
    pinned = set(re.findall(r"^([\w.\-]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert names <= pinned


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_every_search_space_is_valid_and_says_what_it_is_for(path: Path) -> None:
    config = read_sweep(path)
    assert config.space or config.ablation
    assert read_yaml(path)
    head = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    assert [line.split(":")[0] for line in head if not line.startswith("#  ")] == ["# Run", "# Data", "# Cost", "# Expect"]


@pytest.mark.slow
def test_a_wheel_holds_the_packages_and_the_search_spaces(tmp_path: Path) -> None:
    names = zipfile.ZipFile(build_wheel(tmp_path)).namelist()
    assert {f"search_spaces/{path.name}" for path in SPACES} <= set(names)
    assert {"orchestrator/sweep.py", "trainables/train.py"} <= set(names)
    page = {f"orchestrator/report/page/{path.name}" for path in (ROOT / "orchestrator" / "report" / "page").iterdir()}
    assert page <= set(names)
    assert not [name for name in names if name.startswith(("tests", "results"))]


def test_the_readme_names_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "make sweep" in readme
    assert "make test" in readme
