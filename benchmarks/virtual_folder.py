"""A results folder of a sweep in virtual time, as a real sweep would leave it: ledger, arrays by class, tables.

For measurements and tests of what reads such folders.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, cast

import numpy as np

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.virtual_sweep import Curve, Virtual, run
from orchestrator.ledger.class_arrays import FOLDER, seal
from orchestrator.ledger.events import Event, Kind, Status
from orchestrator.ledger.ledger import Ledger, read_ledger
from orchestrator.ledger.trial_states import number_of, trial_id_of
from orchestrator.outcome.tables import write_tables
from trainables.best_epoch import improves
from trainables.config_file import dump_yaml
from trainables.data.profiles import BANDS

BEGAN = 1.8e9
"""When the sweep began, in seconds since 1970."""
EPOCH_S = 2.0
"""Seconds of an epoch."""
VAL_PER_CLASS, TEST_PER_CLASS = 24, 50


def lively(settings: dict[str, Any], epoch: int) -> float:
    """A learning curve that rises with the epochs, higher for good settings, and differs by seed."""
    near = math.exp(-abs(math.log10(settings.get("method.meta_lr", 0.3)) + 2))
    luck = int(hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8], 16) / 2**32
    return round(0.5 + 0.2 * near + 0.05 * luck - 0.15 / epoch - 0.0002 * epoch, 6)


def write_folder(
    folder: Path, config: SweepConfig, curve: Curve = lively, num_classes: int = 10, slots: int = 2, end: str | None = "finished"
) -> Path:
    """Runs a sweep in virtual time and writes its folder.

    Args:
        folder: new.
        config: of the sweep.
        curve: learning curves of all trials; None ends a trial as diverged.
        num_classes: of the arrays by class.
        slots: trials at a time.
        end: status of the sweep's last event, with which the tables are written; None for a sweep that goes on.

    Returns: `folder`.
    """
    return record(folder, config, run(config, curve, slots), num_classes, end)


def repeated(done: Virtual, times: int) -> Virtual:
    """The same sweep again and again, with new trials: a large sweep whose samplers and schedulers took no time.

    Args:
        done: a sweep without trials that continue from others.
        times: how often.
    """
    number, events = len(done.conductor.trials), []
    for time in range(times):
        for event in done.events:
            again: dict[str, Any] = {**event, "time": event["time"] + time * done.wall}
            if "trial_id" in event:
                again["trial_id"] = trial_id_of(number_of(event["trial_id"]) + time * number)
            events.append(again)
    return done._replace(events=cast(list[Event], events), wall=times * done.wall)


def record(folder: Path, config: SweepConfig, done: Virtual, num_classes: int = 10, end: str | None = "finished") -> Path:
    """Writes the folder of a sweep that has run in virtual time; see `write_folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FOLDER).mkdir()
    (folder / "sweep.yaml").write_text(dump_yaml(config.model_dump()), encoding="utf-8")
    counts = counts_of(num_classes)
    clock, best = _Clock(), dict[str, float]()
    with Ledger(folder, clock=clock) as ledger:
        val, test = list(range(VAL_PER_CLASS * num_classes)), list(range(TEST_PER_CLASS * num_classes))
        facts = {"split_sha256": "", "split": {"val": val, "test": test}, "git_commit": None, "versions": {}}
        ledger.append(Kind.SWEEP_START, config=config.model_dump(), class_counts=counts.tolist(), **facts)
        ledger.append(Kind.SLOTS, slots=2, gpus_per_slot=0.5)
        for event in done.events:
            clock.now = BEGAN + EPOCH_S * event["time"]
            if event["event"] != Kind.CHECKPOINT:
                _append(folder, ledger, dict(event), counts, best)
        if end:
            ledger.append(Kind.SWEEP_END, status=Status(end), reason=None, complete=True, decisions_sha256="")
    if end:
        write_tables(folder, read_ledger(folder))
    return folder


class _Clock:
    """Stands still until it is set."""

    now = BEGAN

    def __call__(self) -> float:
        return self.now


def counts_of(num_classes: int) -> Any:
    """Training images of each class: a long tail from 200 to 2."""
    return np.maximum(2, (200 * 0.01 ** (np.arange(num_classes) / max(1, num_classes - 1))).astype(int))


def _append(folder: Path, ledger: Ledger, event: dict[str, Any], counts: Any, best: dict[str, float]) -> None:
    """Appends an event; of an epoch, with the metrics and arrays of a real trial; of an end, with the file of the arrays.

    `best` holds the highest value of each trial so far.
    """
    kind, fields = event["event"], {key: value for key, value in event.items() if key not in ("event", "n", "time")}
    if kind == Kind.EPOCH:
        value = next(iter(fields["metrics"].values()))
        tilt = 0.1 + 0.03 * (37 * number_of(fields["trial_id"]) % 11)
        arrays: dict[str, list[Any]] = dict(_arrays(value, tilt, fields["epoch"], counts))
        if improves(value, best.get(fields["trial_id"])):
            best[fields["trial_id"]] = value
            arrays["mistaken_for"] = _mistakes(arrays["accuracy"])
        bands = {f"val/{name}": float(np.mean(np.array(arrays["accuracy"])[band(counts)])) for name, band in BANDS.items()}
        more = {"train/loss": round(2.3 / fields["epoch"], 4), "difficulty/kl_uniform": round(0.3 - 0.2 / fields["epoch"], 5)}
        fields["metrics"] = fields["metrics"] | bands | more | {"val/acc": value}
        line = json.dumps({"epoch": fields["epoch"], **arrays}, separators=(",", ":"))
        with (folder / FOLDER / f"{fields['trial_id']}.jsonl").open("a") as file:  # append_epoch, without its fsync
            file.write(line + "\n")
    elif kind == Kind.TRIAL_END:
        fields |= seal(folder, fields["trial_id"], range(1, 10_000))
    ledger.append(kind, **fields)


def _mistakes(accuracy: list[float]) -> list[list[int]]:
    """What the val images of each class were mistaken for: two in three for the next larger class, the others for the largest."""
    wrong = [round(VAL_PER_CLASS * (1 - value)) for value in accuracy]
    return [sorted((max(label - 1, 0) or 1) if one % 3 else int(label == 0) for one in range(n)) for label, n in enumerate(wrong)]


def _arrays(value: float, tilt: float, epoch: int, counts: Any) -> dict[str, list[float]]:
    """Class arrays whose mean accuracy is near `value`; from the largest class to the smallest, accuracies fall by 2 `tilt`."""
    share = np.linspace(tilt, -tilt, len(counts))
    accuracy = np.clip((value + share) * VAL_PER_CLASS, 0, VAL_PER_CLASS).round() / VAL_PER_CLASS
    difficulty = np.round(1 - accuracy / (1 + 1 / epoch), 4)
    weight = np.round(difficulty / difficulty.mean(), 4)
    arrays = {"accuracy": accuracy, "meta_accuracy": accuracy, "difficulty": difficulty, "weight": weight}
    return {name: array.tolist() for name, array in {**arrays, "train_count": counts}.items()}
