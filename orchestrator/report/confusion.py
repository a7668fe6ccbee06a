"""Which classes are mistaken for which: the confusion matrix of the classes that are confused most."""

from collections import Counter
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from orchestrator.report.class_figures import at_epoch, compared_trials
from orchestrator.report.colours import SCALE
from orchestrator.report.drawing import Drawn, axis, figure, shown
from orchestrator.report.material import Material
from orchestrator.report.reading import Array, Classes

MOST_CONFUSED = 12
"""Classes in a figure."""


class Confusion(NamedTuple):
    """The rows and columns of some classes of a confusion matrix, the class with the most training images first."""

    classes: list[int]
    images: Array
    """Val images of the classes in the rows that were taken for those in the columns, (K, K)."""
    totals: Array
    """Val images of the classes, (K,)."""

    @property
    def shares(self) -> Array:
        """Of a class's val images, those that were taken for another one or the same, (K, K)."""
        return self.images / self.totals[:, None]


def most_confused(classes: Classes, epoch: int, most: int = MOST_CONFUSED) -> Confusion | None:
    """All classes, or those of the pairs that are confused most often; None where mistakes are not known, or there are none."""
    mistaken = classes.mistaken_for.get(epoch, [])
    pairs = Counter((label, taken) for label, row in enumerate(mistaken) for taken in row)
    if not pairs:
        return None
    # Of pairs that are equally frequent, the one with the lower numbers: the same sweep gives the same figure.
    involved = dict.fromkeys(number for pair in sorted(pairs, key=lambda pair: (-pairs[pair], pair)) for number in pair)
    chosen = list(involved)[:most] if len(mistaken) > most else range(len(mistaken))
    kept = sorted(chosen, key=lambda number: (-classes.counts[number], number))
    accuracy = at_epoch(classes, epoch).accuracy[kept]
    images = np.array([[pairs[label, taken] for taken in kept] for label in kept], float)
    wrong = np.array([len(mistaken[label]) for label in kept], float)
    with np.errstate(invalid="ignore", divide="ignore"):
        # A class without a mistake stands here because others were mistaken for it: one image stands for all.
        totals = np.where(wrong > 0, np.round(wrong / (1 - accuracy)), np.where(np.isnan(accuracy), np.nan, 1.0))
    np.fill_diagonal(images, totals - wrong)
    return Confusion(kept, images, totals)


def confusions(material: Material) -> Drawn | str:
    """For the best trial and the references: which classes are mistaken for which, at the best epoch."""
    found: Drawn = {}
    for name, row in compared_trials(material).items():
        classes = material.sweep.classes.get(row["trial_id"])
        confused = most_confused(classes, row["best/epoch"]) if classes and row["best/epoch"] else None
        if classes and confused:
            found[f"{row['trial_id']}, {name}"] = [_matrix(confused, classes, material.sweep.class_names)]
    return found or "no trial has confused classes yet, or an older version of TailTune trained them, which did not note it"


def _matrix(confused: Confusion, classes: Classes, class_names: list[str]) -> go.Figure:
    names = [shown(class_names[number]) for number in confused.classes]
    found = figure(
        440,
        xaxis=axis("predicted class", type="category", automargin=True),
        yaxis=axis("true class (training images)", type="category", automargin=True, autorange="reversed"),
    )
    found.add_heatmap(
        x=names,
        y=[f"{name} ({classes.counts[number]:.0f})" for name, number in zip(names, confused.classes, strict=True)],
        z=np.array(confused.shares, dtype=np.float32),
        zmin=0,
        zmax=1,
        text=[[f"{value:.0%}" if value > 0 else "" for value in row] for row in confused.shares],
        texttemplate="%{text}",
        colorscale=SCALE,
        colorbar={"title": {"text": "share of the true class", "side": "right"}, "thickness": 12, "tickformat": ".0%"},
        hovertemplate="%{y} taken for %{x}: %{z:.1%} of its val images<extra></extra>",
    )
    return found
