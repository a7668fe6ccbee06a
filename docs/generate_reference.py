"""Writes docs/reference/settings.md from the settings themselves: name, type, default, allowed values and explanation.

    python docs/generate_reference.py [--check]

`--check` writes nothing; the exit code is 1 when the page is out of date. Needs neither torch nor Ray.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # also without an installed package

from orchestrator.config.reference import Entry, entries, one_line, sections  # noqa: E402

PAGE = ROOT / "docs" / "reference" / "settings.md"
HEAD = """# Settings

<!-- Written by docs/generate_reference.py from the settings themselves: change the docstrings there, then `make docs`. -->

Every setting of a sweep, by section. In a YAML file, a dotted name is the same as nested keys: `trial.optim.lr: 0.1` equals
`trial: {optim: {lr: 0.1}}`. On the command line, `trial.optim.lr=0.1` changes the setting for one run.
`python -m trainables.train` reads the settings of one trial, so `trial.` may be left out there. Unknown names are errors.
`null` means that nothing is set; explanations also call it None.
"""


def render() -> str:
    """The page."""
    parts = [HEAD]
    for section in sections():
        parts.append(f"## {section.title}\n\n{one_line(section.model.__doc__ or '')}\n")
        if rows := [_row(entry) for entry in entries(section)]:
            parts.append("\n".join(["| setting | type | default | allowed | meaning |", "|---|---|---|---|---|", *rows]) + "\n")
    return "\n".join(parts)


def _row(entry: Entry) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in (f"`{entry.name}`", *entry[1:])) + " |"


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    page = render()
    if "--check" in arguments:
        if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page:
            return 0
        print(f"{PAGE.relative_to(ROOT)} is out of date; run: python docs/generate_reference.py", file=sys.stderr)
        return 1
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
