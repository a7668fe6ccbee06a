"""The card of an exported model, as Hugging Face has model cards: what the model is, its numbers, and how far to trust them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from orchestrator.ledger.class_arrays import read_class_arrays
from orchestrator.ledger.events import Event, Kind, Status
from orchestrator.ledger.ledger import start_of
from orchestrator.statistics.proportions import wilson
from orchestrator.statistics.t_interval import half_width
from trainables.config import TrialConfig
from trainables.words import accuracies

Readings = dict[str, dict[str, float | None]]
"""The metrics of each reading of the sealed test set, by the trial whose model was tested."""
MOST_CLASSES = 200
"""How many classes the table of classes shows; with more, the largest and the smallest."""


class Exported(NamedTuple):
    """What the card is about."""

    folder: Path
    """Results folder of the sweep."""
    out: Path
    """Where the export will be."""
    config: TrialConfig
    choice: str
    """Why this trial was exported, in words; see Choice."""
    metrics: dict[str, Any]
    """The content of metrics.json."""
    class_names: Sequence[str]
    val_counts: Sequence[int]
    """Validation images of each class."""
    num_test: int
    """Images of the test set."""
    image_shape: tuple[int, int, int]
    programs: dict[str, Any]
    """What came of the model as programs, by file, as provenance.json says it."""
    framing: str = ""
    """What is seen of an image file, in words, if the weights that training began with expect something of it."""


def card(exported: Exported, events: Sequence[Event], readings: Readings) -> str:
    """The text of card.md, in Markdown, with a head in YAML."""
    folder, out, config, metrics = exported.folder, exported.out, exported.config, exported.metrics
    best, at_end, select_by = metrics["best"], metrics["last"], metrics["selected_by"]
    counts, name = start_of(events)["class_counts"], f"{metrics['trial_id']} of {folder.name}"
    settings = "\n".join(f"| `{key}` | {value} |" for key, value in config.method.model_dump().items())
    references = "".join(f"{_reference_row(key, row, select_by)}\n" for key, row in metrics["references"].items())
    test = "not read" if metrics["test"] is None else f"{metrics['test']['test/acc']:.4f}"
    channels, height, width = exported.image_shape
    return f"""---
{_head(exported, name)}---

# {name}

## Model description

A `{config.classifier.name}` trained with `{config.method.name}` on `{config.data.source}`, seed {config.seed}:
{sum(counts)} training images in {len(counts)} classes, {max(counts)} to {min(counts)} a class.
The model takes {"grey" if channels == 1 else "colour"} images of {height}x{width} pixels, as bytes \
(B, {channels}, {height}, {width}), and gives a
probability for each class. Normalisation is inside the model. {_about_framing(exported)}{exported.choice}

## Intended use and limits

The model tells its classes apart on images like those of `{config.data.source}`, and on nothing else: every image gets one of
these classes. The probabilities are not calibrated. {_about_tail(counts)}
The licence of the weights depends on the images: choose one before you publish the model.

## Data

`{config.data.source}`; the SHA-256 of its split into train, meta, val and test is `{start_of(events)["split_sha256"]}`.
`split.json` names the images. `suspects.csv`, if it is there, ranks the training images by how much this model doubts their
labels.

## Training

| method | value |
|---|---|
{settings}

{_about_average(config)}`config.yaml` has all settings. To train this configuration again: \
`python -m trainables.train {out}/config.yaml`.
To train it on another seed and read the test set: add `seed=1 --read-test`.

## Evaluation

| | {config.selection()}, best epoch | {config.selection()}, last epoch | test/acc |
|---|---|---|---|
| **this model** (epoch {best["epoch"]}) | {best[select_by]:.4f} | {at_end[select_by]:.4f} | {test} |
{references}
{_about_test(exported)}{_about_precision(config)}

{_honesty(exported, _num_trials(events), _read_for(metrics["trial_id"], readings))}
{_classes(exported, counts, events)}
## How to load

```python
from trainables import load_model

model = load_model("{out}")
image = model.transform("image.png")
probabilities = model.module(image[None])[0]
print(model.class_names[probabilities.argmax()])
```

In one command: `python -m trainables.predict {out} IMAGES`.
{_about_programs(exported.programs)}
"""


def _head(exported: Exported, name: str) -> str:
    """The head in YAML; numbers of the test set, if it was read, and none else."""
    config, test = exported.config, exported.metrics["test"]
    names = {"test/acc": "accuracy, mean over classes", "test/plain_acc": "accuracy, share of all images"}
    values = {text: test[key] for key, text in names.items() if test and test.get(key) is not None}
    found = [{"type": "accuracy", "name": text, "value": value} for text, value in values.items()]
    source = config.data.source
    results = [{"task": {"type": "image-classification"}, "dataset": {"name": source, "type": source}, "metrics": found}]
    head = {
        "license": "unknown",
        "library_name": "tailtune",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "long-tailed", "tailtune", config.method.name, config.classifier.name],
        "metrics": ["accuracy"],
        **({"model-index": [{"name": name, "results": results}]} if found else {}),
    }
    return yaml.safe_dump(head, sort_keys=False, allow_unicode=True)


def _about_tail(counts: Sequence[int]) -> str:
    few = sum(count < 20 for count in counts)
    return f"{few} of {len(counts)} classes had fewer than 20 training images; expect most errors there." if few else ""


def _num_trials(events: Sequence[Event]) -> int:
    return len({event["trial_id"] for event in events if event["event"] == Kind.SUGGEST})


def _about_test(exported: Exported) -> str:
    """The numbers of the test set, with an interval."""
    test = exported.metrics["test"]
    if test is None:
        return "The sealed test set was not read for this model: its numbers are those of val, which also chose it."
    text = accuracies(test, "test")
    share = test["test/acc"] if test.get("test/plain_acc") is None else test["test/plain_acc"]
    if share is None or not exported.num_test:
        return text
    low, high = wilson(share, exported.num_test)
    return (
        f"{text}. Share of the {exported.num_test} test images that are right: {share:.4f}, 95 % interval {low:.4f} to\n"
        f"{high:.4f} (Wilson). The interval is about the draw of the test images; another seed of training moves it too."
    )


def _about_framing(exported: Exported) -> str:
    if not exported.framing:
        return ""
    return f"Of an image file it sees the middle square, {exported.framing}, as the pre-trained weights expect it. "


def _about_average(config: TrialConfig) -> str:
    """Whether the weights are an average over training steps."""
    if config.optim.ema is None:
        return ""
    return f"The weights are a moving average over the training steps (`optim.ema: {config.optim.ema:g}`).\n"


def _about_precision(config: TrialConfig) -> str:
    """How the accuracies were computed, if the exported model computes otherwise."""
    if config.compute.precision != "bf16":
        return ""
    return """
