"""Trials whose metrics are a formula, for the fault campaign: quick, predictable, and with faults on request.

    python -m benchmarks.synthetic [arguments of orchestrator.sweep]

Everything except the formula is real: data, checkpoints, processes, and an untrained classifier that the sweep can export. When
TAILTUNE_FAULTS is a folder, a part of the trials, chosen by a hash of their configuration, fails in one of the ways in FAULTS. A
permanent fault happens whenever the configuration runs. A transient fault happens once; a file in the folder records that it has
happened. Transient faults are switched off when TAILTUNE_FAULTS_ONLY is `permanent`.
"""

import hashlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orchestrator.run.trial import Trial
from orchestrator.sweep import main
from trainables.checkpoint import pack, read_checkpoint, unpack, write_checkpoint
from trainables.config import MUTABLE, TrialConfig
from trainables.data.loaded import LoadedData, load_data
from trainables.engine.health import Diverged, within_memory
from trainables.evaluate import accuracy_metrics
from trainables.machine import choose_device
from trainables.models import build_classifier
from trainables.settings import differences

FOLDER, ONLY = "TAILTUNE_FAULTS", "TAILTUNE_FAULTS_ONLY"
STEPS = 5
"""Steps of an epoch; each is a heartbeat."""
STEP_S = (0.01, 0.04)
"""Smallest and largest time of a step, in seconds. The configuration decides the time."""
LAST_FAULTY_EPOCH = 2
"""The last epoch in which faults happen, because not every trial gets further."""


class Fault(NamedTuple):
    """One way in which a trial can fail."""

    share: float
    """Fraction of all trials that have this fault."""
    permanent: bool
    """Whether the fault happens again whenever the trial runs."""
    happen: Callable[[int], None]
    """Makes the fault happen. Takes the epoch."""


def fault_of(config: TrialConfig) -> str | None:
    """Name of the fault that belongs to a configuration, or None. Does not say whether faults are switched on."""
    place = luck(config, "damage")  # with this word, the first trials of chaos.py's sweeps have every fault
    for name, fault in FAULTS.items():
        if place < fault.share:
            return name
        place -= fault.share
    return None


def formula(config: TrialConfig, epoch: int) -> float:
    """The accuracy of a trial after an epoch. It rises with the epochs towards a limit that depends on the configuration."""
    return round(0.5 + 0.4 * luck(config, "value") * (1 - 0.8**epoch), 6)


def luck(config: TrialConfig, purpose: str) -> float:
    """A pseudo-random number in [0, 1) that depends on the configuration and `purpose` only."""
    return int(hashlib.sha256(f"{purpose} {key_of(config)}".encode()).hexdigest()[:8], 16) / 2**32


def key_of(config: TrialConfig) -> str:
    """A hash of a configuration, for file names."""
    return hashlib.sha256(json.dumps(config.model_dump(), sort_keys=True).encode()).hexdigest()[:16]


