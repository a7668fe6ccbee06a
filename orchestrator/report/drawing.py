"""What all figures share: how a figure begins, how text from outside is shown, how numbers are kept small."""

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from orchestrator.ledger.trial_states import number_of
from trainables.words import brief

Drawn = dict[str, list[go.Figure]]
"""The figures of a section, by what a person chooses; a single choice has no name."""
TRIAL = "t%{customdata:04d}"
"""How a hover text names the trial whose number is in `customdata`."""


def figure(height: int = 340, **layout: Any) -> go.Figure:
    """An empty figure; the page gives it its width, font and colours."""
    margins = {"l": 56, "r": 16, "t": 12, "b": 44}
    found = go.Figure(layout={"height": height, "margin": margins, "hovermode": "closest", **layout})
    found.layout.template = None
    return found


def shown(text: object) -> str:
    """Text from outside, as plotly shows it letter by letter: plotly takes `<` and `&` for its own."""
    return html.escape(str(text), quote=False)


def small(values: Sequence[Any] | NDArray[Any]) -> NDArray[np.float32]:
    """Numbers that need no more than seven digits. None becomes NaN, which plotly leaves out."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float32)


def whole(values: Sequence[int] | NDArray[Any]) -> NDArray[np.int32]:
    """Whole numbers; those below 32,768 take half the space."""
    found = np.array(values, dtype=np.int32)
    return found.astype(np.int16) if not found.size or abs(found).max() < 2**15 else found


def numbers(trials: Sequence[str]) -> NDArray[np.int32]:
    """The numbers of trials, for `customdata`."""
    return whole([number_of(trial_id) for trial_id in trials])


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis with a title."""
    return {"title": {"text": shown(title)}, **more}


def short(value: Any) -> str:
    """A value in a few letters, for ticks and hover texts."""
    if isinstance(value, float):
        return brief(value)
    return shown(value)


def joined(curves: Sequence[tuple[int, dict[str, Any]]], metric: str) -> tuple[Any, Any, Any]:
    """Several curves as one line with gaps: x, y and the trials' numbers."""
    x, y, which = [], [], []
    for number, curve in curves:
        if metric in curve:
            x.append(np.append(curve["epoch"], curve["epoch"][-1]))
            y.append(np.append(curve[metric], np.nan))
            which.append(np.full(len(curve["epoch"]) + 1, number))
    if not x:
        return [], [], []
    return whole(np.concatenate(x)), np.concatenate(y).astype(np.float32), whole(np.concatenate(which))
