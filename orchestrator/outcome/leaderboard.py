"""Rows as public tables of results have them: task, dataset, metric, value, model. Only from readings of the sealed test set."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from orchestrator.ledger.events import Event, Kind, Status
from orchestrator.ledger.ledger import last, start_of
from orchestrator.outcome.confirmation import Row
from orchestrator.outcome.tables import trial_rows
from orchestrator.statistics.proportions import wilson
from orchestrator.statistics.t_interval import half_width
from trainables.config_file import ConfigError
from trainables.files import replace_text

TASK = "Long-tailed image classification"
METRICS = {
    "test/acc": "accuracy (%), mean over classes",
    "test/acc_many": "accuracy (%), classes with more than 100 training images",
    "test/acc_medium": "accuracy (%), classes with 20 to 100 training images",
    "test/acc_few": "accuracy (%), classes with fewer than 20 training images",
}
COLUMNS = ("dataset", "metric", "value", "interval", "num_seeds", "model")
FILES = ("leaderboard.json", "leaderboard.md")


def write_leaderboard(folder: Path, events: Sequence[Event]) -> list[Path]:
    """Writes leaderboard.json and leaderboard.md into a results folder; returns them.

    Raises:
        ConfigError: when no model of the folder has a reading of the test set.
    """
    rows = leaderboard(events)
    if not rows:
        raise ConfigError(
            f"{folder} has no reading of the sealed test set, so there is nothing to publish; allowed: a sweep that has exported "
            "its best trial, or an ablation with trial.read_test=true"
        )
    places = [folder / name for name in FILES]
    for place, text in zip(places, leaderboard_texts(rows), strict=True):
        replace_text(place, text)
    return places


def leaderboard_texts(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """The content of FILES."""
    return json.dumps(rows, indent=1) + "\n", _markdown(rows)


def leaderboard(events: Sequence[Event]) -> list[dict[str, Any]]:
    """The rows: of a sweep those of its choice, of an ablation those of each variant. None where a run has no reading.

    Values and intervals are in percent. Over several seeds the value is a mean, with Student's 95 % interval; of one seed it has
    Wilson's 95 % interval over the test images, for the metric over all of them and where all classes have equally many.

    Args:
        events: of the ledger.
    """
    start = start_of(events)
    num_test = len(start.get("split", {}).get("test", ()))
    readings = {event["trial_id"]: event["metrics"] for event in events if event["event"] == Kind.TEST_READ}
    found = []
    for runs in _groups(events):
        if any(row["trial_id"] not in readings for row in runs):
            continue  # somebody had the test set read for some seeds, perhaps for the best one: their mean would flatter
        tests = [readings[row["trial_id"]] for row in runs]
        for metric, words in METRICS.items():
            values = [100 * value for test in tests if (value := test.get(metric)) is not None]
            if not values:
                continue
            is_share = metric == "test/acc" and tests[0].get("test/plain_acc") == tests[0][metric]
            found.append(
                {
                    "task": TASK,
                    "dataset": _dataset(runs[0]),
                    "metric": words,
                    "value": round(mean(values), 2),
                    **_spread(values, num_test if is_share else 0),
                    "model": _model(runs[0]),
                    "num_test_images": num_test or None,
                    "split_sha256": start["split_sha256"],
                    "trials": [row["trial_id"] for row in runs],
                }
            )
    return found


def _groups(events: Sequence[Event]) -> list[list[Row]]:
    """The runs of each model that is published: one for each seed."""
    rows = [row for row in trial_rows(events) if row["status"] == Status.FINISHED]
    if "ablation" in start_of(events)["config"]:
        variants = dict.fromkeys(row["variant"] for row in rows)
        return [[row for row in rows if row["variant"] == variant] for variant in variants]
    chosen = last(events, Kind.EXPORT).get("trial_id")
    winner = next((row for row in rows if row["trial_id"] == chosen), None)
    if winner is None:
        return []
    return [[row for row in rows if row["confirms"] == winner["confirms"]] if winner["confirms"] else [winner]]


def _spread(values: list[float], num_images: int) -> dict[str, Any]:
    number = len(values)
    if number > 1:
        half = half_width(stdev(values), number)
        ends, what = (mean(values) - half, mean(values) + half), f"95 % over {number} seeds"
    elif num_images:
        low, high = wilson(values[0] / 100, num_images)
        ends, what = (100 * low, 100 * high), f"95 % over {num_images} test images, one seed"
    else:
        return {"num_seeds": number, "low": None, "high": None, "interval": None}
    low, high = (round(end, 2) for end in ends)
    return {"num_seeds": number, "low": low, "high": high, "interval": f"{low:.2f} to {high:.2f} ({what})"}


def _dataset(row: Row) -> str:
    tail = "" if row.get("config/data.profile") == "natural" else f", imbalance factor {row['config/data.imbalance_factor']:g}"
    return f"{row['config/data.source']}{tail}"


def _model(row: Row) -> str:
    variant = f" ({row['variant']})" if row["variant"] else ""
    return f"{row['config/method.name']}, {row['config/classifier.name']}{variant}"


def _markdown(rows: list[dict[str, Any]]) -> str:
    """A table; every number is of the sealed test set."""
    lines = [f"# {TASK}", "", f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    cells = ([_cell(row[name]) for name in COLUMNS] for row in rows)
    lines += [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([*lines, "", f"SHA-256 of the split: `{rows[0]['split_sha256']}`.", ""])


def _cell(value: Any) -> str:
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")
