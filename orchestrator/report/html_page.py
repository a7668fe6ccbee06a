"""Puts the page together: one file that needs nothing else, neither a network nor a folder beside it."""

import json
from datetime import datetime
from typing import Any

from plotly.utils import PlotlyJSONEncoder

from orchestrator.ledger.events import Role, Status
from orchestrator.ledger.ledger import start_of
from orchestrator.ledger.trial_states import number_of
from orchestrator.outcome.ablation import compared
from orchestrator.outcome.differences import interval
from orchestrator.outcome.own_digest import ZEROS
from orchestrator.outcome.searches import rows_of
from orchestrator.outcome.suspect_files import SHEET
from orchestrator.outcome.tables import objective
from orchestrator.report.drawing import Drawn
from orchestrator.report.figures import SECTIONS, Section
from orchestrator.report.material import Material
from orchestrator.report.sentences import Part, summary
from orchestrator.report.template import filled, part
from orchestrator.report.trial_table import escaped, trials_table, variants_table
from orchestrator.tracking.local_store import runs_in_store
from trainables.words import duration, plural

SERVER = "http://127.0.0.1:5000"
"""Where `make ui` shows MLflow."""
MOST_TILES = 8
BEST = "best"
"""The folder of the exported trial."""


def page(material: Material, refresh_s: int = 0) -> str:
    """The page as HTML.

    Args:
        material: what it shows.
        refresh_s: seconds after which the page loads itself again; 0 means never.
    """
    sweep = material.sweep
    wanted = [section for section in SECTIONS if (section.of_ablation if sweep.config.ablation else section.of_search)]
    drawn = {section: found for section in wanted if (found := section.draw(material)) != ""}
    sections = [_section(section, found) for section, found in drawn.items() if not isinstance(found, str)]
    titles = {section.name: section.title for section, found in drawn.items() if not isinstance(found, str)}
    without = {section.title: found for section, found in drawn.items() if isinstance(found, str)}
    if sweep.config.ablation:
        sections.insert(0, _variants(material))
        titles = {"variants": "Variants", **titles}
    if sweep.rows:
        sections.append(_trials(material))
        titles["trials"] = "All trials"
    if without:
        sections.append(_without(without))
    figures = {section.name: found for section, found in drawn.items() if not isinstance(found, str)}
    values = {
        "own": ZEROS,
        "title": escaped(f"{sweep.name}: {'an ablation' if sweep.config.ablation else 'a sweep'} of TailTune"),
        "about": escaped(_about(material)),
        "links": "".join(f'<a href="#{name}">{escaped(title)}</a>' for name, title in titles.items()),
        "trials": "".join(_option(str(number_of(row["trial_id"])), _label(material, row)) for row in sweep.rows),
        "summary": _tiles(material) + _summary(material),
        "sections": "".join(sections),
        "figures": as_json(figures),
        "footer": escaped(_footer(material)),
        "refresh": str(refresh_s),
        "style": part("page.css"),
        "script": part("page.js"),
        "plotly": part("plotly-cartesian.min.js"),
    }
    return filled("page.html", values)


