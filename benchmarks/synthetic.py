"""Trials whose numbers are a formula, for sweeps that are to be disturbed: quick, predictable, and failing as they are told to.

    python -m benchmarks.synthetic [arguments of orchestrator.sweep]

Everything around the formula is real: data, checkpoints, processes, and an untrained classifier that the sweep can export. Where
TAILTUNE_FAULTS is a folder, a part of the trials, chosen by a hash of their configuration, fails in one of the ways of FAULTS. A
permanent fault comes again whenever the configuration runs. A transient one comes once, a file in the folder tells that it has
been, and not at all where TAILTUNE_FAULTS_ONLY is `permanent`.
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

from orchestrator.run.signals import Slots
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
"""Of an epoch: as many signs of life."""
STEP_S = (0.01, 0.04)
"""How long one takes, at least and at most; a matter of the configuration."""
LAST_FAULTY_EPOCH = 2
"""Not every trial gets further."""


class Fault(NamedTuple):
    """A way to fail."""

    share: float
    """Of all trials."""
    permanent: bool
    """Whether it comes back whenever the trial runs."""
    happen: Callable[[int], None]
    """Takes the epoch in which it happens."""


def fault_of(config: TrialConfig) -> str | None:
    """The fault that a configuration is to have, if any, whether it is switched on or not."""
    place = luck(config, "damage")  # a word by which every fault comes among the first trials of the sweeps of chaos.py
    for name, fault in FAULTS.items():
        if place < fault.share:
            return name
        place -= fault.share
    return None


def formula(config: TrialConfig, epoch: int) -> float:
    """What a trial reaches: rises with the epochs towards something that its settings decide."""
    return round(0.5 + 0.4 * luck(config, "value") * (1 - 0.8**epoch), 6)


def luck(config: TrialConfig, purpose: str) -> float:
    """A number in [0, 1) that depends on a configuration and nothing else."""
    return int(hashlib.sha256(f"{purpose} {key_of(config)}".encode()).hexdigest()[:8], 16) / 2**32


def key_of(config: TrialConfig) -> str:
    """Stands for a configuration in names of files."""
    return hashlib.sha256(json.dumps(config.model_dump(), sort_keys=True).encode()).hexdigest()[:16]


class SyntheticRun:
    """Has the seam of a TrialRun; computes nothing."""

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
        """An epoch, in which the trial's fault comes half way.

        Raises:
            Diverged, OutOfMemory, RuntimeError: where that is the fault.
        """
        low, high = STEP_S
        for step in range(STEPS):
            if step == STEPS // 2:
                self._fail_if_told_to()
            time.sleep(low + (high - low) * luck(self.config, "speed"))
            after_step(step + 1)
        self.epoch += 1
        self._accuracy[:] = formula(self.config, self.epoch)
        metrics = accuracy_metrics("val", self._accuracy, self._class_counts)
        if self.best is None or metrics[self.config.select_by] > self.best["metrics"][self.config.select_by]:
            self.best = {"epoch": self.epoch, "metrics": metrics}
        return metrics

    def class_table(self) -> dict[str, list[float | None]]:
        """The last epoch by class."""
        nothing: list[float | None] = [None] * len(self._class_counts)
        weights: list[float | None] = [1.0] * len(self._class_counts)
        return {
            "accuracy": self._accuracy.tolist(),
            "meta_accuracy": nothing,
            "difficulty": nothing,
            "weight": weights,
            "train_count": self._class_counts.tolist(),
        }

    def save(self, folder: Path) -> str:
        """Writes a checkpoint; returns its digest."""
        assert self._loaded is not None
        form = self._loaded.format
        state = {
            "config": self.config.model_dump(),
            "epoch": self.epoch,
            "best": self.best and self.best | {"phi": self._phi()},
            "format": [form.shape, *form.normalisation],
        }
        return write_checkpoint(folder, pack(state))

    def load(self, folder: Path, config: TrialConfig, sha256: str | None = None) -> None:
        """Goes on from a checkpoint; one of other mutable settings is another trial's, whose best epoch does not count.

        Raises:
            DamagedCheckpoint: when it is not what was written.
            ValueError: when it is of another configuration, or not of the epoch that its folder is named after.
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
    """A trial that does nothing, in a process that does stints as every other."""

    def build_run(self, slots: Slots) -> Any:
        """What does the work."""
        return SyntheticRun()


def _has_been(folder: Path, name: str, config: TrialConfig) -> bool:
    """Whether a transient fault has come already; from now on it has."""
    try:
        (folder / f"{name}-{key_of(config)}").touch(exist_ok=False)
    except FileExistsError:
        return True
    return False


def _diverge(epoch: int) -> None:
    raise Diverged(f"train/loss became nan in step {STEPS * (epoch - 1) + STEPS // 2 + 1}")


def _raise(epoch: int) -> None:
    raise RuntimeError(f"an error in epoch {epoch}, as it was told to")


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
    # Ray's processes import the class by the name of its module, which is not __main__ there.
    from benchmarks.synthetic import SyntheticTrial as Imported

    sys.exit(main(sys.argv[1:], trainable=Imported))
