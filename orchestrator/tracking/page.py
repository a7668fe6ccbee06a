"""The page of a sweep in MLflow's web interface: its trials, the best first, with the columns and charts that matter.

MLflow keeps how a page looks in a tag of the experiment and opens it by the tag's key. Its own pages show traces of language
models first, and charts of settings that nobody searched.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

TAG = "mlflow.sharedViewState."
"""How the tags begin that hold a view of the table of runs, in MLflow's own words."""
OF = "tailtune.of"
"""The tag by which all runs of a sweep are found: the digest of the ledger's first line."""
SIDE_BY_SIDE = "-best"
"""How the key ends of the view of the best trial beside the references."""
BEST = "best"
"""The tag of the run that was exported."""
STAR = "★"
LOGARITHM = "log10 "
"""How the parameter begins that holds a searched setting's logarithm: MLflow has no logarithmic axis for several parameters."""
MOST_RUNS = 100
"""In a chart."""
CURVES = ("train/loss",)
"""Metrics whose curves are shown beside those of the objectives."""


def key_of(start: Mapping[str, Any]) -> str:
    """What identifies a sweep under any name and in any folder: the digest of the ledger's first line."""
    return hashlib.sha256(json.dumps(start, separators=(",", ":")).encode()).hexdigest()[:16]


def logarithms(space: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, float]:
    """Logarithms of the settings that are searched on a logarithmic scale; a 0 is shown one decade below the range."""
    found = {}
    for name, axis in axes(space).items():
        value = values.get(name)
        if axis != name and isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
            found[axis] = round(math.log10(value), 4) if value else math.floor(math.log10(space[name]["low"])) - 1.0
    return found


def axes(space: Mapping[str, Any]) -> dict[str, str]:
    """The parameter that shows each searched setting best, by the setting's name. MLflow shows 20 letters of it."""
    last_words = {name: name.rpartition(".")[2] for name in space}
    number = Counter(last_words.values())
    short = {name: word if number[word] == 1 else name for name, word in last_words.items()}
    return {name: LOGARITHM + short[name] if parameter.get("log") else name for name, parameter in space.items()}


def view(key: str, config: Mapping[str, Any], runs: Sequence[str] = ()) -> str:
    """How MLflow is to show a sweep: what the tag TAG + key holds.

    Args:
        key: of the sweep.
        config: of the sweep.
        runs: show these only.
    """
    space, objectives = config.get("space", {}), objectives_of(config)
    parallel = {
        "type": "PARALLEL",
        "selectedParams": list(axes(space).values()),
        "selectedMetrics": [f"best/{objectives[0]}"],
        "showAllRuns": False,
        "runsCountToCompare": MOST_RUNS,
    }
    lines = [
        {"type": "LINE", "metricKey": name, "selectedMetricKeys": [name], "runsCountToCompare": MOST_RUNS, "xAxisKey": "step"}
        for name in dict.fromkeys((*objectives, *CURVES))
    ]
    sections, charts = [], []
    for name, cards_in_row, cards in (("Searched settings", 1, [parallel] if space else []), ("Curves", 2, lines)):
        uuid = f"{key}-{name}"
        sections.append(
            {"uuid": uuid, "name": name, "display": True, "isReordered": True, "isGenerated": False, "columns": cards_in_row}
        )
        common = {"metricSectionId": uuid, "deleted": False, "isGenerated": False}
        charts += [{"uuid": f"{uuid}-{number}", **common, **card} for number, card in enumerate(cards)]
    columns = [f"tags.`{BEST}`", *(f"metrics.`best/{name}`" for name in objectives), *(f"params.`{name}`" for name in space)]
    columns += [f"tags.`{name}`" for name in ("role", "variant", "status", "seed")] + ["attributes.`Duration`"]
    which = f"tags.`{OF}` = '{key}'"
    if runs:
        which = f"attributes.run_id IN ({', '.join(repr(run) for run in runs)})"
    state = {
        "searchFilter": which,
        "orderByKey": f"metrics.`best/{objectives[0]}`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": columns,
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "isAccordionReordered": True,
        "runsHiddenMode": "SHOW_ALL",
        "hideEmptyCharts": True,
        "autoRefreshEnabled": True,
    }
    return json.dumps(state, separators=(",", ":"))


def objectives_of(config: Mapping[str, Any]) -> list[str]:
    """The objectives of a sweep, the first first."""
    return config.get("search", {}).get("objectives") or [config["trial"]["select_by"]]


def address(experiment_id: str, key: str, charts: bool = False) -> str:
    """The page of the view `key`, below the address of a server: the table, or the charts beside it."""
    mode = "&compareRunsMode=CHART" if charts else ""
    return f"/#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={quote(key)}{mode}"
