"""The view of a sweep's runs, as MLflow's web interface takes it; test_ui.py opens it."""

import json
from pathlib import Path

import pytest

from orchestrator.config.sweep_config import SweepConfig, read_sweep
from orchestrator.tracking.page import address, axes, logarithms, view

DIGITS = Path(__file__).parents[3] / "search_spaces" / "digits_lt.yaml"
SPACE = {
    "method.meta_lr": {"type": "float", "low": 1e-4, "high": 0.1, "log": True},
    "method.driver_weight": {"type": "float", "low": 1e-4, "high": 1.0, "log": True, "or_exactly": 0.0},
    "optim.lr": {"type": "float", "low": 0.1, "high": 0.2},
    "method.name": {"type": "categorical", "values": ["cdb_ce", "focal"]},
}


def test_searched_settings_have_their_logarithms_where_they_are_searched_so() -> None:
    values = {"method.meta_lr": 0.01, "method.driver_weight": 0.0, "optim.lr": 0.15, "method.name": "focal"}
    assert logarithms(SPACE, values) == {"log10 meta_lr": -2.0, "log10 driver_weight": -5.0}  # 0: one decade below the range
    assert logarithms(SPACE, {"method.name": "focal"}) == {}
    assert list(axes(SPACE).values()) == ["log10 meta_lr", "log10 driver_weight", "optim.lr", "method.name"]


def test_names_that_end_alike_stay_apart() -> None:
    space = {name: {"type": "float", "low": 0.1, "high": 1.0, "log": True} for name in ("optim.lr", "stages.1.optim.lr")}
    assert list(axes(space).values()) == ["log10 optim.lr", "log10 stages.1.optim.lr"]


@pytest.mark.parametrize("changes", [[], ["search.objectives=[val/acc_few, val/acc]"]])
def test_a_view_shows_the_sweeps_runs_by_the_objective_with_the_searched_settings_and_the_objective_last(
    changes: list[str],
) -> None:
    config: SweepConfig = read_sweep(DIGITS, [*changes, *(["search.sampler=nsga2"] if changes else [])])
    shown = json.loads(view("abc", config.model_dump()))
    first = config.objectives()[0]
    assert shown["searchFilter"] == "tags.`tailtune.of` = 'abc'"
    assert (shown["orderByKey"], shown["orderByAsc"]) == (f"metrics.`best/{first}`", False)
    parallel = next(chart for chart in shown["compareRunCharts"] if chart["type"] == "PARALLEL")
    assert parallel["selectedParams"] == [
        "log10 driver_weight", "log10 meta_lr", "log10 hidden_width", "log10 refresh_interval",
    ]  # fmt: skip
    assert parallel["selectedMetrics"] == [f"best/{first}"]
    assert {chart["metricSectionId"] for chart in shown["compareRunCharts"]} == {
        section["uuid"] for section in shown["compareRunSections"]
    }
    assert {f"params.`{name}`" for name in config.space} < set(shown["selectedColumns"])
    assert len(shown["selectedColumns"]) <= 40
    assert len(view("abc", config.model_dump())) < 20_000  # the longest tag of an experiment


def test_a_view_of_some_runs_names_them() -> None:
    config = read_sweep(DIGITS, []).model_dump()
    assert json.loads(view("abc", config, ["r1", "r2"]))["searchFilter"] == "attributes.run_id IN ('r1', 'r2')"


def test_an_ablation_has_a_view_without_searched_settings() -> None:
    config = read_sweep(DIGITS, []).model_dump()
    shown = json.loads(view("abc", {"trial": config["trial"]}))
    assert [chart["type"] for chart in shown["compareRunCharts"]] == ["LINE", "LINE"]


def test_the_address_names_experiment_and_view() -> None:
    assert address("7", "abc") == "/#/experiments/7/runs?workflowType=machine_learning&viewStateShareKey=abc"
    assert address("7", "abc", charts=True).endswith("&compareRunsMode=CHART")