class SyntheticRun:
    """Has the interface of a TrialRun, but trains nothing."""

    def __init__(self) -> None:
        self._loaded: LoadedData | None = None

    def start(self, config: TrialConfig) -> None:
        """Begins a trial."""
        self.config, self.epoch = config, 0
        self.best: dict[str, Any] | None = None
        self._loaded = load_data(config.data, config.seed, choose_device(config.device), config.compute.readers, self._loaded)
        self._class_counts = torch.from_numpy(self._loaded.data.class_counts)
        self._accuracy = torch.full((len(self._class_counts),), math.nan)

    def run_epoch(self, after_step: Callable[[int], None]) -> dict[str, float]:
        """Runs an epoch. A fault happens halfway through it.

        Raises:
            Diverged, OutOfMemory, RuntimeError: when that is the trial's fault.
        """
        low, high = STEP_S
        for step in range(STEPS):
            if step == STEPS // 2:
                self._fail_if_told_to()
            time.sleep(low + (high - low) * luck(self.config, "speed"))
            after_step(step + 1)
        self.epoch += 1
        self._accuracy[:] = formula(self.config, self.epoch)
        metrics = self._metrics = accuracy_metrics("val", self._accuracy, self._class_counts)
        if self.best is None or metrics[self.config.select_by] > self.best["metrics"][self.config.select_by]:
            self.best = {"epoch": self.epoch, "metrics": metrics}
        return metrics

    def class_table(self) -> dict[str, list[Any]]:
        """The class table of the last epoch."""
        nothing: list[float | None] = [None] * len(self._class_counts)
        weights: list[float | None] = [1.0] * len(self._class_counts)
        return {
            "accuracy": self._accuracy.tolist(),
            "meta_accuracy": nothing,
            "difficulty": nothing,
            "weight": weights,
            "train_count": self._class_counts.tolist(),
        }

    def pairing_digests(self) -> dict[str, str]:
        """None: a formula shares nothing."""
        return {}

    def save(self, folder: Path, is_complete: bool = False) -> str:
        """Writes a checkpoint; returns its SHA-256."""
        assert self._loaded is not None
        form = self._loaded.format
        state = {
            "config": self.config.model_dump(),
            "epoch": self.epoch,
            "best": self.best and self.best | {"phi": self._phi()},
            "format": [form.shape, *form.normalisation],
            "report": {"metrics": self._metrics, "classes": self.class_table()},
        }
        return write_checkpoint(folder, pack(state))

    def load(self, folder: Path, config: TrialConfig, sha256: str | None = None) -> None:
        """Continues from a checkpoint.

        A checkpoint with other mutable settings belongs to another trial, whose best epoch does not count.

        Raises:
            DamagedCheckpoint: when the checkpoint is not what was written.
            ValueError: when the checkpoint is of another configuration, or of another epoch than its folder's name says.
        """
        state = unpack(read_checkpoint(folder, sha256), str(folder))
        differing = differences(state["config"], config.model_dump())
        if foreign := sorted(differing.keys() - MUTABLE):
            raise ValueError(f"{folder} belongs to another configuration: {', '.join(foreign)}")
        if int(folder.name.partition("-")[0]) != state["epoch"]:
            raise ValueError(f"{folder} holds the state after epoch {state['epoch']}")
        self.start(config)
        self.epoch = state["epoch"]
        if not differing:
            self.best = {key: state["best"][key] for key in ("epoch", "metrics")}

    def _phi(self) -> dict[str, Tensor]:
        assert self._loaded is not None
        shape = self._loaded.format.shape
        classifier = build_classifier(self.config.classifier, shape, len(self._class_counts), self.config.seed)
        return dict(classifier.state_dict())

    def _fail_if_told_to(self) -> None:
        folder, epoch = os.environ.get(FOLDER), self.epoch + 1
        name = fault_of(self.config)
        if not folder or not name or epoch != 1 + int(LAST_FAULTY_EPOCH * luck(self.config, "epoch")):
            return
        fault = FAULTS[name]
        if not fault.permanent and (os.environ.get(ONLY) == "permanent" or _has_been(Path(folder), name, self.config)):
            return
        with within_memory(f"in epoch {epoch}"):
            fault.happen(epoch)


class SyntheticTrial(Trial):
    """A synthetic trial, in a slot that runs stints like any other slot."""

    def build_run(self) -> Any:
        """The run that takes the place of a TrialRun."""
        return SyntheticRun()


def _has_been(folder: Path, name: str, config: TrialConfig) -> bool:
    """Whether a transient fault has already happened. Records that it has, in the same step."""
    try:
        (folder / f"{name}-{key_of(config)}").touch(exist_ok=False)
    except FileExistsError:
        return True
    return False


def _diverge(epoch: int) -> None:
    raise Diverged(f"train/loss became nan in step {STEPS * (epoch - 1) + STEPS // 2 + 1}")


def _raise(epoch: int) -> None:
    raise RuntimeError(f"an injected error in epoch {epoch}")


def _need_too_much_memory(epoch: int) -> None:
    torch.empty(2**55, dtype=torch.uint8, device="cuda" if torch.cuda.is_available() else "cpu")


def _hang(epoch: int) -> None:
    while True:
        time.sleep(60)


def _die(epoch: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


FAULTS = {
    "diverged": Fault(0.08, True, _diverge),
    "memory": Fault(0.08, True, _need_too_much_memory),
    "error": Fault(0.1, False, _raise),
    "hang": Fault(0.1, False, _hang),
    "death": Fault(0.1, False, _die),
}

if __name__ == "__main__":
    # Imported, because Ray's processes import the class by its module's name, and their __main__ is another module.
    from benchmarks.synthetic import SyntheticTrial as Imported

    sys.exit(main(sys.argv[1:], trainable=Imported))
