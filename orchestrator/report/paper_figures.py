"""Figures for papers: SVG and PDF by matplotlib, in black on white, with text that stays text. Another one is a function and a
row.

The numbers are those of the page; matplotlib's date and random ids are left out, so that the same sweep gives the same files.
"""

import itertools
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.ledger.events import Role, Status
from orchestrator.ledger.trial_states import number_of
from orchestrator.outcome.tables import objective
from orchestrator.report.class_figures import NAMES, at_epoch, compared_trials, one_of_each_band, thinned
from orchestrator.report.colours import BEST, NEUTRAL, OF_STATUS, series
from orchestrator.report.confusion import most_confused
from orchestrator.report.material import Material
from orchestrator.report.reading import Classes
from orchestrator.report.search_figures import shown_curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Draw = Callable[[Material, "Axes"], bool]
"""Draws into axes; returns whether there was something to draw."""
WIDTH, HEIGHT = 4.8, 3.0
"""Inches."""
MOST_NAMED = 8
"""References in a legend."""
ENDINGS = ("svg", "pdf")


def write_paper_figures(material: Material, place: Path) -> list[Path]:
    """Writes the figures of which the sweep has something, as SVG and PDF; removes those that it has no more."""
    import matplotlib  # takes half a second
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it tells of every letter of every font
    place.mkdir(exist_ok=True)
    written: list[Path] = []
    with matplotlib.rc_context({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "tailtune", "pdf.fonttype": 42}):
        for name, draw in FIGURES.items():
            figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
            FigureCanvasAgg(figure)
            axes = figure.subplots()
            axes.spines[["top", "right"]].set_visible(False)
            files = [place / f"{name}.{ending}" for ending in ENDINGS]
            if draw(material, axes):
                for file in files:
                    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else {"CreationDate": None})
                written += files
            else:
                for file in files:
                    file.unlink(missing_ok=True)
    return written


def _plain(text: object) -> str:
    """Text from outside; matplotlib takes what stands between two dollars for a formula."""
    return str(text).replace("$", r"\$")


def history(material: Material, axes: "Axes") -> bool:
    """Objectives of the trials in their order, the best so far, and the references."""
    rows = [row for row in material.sweep.rows if row["role"] == Role.SEARCH and math.isfinite(objective(row))]
    if not rows or material.sweep.config.ablation:
        return False
    for status in dict.fromkeys(row["status"] for row in rows):
        own = [row for row in rows if row["status"] == status]
        x, y = [number_of(row["trial_id"]) for row in own], [objective(row) for row in own]
        axes.plot(
            x,
            y,
            "o" if status == Status.FINISHED else "x",
            markersize=3.5,
            color=OF_STATUS[Status(status)],
            label=status.replace("_", " "),
        )
    finished = [row for row in rows if row["status"] == Status.FINISHED]
    if finished:
        best_so_far = np.maximum.accumulate([objective(row) for row in finished])
        axes.step([number_of(row["trial_id"]) for row in finished], best_so_far, where="post", color=BEST, label="best so far")
    references = [row for row in material.sweep.rows if row["role"] == Role.REFERENCE and math.isfinite(objective(row))]
    for place, row in enumerate(references):
        axes.axhline(
            objective(row),
            color=series(place + 1),
            linestyle="--",
            linewidth=1,
            label=_plain(row["variant"]) if place < MOST_NAMED else None,
        )
    axes.set_xlabel("trial")
    axes.set_ylabel(_plain(material.sweep.config.trial.selection()))
    axes.legend(fontsize=7, frameon=False, loc="lower right")  # to look for the best place takes long with many trials
    return True


