"""Figures about classes: accuracies beside class sizes, bands of classes, and Figures 2, 3 and 4 of Difficulty-Net.

Source of the last: Sinha and Ohashi, Difficulty-Net, WACV 2023.
"""

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from orchestrator.ledger.events import Role, Status
from orchestrator.ledger.trial_states import number_of
from orchestrator.outcome.confirmation import Row
from orchestrator.report.colours import BEST, NEUTRAL, SCALE, series
from orchestrator.report.drawing import TRIAL, Drawn, axis, figure, joined, numbers, shown, small, whole
from orchestrator.report.material import Material
from orchestrator.report.reading import Array, Classes
from orchestrator.statistics.proportions import wilson
from trainables.data.profiles import BANDS

MOST_EPOCHS, MOST_CLASSES = 50, 60
"""Of a trial, in a figure of classes over epochs. With more classes, some of each size."""
MOST_NAMED = 40
"""Classes that are named on an axis."""
MOST_COMPARED = 12
"""Trials side by side."""
SNAPSHOTS = 5
"""Epochs in Figure 2."""
NAMES = {
    "acc_many": "many<br>over 100 images",
    "acc_medium": "medium<br>20 to 100",
    "acc_few": "few<br>below 20",
    "acc": "all classes",
}
"""Of the bands."""


def compared_trials(material: Material) -> dict[str, Row]:
    """The trials that stand side by side: the best one and the references, or the first trial of each variant; not too many."""
    rows = material.sweep.rows
    if material.sweep.config.ablation:
        by_id = {row["trial_id"]: row for row in rows}
        found = {by_id[trial_id]["variant"]: by_id[trial_id] for trial_id in material.close}
    else:
        best = material.sweep.best
        references = [row for row in rows if row["role"] == Role.REFERENCE and row["status"] == Status.FINISHED]
        found = {"the best": best} if best else {}
        found |= {row["variant"]: row for row in references if row is not best}
    return dict(itertools.islice(found.items(), MOST_COMPARED))


def class_accuracies(material: Material) -> Drawn | str:
    """Accuracy on val of each class, the largest first, of the best trial and cross-entropy; below, the sizes of the classes."""
    known = {name: row for name, row in compared_trials(material).items() if row["trial_id"] in material.sweep.classes}
    plain = [name for name, row in known.items() if row["config/method.name"] == "cross_entropy"]
    names = [*list(known)[:1], *(name for name in [*plain, *known] if name in known)]
    names = list(dict.fromkeys(names))[:2] if not material.sweep.config.ablation else list(known)[:4]
    if not names:
        return "no trial with arrays by class has ended yet"
    first = material.sweep.classes[known[names[0]]["trial_id"]]
    order = np.argsort(-first.counts, kind="stable")
    labels = [material.sweep.class_names[number] for number in order]
    found = figure(
        460,
        xaxis=_class_axis("class, the largest first", labels) | {"anchor": "y2"},
        yaxis=axis("accuracy on val", domain=[0.36, 1], range=[-0.03, 1.03]),
        yaxis2=axis("images", domain=[0, 0.26], type="log" if first.counts.min() > 0 else "linear"),
    )
    of_val = material.sweep.val_counts
    for place, name in enumerate(names):
        row = known[name]
        accuracy = at_epoch(material.sweep.classes[row["trial_id"]], row["best/epoch"]).accuracy[order]
        shift = 0.16 * (place - (len(names) - 1) / 2) if len(order) <= MOST_NAMED else 0.0
        method = row["config/method.name"]
        found.add_scatter(
            x=small(np.arange(len(order)) + shift),
            y=small(accuracy),
            customdata=numbers([row["trial_id"]] * len(order)),
            text=[f"{shown(label)}: {count:.0f} images" for label, count in zip(labels, first.counts[order], strict=True)],
            mode="markers" if len(order) <= MOST_NAMED else "lines",
            name=shown(f"{name}: {row['trial_id']}, {method}"),
            marker={
                "color": BEST if place == 0 else series(place - 1),
                "size": 8,
                "symbol": "circle" if place == 0 else "diamond",
            },
            error_y=_errors(accuracy, np.array(of_val)[order]) if of_val and len(order) <= MOST_NAMED else None,
            hovertemplate="%{text}<br>%{y:.3f}<extra></extra>",
        )
    found.add_bar(
        x=whole(np.arange(len(order))),
        y=whole(first.counts[order].astype(int)),
        yaxis="y2",
        marker={"color": NEUTRAL},
        showlegend=False,
        text=[shown(label) for label in labels],
        textposition="none",
        hovertemplate="%{text}: %{y} training images<extra></extra>",
    )
    return {"": [found]}