All accuracies were measured with the backbone under torch.autocast in bfloat16, as in training (`compute.precision: bf16`). The
exported model computes in float32, so it may decide otherwise on images for which two classes are nearly equal."""


def _read_for(trial_id: str, readings: Readings) -> str:
    """How often the sealed test set was read, and for which trials."""
    if not readings:
        return "The test set has not been read in this sweep."
    if list(readings) == [trial_id]:
        return "The test set was read once, for this model alone, after everything was chosen."
    return f"The test set was read {len(readings)} times in this sweep, once for each of {', '.join(sorted(readings))}."


def _honesty(exported: Exported, num_trials: int, readings: str) -> str:
    """Says how the trial was chosen, and how far its numbers can be trusted."""
    config, metrics = exported.config, exported.metrics
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
    out = f" Left out, without a result on every seed: {', '.join(metrics['left_out'])}." if metrics["left_out"] else ""
    return f"""The best configurations of the search ran again on {metrics["num_seeds"]} fresh seeds:
{metrics["verdict"]}.{out}
This model is the best run of {metrics["configuration_of"]} by {config.selection()}. {_over_seeds(metrics)}{readings}

| {config.selection()} | mean | sd | shrunken | p |
|---|---|---|---|---|
{rows}"""


def _over_seeds(metrics: dict[str, Any]) -> str:
    """The test accuracies of the configuration's runs, with the interval of their mean."""
    if (test := metrics.get("test_over_seeds")) is None:
        return ""
    average, number = test["mean"], test["num_seeds"]
    half = half_width(test["sd"], number)
    return f"""test/acc of its configuration over all seeds:
{average:.4f} (sd {test["sd"]:.4f}; 95 % interval of the mean {average - half:.4f} to {average + half:.4f}, Student's t). """


def _reference_row(name: str, row: dict[str, Any], select_by: str) -> str:
    if row["status"] != Status.FINISHED:
        return f"| {name} | {row['status'].replace('_', ' ')} | | |"
    return f"| {name} | {row['best'][select_by]:.4f} | {row['last'][select_by]:.4f} | |"


def _classes(exported: Exported, counts: Sequence[int], events: Sequence[Event]) -> str:
    """The table of classes, largest first: training images and the accuracy on val in the best epoch, with Wilson's interval."""
    trial_id, epoch = exported.metrics["trial_id"], exported.metrics["best"]["epoch"]
    ends = [event for event in events if event["event"] == Kind.TRIAL_END and event["trial_id"] == trial_id]
    rows = read_class_arrays(exported.folder, ends).to_pylist()
    found = {row["class"]: row["accuracy"] for row in rows if row["epoch"] == epoch}
    if not found:
        return ""
    order = sorted(range(len(counts)), key=lambda c: -counts[c])
    lines = [_class_row(exported, c, counts[c], found.get(c)) for c in order]
    if len(lines) > MOST_CLASSES:
        half = MOST_CLASSES // 2
        lines = [*lines[:half], f"| ... {len(lines) - MOST_CLASSES} more, in classes.parquet | | | |", *lines[-half:]]
    return f"""
Per class, on val, in the best epoch:

| class | training images | accuracy | 95 % interval |
|---|---|---|---|
{chr(10).join(lines)}
"""


def _class_row(exported: Exported, c: int, count: int, accuracy: float | None) -> str:
    name, number = exported.class_names[c].replace("|", "\\|"), exported.val_counts[c]
    if accuracy is None or not number:
        return f"| {name} | {count} | no val image | |"
    low, high = wilson(accuracy, number)
    return f"| {name} | {count} | {accuracy:.4f} | {low:.4f} to {high:.4f} |"


HOW = {
    "model.pt2": '`torch.export.load("model.pt2").module()`',
    "model.onnx": '`onnxruntime.InferenceSession("model.onnx").run(None, {"images": images})`',
}
"""How the programs run without this project."""


def _about_programs(programs: dict[str, Any]) -> str:
    lines = []
    for file, found in programs.items():
        if "left_out" in found:
            lines.append(f"{found['left_out']}.")
            continue
        lines.append(
            f"Without this project, {HOW[file]} takes the same\n"
            f"bytes and gives the same probabilities; the largest difference on {found['num_images']} random images was "
            f"{found['max_difference']:.2g}."
        )
    return "\n".join([*lines, "`classes.json` has the class names in the order of the probabilities."])