def as_json(figures: dict[str, Drawn]) -> str:
    """The figures as JSON inside a script element, which the text cannot end."""
    plain = {
        name: {choice: [_without_template(figure.to_plotly_json()) for figure in of] for choice, of in drawn.items()}
        for name, drawn in figures.items()
    }
    text = json.dumps(plain, cls=PlotlyJSONEncoder, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _without_template(figure: dict[str, Any]) -> dict[str, Any]:
    figure["layout"].pop("template", None)
    return figure


def _without(reasons: dict[str, str]) -> str:
    """The figures that cannot be drawn, each with the reason."""
    lines = "".join(f"<li>{escaped(title)}: {escaped(reason)}.</li>" for title, reason in reasons.items())
    return f'<section id="without"><h2>Not drawn</h2><ul>{lines}</ul></section>'


def _section(section: Section, found: Drawn) -> str:
    head = f'<section id="{section.name}"><h2>{escaped(section.title)}</h2><p>{escaped(section.text)}</p>'
    choice = ""
    if len(found) > 1:
        options = "".join(_option(name, name) for name in found)
        label = f'<label for="{section.name}-choice">Show</label>'
        choice = f'<div class="choice">{label}<select id="{section.name}-choice">{options}</select></div>'
    return f'{head}{choice}<div class="figures"></div></section>'


def _option(value: str, label: str) -> str:
    return f'<option value="{escaped(value)}">{escaped(label)}</option>'


def _label(material: Material, row: dict[str, Any]) -> str:
    what = material.close.get(row["trial_id"]) or (row["variant"] if row["role"] != Role.SEARCH else "")
    return f"{row['trial_id']}, {what}" if what else str(row["trial_id"])


def _about(material: Material) -> str:
    sweep, trial = material.sweep, material.sweep.config.trial
    counts = start_of(sweep.events).get("class_counts") or []
    images = f", {sum(counts)} training images in {len(counts)} classes, {max(counts)} to {min(counts)} a class" if counts else ""
    return f"{trial.classifier.name} on {trial.data.source}{images}"


def _tiles(material: Material) -> str:
    """The most important numbers at a glance."""
    sweep, best = material.sweep, material.sweep.best
    tiles: list[tuple[str, str]] = []
    if best:
        within = interval(sweep.counting_images, objective(best))
        text = f"{best['trial_id']}, {sweep.config.trial.selection()}" + (
            f", {within[0]:.3f} to {within[1]:.3f}" if within else ""
        )
        tiles.append((f"{objective(best):.4f}", f"best: {text}"))
        for row in sweep.rows:
            if row["role"] == Role.REFERENCE and row["status"] == Status.FINISHED and row is not best:
                tiles.append((f"{objective(row):.4f}", f"{row['variant']}: {row['trial_id']}"))
    finished = sum(row["status"] == Status.FINISHED for row in sweep.rows)
    if sweep.rows:
        tiles.append((str(len(sweep.rows)), f"trials, {finished} finished"))
        tiles.append((duration(sweep.course.seconds), "in all"))
    shown = (f"<b>{escaped(number)}</b><span>{escaped(text)}</span>" for number, text in tiles[:MOST_TILES])
    return f'<div class="tiles">{"".join(f"<div class=tile>{one}</div>" for one in shown)}</div>'


def _summary(material: Material) -> str:
    importances = next((arm.importances for arm in material.arms if arm.importances), [])
    parts = [_part_of_summary(part) for part in summary(material.sweep, importances)]
    whole = f'<div class="parts"><div>{"".join(parts[:1])}</div><div>{"".join(parts[1:])}</div></div>'
    if not (material.sweep.folder / BEST / SHEET).is_file():
        return whole
    link = f'<a href="{BEST}/{SHEET}">Suspicious labels</a>'
    return f"{whole}<p>{link}: the training images whose labels the best model doubts most.</p>"


def _part_of_summary(part: Part) -> str:
    sentences = "".join(f"<li>{escaped(sentence)}</li>" for sentence in part.sentences)
    return f"<h3>{escaped(part.title)}</h3><ul>{sentences}</ul>"


def _variants(material: Material) -> str:
    sweep = material.sweep
    lines = compared(sweep.config, rows_of(sweep.folder, sweep.config, sweep.events))
    body = variants_table(lines) if lines else '<p class="note">No variant has a result yet.</p>'
    text = "Scores in percent; the sentences above say what the columns mean."
    return f'<section id="variants"><h2>Variants</h2><p>{text}</p>{body}</section>'


def _trials(material: Material) -> str:
    sweep = material.sweep
    tracking = sweep.config.tracking
    runs = runs_in_store(sweep.folder.resolve(), start_of(sweep.events)) if tracking.mlflow else {}
    table = trials_table(sweep.config, sweep.rows, {trial_id: SERVER + page for trial_id, page in runs.items()})
    statuses = dict.fromkeys(str(row["status"]).replace("_", " ") for row in sweep.rows)
    options = _option("", "every status") + "".join(_option(status, status) for status in statuses)
    text = "A click on a column sorts; Enter or a click on a row marks the trial."
    text += " Links open MLflow while its web interface runs (tailtune ui)." if runs else ""
    return (
        f'<section id="trials"><h2>All trials</h2><p>{escaped(text)}</p><div class="tools"><label for="search">Filter</label>'
        f'<input id="search" type="search" placeholder="words"><select id="status" aria-label="Status">{options}</select>'
        f'<span id="count" aria-live="polite"></span></div>{table}</section>'
    )


def _footer(material: Material) -> str:
    sweep, start = material.sweep, start_of(material.sweep.events)
    last = sweep.events[-1]
    when = datetime.fromtimestamp(last["time"]).astimezone().strftime("%Y-%m-%d %H:%M")
    commit = f", commit {start['git_commit']}" if start.get("git_commit") else ""
    events, seed = plural(len(sweep.events), "event"), sweep.config.trial.seed
    return f"Made from {events} of {sweep.folder}, the last of {when}{commit}. Seed {seed}."
