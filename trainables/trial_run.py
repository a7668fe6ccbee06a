"""One trial, an epoch at a time: start, run_epoch, save, load. Pure torch; whoever drives it decides when to stop."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainables.bilevel import Batch, StepLosses, training_step
from trainables.checkpoint import read_checkpoint, write_checkpoint
from trainables.config import DataConfig, OptimConfig, TrialConfig, flatten
from trainables.data import LongTailedData, build_data
from trainables.data.loader import DeviceSet, meta_order, training_order
from trainables.data.profiles import check_selection
from trainables.evaluate import accuracy_metrics, class_accuracies
from trainables.methods import Method, build_method
from trainables.models import build_classifier


class Diverged(ArithmeticError):
    """A loss or gradient is no longer finite; the message names the epoch and the first quantity that broke."""


@dataclass
class BestEpoch:
    """The epoch with the highest `select_by` so far: its metrics and the classifier's state at its end."""

    epoch: int
    metrics: dict[str, float]
    phi: dict[str, Tensor]


@dataclass(frozen=True)
class LoadedData:
    """The four sets on a device; kept between trials that use the same."""

    key: tuple[DataConfig, int, torch.device]
    data: LongTailedData
    train: DeviceSet
    meta: DeviceSet
    val: DeviceSet


class TrialRun:
    """State of one running trial. `start` may be called again for the next one; data that fit are kept."""

    def __init__(self) -> None:
        self._loaded: LoadedData | None = None

    def start(self, config: TrialConfig) -> None:
        """Begins a trial from fresh weights.

        Raises:
            ValueError: when the data cannot give what `config` asks for.
        """
        torch.set_num_threads(config.threads)
        self.config = config
        self.device = choose_device(config.device)
        self.loaded = self._loaded = load_data(config, self.device, self._loaded)
        data = self.loaded.data
        self.num_classes = len(data.class_counts)
        self.class_counts = torch.from_numpy(data.class_counts).to(self.device)
        image_shape = data.train.images.shape[1:]
        self.classifier = build_classifier(config.classifier, image_shape, self.num_classes, config.seed).to(self.device)
        self.method = build_method(config.method, self.num_classes, config.seed).to(self.device)
        optim = config.optim
        self.optimizer: Optimizer = torch.optim.SGD(
            self.classifier.parameters(), lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay
        )
        self.meta_optimizer = build_meta_optimizer(self.method)
        self.epoch = 0
        self.best: BestEpoch | None = None
        self.val_class_accuracy = torch.full((self.num_classes,), math.nan)
        self.steps_per_epoch = math.ceil(len(self.loaded.train) / config.optim.batch_size)

    def run_epoch(self) -> dict[str, float]:
        """Trains one epoch and measures it; metric names as in evaluate.py, accuracies in [0, 1].

        Raises:
            Diverged: when a loss or a gradient is not finite.
        """
        began = time.perf_counter()
        losses: list[StepLosses] = []
        order = training_order(len(self.loaded.train), self.config.optim.batch_size, self.config.seed, self.epoch + 1)
        for position, ids in enumerate(order):
            losses.append(self._step(ids, self.epoch * self.steps_per_epoch + position))
        trained = time.perf_counter()
        self.epoch += 1
        self.val_class_accuracy = class_accuracies(self.classifier, self.loaded.val, self.num_classes)
        metrics = mean_losses(losses, self.epoch) | self._measure()
        metrics["time/step_ms"] = (trained - began) / len(order) * 1e3
        metrics["time/epoch_s"] = time.perf_counter() - began
        if self.best is None or metrics[self.config.select_by] > self.best.metrics[self.config.select_by]:
            phi = {name: tensor.detach().cpu().clone() for name, tensor in self.classifier.state_dict().items()}
            self.best = BestEpoch(self.epoch, dict(metrics), phi)
        return metrics

    def class_table(self) -> dict[str, list[float | None]]:
        """The last epoch by class: val accuracy, difficulty, weight and training count, each (num_classes,).

        `meta_accuracy` is A_C as the method last saw it. None stands where the method has no such thing.
        """
        nothing: list[float | None] = [None] * self.num_classes
        difficulty, weights = self.method.difficulty(), self.method.class_weights()
        seen = getattr(self.method, "class_accuracy", None)
        return {
            "accuracy": self.val_class_accuracy.tolist(),
            "meta_accuracy": nothing if seen is None else seen.tolist(),
            "difficulty": nothing if difficulty is None else difficulty.tolist(),
            "weight": [1.0] * self.num_classes if weights is None else weights.tolist(),
            "train_count": self.class_counts.tolist(),
        }

    def save(self, folder: Path) -> None:
        """Writes all that continues the trial bit for bit. Batches are a function of seed and epoch, so no RNG is kept."""
        state: dict[str, Any] = {
            "phi": self.classifier.state_dict(),
            "theta": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "meta_optimizer": self.meta_optimizer.state_dict() if self.meta_optimizer else None,
            "best": None if self.best is None else vars(self.best),
            "epoch": self.epoch,
            "config": self.config.model_dump(),
        }
        write_checkpoint(folder, state)

    def load(self, folder: Path, config: TrialConfig) -> None:
        """Continues a saved trial: state from `folder`, hyper-parameters from `config`, which must be the saved ones.

        Raises:
            ValueError: when the checkpoint is damaged or belongs to another configuration.
        """
        state = read_checkpoint(folder)
        saved, given = flatten(state["config"]), flatten(config.model_dump())
        if differing := sorted(key for key in saved.keys() | given.keys() if saved.get(key) != given.get(key)):
            pairs = ", ".join(f"{key} was {saved.get(key)!r}, is {given.get(key)!r}" for key in differing)
            raise ValueError(f"{folder} belongs to another configuration: {pairs}")
        self.start(config)
        self.classifier.load_state_dict(state["phi"])
        self.method.load_state_dict(state["theta"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.meta_optimizer:
            self.meta_optimizer.load_state_dict(state["meta_optimizer"])
        self.epoch = state["epoch"]
        self.best = BestEpoch(**state["best"]) if state["best"] else None

    def _step(self, ids: Tensor, step: int) -> StepLosses:
        config, loaded = self.config, self.loaded
        if refresh_due(self.method.refresh_interval, step, self.steps_per_epoch):
            self.method.refresh(class_accuracies(self.classifier, loaded.meta, self.num_classes))
        total_steps = config.epochs * self.steps_per_epoch
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config.optim, step, total_steps)
        meta_batch = None
        if self.meta_optimizer is not None and config.bilevel.meta_gradient == "exact":
            meta_ids = meta_order(len(loaded.meta), config.bilevel.meta_batch_size, config.seed, step)
            meta_batch = Batch(*loaded.meta.batch(meta_ids))
        return training_step(
            self.classifier,
            self.method,
            self.optimizer,
            self.meta_optimizer,
            Batch(*loaded.train.batch(ids)),
            meta_batch,
            config.bilevel.meta_gradient,
        )

    def _measure(self) -> dict[str, float]:
        metrics = self.method.metrics() | accuracy_metrics("val", self.val_class_accuracy, self.class_counts)
        if self.method.refresh_interval is not None:
            metrics["meta/acc"] = class_accuracies(self.classifier, self.loaded.meta, self.num_classes).mean().item()
        return metrics


def choose_device(name: str) -> torch.device:
    """The device for `auto`, `cpu` or `cuda`.

    Raises:
        ValueError: when a GPU is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch sees no GPU here; allowed: auto, cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def load_data(config: TrialConfig, device: torch.device, kept: LoadedData | None) -> LoadedData:
    """The data of a trial on its device; `kept` is returned when it is what the trial needs.

    Raises:
        ValueError: when the source has too few images, or `select_by` averages over a band that has no class.
    """
    key = (config.data, config.seed, device)
    if kept is None or kept.key != key:
        data = build_data(config.data, config.seed)
        kept = LoadedData(key, data, *(DeviceSet(part, data, device) for part in (data.train, data.meta, data.val)))
    check_selection(config.select_by, kept.data.class_counts)
    return kept


def build_meta_optimizer(method: Method) -> Optimizer | None:
    """The optimiser of theta, or None for a method without parameters."""
    theta = list(method.parameters())
    if not theta:
        return None
    kinds: dict[str, type[Optimizer]] = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    return kinds[method.meta_optimizer](theta, lr=method.meta_lr)  # type: ignore[call-arg]


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """alpha at `step` (from 0): `lr`, or half a cosine from `lr` towards 0 after the last step."""
    return config.lr if config.schedule == "constant" else config.lr * (1 + math.cos(math.pi * step / total_steps)) / 2


def refresh_due(interval: float | None, step: int, steps_per_epoch: int) -> bool:
    """Whether the class accuracies are measured before `step` (from 0): before the first, then every `interval` epochs."""
    if interval is None:
        return False
    period = interval * steps_per_epoch
    # A little more than the quotient: 28 / (0.14 * 8) is 25, but not in floating point.
    return math.floor(step / period + 1e-9) > math.floor((step - 1) / period + 1e-9)


def mean_losses(losses: list[StepLosses], epoch: int) -> dict[str, float]:
    """An epoch's losses averaged over its steps.

    Raises:
        Diverged: naming the first quantity that is not finite.
    """
    columns = {
        "train/loss": [step.train_loss for step in losses],
        "meta/loss": [step.meta_loss for step in losses if step.meta_loss is not None],
        "meta/grad_norm": [step.meta_grad_norm for step in losses if step.meta_grad_norm is not None],
    }
    means = {name: torch.stack(values).mean().item() for name, values in columns.items() if values}
    for name, value in means.items():
        if not math.isfinite(value):
            raise Diverged(f"{name} became {value} in epoch {epoch}")
    return means
