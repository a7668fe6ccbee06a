"""Prints every setting with its type, default, allowed values and meaning.

python -m orchestrator.settings [PREFIX]
"""

import difflib
import sys
import textwrap

from orchestrator import parsers
from orchestrator.config.reference import Entry, Section, entries, one_line, sections, setting_names
from trainables.command_line import steady_output

WIDTH = 100


def main(arguments: list[str]) -> int:
    """Returns the exit code: 2 when no setting begins so."""
    with steady_output():
        given = parsers.settings().parse_args(arguments)
        if text := listing(given.prefix.rstrip(".")):
            print(text)
            return 0
        near = difflib.get_close_matches(given.prefix, setting_names(), 3) or ["trial", "search", "resources"]
        print(f"error: no setting begins with {given.prefix!r}; allowed: for example {', '.join(near)}", file=sys.stderr)
    return 2


def listing(prefix: str) -> str:
    """The settings that begin with `prefix`, or whose last part it is. What several sections share comes once."""
    found: dict[Entry, list[Section]] = {}
    for section in sections():
        for entry in entries(section):
            if _begins(entry.name, prefix):
                found.setdefault(entry, []).append(section)
    blocks, before = [], ""
    for (name, kind, default, allowed, meaning), places in found.items():
        choices = [place.choice for place in places if place.choice]
        title = ", ".join([*choices[:1], *(choice.partition(": ")[2] for choice in choices[1:])])
        heading = f"{places[0].path or 'The sweep'}{f' with {title}' if title else ''}"
        if heading != before:
            about = one_line(places[0].model.__doc__ or "") if len(places) == 1 else ""
            blocks.append("\n".join([heading, *([_wrapped(about, 2)] if about else [])]))
            before = heading
        facts = [kind, f"default: {default}", *([f"allowed: {allowed}"] if allowed else [])]
        blocks.append(f"  {name}\n{_wrapped('; '.join(facts).replace('`', ''), 6)}\n{_wrapped(meaning, 6)}")
    return "\n\n".join(blocks)


def _begins(name: str, prefix: str) -> bool:
    return name.startswith(prefix) or name.rpartition(".")[2] == prefix or name.removeprefix("trial.").startswith(f"{prefix}.")


def _wrapped(text: str, indent: int) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=" " * indent, subsequent_indent=" " * indent)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
