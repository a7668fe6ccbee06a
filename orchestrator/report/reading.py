"""Reads what a report shows: the tables of a results folder, its settings, and the ledger where there is no table of something.

While a sweep runs, and after it was killed, its folder has no tables, or those of an earlier end. Then the tables are made from
the ledger, in a temporary folder: the results folder belongs to the sweep.
"""

import json
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from orchestrator.config.sweep_config import SweepConfig, read_sweep
from orchestrator.ledger.events import Event, ExportEvent, Kind, TestReadEvent, shared_by
from orchestrator.ledger.ledger import last, read_ledger, start_of
from orchestrator.ledger.usage import Seconds, Usage
from orchestrator.outcome.confirmation import Row
from orchestrator.outcome.differences import counting_images, images_of_val
from orchestrator.outcome.tables import TABLES, best_trial, write_tables
from orchestrator.report.timeline import Stint, Stints
from trainables.model_folder import MODEL

Array = NDArray[Any]
CURVES = ("train/loss", "difficulty/kl_uniform")
"""Metrics that are drawn over the epochs, beside the objectives and `select_by`."""
Choose = Callable[[SweepConfig, list[Row]], Collection[str]]
"""Chooses trials: takes the settings and the rows of all trials, returns ids."""
CLASS_COLUMNS = ("trial_id", "epoch", "class", "accuracy", "meta_accuracy", "difficulty", "weight", "train_count")
MISTAKES = "mistaken_for"


class Classes(NamedTuple):
    """A trial's arrays by class. What the method does not have is NaN."""

    epochs: Array
    """(E,), in order."""
    accuracy: Array
    """On val, (E, C)."""
    meta_accuracy: Array
    """As the method last saw it, (E, C)."""
    difficulty: Array
    weight: Array
    counts: Array
    """Training images, (C,)."""
    mistaken_for: dict[int, list[list[int]]]
    """By epoch and class, the predicted class of each val image that is wrong; known of epochs that were the best so far."""


class Course(NamedTuple):
    """How the sweep ran, from one reading of the ledger: that of a large sweep takes seconds."""

    usage: Usage
    seconds: float
    """From the start to the last trial's end."""
    stints: list[Stint]
    num_losses: int
    """How often a process or its workers were lost."""
    readings: list[TestReadEvent]
    exported: ExportEvent | None
    """The last one."""


class Sweep(NamedTuple):
    """A sweep or an ablation, as far as it has come."""

    folder: Path
    config: SweepConfig
    events: Sequence[Event]
    rows: list[Row]
    """trials.parquet."""
    best: Row | None
    """The best trial; None for an ablation, and while no trial has finished."""
    curves: dict[str, dict[str, Array]]
    """The columns `epoch`, CURVES and the objectives of epochs.parquet, by trial."""
    classes: dict[str, Classes]
    """classes.parquet, of the trials that were asked for, as far as they have ended."""
    class_names: list[str]
    """Of the exported model, otherwise numbers."""
    course: Course
    end: Mapping[str, Any]
    """The last event of the sweep, or that of its last beginning while it goes on."""

    @property
    def name(self) -> str:
        """The folder's name, below that of the ablation for one of its searches."""
        return self.folder.resolve().name

    @property
    def is_over(self) -> bool:
        """Whether the sweep has ended, if only for now."""
        return bool(self.end.get("event") == Kind.SWEEP_END)

    @property
    def num_val(self) -> int:
        """Images of the set that trials are chosen on."""
        return images_of_val(self.events)

    @property
    def counting_images(self) -> float:
        """The number of these images that bounds the objective."""
        return counting_images(self.config, start_of(self.events))

    @property
    def val_counts(self) -> list[int] | None:
        """How many of these images each class has; None where that is not known."""
        start, data = start_of(self.events), self.config.trial.data
        if counts := start.get("val_counts"):
            return list(counts)
        number = len(start.get("class_counts") or ())
        as_many = data.val_distribution == "balanced" and data.at_least_per_class is None
        return [self.num_val // number] * number if number and as_many else None


def read(folder: Path, closely: Choose) -> Sweep:
    """Reads a results folder.

    Args:
        folder: of a sweep or an ablation, which may run.
        closely: says of which trials the arrays by class are read: those of all would not fit into a page.

    Raises:
        ConfigError: when the folder holds no sweep, or another version of TailTune wrote it.
    """
    events = read_ledger(folder)
    config = read_sweep(folder / "sweep.yaml")
    end = last(events, Kind.SWEEP_END, Kind.SWEEP_RESUME, Kind.SWEEP_START)
    with _tables(folder, events, end) as place:
        rows = pq.read_table(place / "trials.parquet").to_pylist()
        metrics = dict.fromkeys([config.trial.select_by, *config.objectives(), *CURVES])
        curves = read_curves(place / "epochs.parquet", list(metrics))
        classes = read_classes(place / "classes.parquet", closely(config, rows))
    num_classes = max((len(one.counts) for one in classes.values()), default=0)
    names = class_names(folder / "best" / MODEL)
    names = names if len(names) >= num_classes else [str(number) for number in range(num_classes)]
    best = None if config.ablation else best_trial(rows)  # asked for once: with many trials it takes a while
    return Sweep(folder, config, events, rows, best, curves, classes, names, course_of(events), end)


def course_of(events: Iterable[Event]) -> Course:
    """How a sweep ran."""
    usage, seconds, stints, num_losses = Usage(), Seconds(), Stints(), 0.0
    readings: list[TestReadEvent] = []
    exported: ExportEvent | None = None
    for event in events:
        usage.apply(event)
        seconds.apply(event)
        stints.apply(event)
        if event["event"] in (Kind.RETRY, Kind.GROUP_LOST):
            num_losses += 1 / shared_by(event)  # each of the trials that were trained together tells of it
        if event["event"] == Kind.TEST_READ:
            readings.append(event)
        elif event["event"] == Kind.EXPORT:
            exported = event
    return Course(usage, seconds.total, stints.all(), round(num_losses), readings, exported)


@contextmanager
def _tables(folder: Path, events: Sequence[Event], end: Mapping[str, Any]) -> Iterator[Path]:
    """The folder of the tables: the results folder, if the sweep wrote them when it ended."""
    if end.get("event") == Kind.SWEEP_END and all((folder / f"{name}.parquet").is_file() for name in TABLES):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="tailtune_report_") as made:
        write_tables(folder, events, Path(made))
        yield Path(made)


