"""suspects.csv: all training images that were judged, the most suspicious first; and what is said about the list in a line."""

import csv
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.outcome.bundle import PROVENANCE

if TYPE_CHECKING:
    from trainables.suspects import Suspects

LIST, SHEET = "suspects.csv", "suspects.html"
COLUMNS = (
    *("rank", "image", "given", "predicted", "confidence", "given_probability"),
    *("loss", "weight", "score", "likely_wrong"),
)


def write_list(file: Path, found: "Suspects") -> None:
    """Writes the list, with the columns `flipped` where labels were changed on purpose, and `fold` after a cross-validation."""
    judged, names = found.judged, found.class_names
    optional = {"flipped": found.flipped, "fold": None if found.fold is None else found.fold + 1}
    more = {name: values for name, values in optional.items() if values is not None}
    columns = zip(*judged, judged.score, found.likely, *more.values(), strict=True)
    with file.open("w", encoding="utf-8", errors="backslashreplace", newline="") as out:
        rows = csv.writer(out, lineterminator="\n")
        rows.writerow([*COLUMNS, *more])
        for rank, (image, values) in enumerate(zip(found.names, columns, strict=True), 1):
            given, predicted, confidence, of_label, _, loss, weight, score, likely, *others = values
            numbers = (f"{confidence:.6g}", f"{of_label:.6g}", f"{loss:.6g}", "" if math.isnan(weight) else f"{weight:.6g}")
            rows.writerow([rank, image, names[given], names[predicted], *numbers, f"{score:.6g}", int(likely), *map(int, others)])


def facts_of(found: "Suspects", shown: int) -> dict[str, Any]:
    """Numbers about a list, for provenance.json and for programs; `shown` is the number of images on the sheet."""
    return {
        "images": found.num_images,
        "judged": len(found.names),
        "shown": min(shown, len(found.names)),
        "likely_wrong": int(found.likely.sum()),
    }


def extent(facts: dict[str, Any]) -> str:
    """What a sheet shows, in words."""
    of = f"{facts['judged']}" if facts["judged"] == facts["images"] else f"{facts['judged']} of {facts['images']}"
    return f"the {facts['shown']} most suspicious of {of} training images"


def extent_in_export(folder: Path) -> str | None:
    """The same of the sheet in an exported folder; None without one."""
    try:
        facts = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))["suspects"]
        return extent(facts) if (folder / SHEET).is_file() else None
    except (OSError, ValueError, KeyError, TypeError):  # an older export
        return None
