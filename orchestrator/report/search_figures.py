"""Figures of the search: where the trials were, what they reached, and which settings mattered."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from orchestrator.config.search_config import CategoricalParameter, FloatParameter, IntParameter
from orchestrator.config.space import METHOD, Space
from orchestrator.decide.plots import Tried, contour_plot, history_plot, place_of, slice_plot, with_values
from orchestrator.ledger.events import Role, Status
from orchestrator.ledger.trial_states import number_of
from orchestrator.outcome.confirmation import Row
from orchestrator.outcome.tables import not_dominated, objective
from orchestrator.report.close_trials import ranked
from orchestrator.report.colours import BEST, MARKS, NEUTRAL, OF_STATUS, SCALE, series
from orchestrator.report.drawing import TRIAL, Drawn, axis, figure, joined, numbers, short, shown, small, whole
from orchestrator.report.material import Material
from orchestrator.report.sentences import in_words

MOST_AXES = 12
"""Of parallel coordinates; with more, the most important settings."""
MOST_PAIRS = 10
"""Of contours: all pairs of the five most important settings."""
MOST_IN_CONTOUR = 60
"""Trials in a contour plot, the best first: Optuna's grid grows with the square of their number."""
BINS = 12
"""Of the ranks: the lines of a bin share a colour, and are drawn as one."""
MOST_MARKED = 200
"""Lines whose corners are marked: a browser takes long to draw thousands of marks."""
FAR_BELOW = 3
"""Trials that are so many times further below the middle trial than the best one is above it are left out of an axis, with a
note: they would press all others together."""
MOST_CURVES = 300
"""Learning curves; with more trials, every second, third, ... by rank."""


def history(material: Material) -> Drawn | str:
    """Optuna's optimisation history, with what Optuna does not know: trials that did not finish, references, confirmations."""
    tried = [trial for arm in material.arms for trial in arm.tried]
    rows = [row for row in material.sweep.rows if math.isfinite(objective(row))]
    if not rows:
        return "no trial has a result yet"
    name = material.sweep.config.trial.selection()
    found = figure(xaxis=axis("trial, in the order of proposal"), yaxis=axis(name))
    finished = [trial for trial in tried if material.row(trial.number)["status"] == Status.FINISHED]
    if finished:
        trials, best = history_plot(sorted(finished, key=lambda trial: trial.number)).data[:2]
        found.add_scatter(x=whole(best.x), y=small(best.y), mode="lines", name="best so far", line={"color": BEST, "shape": "hv"})
        _points(found, trials.x, trials.y, "finished", Status.FINISHED)
    for status in (Status.STOPPED_EARLY, Status.DIVERGED, Status.FAILED, Status.INTERRUPTED, Status.RUNNING):
        those = [row for row in rows if row["status"] == status and row["role"] == Role.SEARCH]
        if those:
            where = [number_of(row["trial_id"]) for row in those]
            _points(found, where, [objective(row) for row in those], in_words(status), status)
    confirming = [row for row in rows if row["role"] == Role.CONFIRM]
    if confirming:
        where = [number_of(row["trial_id"]) for row in confirming]
        found.add_scatter(
            x=whole(where),
            y=small([objective(row) for row in confirming]),
            customdata=whole(where),
            mode="markers",
            name="fresh seeds",
            marker={"color": series(2), "symbol": "diamond-open", "size": 8},
            hovertemplate=f"{TRIAL}<br>%{{y:.4f}}<extra>fresh seed</extra>",
        )
    _leave_out_far(found, [objective(row) for row in rows])
    last = max(number_of(row["trial_id"]) for row in rows)
    for place, row in enumerate(row for row in rows if row["role"] == Role.REFERENCE):
        found.add_scatter(
            x=[0, last],
            y=small([objective(row)] * 2),
            customdata=numbers([row["trial_id"]] * 2),
            text=[shown(row["variant"])] * 2,
            mode="lines",
            name=shown(row["variant"]),
            line={"color": series(place + 1), "dash": "dash", "width": 1.5},
            hovertemplate=f"{TRIAL}<br>%{{y:.4f}}<extra>%{{text}}</extra>",
        )
    return {"": [found]}


