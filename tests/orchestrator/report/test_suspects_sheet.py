import csv
import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from browser import open_in_browser

from orchestrator.outcome.bundle import Mismatch
from orchestrator.outcome.suspect_files import LIST, SHEET, extent
from orchestrator.report.checking import check_suspects
from orchestrator.report.suspects_sheet import write_suspects
from trainables.suspects import Judged, Suspects

PICTURES = Path(__file__).parents[3] / "dist" / "reports"
GREY = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAAKElEQVR4nGNgYGBg+P///38GBgYmBgYGBkYGBgYGJgYGBgYGBgYA"
    "TG0EBsm1V1UAAAAASUVORK5CYII="
)
NASTY = ['a<script>document.title="run"</script>.jpg', 'cat/it\'s "quoted" & {{own}}.png', "=1+1.jpg", "über/ñ.jpg"]


def listed(number: int = 130, with_folds: bool = False) -> Suspects:
    """Images whose label becomes more probable from one to the next."""
    of_label = np.linspace(0.01, 0.99, number)
    names = [NASTY[place] if place < len(NASTY) else f"cat/{place:04}.jpg" for place in range(number)]
    given = np.arange(number) % 2
    predicted = np.where(of_label < 0.5, 1 - given, given)
    other = 1 - of_label
    weight = np.where(np.arange(number) == 2, np.nan, 0.5)
    judged = Judged(given, predicted, np.maximum(of_label, other), of_label, other, -np.log(of_label), weight)
    return Suspects(
        names=names,
        judged=judged,
        likely=of_label < 0.3,
        flipped=None if with_folds else of_label < 0.2,
        fold=np.arange(number) % 5 if with_folds else None,
        thumbnails=[GREY if place != 3 else "" for place in range(min(number, 100))],
        class_names=("c<b>at", "dog"),
        num_images=number,
        notes=("a note with <i>markup</i>",),
    )


def rows_in(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))


def test_the_list_has_every_image_in_order_with_its_numbers(tmp_path: Path) -> None:
    found = listed()
    facts = write_suspects(tmp_path, found, Path("results/demo"), "the model of t0007")
    rows = rows_in(tmp_path / LIST)
    assert facts == {"images": 130, "judged": 130, "shown": 100, "likely_wrong": int(found.likely.sum())}
    assert [row["image"] for row in rows] == found.names
    assert [int(row["rank"]) for row in rows] == list(range(1, 131))
    assert found.flipped is not None
    for row, of_label, flipped in zip(rows, found.judged.given_probability, found.flipped, strict=True):
        assert float(row["given_probability"]) == pytest.approx(of_label, rel=1e-5)
        assert float(row["loss"]) == pytest.approx(-np.log(of_label), rel=1e-5)
        assert float(row["score"]) == pytest.approx(1 - 2 * of_label, abs=1e-5)
        assert row["flipped"] == str(int(flipped))
    assert (rows[2]["weight"], rows[3]["weight"]) == ("", "0.5")
    assert {row["given"] for row in rows} == {"c<b>at", "dog"}
    assert list(rows[0]) == [
        *("rank", "image", "given", "predicted", "confidence", "given_probability", "loss", "weight", "score", "likely_wrong"),
        "flipped",
    ]


def test_after_a_cross_validation_the_list_has_the_fold_and_no_column_for_noise_that_there_is_not(tmp_path: Path) -> None:
    write_suspects(tmp_path, listed(with_folds=True), Path("results/demo"), "5 models")
    rows = rows_in(tmp_path / LIST)
    assert [row["fold"] for row in rows[:6]] == ["1", "2", "3", "4", "5", "1"]
    assert "flipped" not in rows[0]
    text = (tmp_path / SHEET).read_text()
    assert "5 models were trained for that" in text
    assert "--folds" not in text