def _class_axis(title: str, labels: list[str]) -> dict[str, Any]:
    if len(labels) > MOST_NAMED:
        return axis(title)
    short = [shown(label if len(label) <= 14 else f"{label[:13]}…") for label in labels]
    return axis(title, tickvals=list(range(len(labels))), ticktext=short)


def _errors(accuracy: Array, images: Array) -> dict[str, Any]:
    """95 % intervals over a number of images for each accuracy; none where there is no image."""
    known = [math.isfinite(value) and number >= 1 for value, number in zip(accuracy, images, strict=True)]
    each = zip(accuracy, images, known, strict=True)
    bounds = np.array([wilson(value, number) if is_known else (value, value) for value, number, is_known in each])
    below, above = np.maximum(accuracy - bounds[:, 0], 0), np.maximum(bounds[:, 1] - accuracy, 0)
    return {"type": "data", "symmetric": False, "array": small(above), "arrayminus": small(below), "thickness": 1, "width": 2}


class OfEpoch(NamedTuple):
    """A trial's arrays by class in one epoch, each (C,)."""

    accuracy: Array
    meta_accuracy: Array
    difficulty: Array
    weight: Array

    @property
    def seen(self) -> Array:
        """The accuracies that the method saw; of methods that look at none, those on val."""
        return self.meta_accuracy if np.isfinite(self.meta_accuracy).any() else self.accuracy


def at_epoch(classes: Classes, epoch: int) -> OfEpoch:
    """The arrays of an epoch; of the last one, if that epoch is missing."""
    place = int(np.searchsorted(classes.epochs, epoch)) if epoch in classes.epochs else -1
    return OfEpoch(*(getattr(classes, name)[place] for name in OfEpoch._fields))


def bands(material: Material) -> Drawn | str:
    """Accuracy of classes with many, medium and few images, for the best trial and the references, with intervals."""
    rows = {name: row for name, row in compared_trials(material).items() if row.get("best/epoch")}
    if not rows:
        return "no trial has finished yet"
    counts = next(iter(material.sweep.classes.values())).counts if material.sweep.classes else None
    names = [name for name in NAMES if any(row.get(f"best/val/{name}") is not None for row in rows.values())]
    if not names:
        return "these bands were not measured"
    found = figure(340, yaxis=axis("accuracy on val, best epoch", range=[0, 1]), barmode="group")
    for place, (name, row) in enumerate(rows.items()):
        values = small([row.get(f"best/val/{band}") for band in names])
        found.add_bar(
            x=[NAMES[band] for band in names],
            y=values,
            customdata=numbers([row["trial_id"]] * len(names)),
            name=shown(f"{name}: {row['trial_id']}"),
            marker={"color": BEST if place == 0 else series(place - 1), "opacity": 0.65},
            error_y=_band_errors(material, names, values, counts),
            hovertemplate="%{x}: %{y:.4f}<extra></extra>",
        )
    return {"": [found]}


def _band_errors(material: Material, names: list[str], values: Array, counts: Array | None) -> dict[str, Any] | None:
    """95 % intervals over the validation images of each band; None where their number is not known."""
    of_val = material.sweep.val_counts
    if counts is None or of_val is None:
        return None
    in_bands = [np.array(of_val)[BANDS[name](counts)] for name in names]
    # Of a mean over classes: as many images as bound a share of all as closely; see `counting_images`.
    images = [len(there) ** 2 / (1 / there).sum() if len(there := of_band[of_band > 0]) else 0.0 for of_band in in_bands]
    return _errors(values, np.array(images)) | {"color": NEUTRAL, "thickness": 1.2, "width": 3}


