"""Colours of all figures: each is told from the others on a white and on a black page, and by people who see few colours."""

from orchestrator.ledger.events import Status

BEST = "#e2711d"
NEUTRAL = "#8a919c"
SERIES = ("#3a7fd5", "#17a398", "#9b5de5", "#d1495b", "#b08900", "#00a6d6", "#7f8c3b", "#c2569b")
"""References, variants and other things that have a name, in their order."""
OF_STATUS = {
    Status.FINISHED: "#3a7fd5",
    Status.STOPPED_EARLY: NEUTRAL,
    Status.DIVERGED: "#d1495b",
    Status.FAILED: "#a4161a",
    Status.INTERRUPTED: "#b08900",
    Status.RUNNING: "#17a398",
}
MARKS = {
    Status.FINISHED: "circle",
    Status.STOPPED_EARLY: "x-thin-open",
    Status.DIVERGED: "triangle-up",
    Status.FAILED: "square",
    Status.INTERRUPTED: "diamond",
    Status.RUNNING: "circle-open",
}
OF_VERDICT = {"better": "#2a9d4a", "worse": "#d1495b", "equivalent": "#3a7fd5"}
SCALE = "Viridis"
"""Of objectives and weights."""


def series(number: int) -> str:
    """The colour of the thing with a number."""
    return SERIES[number % len(SERIES)]