def importance(material: Material, axes: "Axes") -> bool:
    """PED-ANOVA and fANOVA with intervals, of the first arm that has them."""
    found = next((arm.importances for arm in material.arms if arm.importances), [])
    for shift, label, colour, part in ((-0.2, "PED-ANOVA", series(0), "ped_anova"), (0.2, "fANOVA", series(1), "fanova")):
        value, low, high = (np.array([getattr(one, f"{part}{end}") for one in found]) for end in ("", "_low", "_high"))
        if found:
            errors = np.stack([value - low, high - value])
            places = np.arange(len(found)) + shift
            axes.barh(places, value, 0.38, xerr=errors, color=colour, alpha=0.75, label=label, error_kw={"linewidth": 0.8})
    axes.set_yticks(range(len(found)), [_plain(one.name) for one in found])
    axes.invert_yaxis()
    axes.set_xlabel("importance, with 90 % bootstrap intervals")
    if found:
        axes.legend(fontsize=7, frameon=False)
    return bool(found)


def learning_curves(material: Material, axes: "Axes") -> bool:
    """The metric that trials are chosen by over the epochs; crosses where trials were stopped."""
    sweep, metric = material.sweep, material.sweep.config.trial.select_by
    best = sweep.best
    rows = [row for row in shown_curves(sweep.rows) if metric in sweep.curves.get(row["trial_id"], {})]
    variants = list(dict.fromkeys(row["variant"] for row in rows if row["variant"]))
    named: set[str] = set()
    for row in rows:
        curve, is_best = sweep.curves[row["trial_id"]], row is best
        name = "the best" if is_best else row["variant"]
        colour = BEST if is_best else series(variants.index(name) + 1) if name else NEUTRAL
        style: dict[str, Any] = {"linewidth": 1.6 if name else 0.6, "alpha": 1.0 if name else 0.5, "zorder": 3 if name else 2}
        axes.plot(
            curve["epoch"], curve[metric], color=colour, label=_plain(name) if name and name not in named else None, **style
        )
        named.add(name)
        if row["status"] in (Status.STOPPED_EARLY, Status.DIVERGED, Status.FAILED):
            axes.plot(curve["epoch"][-1], curve[metric][-1], "x", color=colour, markersize=4)
    axes.set_xlabel("epoch")
    axes.set_ylabel(metric)
    if named - {""}:
        axes.legend(fontsize=7, frameon=False, loc="lower right")
    return bool(rows)


def class_accuracy(material: Material, axes: "Axes") -> bool:
    """Accuracy of each class at the best epoch, the largest class first."""
    known = {name: row for name, row in compared_trials(material).items() if row["trial_id"] in material.sweep.classes}
    for place, (name, row) in enumerate(list(known.items())[:4]):
        classes = at_epoch(material.sweep.classes[row["trial_id"]], row["best/epoch"])
        order = np.argsort(-material.sweep.classes[row["trial_id"]].counts, kind="stable")
        marker = "o" if len(order) <= 100 else None
        colour = BEST if place == 0 else series(place - 1)
        axes.plot(classes.accuracy[order], marker=marker, markersize=3, linewidth=0.8, color=colour, label=_plain(name))
    axes.set_xlabel("class, the largest first")
    axes.set_ylabel("accuracy on val")
    axes.set_ylim(-0.02, 1.02)
    if known:
        axes.legend(fontsize=7, frameon=False)
    return bool(known)


def bands(material: Material, axes: "Axes") -> bool:
    """Accuracies of classes with many, medium and few images."""
    rows = {name: row for name, row in compared_trials(material).items() if row.get("best/epoch")}
    names = [name for name in NAMES if any(row.get(f"best/val/{name}") is not None for row in rows.values())]
    for place, (name, row) in enumerate(rows.items()):
        values = [row.get(f"best/val/{band}") for band in names]
        where = np.arange(len(names)) + (place - (len(rows) - 1) / 2) * 0.8 / len(rows)
        heights = [math.nan if value is None else value for value in values]
        axes.bar(where, heights, 0.8 / len(rows), color=BEST if place == 0 else series(place - 1), label=_plain(name))
    axes.set_xticks(range(len(names)), [NAMES[name].replace("<br>", "\n") for name in names])
    axes.set_ylabel("accuracy on val")
    axes.set_ylim(0, 1)
    if rows and names:
        axes.legend(fontsize=7, frameon=False)
    return bool(rows and names)


