"""Whether a report shows what the results folder holds: its figures and the numbers of its summary are made again."""

import json
import re
import shlex
from itertools import zip_longest
from pathlib import Path
from typing import Any

from orchestrator.ledger.events import Kind
from orchestrator.ledger.ledger import last
from orchestrator.outcome.bundle import Mismatch
from orchestrator.outcome.own_digest import is_whole
from orchestrator.outcome.suspect_files import LIST, SHEET
from orchestrator.report.html_page import page
from orchestrator.report.material import gather
from orchestrator.report.template import OWN_DIGEST
from orchestrator.report.writing import REPORT
from trainables.files import file_sha256
from trainables.shown_commands import shown_command
from trainables.words import plural

FIGURES = re.compile(r'<script type="application/json" id="figures">(.*?)</script>', re.DOTALL)
SUMMARY = re.compile(r'<section id="summary">(.*?)</section>', re.DOTALL)
NEXT = re.compile(r"<h3>What to try next</h3>.*", re.DOTALL)
"""Commands, with the folder as somebody typed it."""
LIST_DIGEST = re.compile(rb'<meta name="list-sha256" content="([0-9a-f]{64})"')
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
    content, cure = file.read_bytes(), f"{shown_command('orchestrator.report', shlex.quote(str(folder)))} writes it anew"
    if (whole := is_whole(content, OWN_DIGEST)) is None:
        raise Mismatch(f"{file} holds no digest of its own: it was changed, or written by an older version; {cure}")
    if not whole:
        raise Mismatch(f"{file} was changed: its SHA-256 is not the one that it holds; {cure}")
    material, text = gather(folder, ()), content.decode(errors="replace")
    found = EVENTS.search(text)
    if found is None:
        raise Mismatch(f"{file} does not say from how many events it was made; {cure}")
    if int(found[1]) <= last(material.sweep.events, Kind.SWEEP_END, Kind.SWEEP_RESUME, Kind.SWEEP_START)["n"]:
        return f"{REPORT} shows an earlier state of the sweep; {cure}"
    again = page(material)
    ours, theirs = _figures(file, text), _figures(file, again)
    for name, choices in theirs.items():
        shown_choices = ours.get(name)
        for choice, drawn in choices.items():
            if not isinstance(shown_choices, dict) or shown_choices.get(choice) != drawn:
                raise Mismatch(f"{file}: the figure {name!r} {f'of {choice!r} ' if choice else ''}is not what the tables give")
    for number, (shown, made) in enumerate(zip_longest(_numbers(file, text), _numbers(file, again)), 1):
        if shown != made:
            raise Mismatch(f"{file}: number {number} of the summary is {shown}, and the tables give {made}")
    return f"{len(theirs)} figures of {REPORT} and its summary, as the tables give them"


def check_suspects(folder: Path) -> str:
    """The lists that `orchestrator.suspects` has written: each sheet holds its own digest, and that of the list beside it.

    The list of an export is compared with the export's provenance.

    Raises:
        Mismatch: when a sheet or a list was changed.
    """
    sheets = sorted(folder.glob(f"suspects*/{SHEET}"))
    for sheet in sheets:
        folds = re.findall(r"suspects_(\d+)_folds", sheet.parent.name)
        command = shown_command("orchestrator.suspects", shlex.quote(str(folder)), *(["--folds", *folds] if folds else []))
        content, cure = sheet.read_bytes(), f"{command} writes it anew"
        if not is_whole(content, OWN_DIGEST):
            raise Mismatch(f"{sheet} was changed: its SHA-256 is not the one that it holds; {cure}")
        found, file = LIST_DIGEST.search(content), sheet.with_name(LIST)
        if found is None or not file.is_file() or file_sha256(file) != found[1].decode():
            raise Mismatch(f"{file} is missing or was changed after {SHEET} was written; {cure}")
    return plural(len(sheets), "list", " of suspicious labels") if sheets else "no lists of suspicious labels beside the exports"


def _figures(file: Path, text: str) -> dict[str, Any]:
    found = FIGURES.search(text)
    try:
        figures = json.loads(found[1] if found else "")
    except ValueError as error:
        raise Mismatch(f"{file} holds no figures that can be read: {error}") from error
    if not isinstance(figures, dict):
        raise Mismatch(f"{file} holds no figures by name")
    return figures


def _numbers(file: Path, text: str) -> list[str]:
    """All numbers of the summary, as they are written."""
    found = SUMMARY.search(text)
    if found is None:
        raise Mismatch(f"{file} holds no summary")
    return re.findall(r"[-+]?\d+(?:\.\d+)?", re.sub(r"<[^>]+>", " ", NEXT.sub("", found[1])))