def _leave_out_far(found: go.Figure, values: Sequence[float]) -> None:
    """Lets the axis of the objective begin above the trials that are far below all others, and says how many they are."""
    low, high = near_the_top(values)
    far = sum(value < low for value in values)
    if far:
        found.layout.yaxis.range = [low, high + 0.1 * (high - low)]
        where = {"x": 1, "xref": "paper", "xanchor": "right", "y": 0, "yref": "paper", "yanchor": "bottom"}
        found.add_annotation(
            text=f"{far} lower: double click shows all", showarrow=False, font={"size": 11}, name="on page", **where
        )


def near_the_top(values: Sequence[float]) -> tuple[float, float]:
    """The range of the values without those that are far below all others; see FAR_BELOW."""
    middle, low, high = float(np.median(values)), min(values), max(values)
    return (max(low, middle - FAR_BELOW * (high - middle)) if len(values) >= 5 and high > middle else low), high


def _points(found: go.Figure, x: Sequence[int], y: Sequence[float], name: str, status: Status) -> None:
    found.add_scatter(
        x=whole(x),
        y=small(y),
        customdata=whole(x),
        mode="markers",
        name=name,
        marker={
            "color": OF_STATUS[status],
            "symbol": MARKS[status],
            "size": 7,
            "line": {"width": 1.5, "color": OF_STATUS[status]},
        },
        hovertemplate=f"{TRIAL}<br>%{{y:.4f}}<extra>{name}</extra>",
    )


def trade_offs(material: Material) -> Drawn | str:
    """Each pair of several objectives, with the Pareto front."""
    names = material.sweep.config.objectives()
    if len(names) < 2:
        return ""
    rows = [row for row in material.sweep.rows if row["role"] == Role.SEARCH or row["role"] == Role.REFERENCE]
    rows = [row for row in rows if all(row.get(f"best/{name}") is not None for name in names)]
    if not rows:
        return "no trial has all objectives yet"
    front = {row["trial_id"] for row in not_dominated(rows, names)}
    found: Drawn = {}
    for first, second in itertools.combinations(names, 2):
        drawn = figure(xaxis=axis(first), yaxis=axis(second))
        for label, colour, those in (
            ("others", NEUTRAL, [row for row in rows if row["trial_id"] not in front]),
            (
                "Pareto front",
                BEST,
                sorted((row for row in rows if row["trial_id"] in front), key=lambda row: row[f"best/{first}"]),
            ),
        ):
            drawn.add_scatter(
                x=small([row[f"best/{first}"] for row in those]),
                y=small([row[f"best/{second}"] for row in those]),
                customdata=numbers([row["trial_id"] for row in those]),
                mode="markers" if label == "others" or len(names) > 2 else "lines+markers",
                line={"shape": "hv", "width": 1},
                marker={"color": colour, "size": 8},
                name=label,
                hovertemplate=f"{TRIAL}<br>%{{x:.4f}}, %{{y:.4f}}<extra></extra>",
            )
        found[f"{first}, {second}" if len(names) > 2 else ""] = [drawn]
    return found


def parallel(material: Material) -> Drawn | str:
    """Parallel coordinates of each arm, drawn as lines: every trial is a line through its settings to its objective."""
    found: Drawn = {}
    for arm in material.arms:
        most_important = arm.by_importance()[:MOST_AXES]
        names = [name for name in arm.space if name in most_important]
        if names and arm.tried:
            found[arm.name] = [_parallel(arm.space, names, arm.tried, material.sweep.config.trial.selection())]
    return found or "no searched trial has a result yet"