def read_curves(file: Path, metrics: Sequence[str]) -> dict[str, dict[str, Array]]:
    """Some metrics by trial, each in the order of epochs; a metric that the table lacks is left out."""
    present = [name for name in metrics if name in pq.read_schema(file).names]
    table = pq.read_table(file, columns=["trial_id", "epoch", *present])
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in ("epoch", *present)}
    columns |= {name: columns[name].astype(float) for name in present}
    return {
        trial_id: {name: column[places][np.argsort(columns["epoch"][places], kind="stable")] for name, column in columns.items()}
        for trial_id, places in _places(table["trial_id"].to_pylist()).items()
    }


def _places(names: Sequence[str]) -> dict[str, Array]:
    """Where each name stands."""
    found: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        found.setdefault(name, []).append(place)
    return {name: np.array(places) for name, places in found.items()}


def read_classes(file: Path, trials: Collection[str]) -> dict[str, Classes]:
    """The arrays by class of some trials."""
    if not trials:
        return {}
    wanted = [*CLASS_COLUMNS, *({MISTAKES} & set(pq.read_schema(file).names))]  # older versions did not note mistakes
    table = pq.read_table(file, columns=wanted, filters=[("trial_id", "in", list(trials))])
    if not table.num_rows:
        return {}
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in CLASS_COLUMNS[1:]}
    found = {}
    for trial_id, places in _places(table["trial_id"].to_pylist()).items():
        order = places[np.lexsort((columns["class"][places], columns["epoch"][places]))]
        epochs, number = np.unique(columns["epoch"][order]), int(columns["class"][order].max()) + 1
        accuracy, meta, difficulty, weight, counts = (
            columns[name][order].astype(float).reshape(len(epochs), number) for name in CLASS_COLUMNS[3:]
        )
        mistaken = mistakes_of(table.take(order)) if MISTAKES in table.column_names else {}
        found[trial_id] = Classes(epochs, accuracy, meta, difficulty, weight, counts[-1], mistaken)
    return found


def mistakes_of(rows: pa.Table) -> dict[int, list[list[int]]]:
    """The mistakes of a trial by epoch and class, from its rows in the order of epochs and classes."""
    known = rows.filter(pc.is_valid(rows[MISTAKES]))
    found: dict[int, list[list[int]]] = {}
    for epoch, mistaken in zip(known["epoch"].to_pylist(), known[MISTAKES].to_pylist(), strict=True):
        found.setdefault(epoch, []).append(mistaken)
    return found


def class_names(model: Path) -> list[str]:
    """The names that an exported model has for its classes, from the head of its file; none without a sound export."""
    if not model.is_file():
        return []
    try:
        with safe_open(model, "numpy") as file:
            found: list[str] = json.loads((file.metadata() or {}).get("class_names", "[]"))
    except (SafetensorError, ValueError):
        return []
    return found
