"""The card of an exported model: what the model is, its numbers beside those of the references, and how far to trust them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.ledger.events import Event, Kind, Status
from orchestrator.ledger.ledger import start_of
from trainables.config import TrialConfig
from trainables.words import accuracies

Readings = dict[str, dict[str, float | None]]
"""The metrics of each reading of the sealed test set, by the trial whose model was tested."""


def card(
    folder: Path, out: Path, config: TrialConfig, metrics: dict[str, Any], events: Sequence[Event], readings: Readings
) -> str:
    """The text of card.md, in Markdown."""
    best, at_end, select_by = metrics["best"], metrics["last"], metrics["selected_by"]
    method = config.method.model_dump()
    settings = "\n".join(f"| `{name}` | {value} |" for name, value in method.items())
    references = "\n".join(_reference_row(name, row, select_by) for name, row in metrics["references"].items())
    counts = start_of(events)["class_counts"]
    num_trials = len({event["trial_id"] for event in events if event["event"] == Kind.SUGGEST})
    return f"""# {metrics["trial_id"]} of {folder.name}

A `{config.classifier.name}` trained with `{config.method.name}` on `{config.data.source}`, seed {config.seed}:
{sum(counts)} training images in {len(counts)} classes, {max(counts)} to {min(counts)} a class.

| | {config.selection()}, best epoch | {config.selection()}, last epoch | test/acc |
|---|---|---|---|
| **this model** (epoch {best["epoch"]}) | {best[select_by]:.4f} | {at_end[select_by]:.4f} | {metrics["test"]["test/acc"]:.4f} |
{references}

{accuracies(metrics["test"], "test")}

{_honesty(metrics, config, num_trials, _read_for(metrics["trial_id"], readings))}

| method | value |
|---|---|
{settings}

To train this configuration again: `python -m trainables.train {out}/config.yaml`. To train it on another seed and read the test
set: add `seed=1 --read-test`. Weights: `model.safetensors`; the metadata of that file holds class names, image shape and pixel
normalisation.
"""


def _read_for(trial_id: str, readings: Readings) -> str:
    """How often the sealed test set was read, and for which trials."""
    if list(readings) == [trial_id]:
        return "The test set was read once, for this model alone, after everything was chosen."
    return f"The test set was read {len(readings)} times in this sweep, once for each of {', '.join(sorted(readings))}."


def _honesty(metrics: dict[str, Any], config: TrialConfig, num_trials: int, readings: str) -> str:
    """Says how the trial was chosen, and how far its numbers can be trusted."""
    if "lineage" in metrics:
        return f"""This trial of a population continued from the state of {" and that from ".join(metrics["lineage"])}. Training
its configuration from the start gives another model. The trial and its epoch were chosen by {config.selection()}, so the val
numbers are optimistic. {readings}"""
    if "confirmation" not in metrics:
        return f"""The trial and its epoch were chosen by {config.selection()}, so the val numbers are optimistic: they
belong to the luckiest of {num_trials} trials. {readings}
One seed says little: train on further seeds before you rely on a difference."""
    rows = "\n".join(
        f"| {row['name']} | {row['mean']:.4f} | {row['sd']:.4f} | {row['shrunken']:.4f} | {row['p_value']:.3f} |"
        for row in metrics["confirmation"]
    )
    test = metrics["test_over_seeds"]
    out = f" Left out, without a result on every seed: {', '.join(metrics['left_out'])}." if metrics["left_out"] else ""
    return f"""The best configurations of the search ran again on {test["num_seeds"]} fresh seeds:
{metrics["verdict"]}.{out}
This model is the best run of {metrics["configuration_of"]} by {config.selection()}. test/acc of its configuration over all seeds:
{test["mean"]:.4f} (sd {test["sd"]:.4f}). {readings}

| {config.selection()} | mean | sd | shrunken | p |
|---|---|---|---|---|
{rows}"""


def _reference_row(name: str, row: dict[str, Any], select_by: str) -> str:
    if row["status"] != Status.FINISHED:
        return f"| {name} | {row['status'].replace('_', ' ')} | | |"
    return f"| {name} | {row['best'][select_by]:.4f} | {row['last'][select_by]:.4f} | |"
