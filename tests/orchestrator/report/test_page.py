"""The page in a real browser, for every kind of sweep; its pictures are kept in dist/reports."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from browser import Seen, open_in_browser

from benchmarks.report import sweep_of
from benchmarks.virtual_folder import lively, record, repeated
from orchestrator.decide.virtual_sweep import run
from orchestrator.report.writing import write_report
from trainables.config_file import dump_yaml, read_yaml

PICTURES = Path(__file__).parents[3] / "dist" / "reports"
SEARCHED = {"parallel", "history", "slices", "contours", "curves", "classes", "bands", "confusion", "weights", "timeline"}
EXPECTED = {
    "larger": SEARCHED | {"importance"},
    "confirmed": SEARCHED,
    "none_finished": {"history", "curves", "weights", "timeline"},
    "one_trial": SEARCHED - {"contours"},
    "failures": {"timeline"},
    "objectives": SEARCHED | {"trade_offs"},
    "ablation": {"forest", "curves", "classes", "bands", "confusion", "weights", "timeline"},
}
"""The figures of each kind of sweep."""


def see(page: Path, tmp_path: Path, name: str, **how: Any) -> Seen:
    PICTURES.mkdir(parents=True, exist_ok=True)
    return open_in_browser(page, tmp_path / "profile", PICTURES / f"{name}.png", **how)


def figures_in(page: str) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The figures that the page was given, by section and choice."""
    (text,) = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', page, re.DOTALL)
    found: dict[str, dict[str, list[dict[str, Any]]]] = json.loads(text)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", EXPECTED)
def test_the_page_opens_without_errors_and_with_every_figure(folder_of: Callable[[str], Path], kind: str, tmp_path: Path) -> None:
    page = write_report(folder_of(kind), with_figures=False)
    figures = figures_in(page.read_text())
    assert set(figures) == EXPECTED[kind]
    seen = see(page, tmp_path, kind)
    assert seen.console == []
    shown = sum(len(next(iter(choices.values()))) for choices in figures.values())
    assert len(re.findall(r'<div class="figure[^>]*data-drawn="yes"', seen.dom)) == shown
    assert seen.dom.count('class="main-svg"') >= 2 * shown  # plotly draws a figure in layers
    assert "undefined" not in seen.text
    assert 'data-title="Share' not in seen.dom  # plotly's button that uploads a figure


