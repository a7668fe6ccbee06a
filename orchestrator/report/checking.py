"""Whether a report shows what the results folder holds: its figures and the numbers of its summary are made again."""

import json
import re
from pathlib import Path
from typing import Any

from orchestrator.ledger.events import Kind
from orchestrator.ledger.ledger import last
from orchestrator.outcome.bundle import Mismatch
from orchestrator.report.html_page import page
from orchestrator.report.material import gather
from orchestrator.report.writing import REPORT

FIGURES = re.compile(r'<script type="application/json" id="figures">(.*?)</script>', re.DOTALL)
SUMMARY = re.compile(r'<section id="summary">(.*?)</section>', re.DOTALL)
NEXT = re.compile(r"<h3>What to try next</h3>.*", re.DOTALL)
"""Commands, with the folder as somebody typed it."""
EVENTS = re.compile(r"<footer>Made from (\d+) events? of ")


def check_report(folder: Path) -> str:
    """Compares report.html with what the tables give. Trials that were added to the page by hand are not compared.

    Returns: what was seen, in words.

    Raises:
        Mismatch: when a figure or a number of the summary is another one.
    """
    file = folder / REPORT
    if not file.is_file():
        return "no report"
    material, text = gather(folder, ()), file.read_text(encoding="utf-8", errors="replace")
    found = EVENTS.search(text)
    if found is None:
        raise Mismatch(f"{file} does not say from how many events it was made: it was changed, or is of another version")
    if int(found[1]) <= last(material.sweep.events, Kind.SWEEP_END, Kind.SWEEP_RESUME, Kind.SWEEP_START)["n"]:
        return f"{REPORT} shows an earlier state of the sweep; python -m orchestrator.report writes it anew"
    again = page(material)
    ours, theirs = _figures(file, text), _figures(file, again)
    for name, choices in theirs.items():
        for choice, drawn in choices.items():
            if ours.get(name, {}).get(choice) != drawn:
                raise Mismatch(f"{file}: the figure {name!r} {f'of {choice!r} ' if choice else ''}is not what the tables give")
    for number, (shown, made) in enumerate(zip(_numbers(file, text), _numbers(file, again), strict=True), 1):
        if shown != made:
            raise Mismatch(f"{file}: number {number} of the summary is {shown}, and the tables give {made}")
    return f"{len(theirs)} figures of {REPORT} and its summary, as the tables give them"


def _figures(file: Path, text: str) -> dict[str, Any]:
    found = FIGURES.search(text)
    try:
        figures: dict[str, Any] = json.loads(found[1] if found else "")
    except ValueError as error:
        raise Mismatch(f"{file} holds no figures that can be read: {error}") from error
    return figures


def _numbers(file: Path, text: str) -> list[str]:
    """All numbers of the summary, as they are written."""
    found = SUMMARY.search(text)
    if found is None:
        raise Mismatch(f"{file} holds no summary")
    return re.findall(r"[-+]?\d+(?:\.\d+)?", re.sub(r"<[^>]+>", " ", NEXT.sub("", found[1])))
