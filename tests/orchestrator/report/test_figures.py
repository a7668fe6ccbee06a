"""What the figures show, against the parquet tables."""

import math
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks.virtual_folder import VAL_PER_CLASS
from orchestrator.config.search_config import FloatParameter, IntParameter
from orchestrator.report.class_figures import bands, class_accuracies, one_of_each_band, thinned, weights_over_time
from orchestrator.report.confusion import confusions, most_confused
from orchestrator.report.drawing import shown
from orchestrator.report.figures import SECTIONS
from orchestrator.report.material import Material, gather
from orchestrator.report.reading import Classes
from orchestrator.report.run_figures import forest, timeline
from orchestrator.report.search_figures import (
    contours,
    history,
    learning_curves,
    near_the_top,
    parallel,
    slices,
    tick_values,
    trade_offs,
)


def table(folder: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(folder / f"{name}.parquet").to_pylist()
    return found


def only(drawn: Any) -> Any:
    """The figure of a section that has one."""
    ((figure, *rest),) = drawn.values()
    assert not rest
    return figure


@pytest.fixture
def material(folder_of: Callable[[str], Path]) -> Material:
    return gather(folder_of("plain"))


def test_the_history_has_every_searched_trial_and_a_line_for_each_reference(material: Material) -> None:
    rows = table(material.sweep.folder, "trials")
    points = {
        int(number): float(y)
        for trace in only(history(material)).data
        if trace.mode == "markers"
        for number, y in zip(trace.x, trace.y, strict=True)
    }
    assert points == pytest.approx({int(row["trial_id"][1:]): row["best/val/acc"] for row in rows if row["role"] == "search"})
    lines = {trace.name: trace.y[0] for trace in only(history(material)).data if trace.mode == "lines"}
    assert lines["cross_entropy"] == pytest.approx(next(row["best/val/acc"] for row in rows if row["variant"] == "cross_entropy"))
    assert {"best so far", "paper", "cross_entropy"} == set(lines)


def test_each_line_of_the_parallel_coordinates_passes_its_settings_on_their_own_scales(material: Material) -> None:
    figure, names = only(parallel(material)), list(material.arms[0].space)
    rows = {int(row["trial_id"][1:]): row for row in table(material.sweep.folder, "trials")}
    scores = [row["best/val/acc"] for row in rows.values() if row["role"] == "search"]
    seen = set()
    for trace in figure.data:
        for x, y, number in zip(trace.x, trace.y, trace.customdata, strict=True):
            if math.isnan(x):
                continue
            seen.add((int(number), int(x)))
            if x == names.index("method.meta_lr"):
                assert y == pytest.approx(math.log10(rows[number]["config/method.meta_lr"] / 1e-4) / 3, abs=1e-5)
            if x == len(names):
                assert y == pytest.approx((rows[number]["best/val/acc"] - min(scores)) / (max(scores) - min(scores)), abs=1e-5)
    assert seen == {(number, place) for number in range(2, 8) for place in range(len(names) + 1)}


def test_a_slice_shows_each_trial_at_its_setting(material: Material) -> None:
    rows = {int(row["trial_id"][1:]): row for row in table(material.sweep.folder, "trials")}
    figures = {figure.layout.xaxis.title.text: figure for figure in next(iter(slices(material).values()))}
    assert set(figures) == set(material.arms[0].space)
    (trace,) = figures["method.meta_lr"].data
    for x, y, number in zip(trace.x, trace.y, trace.customdata, strict=True):
        assert x == pytest.approx(rows[number]["config/method.meta_lr"], rel=1e-6)
        assert y == pytest.approx(rows[number]["best/val/acc"])
    assert figures["method.meta_lr"].layout.xaxis.type == "log"


def test_each_point_of_a_contour_plot_lies_where_the_surface_has_its_objective(material: Material) -> None:
    rows = {int(row["trial_id"][1:]): row for row in table(material.sweep.folder, "trials")}
    drawn = contours(material)
    assert len(drawn) == 6  # pairs of four settings
    for choice, (figure,) in drawn.items():
        assert choice == f"{figure.layout.xaxis.title.text}, {figure.layout.yaxis.title.text}"
        surface, points = figure.data
        for x, y, number in zip(points.x, points.y, points.customdata, strict=True):
            z = surface.z[list(surface.y).index(y), list(surface.x).index(x)]
            assert z == pytest.approx(rows[number]["best/val/acc"])


def test_learning_curves_are_those_of_the_table_and_end_with_a_cross_where_a_trial_was_stopped(material: Material) -> None:
    expected = {(int(row["trial_id"][1:]), row["epoch"]): row["val/acc"] for row in table(material.sweep.folder, "epochs")}
    found, crosses = {}, {}
    for trace in learning_curves(material)["val/acc"][0].data:
        for x, y, number in zip(trace.x, trace.y, trace.customdata, strict=True):
            if trace.mode == "markers":
                crosses[int(number)] = int(x)
            elif not math.isnan(y):
                found[int(number), int(x)] = float(y)
    assert found == pytest.approx(expected)
    stopped = {
        int(row["trial_id"][1:]): row["epochs"] for row in table(material.sweep.folder, "trials") if row["status"] != "finished"
    }
    assert stopped
    assert crosses == stopped


def test_the_accuracies_of_classes_are_those_of_the_best_epochs_the_largest_class_first(material: Material) -> None:
    rows = {row["trial_id"]: row for row in table(material.sweep.folder, "trials")}
    classes = table(material.sweep.folder, "classes")
    best, plain, counts = only(class_accuracies(material)).data
    for trace in (best, plain):
        trial_id = f"t{trace.customdata[0]:04d}"
        own = [row for row in classes if row["trial_id"] == trial_id and row["epoch"] == rows[trial_id]["best/epoch"]]
        own.sort(key=lambda row: -row["train_count"])
        assert list(trace.y) == pytest.approx([row["accuracy"] for row in own])
        assert list(counts.y) == [row["train_count"] for row in own]
    assert rows[f"t{plain.customdata[0]:04d}"]["config/method.name"] == "cross_entropy"


def test_the_confusions_are_those_of_the_best_epochs(material: Material) -> None:
    rows = {row["trial_id"]: row for row in table(material.sweep.folder, "trials")}
    drawn = confusions(material)
    assert isinstance(drawn, dict)
    assert [choice.split(", ")[1] for choice in drawn] == ["the best", "cross_entropy", "paper"]
    for choice, (figure,) in drawn.items():
        trial_id = choice.split(",")[0]
        own = [row for row in table(material.sweep.folder, "classes") if row["trial_id"] == trial_id]
        arrays = {row["class"]: row for row in own if row["epoch"] == rows[trial_id]["best/epoch"]}
        (heat,) = figure.data
        assert sorted(map(int, heat.x)) == list(range(10))
        for label, shares in zip(map(int, heat.x), heat.z, strict=True):
            for taken, share in zip(map(int, heat.x), shares, strict=True):
                row = arrays[label]
                expected = row["accuracy"] if label == taken else row["mistaken_for"].count(taken) / VAL_PER_CLASS
                assert share == pytest.approx(expected, abs=1e-6)


def test_with_many_classes_those_of_the_most_frequent_mistakes_are_shown() -> None:
    mistaken: list[list[int]] = [[] for _ in range(100)]
    mistaken[7], mistaken[50], mistaken[99] = [3] * 6, [51] * 9, [3] * 4 + [98] * 2
    accuracy = np.array([[1 - len(taken) / 10 for taken in mistaken]])
    nothing = np.full_like(accuracy, np.nan)
    classes = Classes(np.array([4]), accuracy, nothing, nothing, nothing, np.arange(100, 0, -1), {4: mistaken})
    confused = most_confused(classes, 4, most=5)
    assert confused is not None
    assert confused.classes == [3, 7, 50, 51, 99]  # by size
    assert np.round(confused.shares, 6).tolist() == [
        [1, 0, 0, 0, 0],
        [0.6, 0.4, 0, 0, 0],
        [0, 0, 0.1, 0.9, 0],
        [0, 0, 0, 1, 0],
        [0.4, 0, 0, 0, 0.4],  # two were taken for class 98, which is not shown
    ]
    assert most_confused(classes, 5) is None


def test_the_bands_are_those_of_the_best_epochs(material: Material) -> None:
    rows = {row["trial_id"]: row for row in table(material.sweep.folder, "trials")}
    for trace in only(bands(material)).data:
        row = rows[f"t{trace.customdata[0]:04d}"]
        assert list(trace.y) == pytest.approx([row[f"best/val/{name}"] for name in ("acc_many", "acc_medium", "acc_few", "acc")])


def test_the_papers_figures_show_the_arrays_of_the_chosen_trial(material: Material) -> None:
    (choice, (weights, three, difficulty, uniform)), *_ = weights_over_time(material).items()
    trial_id = choice.split(",")[0]
    own = [row for row in table(material.sweep.folder, "classes") if row["trial_id"] == trial_id]
    arrays = {(row["epoch"], row["class"]): row for row in own}
    (heat,) = weights.data
    for place, epoch in enumerate(heat.x):
        assert list(heat.z[:, place]) == pytest.approx([arrays[epoch, number]["weight"] for number in range(10)], rel=1e-6)
    for trace in three.data:  # scaled to a mean of 1 over the classes
        number = int(trace.name.split()[0])
        for epoch, value in zip(trace.x, trace.y, strict=True):
            assert value == pytest.approx(arrays[epoch, number]["weight"] / mean(arrays[epoch, c]["weight"] for c in range(10)))
    best = next(row for row in table(material.sweep.folder, "trials") if row["trial_id"] == trial_id)["best/epoch"]
    (marked,) = (trace for trace in difficulty.data if trace.name == f"epoch {best}, the best")
    order = sorted(range(10), key=lambda c: arrays[best, c]["meta_accuracy"])
    assert list(marked.y) == pytest.approx([arrays[best, c]["difficulty"] for c in order])
    epochs = [row for row in table(material.sweep.folder, "epochs") if row["trial_id"] == trial_id]
    assert list(uniform.data[-1].y) == pytest.approx([*(row["difficulty/kl_uniform"] for row in epochs), math.nan], nan_ok=True)


def test_best_references_and_the_top_of_the_search_are_shown_closely(folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("confirmed")
    rows, found = table(folder, "trials"), gather(folder).close
    winner = rows[int(next(iter(found))[1:])]
    assert winner["role"] == "confirm"
    runs = {row["trial_id"] for row in rows if row["confirms"] == winner["confirms"]}
    references = {row["trial_id"] for row in rows if row["role"] == "reference"}
    searched = {row["trial_id"] for row in rows if row["role"] == "search"}
    assert set(found) == runs | references | searched


def test_a_forest_plot_has_the_paired_differences(folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("ablation")
    scores: dict[str, list[float]] = {}
    for row in table(folder, "trials"):
        scores.setdefault(row["variant"], []).append(row["best/val/acc"])
    expected = {name: 100 * (mean(of) - mean(scores["lambda_0_3"])) for name, of in scores.items() if name != "lambda_0_3"}
    data = only(forest(gather(folder))).data
    assert {name: float(x) for trace in data for name, x in zip(trace.y, trace.x, strict=True)} == pytest.approx(
        expected, abs=1e-5
    )


def test_the_timeline_shows_how_long_each_trial_took(material: Material) -> None:
    took: dict[int, float] = {}
    for trace in only(timeline(material)).data:
        for length, number in zip(trace.x, trace.customdata, strict=True):
            took[int(number)] = took.get(int(number), 0.0) + float(length)
    rows = table(material.sweep.folder, "trials")
    assert took == pytest.approx({int(row["trial_id"][1:]): row["wall_s"] for row in rows}, rel=1e-5)


def test_trade_offs_mark_those_that_none_surpasses(folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("objectives")
    points = {
        int(row["trial_id"][1:]): (row["best/val/acc"], row["best/val/acc_few"])
        for row in table(folder, "trials")
        if row["role"] != "confirm"
    }
    front = {
        number
        for number, one in points.items()
        if not any(other != one and other[0] >= one[0] and other[1] >= one[1] for other in points.values())
    }
    others, marked = only(trade_offs(gather(folder))).data
    assert 1 < len(front) < len(points)
    assert set(marked.customdata.tolist()) == front
    assert set(others.customdata.tolist()) == points.keys() - front


def test_long_runs_with_many_classes_are_thinned_and_keep_what_matters() -> None:
    counts = np.arange(1000, 0, -1)
    wide = np.arange(300.0)[:, None] + np.zeros(1000)
    few, kept = thinned(Classes(np.arange(1, 301), wide, wide, wide, wide, counts, {}), best_epoch=123)
    assert few.weight.shape == (len(few.epochs), len(kept)) == (50, 60)
    assert {1, 123, 300} <= set(few.epochs.tolist())
    assert (kept[0], kept[-1]) == (0, 999)
    assert few.weight[few.epochs.tolist().index(123), 0] == 122
    small, kept = thinned(Classes(np.array([1, 2]), *[np.array([[1.0, 2.0, 3.0]] * 2)] * 4, np.array([5, 9, 1]), {}), 2)
    assert kept.tolist() == [1, 0, 2]  # the largest first
    assert small.weight.tolist() == [[2.0, 1.0, 3.0]] * 2


def test_one_class_stands_for_each_band_or_third() -> None:
    assert one_of_each_band(np.array([500, 300, 200, 50, 30, 10, 5, 1])) == [1, 4, 6]
    assert one_of_each_band(np.array([90, 58, 37, 24, 15, 10])) == [1, 3, 5]  # no band of many


def test_an_axis_begins_above_trials_that_are_far_below_all_others() -> None:
    assert near_the_top([0.8, 0.79, 0.78, 0.77, 0.1]) == (pytest.approx(0.78 - 3 * 0.02), 0.8)
    assert near_the_top([0.8, 0.7, 0.6, 0.5, 0.4]) == (0.4, 0.8)
    assert near_the_top([0.5, 0.5]) == (0.5, 0.5)


def test_ticks_are_decades_ends_and_the_exact_value() -> None:
    assert tick_values(FloatParameter(low=1e-4, high=0.1, log=True)) == pytest.approx([1e-4, 1e-3, 1e-2, 0.1])
    assert tick_values(FloatParameter(low=0.0, high=1.0)) == [0.0, 0.5, 1.0]
    assert tick_values(IntParameter(low=1, high=9)) == [1, 5, 9]
    assert tick_values(FloatParameter(low=1e-2, high=1.0, log=True, or_exactly=0.0)) == pytest.approx([0, 1e-2, 0.1, 1.0])


def test_text_from_outside_is_not_markup_for_plotly() -> None:
    assert shown("<b>&x</b>") == "&lt;b&gt;&amp;x&lt;/b&gt;"


@pytest.mark.parametrize("kind", ["plain", "none_finished", "one_trial", "failures", "objectives", "ablation", "confirmed"])
def test_every_section_draws_or_says_why_not(folder_of: Callable[[str], Path], kind: str) -> None:
    found = gather(folder_of(kind))
    for section in SECTIONS:
        if section.of_ablation if found.sweep.config.ablation else section.of_search:
            drawn = section.draw(found)
            assert isinstance(drawn, str) or all(figure.data for of in drawn.values() for figure in of), section.name
