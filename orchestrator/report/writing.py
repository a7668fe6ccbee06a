"""Writes a report: report.html and, for papers, figures/."""

from collections.abc import Sequence
from pathlib import Path

from orchestrator.report.html_page import page
from orchestrator.report.material import gather
from orchestrator.report.paper_figures import write_paper_figures
from trainables.files import replace_text

REPORT = "report.html"
FIGURES = "figures"


def write_report(folder: Path, more: Sequence[str] = (), refresh_s: int = 0, with_figures: bool = True) -> Path:
    """Writes the report of a sweep or an ablation, as far as it has come; nothing else in the folder changes.

    Args:
        folder: results folder.
        more: further trials to show class by class.
        refresh_s: seconds after which the page loads itself again; 0 means never.
        with_figures: whether figures/ is written, too, which takes some seconds.

    Returns: report.html.

    Raises:
        ConfigError: when the folder holds no sweep, another version of TailTune wrote it, or the sweep has no such trial.
    """
    material = gather(folder, more)
    replace_text(folder / REPORT, page(material, refresh_s))
    if with_figures:
        write_paper_figures(material, folder / FIGURES)
    return folder / REPORT
