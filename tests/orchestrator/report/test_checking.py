"""A report in which a number was changed is not what the tables give."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.ledger.events import Kind
from orchestrator.ledger.ledger import Ledger, read_ledger
from orchestrator.outcome.bundle import Mismatch
from orchestrator.outcome.own_digest import ZEROS, seal
from orchestrator.report.checking import FIGURES, check_report
from orchestrator.report.template import OWN_DIGEST
from orchestrator.report.writing import REPORT, write_report


@pytest.fixture(scope="module")
def written(folder_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checking") / "demo"
    shutil.copytree(folder_of("plain"), folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orchestrator.report.material.RESAMPLES", 8)
        patch.setattr("orchestrator.report.material.RESAMPLES_OF_MANY", 4)
        write_report(folder, more=["t0003"], with_figures=False)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "demo"))


def write(file: Path, text: str) -> None:
    """Writes a page with the digest that its text has: somebody who changes a page may do so, too."""
    unsealed = re.sub(rf"(?<={re.escape(OWN_DIGEST.decode())})[0-9a-f]+", ZEROS, text, count=1)
    file.write_bytes(seal(unsealed.encode(), OWN_DIGEST))


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    write(file, text.replace(old, new, 1))


def test_any_flipped_byte_of_a_report_is_seen(folder: Path) -> None:
    content = (folder / REPORT).read_bytes()
    for place in (0, *range(100, len(content), len(content) // 20), len(content) - 1):
        (folder / REPORT).write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(Mismatch, match=r"report.html (was changed|holds no digest)"):
            check_report(folder)


def test_a_summary_with_a_number_more_or_less_is_not_what_the_tables_give(folder: Path) -> None:
    replace(folder / REPORT, '<div class="tiles">', '<div class="tiles">7 ')
    with pytest.raises(Mismatch, match="number 1 of the summary is 7, and the tables give "):
        check_report(folder)


@pytest.mark.parametrize("figures", ["{", "[]", '{"history": 7}'])
def test_figures_of_another_form_are_not_what_the_tables_give(folder: Path, figures: str) -> None:
    text = (folder / REPORT).read_text()
    write(folder / REPORT, FIGURES.sub(f'<script type="application/json" id="figures">{figures}</script>', text))
    with pytest.raises(Mismatch, match=r"figures|the figure "):
        check_report(folder)


def test_a_report_is_what_the_tables_give_also_with_a_trial_that_was_added(folder: Path) -> None:
    assert "figures of report.html and its summary, as the tables give them" in check_report(folder)
    (folder / REPORT).unlink()
    assert check_report(folder) == "no report"


def test_a_number_of_the_summary_that_was_changed_is_named(folder: Path) -> None:
    text = (folder / REPORT).read_text()
    shown = text[text.index("<div class=tile><b>") :].split("<b>")[1].split("</b>")[0]
    replace(folder / REPORT, f"<b>{shown}</b>", f"<b>{float(shown) + 0.0001:.4f}</b>")
    with pytest.raises(Mismatch, match=rf"number 1 of the summary is {float(shown) + 0.0001:.4f}, and the tables give {shown}"):
        check_report(folder)


def test_a_figure_that_was_changed_is_named(folder: Path) -> None:
    text = (folder / REPORT).read_text()
    history = text.index('"history":')
    changed = re.sub(r'("y":\{"dtype":"f4","bdata":").', r"\1A", text[history:], count=1)  # the first number's first byte
    write(folder / REPORT, text[:history] + changed)
    with pytest.raises(Mismatch, match="the figure 'history' "):
        check_report(folder)


def test_a_report_of_an_earlier_state_is_said_to_be_one(folder: Path) -> None:
    events = read_ledger(folder)
    with Ledger(folder) as ledger:
        fields = {key: value for key, value in events[-1].items() if key not in ("event", "n", "time", "prev")}
        ledger.append(Kind.SWEEP_RESUME, segment=2, config=events[0]["config"], git_commit=None, versions={})
        ledger.append(events[-1]["event"], **fields)
    assert "shows an earlier state of the sweep" in check_report(folder)
