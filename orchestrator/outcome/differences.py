"""How far the best configuration leads the references, and what that is worth: each difference with its interval."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.ledger.events import Event, Role, Status
from orchestrator.ledger.ledger import start_of
from orchestrator.outcome.confirmation import Row, confirmation
from orchestrator.outcome.tables import objective
from orchestrator.statistics.proportions import newcombe, wilson
from orchestrator.statistics.t_interval import half_width
from trainables.words import plural


class Difference(NamedTuple):
    """The lead of the best configuration over a reference."""

    name: str
    """Of the reference."""
    trial_id: str
    best: float
    """What the best reached; after a confirmation, its mean over the fresh seeds."""
    reference: float
    """What the reference reached, likewise."""
    low: float | None
    """Lower end of the 95 % interval; None where the metric has none."""
    high: float | None
    num_seeds: int
    """Fresh seeds of a confirmation; 0 where both ran on one seed, and the interval is that over val images."""

    @property
    def lead(self) -> float:
        """Of the best."""
        return self.best - self.reference

    @property
    def interval(self) -> tuple[float, float] | None:
        """The ends together."""
        return None if self.low is None or self.high is None else (self.low, self.high)


def images_of_val(events: Sequence[Event]) -> int:
    """Images of the set that trials are chosen on."""
    return images_in(start_of(events))


def images_in(start: Mapping[str, Any]) -> int:
    """The same, from the sweep's first event."""
    split = start.get("split") or {}
    return len(split.get("val") or split.get("meta") or ())


def counting_images(config: SweepConfig, start: Mapping[str, Any]) -> float:
    """The number of validation images that bounds `select_by`: as many as would bound a share of all images as closely. 0 for
    metrics that it does not bound.

    A mean over C classes with n_c images has the variance sum(p_c (1 - p_c) / n_c) / C^2; with the same p in all classes, that
    of a share of C^2 / sum(1 / n_c) images. Small classes make it small; where all are equally large, it is the number of images.
    """
    if config.trial.select_by == "val/plain_acc":
        return images_in(start)
    if config.trial.select_by != "val/acc":
        return 0
    if counts := [count for count in start.get("val_counts", ()) if count]:
        return float(len(counts) ** 2 / sum(1 / count for count in counts))
    data = config.trial.data  # a ledger without the counts
    return images_in(start) if data.val_distribution == "balanced" and data.at_least_per_class is None else 0


def interval(number: float, value: float) -> tuple[float, float] | None:
    """How far `number` validation images bound an accuracy; None without a number, and for values that are no share."""
    return wilson(value, number) if number and 0 <= value <= 1 else None


def differences(config: SweepConfig, rows: list[Row], best: Row, number: float) -> list[Difference]:
    """The lead of the best configuration over each reference with a result, in the order of the trials.

    On one seed the interval is Newcombe's for two proportions: whether the two were right on the same images is not known after
    the sweep. After a confirmation it is Student's for the mean of the differences on the same fresh seeds.

    Args:
        config: of the sweep.
        rows: of all trials.
        best: the row of the best trial.
        number: of validation images, see `counting_images`.
    """
    references = [row for row in rows if row["role"] == Role.REFERENCE and row["status"] == Status.FINISHED]
    own = best["confirms"] if best["role"] == Role.CONFIRM else best["trial_id"]
    others = [row for row in references if row["trial_id"] != own]
    if best["role"] == Role.CONFIRM:
        scores = scores_of(rows)
        return [_over_seeds(row, scores[own], scores[row["trial_id"]]) for row in others if row["trial_id"] in scores]
    return [_on_one_seed(row, best, number) for row in others if row["seed"] == best["seed"]]


def scores_of(rows: list[Row]) -> dict[str, list[float]]:
    """What each confirmed configuration reached, in the order of the fresh seeds; without those that lack a result."""
    found = confirmation(rows)
    names = {summary.name for summary in found.comparison.summaries} if found and found.comparison else set()
    runs = sorted((row for row in rows if row["role"] == Role.CONFIRM and row["confirms"] in names), key=lambda row: row["seed"])
    return {name: [objective(row) for row in runs if row["confirms"] == name] for name in names}


def _on_one_seed(row: Row, best: Row, number: float) -> Difference:
    first, second = objective(best), objective(row)
    low: float | None = None
    high: float | None = None
    if interval(number, first) and interval(number, second):
        low, high = newcombe(first, second, number)
    return Difference(row["variant"], row["trial_id"], first, second, low, high, 0)


def _over_seeds(row: Row, first: list[float], second: list[float]) -> Difference:
    gains = [one - other for one, other in zip(first, second, strict=True)]
    half = half_width(stdev(gains), len(gains))
    low, high = fmean(gains) - half, fmean(gains) + half
    return Difference(row["variant"], row["trial_id"], fmean(first), fmean(second), low, high, len(gains))


def worth(found: Difference, num_val: int, num_trials: int) -> str:
    """What a difference is worth, in a sentence without its full stop.

    Args:
        found: the difference.
        num_val: images that trials are chosen on.
        num_trials: among which the best was chosen.
    """
    over = f"{found.num_seeds} fresh seeds" if found.num_seeds else f"one seed, {plural(num_val, 'val image')}"
    if found.interval is None:
        return "one seed, and no interval for this metric: whether best is better is not known (search.confirm runs fresh seeds)"
    low, high = found.interval
    if low <= 0 <= high:
        return f"{over}: the interval includes 0, so this does not show that best is better"
    if high < 0:
        return f"{over}: the interval lies below 0, so the reference is better"
    if found.num_seeds:
        return f"{over}: the interval lies above 0, so best is better than this reference"
    return (
        f"{over}: the interval lies above 0, but best is the luckiest of {plural(num_trials, 'trial')}, so its lead is "
        "optimistic (search.confirm runs fresh seeds)"
    )


def reference_behind(best: Row, rows: list[Row]) -> str:
    """The name of the reference whose configuration is the best one; empty for a configuration of the search."""
    by_id = {row["trial_id"]: row for row in rows}
    origin = by_id.get(best["confirms"], best) if best.get("confirms") else best
    return str(origin["variant"]) if origin["role"] == Role.REFERENCE else ""