def weights_over_time(material: Material) -> Drawn | str:
    """For each of the trials that are shown closely: weights and difficulties of the classes over the epochs."""
    found: Drawn = {}
    for trial_id, what in material.close.items():
        classes = material.sweep.classes.get(trial_id)
        if classes is not None and len(classes.epochs):
            found[f"{trial_id}, {what}"] = _of_trial(material, trial_id, classes)
    return found or "no trial with arrays by class has ended yet"


def _of_trial(material: Material, trial_id: str, whole_run: Classes) -> list[go.Figure]:
    best_epoch = next(row["best/epoch"] for row in material.sweep.rows if row["trial_id"] == trial_id)
    classes, kept = thinned(whole_run, best_epoch)
    names = [material.sweep.class_names[number] for number in kept]
    has_difficulty = np.isfinite(classes.difficulty).any()
    figures = [weight_map(classes, names, best_epoch), chosen_weights(classes, names, best_epoch)]
    figures.append(difficulty_of_classes(classes, names, best_epoch, "difficulty" if has_difficulty else "weight"))
    curves = {
        one: curve for one, curve in material.sweep.curves.items() if one in material.close and "difficulty/kl_uniform" in curve
    }
    if trial_id in curves and np.isfinite(curves[trial_id]["difficulty/kl_uniform"]).any():
        figures.append(uniformity(curves, trial_id, best_epoch))
    return figures


def thinned(classes: Classes, best_epoch: int) -> tuple[Classes, Array]:
    """At most MOST_EPOCHS epochs and MOST_CLASSES classes, the largest class first; and the numbers of these classes."""
    by_size = np.argsort(-classes.counts, kind="stable")
    kept = by_size[np.unique(np.linspace(0, len(by_size) - 1, min(len(by_size), MOST_CLASSES)).round().astype(int))]
    places = np.linspace(0, len(classes.epochs) - 1, min(len(classes.epochs), MOST_EPOCHS)).round().astype(int)
    best = int(np.searchsorted(classes.epochs, best_epoch)) if best_epoch in classes.epochs else int(places[-1])
    if best not in places:
        places[np.argmin(abs(places - best))] = best
    places = np.unique(places)
    arrays = {name: getattr(classes, name)[places][:, kept] for name in OfEpoch._fields}
    return classes._replace(epochs=classes.epochs[places], counts=classes.counts[kept], **arrays), kept


def weight_map(classes: Classes, names: list[str], best_epoch: int) -> go.Figure:
    """The weight of every class over the epochs, the largest class at the top."""
    labels = [f"{shown(name)} ({count:.0f})" for name, count in zip(names, classes.counts, strict=True)]
    found = figure(
        340,
        xaxis=axis("epoch"),
        yaxis={"autorange": "reversed", "automargin": True, "type": "category"},
        meta={"title": "Class weights over time"},
    )
    found.add_heatmap(
        x=whole(classes.epochs),
        y=labels,
        z=np.array(classes.weight.T, dtype=np.float32),
        colorscale=SCALE,
        colorbar={"title": {"text": "weight", "side": "right"}, "thickness": 12},
        hovertemplate="%{y}, epoch %{x}: %{z:.3f}<extra></extra>",
    )
    _mark_epoch(found, best_epoch)
    return found


def _mark_epoch(found: go.Figure, epoch: int) -> None:
    line = {"color": BEST, "dash": "dot", "width": 1.5}
    found.add_shape(type="line", x0=epoch, x1=epoch, y0=0, y1=1, yref="paper", line=line)


