"""suspects.html: the training images whose labels a model doubts most, as a contact sheet in one file; and the list beside it."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.outcome.own_digest import ZEROS
from orchestrator.outcome.suspect_files import LIST, SHEET, facts_of, write_list
from orchestrator.report.template import filled, part
from orchestrator.report.trial_table import escaped
from trainables.files import file_sha256, replace_text
from trainables.model_folder import MODEL

if TYPE_CHECKING:
    from trainables.suspects import Suspects

Examine = Callable[[Path, bytes | None], "Suspects"]
"""Judges the training images of a model: from its file, and from its epoch and theta, packed."""
SMALL = "data:image/png"
"""Thumbnails that are whole images of a few pixels, which are shown larger."""


def examine_here(model: Path, best: bytes | None) -> "Suspects":
    """Judges them in this process."""
    from trainables.suspects import examine

    return examine(model, best)


def list_suspects(examine: Examine, folder: Path, best: bytes | None, results: Path, trial_id: str) -> dict[str, Any]:
    """Writes suspects.csv and suspects.html for a model that has been exported.

    Args:
        examine: judges the images.
        folder: holds the model's file; the new files go there.
        best: the model's epoch and theta, packed; None for no weights.
        results: results folder of the sweep.
        trial_id: of the model.

    Returns: numbers about the list.
    """
    return write_suspects(folder, examine(folder / MODEL, best), results, f"the model of {trial_id}")


def write_suspects(folder: Path, found: "Suspects", results: Path, judge: str) -> dict[str, Any]:
    """Writes suspects.csv and suspects.html.

    Args:
        folder: where to.
        found: the images.
        results: results folder of the sweep, for commands.
        judge: who doubts the labels, in words.

    Returns: numbers about the list.
    """
    write_list(folder / LIST, found)
    replace_text(folder / SHEET, sheet(found, results, judge, file_sha256(folder / LIST)))
    return facts_of(found, len(found.thumbnails))


def sheet(found: "Suspects", results: Path, judge: str, list_sha256: str) -> str:
    """The sheet as HTML. It is sealed with its own digest, and holds that of the list."""
    facts = facts_of(found, len(found.thumbnails))
    shown, judged = facts["shown"], facts["judged"]
    values = {
        "own": ZEROS,
        "list": list_sha256,
        "title": escaped(f"Suspicious labels of {results.name}"),
        "about": escaped(f"{facts['images']} training images in {len(found.class_names)} classes, judged by {judge}"),
        "reading": "".join(f"<li>{line}</li>" for line in _reading(found, facts, results)),
        "heading": escaped(f"The {shown} most suspicious of {judged}"),
        "images": "".join(_image(found, place) for place in range(shown)),
        "footer": escaped(f"All {judged} images are in {LIST}, beside this page."),
        "style": part("page.css") + part("suspects.css"),
    }
    return filled("suspects.html", values)


def _reading(found: "Suspects", facts: dict[str, Any], results: Path) -> list[str]:
    """What a person should know before reading the sheet, each sentence as HTML."""
    lines = [
        "An image comes first where another class is much more probable than its label. Some of these labels are wrong, other "
        f'images are rare or hard: look before you change anything. <a href="{LIST}">{LIST}</a> names all images.',
        f"Confident learning counts {facts['likely_wrong']} of {facts['judged']} labels as wrong.",
    ]
    if found.fold is None:
        command = f"python -m orchestrator.suspects {shlex.quote(str(results))} --folds 5"
        lines.append(
            "The model has been trained on these images. A model that has learnt wrong labels by heart does not doubt them, so "
            f"the list may be incomplete. <code>{escaped(command)}</code> asks models that have not seen the images they judge."
        )
    else:
        number = int(found.fold.max()) + 1
        lines.append(f"Each image was judged by a model that had not seen it; {number} models were trained for that.")
    if found.flipped is not None:
        first = found.flipped[: facts["shown"]]
        lines.append(
            f"data.noise has changed {found.flipped.mean():.0%} of the labels on purpose, and {first.mean():.0%} of those below."
        )
    return [*lines, *(escaped(note) for note in found.notes)]


def _image(found: "Suspects", place: int) -> str:
    judged, names, picture = found.judged, found.class_names, found.thumbnails[place]
    given, predicted = (escaped(names[values[place]]) for values in (judged.given, judged.predicted))
    other = f'<span class="predicted">predicted <b>{predicted}</b> ({judged.confidence[place]:.0%})</span>'
    small = ' class="small"' if picture and picture.startswith(SMALL) else ""
    inside = f'<img{small} src="{escaped(picture)}" alt="" loading="lazy">' if picture else "cannot be read"
    shown = "" if picture is None else f'<span class="picture">{inside}</span>'
    known = '<span class="known">changed by data.noise</span>' if found.flipped is not None and found.flipped[place] else ""
    return (
        f'<li>{shown}<span class="text"><span class="rank">{place + 1}</span>'
        f"<span>labelled <b>{given}</b> ({judged.given_probability[place]:.0%})</span>"
        f"{'<span>no other class is more probable</span>' if given == predicted else other}{known}"
        f'<span class="file">{escaped(found.names[place])}</span></span></li>'
    )