def _parallel(space: Space, names: Sequence[str], tried: Sequence[Tried], selection: str) -> go.Figure:
    values = [trial.objective for trial in tried]
    low, high = min(values), max(values)
    high = high if high > low else low + 1e-9
    axes = [_Axis(space[name]) for name in names]
    # Coloured by rank: by value, one bad trial would give all others the same colour.
    in_order = sorted(tried, key=lambda trial: trial.objective)
    number_of_bins = min(BINS, len(in_order))
    by_bin = [[in_order[place] for place in places] for places in np.array_split(np.arange(len(in_order)), number_of_bins)]
    found = figure(
        380,
        margin={"l": 30, "r": 70, "t": 50, "b": 30},
        xaxis={"range": [-0.35, len(names) + 0.25], "visible": False, "fixedrange": True},
        yaxis={"range": [-0.14, 1.08], "visible": False, "fixedrange": True},
        showlegend=False,
        meta={"overlay": "lines", "minWidth": 110 * (len(names) + 1)},
    )
    for number, trials in enumerate(by_bin):  # the best bin is drawn last, above the others
        x: list[float] = []
        y: list[float] = []
        which: list[int] = []
        text: list[str] = []
        for trial in trials:
            places = [one.place(trial.values.get(name)) for one, name in zip(axes, names, strict=True)]
            x += [*range(len(names) + 1), np.nan]
            y += [*places, (trial.objective - low) / (high - low), np.nan]
            which += [trial.number] * (len(names) + 2)
            text += [*(short(trial.values.get(name)) for name in names), f"{trial.objective:.4f}", ""]
        share = (number + 0.5) / number_of_bins
        found.add_scatter(
            x=small(x),
            y=small(y),
            customdata=whole(which),
            text=text,
            mode="lines+markers" if len(tried) <= MOST_MARKED else "lines",
            line={"color": _of_scale(share), "width": 1 + 1.2 * share},
            marker={"size": 4},
            opacity=0.35 + 0.6 * share,
            hovertemplate=f"{TRIAL}: %{{text}}<extra></extra>",
        )
    for place, name in enumerate([*names, selection]):
        marks = (
            axes[place].ticks() if place < len(names) else [(share, f"{low + share * (high - low):.3f}") for share in (0, 0.5, 1)]
        )
        found.add_shape(type="line", x0=place, x1=place, y0=0, y1=1, line={"color": NEUTRAL, "width": 1.5}, layer="below")
        title = name.removeprefix("method.")
        found.add_annotation(x=place, y=1.05, text=f"<b>{shown(title)}</b>", showarrow=False, yanchor="bottom", font={"size": 11})
        for height, label in marks:
            found.add_annotation(
                x=place, y=height, text=label, showarrow=False, xanchor="right", xshift=-5, font={"size": 10}, name="on page"
            )
    return found


def _of_scale(share: float) -> str:
    from plotly.colors import sample_colorscale

    return str(sample_colorscale(SCALE, [0.2 + 0.75 * share])[0])


class _Axis:
    """Where the values of a setting lie between 0 and 1 on its own scale."""

    def __init__(self, parameter: FloatParameter | IntParameter | CategoricalParameter) -> None:
        self._parameter = parameter

    def place(self, value: Any) -> float:
        """NaN for a setting that was not drawn, which breaks the line."""
        if value is None:
            return math.nan
        if isinstance(self._parameter, CategoricalParameter):
            choices = self._parameter.choices
            return choices.index(value) / max(1, len(choices) - 1) if value in choices else math.nan
        scale = math.log if self._parameter.log else float
        low, high = scale(self._parameter.low), scale(self._parameter.high)
        return (scale(place_of(self._parameter, value)) - low) / (high - low) if high > low else 0.5

    def ticks(self) -> list[tuple[float, str]]:
        """Places and labels."""
        if isinstance(self._parameter, CategoricalParameter):
            return [(self.place(choice), short(choice)) for choice in self._parameter.choices]
        return [(self.place(value), short(value)) for value in tick_values(self._parameter)]