@pytest.mark.slow
def test_a_person_marks_a_trial_filters_and_sorts(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    """With the keyboard: a choice in the list, words in the filter, a press of a column's button, Enter on a row."""
    script = """<script>
      const change = (id, value, kind) => {
        document.getElementById(id).value = value;
        document.getElementById(id).dispatchEvent(new Event(kind, { bubbles: true }));
      };
      const heads = [...document.querySelectorAll("#trials th")];
      const press = () => {
        if (document.body.dataset.drawn !== "yes") return setTimeout(press, 50);
        heads.find((head) => head.textContent === "best/val/acc").firstElementChild.click();
        change("search", "search", "input");
        const row = document.querySelector('#trials tr[data-trial="3"]');
        row.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
        const history = document.querySelector("#history .figure");
        setTimeout(() => { document.title = history.data.at(-1).x + " " + history.data.at(-1).y; }, 300);
      };
      press();
    </script></body>"""
    folder = folder_of("plain")
    page = tmp_path / "page.html"
    page.write_text(write_report(folder, with_figures=False).read_text().replace("</body>", script))
    seen = see(page, tmp_path, "marked")
    rows = {int(row["trial_id"][1:]): row for row in pq.read_table(folder / "trials.parquet").to_pylist()}
    assert seen.console == []
    assert "6 of 8 trials" in seen.text
    assert re.findall(r'<tr[^>]*data-trial="(\d+)"[^>]*class="marked"', seen.dom) == ["3"]
    order = [int(number) for number in re.findall(r'<tr[^>]*data-trial="(\d+)"', seen.dom)]
    assert order == sorted(rows, key=lambda number: (rows[number]["best/val/acc"], order.index(number)))
    shown, *_ = re.findall(r"<title>(.*?)</title>", seen.dom)  # plotly has titles of its own
    x, y = shown.split()
    assert (x.strip(","), float(y.strip(","))) == ("3", pytest.approx(rows[3]["best/val/acc"]))


@pytest.mark.slow
def test_a_dark_page_has_light_text_in_its_figures(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    page = write_report(folder_of("plain"), with_figures=False)
    dark, light = (see(page, tmp_path, name, dark=name == "dark") for name in ("dark", "light"))
    assert "fill: rgb(230, 233, 238)" in dark.dom
    assert "fill: rgb(28, 36, 48)" in light.dom
    assert "fill: rgb(28, 36, 48)" not in dark.dom


@pytest.mark.slow
def test_a_thousand_trials_fit_into_a_small_page(tmp_path: Path) -> None:
    config = sweep_of(20, 4)
    folder = record(tmp_path / "large", config, repeated(run(config, lively, slots=4), 50))
    page = write_report(folder, with_figures=False)
    assert page.stat().st_size < 6e6
    figures = figures_in(page.read_text())
    assert set(figures) == EXPECTED["larger"]
    seen = see(page, tmp_path, "large")
    assert seen.console == []
    assert seen.dom.count('<tr tabindex="0"') == 1050
    assert "1050 of 1050 trials" in seen.text


@pytest.mark.slow
def test_what_a_person_typed_is_shown_and_not_run(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    """Names of the sweep, references and classes, and an error, that would be markup."""
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    folder = tmp_path / "<b>sweep</b>"
    shutil.copytree(folder_of("one_trial"), folder)
    rows = pq.read_table(folder / "trials.parquet")
    index = rows.schema.get_field_index
    for column in ("variant", "stop_reason"):
        rows = rows.set_column(index(column), column, [[evil] * rows.num_rows])
    pq.write_table(rows.set_column(index("role"), "role", [["reference"] * rows.num_rows]), folder / "trials.parquet")
    named = classes_named(folder, [f"{evil}{number}" for number in range(10)])
    page = write_report(named, with_figures=False)
    text = page.read_text()
    assert "<img src=x" not in text
    assert "alert(1)</script>" not in text
    assert "<b>sweep" not in text
    assert "&lt;b&gt;sweep&lt;/b&gt;" in text
    assert text.count("</script>") == 3  # the data, plotly and the page's own
    assert evil.replace("<", "&lt;").replace(">", "&gt;") in json.dumps(figures_in(text))
    assert figures_in(text)  # the data is still JSON
    seen = see(page, tmp_path, "escaped")
    assert seen.console == []
    assert "onerror=alert" in seen.text  # shown


def classes_named(folder: Path, names: list[str]) -> Path:
    """Gives a folder an exported model whose classes have names."""
    import numpy as np
    from safetensors.numpy import save_file

    (folder / "best").mkdir()
    save_file({"w": np.zeros(1, np.float32)}, folder / "best" / "model.safetensors", {"class_names": json.dumps(names)})
    return folder


def test_the_page_needs_nothing_from_elsewhere(folder_of: Callable[[str], Path]) -> None:
    text = write_report(folder_of("plain"), with_figures=False).read_text()
    plotly = (Path(__file__).parents[3] / "orchestrator" / "report" / "page" / "plotly-cartesian.min.js").read_text()
    own = text.replace(plotly, "")
    assert len(own) < len(text)
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"', own)
    assert "http" not in own.replace("http://www.w3.org", "")


def test_the_table_has_every_trial_and_its_searched_settings(folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("plain")
    text = write_report(folder, with_figures=False).read_text()
    table = text[text.index('<section id="trials">') :]
    for row in pq.read_table(folder / "trials.parquet").to_pylist():
        (line,) = re.findall(rf'<tr tabindex="0" data-trial="{int(row["trial_id"][1:])}".*?</tr>', table)
        assert f"<td>{row['best/val/acc']:.4f}</td>" in line
        if row["role"] == "search":
            assert f'data-value="{row["config/method.meta_lr"]:.7g}"' in line


def test_sections_stand_in_the_order_of_their_table(folder_of: Callable[[str], Path]) -> None:
    text = write_report(folder_of("plain"), with_figures=False).read_text()
    places = [text.index(f'<section id="{name}">') for name in ("summary", "parallel", "history", "slices", "contours")]
    places += [
        text.index(f'<section id="{name}">')
        for name in ("curves", "classes", "bands", "confusion", "weights", "timeline", "trials")
    ]
    assert places == sorted(places)
    assert "Importance of the settings: there are 6 trials to compare; allowed: 10 or more." in text


def test_a_sweep_from_another_tool_s_settings_is_refused_with_the_file(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folder_of("one_trial"), tmp_path / "other")
    settings = read_yaml(folder / "sweep.yaml")
    (folder / "sweep.yaml").write_text(dump_yaml({**settings, "unknown": 1}))
    with pytest.raises(Exception, match=r"sweep.yaml: unknown"):
        write_report(folder)