def test_a_name_that_is_no_text_is_listed_with_escapes(tmp_path: Path) -> None:
    found = listed(5)._replace(names=["caf\udce9/1.jpg", *listed(5).names[1:]])
    write_suspects(tmp_path, found, Path("results/demo"), "a model")
    assert "caf\\udce9/1.jpg" in (tmp_path / LIST).read_text(encoding="utf-8")


def test_the_sheet_needs_nothing_else_and_shows_names_letter_by_letter(tmp_path: Path) -> None:
    write_suspects(tmp_path, listed(), Path("results/my sweep"), "the model of <t0007>")
    text = (tmp_path / SHEET).read_text()
    assert not re.findall(r'(?:src|href)="(?!data:image/|suspects\.csv")[^"]*"', text)
    assert "http" not in text
    assert "<script" not in text
    assert text.count("<li><span") == 100
    shown = [unescape(name) for name in re.findall(r'<span class="file">(.*?)</span>', text)]
    assert shown == listed().names[:100]
    assert "python -m orchestrator.suspects &#x27;results/my sweep&#x27; --folds 5" in text
    assert "the model of &lt;t0007&gt;" in text
    assert "a note with &lt;i&gt;markup" in text
    assert "data.noise has changed 20% of the labels on purpose, and 26% of those below." in text


def test_an_image_whose_label_is_the_most_probable_is_not_called_predicted_as_another(tmp_path: Path) -> None:
    found = listed()
    write_suspects(tmp_path, found, Path("results/demo"), "a model")
    text = (tmp_path / SHEET).read_text()
    agreeing = int((found.judged.given == found.judged.predicted)[:100].sum())
    assert 0 < agreeing < 100
    assert text.count("no other class is more probable") == agreeing
    assert text.count(">predicted <b>") == 100 - agreeing


def test_fewer_than_a_hundred_images_are_all_shown(tmp_path: Path) -> None:
    facts = write_suspects(tmp_path, listed(7), Path("results/demo"), "a model")
    assert extent(facts) == "the 7 most suspicious of 7 training images"
    assert extent(facts | {"images": 9}) == "the 7 most suspicious of 7 of 9 training images"


@pytest.mark.parametrize("name", [LIST, SHEET])
def test_a_list_or_a_sheet_that_was_changed_is_named(name: str, tmp_path: Path) -> None:
    assert check_suspects(tmp_path) == "no lists of suspicious labels beside the exports"
    for folder in ("suspects", "suspects_5_folds"):
        (tmp_path / folder).mkdir()
        write_suspects(tmp_path / folder, listed(), Path("results/demo"), "a model")
    assert check_suspects(tmp_path) == "2 lists of suspicious labels"
    file = tmp_path / "suspects_5_folds" / name
    file.write_bytes(file.read_bytes().replace(b"0012.jpg", b"0013.jpg", 1))
    with pytest.raises(Mismatch, match=re.escape(f"{file} ") + ".* --folds 5 writes it anew"):
        check_suspects(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"), [("suspects", "1300,2500"), ("suspects_dark", "1300,2500"), ("suspects_phone", "500,2500")]
)
def test_the_sheet_opens_in_a_browser_in_light_and_dark_and_on_a_phone(name: str, size: str, tmp_path: Path) -> None:
    write_suspects(tmp_path, listed(), Path("results/demo"), "the model of t0007")
    measure = """<script>document.title = JSON.stringify([
        document.documentElement.scrollWidth <= innerWidth,
        [...document.images].every((image) => image.naturalWidth > 0 && image.width <= 96)]);</script></body>"""
    page = tmp_path / "page.html"
    page.write_text((tmp_path / SHEET).read_text().replace("</body>", measure).replace(' loading="lazy"', ""))
    PICTURES.mkdir(parents=True, exist_ok=True)
    seen = open_in_browser(page, tmp_path / "profile", PICTURES / f"{name}.png", size, dark=name == "suspects_dark")
    assert seen.console == []
    (title,) = re.findall(r"<title>(.*?)</title>", seen.dom)
    assert json.loads(title) == [True, True]
    assert 'a<script>document.title="run"</script>.jpg' in unescape(seen.text)