def tick_values(parameter: FloatParameter | IntParameter) -> list[float | int]:
    """The values at which an axis is labelled: decades, or the ends and the middle; and `or_exactly`."""
    low, high = parameter.low, parameter.high
    found: list[float | int] = [low, high]
    if parameter.log:
        decades = [10.0**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
        steps = 1 + len(decades) // 5
        found += [decade for decade in decades[::steps] if 1.5 * low < decade < high / 1.5]
    elif high > low:
        middle = (low + high) / 2
        found.append(round(middle) if isinstance(low, int) and isinstance(high, int) else middle)
    exactly = getattr(parameter, "or_exactly", None)
    return sorted({*found, *([] if exactly is None else [exactly])})


def slices(material: Material) -> Drawn | str:
    """Optuna's slice plot of each searched setting, the most important first."""
    found: Drawn = {}
    for arm in material.arms:
        figures = []
        for name in arm.by_importance():
            own = with_values(arm.tried, [name])
            if own:
                figures.append(_slice(arm.space, own, name, material.sweep.config.trial.selection()))
        if figures:
            found[arm.name] = figures
    return found or "no searched trial has a result yet"


def _slice(space: Space, tried: list[Tried], name: str, selection: str) -> go.Figure:
    (trace,) = (trace for trace in slice_plot(space, tried, name).data if len(trace.x))
    found = figure(260, xaxis=_scaled(space, name), yaxis=axis(selection), showlegend=False, meta={"narrow": True})
    found.add_scatter(
        x=_coordinates(trace.x),
        y=small(trace.y),
        customdata=whole([trial.number for trial in tried]),
        text=[short(trial.values[name]) for trial in tried],
        mode="markers",
        marker={"color": whole(trace.marker.color), "colorscale": SCALE, "size": 7, "opacity": 0.8},
        hovertemplate=f"{TRIAL}: %{{text}}<br>%{{y:.4f}}<extra></extra>",
    )
    _leave_out_far(found, [trial.objective for trial in tried])
    return found


def _coordinates(values: Sequence[Any]) -> Any:
    return small(values) if all(isinstance(value, int | float) for value in values) else [short(value) for value in values]


def _scaled(space: Space, name: str) -> dict[str, Any]:
    """The axis of a setting, on its own scale, with a label for `or_exactly`."""
    parameter = space[name]
    if isinstance(parameter, CategoricalParameter):
        return axis(name, type="category")
    if not parameter.log:
        return axis(name)
    ticks = [value for value in tick_values(parameter) if not _is_beside_exactly(parameter, value)]
    return axis(
        name,
        type="log",
        tickangle=0,
        tickvals=[place_of(parameter, value) for value in ticks],
        ticktext=[short(value) for value in ticks],
    )


def _is_beside_exactly(parameter: FloatParameter | IntParameter, value: float) -> bool:
    """Whether a value is an end of the range next to which `or_exactly` is drawn, so that their labels would overlap."""
    exactly = getattr(parameter, "or_exactly", None)
    ends = [] if exactly is None else [parameter.low] * (exactly < parameter.low) + [parameter.high] * (exactly > parameter.high)
    return value in ends


def contours(material: Material) -> Drawn | str:
    """Optuna's contour plot of each pair of the most important settings."""
    found: Drawn = {}
    for arm in material.arms:
        names = [name for name in arm.by_importance() if name != METHOD]
        for first, second in map(sorted, itertools.islice(itertools.combinations(names, 2), MOST_PAIRS)):
            both = with_values(arm.tried, [first, second])
            both = sorted(sorted(both, key=lambda trial: -trial.objective)[:MOST_IN_CONTOUR], key=lambda trial: trial.number)
            vary = all(len({trial.values[name] for trial in both}) > 1 for name in (first, second))
            if len(both) >= 4 and vary:
                label = f"{arm.name}: {first}, {second}" if arm.name else f"{first}, {second}"
                found[label] = [_contour(arm.space, both, first, second, material.sweep.config.trial.selection())]
    return found or "it takes two searched settings that vary, and four trials with a result"


def _contour(space: Space, tried: list[Tried], first: str, second: str, selection: str) -> go.Figure:
    surface, *_ = contour_plot(space, tried, first, second).data
    found = figure(400, xaxis=_scaled(space, first), yaxis=_scaled(space, second), showlegend=False)
    low, high = near_the_top([trial.objective for trial in tried])
    found.add_contour(
        x=_coordinates(surface.x),
        y=_coordinates(surface.y),
        z=np.array(surface.z, dtype=np.float32),
        connectgaps=True,
        zmin=low,
        zmax=high,
        colorscale=SCALE,
        contours={"coloring": "heatmap"},
        line={"smoothing": 1.3, "width": 0.5},
        colorbar={"title": {"text": shown(selection), "side": "right"}, "thickness": 12},
        hoverinfo="skip",
    )
    found.add_scatter(
        x=_coordinates([place_of(space[first], trial.values[first]) for trial in tried]),
        y=_coordinates([place_of(space[second], trial.values[second]) for trial in tried]),
        customdata=whole([trial.number for trial in tried]),
        text=[f"{trial.objective:.4f}" for trial in tried],
        mode="markers",
        marker={"color": "#ffffff", "size": 6, "line": {"color": "#222222", "width": 1}},
        hovertemplate=f"{TRIAL}: %{{text}}<extra></extra>",
    )
    return found


def importance(material: Material) -> Drawn | str:
    """Both measures of importance with their bootstrap intervals."""
    found: Drawn = {}
    for arm in material.arms:
        if not arm.importances:
            continue
        names = [shown(one.name) for one in reversed(arm.importances)]
        drawn = figure(
            120 + 46 * len(names),
            xaxis=axis("importance", range=[0, 1]),
            yaxis={"automargin": True},
            barmode="group",
            legend={"orientation": "h", "y": 1.1, "traceorder": "reversed"},
        )
        for label, colour, part in (("fANOVA", series(1), "fanova"), ("PED-ANOVA", series(0), "ped_anova")):
            value, low, high = (
                small([getattr(one, f"{part}{end}") for one in reversed(arm.importances)]) for end in ("", "_low", "_high")
            )
            drawn.add_bar(
                y=names,
                x=value,
                orientation="h",
                name=label,
                marker={"color": colour, "opacity": 0.75},
                error_x={"type": "data", "symmetric": False, "array": high - value, "arrayminus": value - low, "color": NEUTRAL},
                hovertemplate=f"%{{y}}: %{{x:.2f}}<extra>{label}</extra>",
            )
        found[arm.name] = [drawn]
    why = [arm.why_no_importances for arm in material.arms if arm.why_no_importances]
    return found or [*why, "nothing was searched"][0]


def learning_curves(material: Material) -> Drawn | str:
    """The objectives and the training loss over the epochs; marks show where trials were stopped or failed."""
    sweep = material.sweep
    rows = [row for row in shown_curves(sweep.rows) if row["trial_id"] in sweep.curves]
    if not rows:
        return "no trial has trained an epoch yet"
    metrics = [*dict.fromkeys([sweep.config.trial.select_by, *sweep.config.objectives()]), "train/loss"]
    found: Drawn = {}
    for metric in metrics:
        if any(metric in sweep.curves[row["trial_id"]] for row in rows):
            found[metric] = [_curves(material, rows, metric)]
    return found or "no metric was measured yet"


def shown_curves(rows: list[Row]) -> list[Row]:
    if len(rows) <= MOST_CURVES:
        return rows
    by_rank = ranked(rows)
    kept = by_rank[:: math.ceil(len(by_rank) / MOST_CURVES)]
    return [*(row for row in rows if row["role"] != Role.SEARCH)][:MOST_CURVES] + kept


def _curves(material: Material, rows: list[Row], metric: str) -> go.Figure:
    sweep = material.sweep
    found = figure(420, xaxis=axis("epoch"), yaxis=axis(metric))
    best = sweep.best
    groups: dict[str, list[Row]] = {}
    for row in rows:
        named = row["variant"] if sweep.config.ablation or row["role"] == Role.REFERENCE else ""
        name = (
            "the best"
            if best and row["trial_id"] == best["trial_id"]
            else named or ("fresh seeds" if row["role"] == Role.CONFIRM else in_words(row["status"]))
        )
        groups.setdefault(name, []).append(row)
    statuses = {in_words(status): OF_STATUS[status] for status in Status}
    order = sorted(groups, key=lambda name: (name == "the best", name not in statuses))
    coloured = [name for name in groups if name not in statuses and name != "the best"]
    for name in order:
        colour = BEST if name == "the best" else statuses.get(name) or series(coloured.index(name) + 1)
        x, y, which = joined([(number_of(row["trial_id"]), sweep.curves[row["trial_id"]]) for row in groups[name]], metric)
        plain, dashed = name in statuses, not sweep.config.ablation and name not in statuses and name != "the best"
        found.add_scatter(
            x=x,
            y=y,
            customdata=which,
            mode="lines",
            name=shown(name),
            line={"color": colour, "width": 1 if plain or sweep.config.ablation else 2.2, "dash": "dash" if dashed else "solid"},
            opacity=0.6 if plain else 1,
            hovertemplate=f"{TRIAL}, epoch %{{x}}<br>%{{y:.4f}}<extra></extra>",
        )
    for status in (Status.STOPPED_EARLY, Status.DIVERGED, Status.FAILED):
        ended = [row for row in rows if row["status"] == status and len(sweep.curves[row["trial_id"]].get(metric, ()))]
        if ended:
            found.add_scatter(
                x=whole([sweep.curves[row["trial_id"]]["epoch"][-1] for row in ended]),
                y=small([sweep.curves[row["trial_id"]][metric][-1] for row in ended]),
                customdata=numbers([row["trial_id"] for row in ended]),
                mode="markers",
                name=f"{in_words(status)} here",
                marker={"color": OF_STATUS[status], "symbol": "x", "size": 8},
                hovertemplate=f"{TRIAL}, epoch %{{x}}<br>{in_words(status)}<extra></extra>",
            )
    return found