def confusion(material: Material, axes: "Axes") -> bool:
    """Which classes the best trial mistakes for which, at its best epoch: the classes that are confused most."""
    trial_id = next(iter(material.close), "")
    epoch = next((row["best/epoch"] for row in material.sweep.rows if row["trial_id"] == trial_id), None)
    classes = material.sweep.classes.get(trial_id)
    confused = most_confused(classes, epoch) if classes and epoch else None
    if confused is None:
        return False
    names = [_plain(material.sweep.class_names[number]) for number in confused.classes]
    places = range(len(names))
    axes.imshow(confused.shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for label, taken in itertools.product(places, places):
        if (share := confused.shares[label, taken]) > 0:
            colour = "white" if share > 0.5 else "black"
            axes.text(taken, label, f"{100 * share:.0f}", ha="center", va="center", fontsize=6, color=colour)
    axes.set_xticks(places, names, rotation=90 if max(map(len, names)) > 3 else 0, fontsize=7)
    axes.set_yticks(places, names, fontsize=7)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class, percent of val")
    return True


def _best_classes(material: Material) -> Iterator[tuple[Classes, list[str], int]]:
    """Arrays by class, class names and best epoch of the first of the trials that are shown closely, which is the best."""
    for trial_id in list(material.close)[:1]:
        if trial_id in material.sweep.classes:
            best_epoch = next(row["best/epoch"] for row in material.sweep.rows if row["trial_id"] == trial_id)
            classes, kept = thinned(material.sweep.classes[trial_id], best_epoch)
            yield classes, [material.sweep.class_names[number] for number in kept], best_epoch


def difficulties(material: Material, axes: "Axes") -> bool:
    """Figure 2 of Difficulty-Net, of the best trial at its best epoch."""
    for classes, _, best_epoch in _best_classes(material):
        best = at_epoch(classes, best_epoch)
        if not np.isfinite(best.difficulty).any():
            return False
        order = np.argsort(np.where(np.isfinite(best.seen), best.seen, np.inf), kind="stable")
        axes.plot(best.difficulty[order], color=BEST, marker="o", markersize=3)
        axes.set_xlabel("class, the lowest accuracy first")
        axes.set_ylabel("difficulty")
        return True
    return False


def uniformity(material: Material, axes: "Axes") -> bool:
    """Figure 3 of Difficulty-Net, of the best trial."""
    trial_id = next(iter(material.close), "")
    curve = material.sweep.curves.get(trial_id, {})
    values = curve.get("difficulty/kl_uniform", np.array([]))
    axes.plot(curve.get("epoch", []), values, color=BEST)
    axes.set_xlabel("epoch")
    axes.set_ylabel("KL(uniform || difficulties)")
    return bool(np.isfinite(values).any())


def class_weights(material: Material, axes: "Axes") -> bool:
    """Figure 4 of Difficulty-Net, of the best trial: the weights of one class of each band."""
    for classes, names, _ in _best_classes(material):
        if not np.isfinite(classes.weight).any():
            return False
        scaled = classes.weight / np.nanmean(classes.weight, axis=1, keepdims=True)
        for place, number in enumerate(one_of_each_band(classes.counts)):
            label = _plain(f"{names[number]} ({classes.counts[number]:.0f} images)")
            axes.plot(classes.epochs, scaled[:, number], color=series(place), label=label)
        axes.set_xlabel("epoch")
        axes.set_ylabel("weight / mean weight")
        axes.legend(fontsize=7, frameon=False)
        return True
    return False


FIGURES: dict[str, Draw] = {
    "history": history,
    "importance": importance,
    "learning_curves": learning_curves,
    "class_accuracy": class_accuracy,
    "bands": bands,
    "confusion": confusion,
    "difficulty_by_class": difficulties,
    "difficulty_uniformity": uniformity,
    "class_weights": class_weights,
}
"""The files, by name."""
