"""The picture of an ablation: a forest plot of paired differences."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestrator.config.ablation_config import AblationConfig
from orchestrator.outcome.ablation import Compared, tables_by_condition


def draw_forest(lines: Sequence[Compared], plan: AblationConfig, place: Path, unit: str) -> None:
    """Draws the paired differences with their intervals, and the margin of equivalence, as forest.svg and forest.pdf."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # importing it takes half a second
    from matplotlib.figure import Figure

    tables = {condition: list(_with_interval(of)) for condition, of in tables_by_condition(lines).items()}
    tables = {condition: of for condition, of in tables.items() if of}
    if not tables:
        return
    height = sum(0.34 * len(of) + 0.9 for of in tables.values())
    figure = Figure(figsize=(7.5, height), layout="constrained")
    FigureCanvasAgg(figure)
    ratios = [len(of) + 1.5 for of in tables.values()]
    all_axes = figure.subplots(len(tables), 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": ratios})[:, 0]
    for axes, (condition, of) in zip(all_axes, tables.items(), strict=True):
        axes.axvspan(-100 * plan.margin, 100 * plan.margin, color="0.92")
        axes.axvline(0, color="0.5", linewidth=0.8)
        for place_of, row in enumerate(line.row for line in of):
            assert row.difference is not None
            assert row.difference_low is not None
            assert row.difference_high is not None
            colour = COLOURS.get(row.verdict or "", "0.35")
            errors = [[100 * (row.difference - row.difference_low)], [100 * (row.difference_high - row.difference)]]
            axes.errorbar([100 * row.difference], [place_of], xerr=errors, fmt="o", color=colour, capsize=3, markersize=5)
        axes.set_yticks(range(len(of)), [f"{line.label} ({line.row.verdict})" if line.row.verdict else line.label for line in of])
        axes.set_ylim(len(of) - 0.5, -0.5)
        axes.set_title(condition, fontsize=10, loc="left")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    all_axes[-1].set_xlabel(
        f"{plan.metric} minus {plan.reference_name}, in points: mean over {unit} and 95 % interval\n"
        f"grey: differences below the margin of {100 * plan.margin:g} points do not matter"
    )
    for ending in ("svg", "pdf"):
        figure.savefig(place / f"forest.{ending}", metadata={"Date": None} if ending == "svg" else {"CreationDate": None})


COLOURS = {"better": "#1b7837", "worse": "#b2182b", "equivalent": "#2166ac"}
"""Of verdicts in the picture."""


def _with_interval(lines: Sequence[Compared]) -> Iterator[Compared]:
    return (line for line in lines if line.row.difference_low is not None)
