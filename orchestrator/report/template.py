"""Pages from templates: the files in page/, whose placeholders are filled in one pass."""

from collections.abc import Mapping
from pathlib import Path

from orchestrator.outcome.own_digest import seal

PARTS = Path(__file__).parent / "page"
OWN_DIGEST = b'<meta name="own-sha256" content="'
"""What stands before a page's own digest."""


def part(name: str) -> str:
    """The text of a file in page/."""
    return (PARTS / name).read_text(encoding="utf-8")


def filled(name: str, values: Mapping[str, str]) -> str:
    """A template with values, which are HTML, in place of its placeholders, and with its own digest.

    Args:
        name: of the template, which has `own` in place of the digest.
        values: by placeholder; `own` is ZEROS.
    """
    pieces = part(name).split("{{")
    # One pass over the template: a value that looks like a placeholder stays as it is.
    whole = pieces[0] + "".join(values[name] + rest for name, _, rest in (piece.partition("}}") for piece in pieces[1:]))
    return seal(whole.encode(errors="backslashreplace"), OWN_DIGEST).decode()  # a folder's name may be no text
