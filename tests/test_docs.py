"""The documentation keeps what it promises: settings, links, commands and imports that it names exist."""

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from orchestrator.config.reference import setting_names
from orchestrator.parsers import VERBS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SECTIONS = ("trial", "space", "search", "scheduler", "budget", "failures", "resources", "tracking")
"""Where the dotted name of a setting begins."""
FENCE = re.compile(r"^```(\{?\w*\}?)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of some languages; commands stand in blocks without a language."""
    return [text for language, text in FENCE.findall(page.read_text()) if language in languages]


def commands(page: Path) -> Iterator[str]:
    """Every command of the page, without its comment; a line that ends with a backslash goes on in the next one."""
    for block in blocks(page, ""):
        for line in block.replace("\\\n", " ").splitlines():
            if found := re.match(r"(?:\$ )?(?:\.venv/bin/)?((?:python -m|make) .*)", line):
                yield re.split(r"  +#", found[1])[0]


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """docs/generate_reference.py, which is a script and in no package."""
    spec = importlib.util.spec_from_file_location("generate_reference", ROOT / "docs" / "generate_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # NamedTuple looks there
    spec.loader.exec_module(module)
    return module


def test_the_reference_of_settings_is_up_to_date(reference: ModuleType) -> None:
    assert reference.PAGE.read_text(encoding="utf-8") == reference.render(), "run: make docs"


def test_the_reference_explains_every_setting(reference: ModuleType) -> None:
    rows = [line.split(" | ") for line in reference.render().splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert not [row[0] for row in rows if len(row[-1].strip(" |")) < 5]


def test_the_reference_is_made_without_torch() -> None:
    program = "import runpy, sys; runpy.run_path('docs/generate_reference.py'); assert not {'torch', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file_and_every_anchor_to_a_heading(page: Path) -> None:
    text = FENCE.sub("", page.read_text())
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        place, _, anchor = target.partition("#")
        file = (page.parent / place).resolve() if place else page
        if not file.is_file() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_exists(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in commands(page):
        words = command.split()
        if words[0] == "make":
            named = [word for word in words[1:] if "=" not in word and word != "&&" and word != "make"]
            assert set(named) <= targets, command
        else:
            module = words[2].split(".")
            file = ROOT.joinpath(*module)
            is_ours = file.with_suffix(".py").is_file() or (file / "__main__.py").is_file()
            assert module[0] in ("pytest", "sphinx", "mlflow") or is_ours, command


def test_the_readme_names_the_verbs() -> None:
    text = (ROOT / "README.md").read_text()
    assert all(f"\ntailtune {verb} " in text for verb in VERBS)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_setting_that_is_named_exists(page: Path) -> None:
    """A page that adds a setting in a block of Python may name it."""
    known, text = setting_names(), page.read_text()
    added = set(re.findall(r"^    (\w+):", "\n".join(blocks(page, "python")), re.MULTILINE))
    unknown = []
    for name in re.findall(rf"(?<![\w./`-])`?((?:{'|'.join(SECTIONS)})(?:\.\w+)+)", text):
        if name.endswith((".py", ".md", ".yaml")) or name.startswith(("space.", "search.references.")):
            continue
        if name not in known and name.rpartition(".")[2] not in added:
            unknown.append(name)
    assert not unknown


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_setting_in_a_command_exists(page: Path) -> None:
    known = setting_names()
    added = set(re.findall(r"^    (\w+):", "\n".join(blocks(page, "python")), re.MULTILINE))
    for command in commands(page):
        if not command.startswith(("python -m orchestrator.", "python -m trainables.train")):
            continue
        for key in re.findall(r"(?<=[\s'])([a-z_]+(?:\.[a-z_]+)*)=", command):
            name = f"trial.{key.removeprefix('trial.')}" if "trainables.train" in command else key
            if name == "key" or key == "key" or name.startswith(("space.", "search.references")):
                continue
            assert name in known or name.rpartition(".")[2] in added, command


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_import_in_an_example_exists(page: Path) -> None:
    """A page that defines a name in one block may import it in another."""
    programs = blocks(page, "python")
    defined = set(re.findall(r"^\s*(?:class|def) (\w+)", "\n".join(programs), re.MULTILINE))
    for program in programs:
        for line in re.findall(r"^from (?:orchestrator|trainables)[^\n]*", program, re.MULTILINE):
            node = ast.parse(line).body[0]
            assert isinstance(node, ast.ImportFrom)
            missing = {alias.name for alias in node.names} - names_in(node.module or "") - defined
            assert not missing, line


def names_in(module: str) -> set[str]:
    """What can be imported from a module, read from its text: importing it would take seconds."""
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.is_file():
        return set()
    found = set(re.findall(r"\w+", " ".join(re.findall(r"__all__ = \[(.*?)\]", file.read_text(), re.DOTALL))))
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom | ast.Import):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def test_the_lock_holds_what_the_documentation_is_built_with() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["docs"]
    pinned = set(re.findall(r"^([\w.\-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert {name.split(">=")[0] for name in wanted} <= pinned


def test_the_pictures_are_small_and_used() -> None:
    text = "".join(page.read_text() for page in PAGES)
    for picture in (ROOT / "docs" / "images").iterdir():
        assert picture.stat().st_size < 300_000
        assert f"images/{picture.name}" in text


@pytest.mark.slow
def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    options = ["-q", "-W", "--keep-going", "-n", "-b", "html", "-d", str(tmp_path / "cache")]
    subprocess.run([sys.executable, "-m", "sphinx", *options, "docs", str(tmp_path / "html")], cwd=ROOT, check=True)
    assert (tmp_path / "html" / "index.html").is_file()
