"""The figures of the page, in their order. Another figure is a function and a row here."""

from collections.abc import Callable
from typing import NamedTuple

from orchestrator.report import class_figures, confusion, run_figures, search_figures
from orchestrator.report.drawing import Drawn
from orchestrator.report.material import Material


class Section(NamedTuple):
    """A figure, or some of a kind, with what the page says about it."""

    name: str
    """In the address of the page, as `#history`."""
    title: str
    text: str
    """What it shows and how to read it."""
    draw: Callable[[Material], Drawn | str]
    """Returns the figures; or why there are none, and nothing where the section has no place in this report."""
    of_search: bool = True
    of_ablation: bool = True


SECTIONS = (
    Section(
        "forest",
        "Differences to the reference",
        "Each point is a mean difference on the same seeds, with its 95 % interval. Differences inside the grey band do not "
        "matter.",
        run_figures.forest,
        of_search=False,
    ),
    Section(
        "parallel",
        "Settings and objective",
        "Each line is a trial, from its settings on the left to its objective on the right. The brighter a line, the higher its "
        "rank.",
        search_figures.parallel,
        of_ablation=False,
    ),
    Section(
        "history",
        "Optimisation history",
        "Each point is a trial. Dashed lines are the references. A search that has learned puts its later trials higher.",
        search_figures.history,
        of_ablation=False,
    ),
    Section(
        "trade_offs",
        "Trade-offs between the objectives",
        "On the Pareto front, no other trial is better in one objective and as good in the others.",
        search_figures.trade_offs,
        of_ablation=False,
    ),
    Section(
        "slices",
        "Slices",
        "The objective over each searched setting, the most important setting first. Later trials are brighter.",
        search_figures.slices,
        of_ablation=False,
    ),
    Section(
        "contours",
        "Contours",
        "The objective over two settings, interpolated between the best trials (white points). Far from points, the colour is a "
        "guess.",
        search_figures.contours,
        of_ablation=False,
    ),
    Section(
        "importance",
        "Importance of the settings",
        "PED-ANOVA asks which settings tell the best trials from all trials, fANOVA how much of the variance is due to each "
        "setting alone. Bars carry 90 % bootstrap intervals over trials: with few trials they are wide.",
        search_figures.importance,
        of_ablation=False,
    ),
    Section(
        "curves",
        "Learning curves",
        "Each line is a trial. A cross is where a trial was stopped or failed.",
        search_figures.learning_curves,
    ),
    Section(
        "classes",
        "Accuracy of each class",
        "Each trial at its best epoch; below, the number of training images. Intervals of 95 % are over the validation images "
        "of a class: small differences of single classes are chance.",
        class_figures.class_accuracies,
    ),
    Section(
        "bands",
        "Many, medium and few images",
        "Mean accuracy over the classes of a band, with 95 % intervals over the validation images.",
        class_figures.bands,
    ),
    Section(
        "confusion",
        "What is mistaken for what",
        "The classes that are confused most, at the best epoch, the largest first. A row is a true class: what its validation "
        "images were taken for; the rest went to classes that are not shown. Below the diagonal, smaller classes were taken for "
        "larger ones.",
        confusion.confusions,
    ),
    Section(
        "weights",
        "Weights and difficulties over time",
        "What the method did with the classes: the figures of the Difficulty-Net paper for one trial. The dotted line is the "
        "best epoch.",
        class_figures.weights_over_time,
    ),
    Section(
        "timeline",
        "Timeline of the slots",
        "A bar is a trial in a slot. Gaps are waiting: for a process, for others at a rung, for the last trial. A slot has a "
        "place for each trial that it trains at a time.",
        run_figures.timeline,
    ),
)
