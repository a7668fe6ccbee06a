"""Figures of how the sweep ran, and of what an ablation says: the timeline of the slots, the forest plot."""

import plotly.graph_objects as go

from orchestrator.ledger.events import Status
from orchestrator.outcome.ablation import compared, tables_by_condition, unit_of
from orchestrator.outcome.searches import rows_of
from orchestrator.report.colours import NEUTRAL, OF_STATUS, OF_VERDICT
from orchestrator.report.drawing import TRIAL, Drawn, axis, figure, numbers, shown, small
from orchestrator.report.material import Material
from orchestrator.report.sentences import in_words
from orchestrator.report.timeline import Stint

UNITS = (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))


def timeline(material: Material) -> Drawn | str:
    """Which trial each slot had when: bars are stints, gaps are waiting, crosses are losses. A slot has a place for each trial
    that it trains at a time.
    """
    stints = material.sweep.course.stints
    if not stints:
        return "no trial has begun yet" if not material.sweep.config.repeats_search else "each search has a timeline of its own"
    end = max(stint.ended for stint in stints) or 1.0
    unit, length = next((unit, length) for unit, length in UNITS if end >= 2 * length or length == 1.0)
    lanes = sorted({stint.lane for stint in stints})
    name = "slot" if material.sweep.config.resources.fused == 1 else "place"
    labels = [f"{name} {lane + 1} ({_busy(stints, lane) / end:.0%} used)" for lane in lanes]
    found = figure(
        120 + 34 * len(lanes),
        xaxis=axis(f"{unit} since the first trial began", range=[0, 1.01 * end / length]),
        yaxis={"tickvals": lanes, "ticktext": labels, "autorange": "reversed", "automargin": True},
        barmode="overlay",
        bargap=0.3,
        legend={"orientation": "h", "y": 1.08, "yanchor": "bottom"},
    )
    status_of = {row["trial_id"]: row["status"] for row in material.sweep.rows}
    for status in Status:
        _bars(
            found,
            [stint for stint in stints if status_of.get(stint.trial_id) == status],
            in_words(status),
            OF_STATUS[status],
            length,
        )
    lost = [stint for stint in stints if stint.is_lost]
    if lost:
        found.add_scatter(
            x=small([stint.ended / length for stint in lost]),
            y=[stint.lane for stint in lost],
            customdata=numbers([stint.trial_id for stint in lost]),
            mode="markers",
            name="lost",
            marker={"symbol": "x", "size": 10, "color": OF_STATUS[Status.FAILED]},
            hovertemplate=f"{TRIAL} was lost<extra></extra>",
        )
    return {"": [found]}


def _busy(stints: list[Stint], lane: int) -> float:
    return sum(stint.ended - stint.began for stint in stints if stint.lane == lane)


def _bars(found: go.Figure, stints: list[Stint], name: str, colour: str, length: float) -> None:
    if stints:
        found.add_bar(
            x=small([(stint.ended - stint.began) / length for stint in stints]),
            base=small([stint.began / length for stint in stints]),
            y=[stint.lane for stint in stints],
            customdata=numbers([stint.trial_id for stint in stints]),
            orientation="h",
            name=name,
            marker={"color": colour, "opacity": 0.8, "line": {"width": 0.5, "color": "#ffffff"}},
            hovertemplate=f"{TRIAL}, {name}<extra></extra>",
        )


def forest(material: Material) -> Drawn | str:
    """The paired difference of each variant to the reference, with its interval; one for each combination of the factors."""
    config = material.sweep.config
    if not config.ablation:
        return ""
    plan = config.comparison
    lines = compared(config, rows_of(material.sweep.folder, config, material.sweep.events))
    found: Drawn = {}
    for condition, of in tables_by_condition(lines).items():
        those = [line for line in of if line.row.difference is not None]
        if not those:
            continue
        drawn = figure(
            130 + 34 * len(those),
            xaxis=axis(f"{plan.metric} minus {plan.reference_name}, in points, over {unit_of(config)}", zeroline=True),
            yaxis={"autorange": "reversed", "automargin": True, "type": "category"},
            legend={"orientation": "h", "y": 1.05, "yanchor": "bottom"},
        )
        drawn.add_vrect(x0=-100 * plan.margin, x1=100 * plan.margin, fillcolor=NEUTRAL, opacity=0.15, line_width=0, layer="below")
        for verdict in dict.fromkeys(line.row.verdict for line in those):
            rows = [line for line in those if line.row.verdict == verdict]
            values = small([100 * (line.row.difference or 0.0) for line in rows])
            low = small([None if line.row.difference_low is None else 100 * line.row.difference_low for line in rows])
            high = small([None if line.row.difference_high is None else 100 * line.row.difference_high for line in rows])
            colour = OF_VERDICT.get(verdict or "", NEUTRAL)
            drawn.add_scatter(
                x=values,
                y=[shown(line.label) for line in rows],
                mode="markers",
                name=verdict or "no verdict",
                marker={"color": colour, "size": 9},
                error_x={"type": "data", "symmetric": False, "array": high - values, "arrayminus": values - low, "color": colour},
                hovertemplate="%{y}: %{x:+.2f}<extra></extra>",
            )
        found[condition] = [drawn]
    return found or "no variant can be compared with the reference yet"