def chosen_weights(classes: Classes, names: list[str], best_epoch: int) -> go.Figure:
    """Figure 4 of Difficulty-Net: the weights of three classes over the epochs, one from each band, scaled to a mean of 1."""
    found = figure(
        340, xaxis=axis("epoch"), yaxis=axis("weight / mean weight"), meta={"title": "Weights of three classes (Fig. 4)"}
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled = (
            classes.weight / np.nanmean(classes.weight, axis=1, keepdims=True)
            if np.isfinite(classes.weight).any()
            else classes.weight
        )
    for place, number in enumerate(one_of_each_band(classes.counts)):
        found.add_scatter(
            x=whole(classes.epochs),
            y=small(scaled[:, number]),
            mode="lines",
            name=shown(f"{names[number]} ({classes.counts[number]:.0f} images)"),
            line={"color": series(place), "width": 2},
            hovertemplate="epoch %{x}: %{y:.3f}<extra></extra>",
        )
    _mark_epoch(found, best_epoch)
    return found


def one_of_each_band(counts: Array) -> list[int]:
    """The class of middle size of each band; where a band is empty, of each third of the classes by size."""
    by_size = np.argsort(-counts, kind="stable")
    groups = [by_size[BANDS[name](counts[by_size])] for name in ("acc_many", "acc_medium", "acc_few")]
    if not all(len(group) for group in groups):
        groups = np.array_split(by_size, 3)
    return [int(group[len(group) // 2]) for group in groups if len(group)]


def difficulty_of_classes(classes: Classes, names: list[str], best_epoch: int, part: str) -> go.Figure:
    """Figure 2 of Difficulty-Net: the difficulty of every class, from the class with the lowest accuracy to that with the
    highest, in a few epochs; of methods without difficulties, the weights.
    """
    accuracy = at_epoch(classes, best_epoch).seen
    order = np.argsort(np.where(np.isfinite(accuracy), accuracy, np.inf), kind="stable")
    title = f"{'Difficulty' if part == 'difficulty' else 'Weight'} by accuracy of the class (Fig. 2)"
    labels = [names[number] for number in order]
    found = figure(340, xaxis=_class_axis("class, the lowest accuracy first", labels), yaxis=axis(part), meta={"title": title})
    places = {int(place) for place in np.linspace(0, len(classes.epochs) - 1, min(SNAPSHOTS, len(classes.epochs))).round()}
    places |= {int(place) for place in np.flatnonzero(classes.epochs == best_epoch)}
    for rank, place in enumerate(sorted(places)):
        is_best = classes.epochs[place] == best_epoch
        found.add_scatter(
            x=whole(np.arange(len(order))),
            y=small(getattr(classes, part)[place][order]),
            mode="lines+markers",
            name=f"epoch {classes.epochs[place]}{', the best' if is_best else ''}",
            text=[f"{shown(label)}: accuracy {value:.3f}" for label, value in zip(labels, accuracy[order], strict=True)]
            if is_best
            else None,
            line={"color": BEST if is_best else _between(rank / max(1, len(places) - 1)), "width": 2.4 if is_best else 1.4},
            marker={"size": 5},
            hovertemplate=("%{text}<br>" if is_best else "") + "%{y:.4f}<extra></extra>",
        )
    return found


def _between(share: float) -> str:
    from plotly.colors import sample_colorscale

    return str(sample_colorscale("Teal", [0.3 + 0.7 * share])[0])


def uniformity(curves: dict[str, dict[str, Any]], trial_id: str, best_epoch: int) -> go.Figure:
    """Figure 3 of Difficulty-Net: how far the difficulties are from uniform, over the epochs; the other trials in grey."""
    found = figure(
        340,
        xaxis=axis("epoch"),
        yaxis=axis("KL(uniform || difficulties)"),
        meta={"title": "Distance of the difficulties from uniform (Fig. 3)"},
    )
    others = [(number_of(one), curve) for one, curve in curves.items() if one != trial_id]
    own = [(number_of(trial_id), curves[trial_id])]
    for those, colour, width, opacity in ((others, NEUTRAL, 1, 0.4), (own, BEST, 2.4, 1)):
        x, y, which = joined(those, "difficulty/kl_uniform")
        found.add_scatter(
            x=x,
            y=y,
            customdata=which,
            mode="lines",
            showlegend=False,
            line={"color": colour, "width": width},
            opacity=opacity,
            hovertemplate=f"{TRIAL}, epoch %{{x}}: %{{y:.3g}}<extra></extra>",
        )
    _mark_epoch(found, best_epoch)
    return found
