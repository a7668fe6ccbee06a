"""One trial, an epoch at a time: start, run_epoch, save, load. Pure torch; the caller decides when to stop."""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainables.best_epoch import improves
from trainables.checkpoint import GOING_ON, LATER, completed, pack, read_checkpoint, unpack, write_checkpoint
from trainables.collapse import Watch, saturated, still
from trainables.collectives import ALONE, Collectives
from trainables.config import MUTABLE, TrialConfig, deciding_differences
from trainables.data.kept import room_for_images
from trainables.data.loaded import LoadedData, load_data, on_device
from trainables.data.loader import (
    ImageBatch,
    ImageFormat,
    LoadedSet,
    Request,
    balanced_meta_orders,
    meta_order,
    training_order,
    training_requests,
)
from trainables.data.mix import mixing
from trainables.data.profiles import check_selection
from trainables.engine.cuda_graph import CapturedStep
from trainables.engine.health import Health, within_memory
from trainables.engine.meta_gradient import Batch
from trainables.engine.numerics import autocast_type, numerics
from trainables.engine.optimizers import (
    load_state,
    meta_schedule_factor,
    schedule_factor,
    set_step_size,
)
from trainables.engine.step_timer import StepTimer
from trainables.evaluate import (
    accuracy_metrics,
    class_accuracies,
    mistakes,
    predicted_classes,
    training_pass,
    without_gaps,
)
from trainables.machine import choose_device, keep_freed_memory, system_metrics
from trainables.models import Classifier, build_classifier, expected_input
from trainables.pairing import Pairing
from trainables.seeds import derive_seed
from trainables.stage import Stage, StageBuilder
from trainables.traced_backbone import TracedBackbone, trace_backbone
from trainables.trained import LAST, read_test_set, trained_classifier

TIMED_PIXELS = 2**21
"""Pixel values of the val set that `time_epoch` evaluates: only the time is of interest, not the accuracies."""


class EpochClock:
    """The time that an epoch takes, in seconds.

    Args:
        trials: how many trials have this epoch in common; each has an equal share of the time.
    """

    def __init__(self, trials: int = 1) -> None:
        self._began, self._cpu_began, self._trials = time.perf_counter(), time.process_time(), trials

    def epoch_s(self) -> float:
        """Seconds since the epoch began."""
        return (time.perf_counter() - self._began) / self._trials

    def cpu_s(self) -> float:
        """The same of the process's CPU time."""
        return (time.process_time() - self._cpu_began) / self._trials


@dataclass
class BestEpoch:
    """The epoch with the highest `select_by` so far: its metrics, and the state of classifier and method at its end."""

    epoch: int
    metrics: dict[str, float]
    phi: dict[str, Tensor]
    theta: dict[str, Tensor] | None = None
    """None in a state of a version that did not keep it."""


class TrialRun:
    """State of one running trial. `start` may be called again for the next trial, which reuses matching data and programs.

    In a trial with several workers each worker has a TrialRun with the same state. The workers call `start`, `resume`,
    `run_epoch` and `time_epoch` together with equal arguments, and get equal results and errors. `state` involves no collective,
    so one worker alone may call it.

    Args:
        collectives: the workers of the trial.
    """

    def __init__(self, collectives: Collectives = ALONE) -> None:
        self.collectives = collectives
        self._loaded: LoadedData | None = None
        self._traced: TracedBackbone | None = None

    def start(self, config: TrialConfig, loaded: LoadedData | None = None) -> None:
        """Begins a trial from fresh weights.

        Args:
            config: of the trial.
            loaded: what the trial trains on, in place of what the settings of the data give.

        Raises:
            ValueError: when the data cannot provide what `config` asks for, there are more workers than images in a batch, or the
                environment forbids deterministic arithmetic.
            OutOfMemory: when the trial does not fit into memory.
        """
        workers = self.collectives.size
        if config.optim.batch_size < workers:
            raise ValueError(
                f"optim.batch_size is {config.optim.batch_size}, but {workers} workers share a batch; allowed: {workers} or more"
            )
        torch.set_num_threads(config.threads)
        self.config = config
        self.device = choose_device(config.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.reset_peak_memory_stats()  # the out-of-memory message reports this trial's peak, not the previous one's
        with self._numerics(), within_memory("at the start"):
            self._build(config, loaded)

    def _build(self, config: TrialConfig, loaded: LoadedData | None) -> None:
        if loaded is None:
            room = room_for_images(config.compute.keep_gib, self.device, config.threads)
            loaded = self._loaded = load_data(
                config.data,
                config.seed,
                self.device,
                config.compute.readers,
                self._loaded,
                room,
                expected_input(config.classifier),
                on_device(config.compute),
            )
        self.loaded = loaded
        check_selection(config.select_by, self.loaded.data.selecting_counts)
        self.num_classes = len(self.loaded.data.class_counts)
        self.class_counts = torch.from_numpy(self.loaded.data.class_counts).to(self.device)
        self.clean_counts = torch.from_numpy(self.loaded.data.clean_counts).to(self.device)
        image_shape = self.loaded.format.shape
        self.classifier = build_classifier(config.classifier, image_shape, self.num_classes, config.seed).to(self.device)
        self.pairing = Pairing(self.loaded.data.sha256, self.loaded.data.split.test.tobytes(), self.classifier.state_dict())
        self.memory_format = torch.channels_last if config.compute.channels_last else torch.contiguous_format
        self.dtype = torch.float64 if config.compute.precision == "float64" else torch.float32
        self.classifier.to(self.dtype).to(memory_format=self.memory_format)
        self.classifier.autocast = autocast_type(config.compute)
        self._timer = StepTimer(time.perf_counter, self.wait)
        self.health = Health(dead_after=None, collectives=self.collectives)
        self.epoch = 0
        self.best: BestEpoch | None = None
        self.report: dict[str, Any] | None = None
        self.val_class_accuracy = torch.full((self.num_classes,), math.nan)
        self.val_mistakes: list[list[int]] | None = None
        self.stages = StageBuilder(config, self.loaded, self.classifier, self.collectives, self._captured())
        self._enter(self._first_stage())

    @property
    def steps_per_epoch(self) -> int:
        """Training steps of an epoch of the current stage."""
        return self.stage.steps_per_epoch

    def _enter(self, stage: Stage) -> None:
        """Goes on with `stage`."""
        self.stage = stage
        self._meta_accuracy: Tensor | None = None  # A_C at the phi of now, if it was measured
        self.method, self.optimizer, self.meta_optimizer = stage.method, stage.optimizer, stage.meta_optimizer
        self.bilevel_step = stage.bilevel_step
        self.health.dead_after = None if self.config.bilevel.meta_gradient == "none" else self.method.dead_after
        self.health.zero_updates = 0
        self.watch = Watch()
        self._run_step = CapturedStep(stage.bilevel_step) if self._captured() else stage.bilevel_step

    def _captured(self) -> bool:
        return self.config.compute.cuda_graphs and self.device.type == "cuda" and self.collectives.size == 1

    def _first_stage(self) -> Stage:
        """The stage that trains the whole classifier."""
        method = self.stages.method(self.config.method, self.config.optim, self.classifier.head)
        self._traced = trace_backbone(self.config, self.loaded, self.collectives, self._traced, method.views)
        return self.stages.first(method, self._traced.linearizer)

    def _head_stage(self, number: int) -> Stage:
        """The stage that follows, which trains a head on frozen features."""
        settings = self.config.later_stages()[number - 1]
        if settings.start_from == "best" and self.best and self.config.stage_at(self.best.epoch) == self.stage.number:
            self.classifier.load_state_dict(self.best.phi)
        elif self.stage.average:
            self.classifier.load_state_dict(self._evaluated_phi())
        if settings.batch_norm == "shift":
            assert self._traced is not None
            self.stages.shift_statistics(number, self._traced.linearizer, self.epoch + 1)
            self._average_statistics(self.classifier)
        return self.stages.later(number, choosing=True)

    def run_epoch(self, after_step: Callable[[int], None] | None = None) -> dict[str, float]:
        """Trains and evaluates one epoch.

        Args:
            after_step: called after each step with the number of steps done in the epoch.

        Returns: the epoch's metrics; names as in evaluate.py, accuracies in [0, 1].

        Raises:
            Diverged: when a loss or a gradient is not finite.
            DeadMetaGradient: when the meta-gradient stays exactly 0.
            OutOfMemory: when the memory does not suffice.
        """
        with self._numerics(), within_memory(f"in epoch {self.epoch + 1}"):
            return self._run_epoch(after_step)

    def _run_epoch(self, after_step: Callable[[int], None] | None) -> dict[str, float]:
        clock = EpochClock()
        self._timer = timer = StepTimer(time.perf_counter, self.wait)
        if self.epoch == self.stage.epochs.stop:
            with timer.aside():
                self._enter(self._head_stage(self.stage.number + 1))
        stage = self.stage
        batches, first = self.batches(), (self.epoch - stage.epochs.start) * stage.steps_per_epoch
        with timer.aside():
            self.begin_epoch()
        for step in range(first, first + stage.steps_per_epoch):
            with timer.step(counts=not stage.is_first_of_kind(step)):
                self._step(*next(batches))
            if after_step:
                after_step(step + 1 - first)
        assert next(batches, None) is None
        means = self.health.epoch_means()  # waits for the device, so the time below includes all steps
        step_s = timer.mean_s()
        self._average_statistics()
        return self.end_epoch(means, self._predicted_classes, self._evaluated_classes, clock, step_s)

    def end_epoch(
        self,
        means: dict[str, float],
        predict: Callable[[LoadedSet], Tensor],
        evaluate: Callable[[LoadedSet], Tensor],
        clock: EpochClock,
        step_s: float,
    ) -> dict[str, float]:
        """Evaluates an epoch whose steps have been made.

        Args:
            means: of the quantities that `health` reports.
            predict: gives the predicted class of each image of a set, by phi.
            evaluate: the same by the classifier that is evaluated: the average, if the trial keeps one.
            clock: started when the epoch began.
            step_s: seconds of a step.

        Returns: as `run_epoch`.
        """
        stage = self.stage
        self.epoch += 1
        predicted = evaluate(stage.sets.val)
        self.val_class_accuracy = class_accuracies(predicted, stage.sets.val.labels, self.num_classes)
        self.val_mistakes = None
        metrics = means | self._measure(predict) | self._signs_of_collapse()
        if len(self.config.stages) > 1:
            metrics["stage"] = float(stage.number)
        metrics["time/step_ms"] = step_s * 1e3
        metrics["time/epoch_s"] = clock.epoch_s()
        if self.config.compute.system_metrics:
            metrics |= system_metrics(clock.cpu_s(), clock.epoch_s(), self.device)
        # Clocks and rounding may differ between workers, but all must report the same metrics and keep the same best epoch.
        metrics = dict(zip(metrics, self._agreed(metrics.values()), strict=True))
        if improves(metrics[self.config.select_by], self.best.metrics[self.config.select_by] if self.best else None):
            phi, theta = (
                {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
                for state in (self._evaluated_phi(), self.method.state_dict())
            )
            self.best = BestEpoch(self.epoch, dict(metrics), phi, theta)
            self.val_mistakes = mistakes(predicted, stage.sets.val.labels, self.num_classes)
        if self.config.read_test and self.epoch == self.config.epochs:
            metrics |= self._read_test()
        self.report = {"metrics": dict(metrics), "classes": self.class_table(), "pairing": self.pairing_digests()}
        return metrics

    def _read_test(self) -> dict[str, float]:
        """What the classifiers of the best epoch and of the last one reach on the sealed test set; called once, at the end."""
        epochs = {LAST: (self.epoch, self._evaluated_phi())}
        if self.best is not None:
            epochs["test"] = (self.best.epoch, self.best.phi)
        shape, counts = self.loaded.format.shape, self.loaded.data.class_counts.tolist()
        classifiers = {
            prefix: trained_classifier(self.config, phi, shape, counts, self.config.stage_at(epoch)).to(self.device, self.dtype)
            for prefix, (epoch, phi) in epochs.items()
        }
        return read_test_set(classifiers, self.loaded.data, self.loaded.store, self.loaded.format, self.collectives)

    def begin_epoch(self) -> None:
        """Forgets what was collected in the epoch before, and passes over the training set if the method wants it."""
        self.bilevel_step.weights.clear()
        self.method.begin_epoch()
        self._theta_before = [parameter.detach().clone() for parameter in self.method.parameters()]
        if self.method.reads_training_set:
            self._average_statistics()
            self.method.observe(training_pass(self.stage.classifier, self.stage.sets.train, self.collectives))

    def time_epoch(self, limit_s: float = 5.0) -> float:
        """Estimates the seconds of one epoch from a few steps and from the evaluation of a part of the val set.

        It times as many steps after the first one as fit into `limit_s`, at most two epochs. On a CPU, a first step that takes
        twice as long is the only one. The trial cannot be continued afterwards.

        Raises:
            TrialEnded: as `run_epoch`.
        """
        with self._numerics(), within_memory(f"in epoch {self.epoch + 1}"):
            return self._time_epoch(limit_s)

    def _time_epoch(self, limit_s: float) -> float:
        batches = itertools.chain(self.batches(), self.batches())
        self.begin_epoch()
        began, done = time.perf_counter(), 1
        self._step(*next(batches))  # traces and compiles, and its images are not prepared ahead: a small part of a slow step
        self.wait()
        if self.device.type == "cpu" and self._agreed([time.perf_counter() - began])[0] > 2 * limit_s:
            batches = itertools.chain()
        else:
            began, done = time.perf_counter(), 0
        for batch, meta_batch, step in batches:
            self._step(batch, meta_batch, step)
            self.wait()
            done += 1
            # All workers must make the same number of steps, so worker 0's clock decides.
            if self._agreed([time.perf_counter() - began])[0] > limit_s:
                break
        step_s = (time.perf_counter() - began) / max(done, 1)
        self.health.epoch_means()
        some = min(len(self.loaded.val), max(8, TIMED_PIXELS // math.prod(self.loaded.val.shape)))
        for _ in range(2):  # only the second pass counts, because the first starts the reader processes
            began = time.perf_counter()
            self._predicted_classes(self.loaded.val, most=some)
            if self._agreed([time.perf_counter() - began])[0] > limit_s:  # the start is a small part of it
                break
        measured = len(self.loaded.val) + (0 if self.method.refresh_interval is None else len(self.loaded.meta))
        return self._agreed([self.stage.steps_per_epoch * step_s + (time.perf_counter() - began) / some * measured])[0]

    def class_table(self) -> dict[str, list[Any]]:
        """Values by class after the last epoch: val accuracy, difficulty, weight and training counts, each (num_classes,).

        `mistaken_for` lists the predicted class of each val image that is wrong, by its true class, if the epoch is the best one
        so far; otherwise its values are None. `meta_accuracy` is A_C, the class accuracies that the method received last.
        `train_count` counts the labels that the trainer sees, `clean_count` those before `data.noise`. `weight` is the mean
        weight that the class's images got in the epoch. Values that the method does not have are None, and so are those of a
        class without an image.
        """
        nothing = [None] * self.num_classes
        with self._numerics(), torch.no_grad():
            difficulty = self.method.difficulty()
        weights = self.bilevel_step.weights.means()
        seen = getattr(self.method, "class_accuracy", None)
        return {
            "accuracy": with_gaps(self.val_class_accuracy),
            "mistaken_for": nothing if self.val_mistakes is None else self.val_mistakes,
            "meta_accuracy": nothing if seen is None else seen.tolist(),
            "difficulty": nothing if difficulty is None else difficulty.tolist(),
            "weight": [1.0] * self.num_classes if weights is None else with_gaps(weights),
            "train_count": self.class_counts.tolist(),
            "clean_count": self.clean_counts.tolist(),
        }

    def pairing_digests(self) -> dict[str, str]:
        """What the trial has in common with others so far; see trainables/pairing.py."""
        return dict(self.pairing.digests)

    def save(self, folder: Path, is_complete: bool = False) -> str:
        """Writes `state` as a checkpoint. Returns the checkpoint's digest.

        Args:
            folder: where to.
            is_complete: whether no epoch follows; the checkpoint then has what an export needs, and no trial can go on from it.
        """
        state = self.state()
        return write_checkpoint(folder, pack(completed(state) if is_complete else state))

    def load(self, folder: Path, config: TrialConfig, sha256: str | None = None, loaded: LoadedData | None = None) -> None:
        """Continues a saved trial, as `resume` does.

        Args:
            folder: holds the checkpoint.
            config: the configuration of the continued trial.
            sha256: the digest of the state from another record, such as the ledger; None takes the checkpoint's own.
            loaded: as for `start`.

        Raises:
            DamagedCheckpoint: when the checkpoint is missing or differs from what was written.
            ValueError: when the checkpoint belongs to another configuration.
            OutOfMemory: when the trial does not fit into memory.
        """
        self.resume(unpack(read_checkpoint(folder, sha256), str(folder)), config, str(folder), loaded)

    def state(self) -> dict[str, Any]:
        """The state from which `resume` continues bit for bit. Batches are functions of seed, epoch and step: no RNG is saved."""
        return {
            "phi": self.classifier.state_dict(),
            "average": self.stage.average.state() if self.stage.average else None,
            "theta": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "meta_optimizer": self.meta_optimizer.state_dict() if self.meta_optimizer else None,
            "best": None if self.best is None else vars(self.best),
            "epoch": self.epoch,
            "split_sha256": self.loaded.data.sha256,
            "format": self.loaded.format.stored(),
            "zero_updates": self.health.zero_updates,
            "watch": asdict(self.watch),
            "pairing": self.pairing_digests(),
            "config": self.config.model_dump(),
            "report": self.report,  # of this epoch: a power cut may take the ledger's lines, but not the checkpoint
        }

    def resume(self, state: dict[str, Any], config: TrialConfig, source: str, loaded: LoadedData | None = None) -> None:
        """Continues a trial from its `state`, or forks another trial off it: one that differs in the MUTABLE settings only.

        Settings that decide no result, or only how numbers are rounded, may always differ.

        Hyper-parameters always come from `config`. A fork starts without a best epoch, because the epochs before the fork belong
        to another trial.

        Args:
            state: the result of `state`.
            config: the configuration of the continued trial.
            source: name of the state in errors.
            loaded: as for `start`.

        Raises:
            ValueError: when the state belongs to another configuration or to other images, or to a trial that was complete.
            OutOfMemory: when the trial does not fit into memory.
        """
        if not state.keys() >= GOING_ON - LATER:
            raise ValueError(f"{source} is the state of a trial that was complete: no trial can go on from it")
        differing = deciding_differences(state["config"], config.model_dump())
        if foreign := {key: pair for key, pair in differing.items() if key not in MUTABLE}:
            pairs = ", ".join(f"{key} was {saved!r}, is {given!r}" for key, (saved, given) in foreign.items())
            may = " and ".join(sorted(MUTABLE))
            raise ValueError(f"{source} belongs to another configuration: {pairs}; only {may} may differ")
        self.start(config, loaded)
        if self.loaded.data.sha256 != state["split_sha256"]:
            raise ValueError(f"{source} belongs to other images or labels: the split's sha256 was {state['split_sha256']}")
        before, now = (form.framing for form in (ImageFormat.of_state(state["format"]), self.loaded.format))
        if before != now:
            was, becomes = ("256/224 of the size, bilinear" if form is None else form.words() for form in (before, now))
            raise ValueError(
                f"{source} belongs to images of which another part was seen: {was}; the classifier's weights expect {becomes}; "
                "start the trial anew"
            )
        with within_memory("at the start"):
            self._take(state)
        self.best = BestEpoch(**state["best"]) if state["best"] and not differing else None

    def _take(self, state: dict[str, Any]) -> None:
        """Loads phi, its average, theta, both optimisers, the epoch and the count of zero updates from `state`."""
        if (last := self.config.stage_at(state["epoch"])) > 0:
            of_backbone = {name: value for name, value in state["phi"].items() if name.startswith("backbone.")}
            self.classifier.load_state_dict(of_backbone, strict=False)
            for number in range(1, last):
                self.stages.replace_head(number)
            self._enter(self.stages.later(last, choosing=False))
        self.classifier.load_state_dict(state["phi"])
        if self.stage.average:
            self.stage.average.load(state["average"])
        self.method.load_state_dict(state["theta"])
        load_state(self.optimizer, state["optimizer"])
        if self.meta_optimizer:
            load_state(self.meta_optimizer, state["meta_optimizer"])
        self.epoch = state["epoch"]
        self.report = state.get("report")
        self.health.zero_updates = state["zero_updates"]
        self.watch = Watch(**state.get("watch", {}))
        self.pairing.digests |= state.get("pairing", {})

    def batches(self, others: Sequence["TrialRun"] = ()) -> Iterator[tuple[Batch, Batch | None, int]]:
        """The batches of the epoch: training batch, meta batch (None if the step needs none) and step.

        Args:
            others: further trials that take the same batches.
        """
        config, stage, meta = self.config, self.stage, self.stage.sets.meta
        if not stage.trains:
            return
        seed = derive_seed(config.seed, "stages", stage.number) if stage.number else config.seed
        epoch = self.epoch - stage.epochs.start
        first = epoch * stage.steps_per_epoch
        labels = torch.from_numpy(self.loaded.data.train.labels)
        order = training_order(labels, stage.optim.batch_size, seed, epoch + 1, stage.optim.sampler, len(stage.epochs))
        steps = range(first, first + len(order))
        meta_steps, meta_size = (
            [step for step in steps if self.bilevel_step.needs_meta_batch(step)],
            config.bilevel.meta_batch_size,
        )
        if config.data.meta == "from_train":
            meta_orders = balanced_meta_orders(labels, meta_size, seed, epoch + 1, len(meta_steps))
        else:
            meta_orders = [meta_order(len(meta), meta_size, seed, step) for step in meta_steps]
        share = self.collectives.share
        meta_batches = meta.batches([Request(positions, share=share(len(positions))) for positions in meta_orders])
        of_images = stage.number == 0
        augmented, mix = of_images and bool(config.data.augment), mixing(config.data, labels) if of_images else None
        views = self.method.views
        requests = training_requests(order, seed, first, augmented, self.collectives, views, mix)
        for run in (self, *others):
            run.pairing.take(requests)
        batches = stage.sets.train.batches(requests)
        for step, batch in zip(steps, batches, strict=True):
            meta_batch = self._batch(next(meta_batches)) if self.bilevel_step.needs_meta_batch(step) else None
            yield self._batch(batch), meta_batch, step
        # This exhausts the generator, so that a stream keeps its reader processes for the next epoch.
        assert next(meta_batches, None) is None

    def _step(self, batch: Batch, meta_batch: Batch | None, step: int) -> None:
        stage = self.stage
        self.refresh(step, self._predicted_classes)
        self.bilevel_step.course.moment.set(step, stage.steps_per_epoch, stage.total_steps)
        factor = self.set_step_sizes(step)
        measured = self._run_step(batch, meta_batch, step)
        if stage.average:
            stage.average.update()
        self.health.record(step, measured, stage.optim.lr * factor)

    def is_refresh_due(self, step: int) -> bool:
        """Whether the method receives new class accuracies before `step`."""
        return refresh_due(self.method.refresh_interval, step, self.steps_per_epoch)

    def refresh(self, step: int, predict: Callable[[LoadedSet], Tensor]) -> None:
        """Gives the method its class accuracies if they are due; `predict` gives the predicted class of each image of a set."""
        if self.is_refresh_due(step):
            with self._timer.aside():
                self._average_statistics()
                meta, known = self.stage.sets.meta, self._meta_accuracy
                if known is None:
                    known = without_gaps(class_accuracies(predict(meta), meta.labels, self.num_classes))
                self.method.refresh(known)
        self._meta_accuracy = None  # the step that follows changes phi

    def set_step_sizes(self, step: int) -> float:
        """Sets alpha and beta for `step`; returns the factor by which the schedule scales alpha."""
        stage, total = self.stage, self.stage.total_steps
        factor = schedule_factor(stage.optim, step, total, stage.steps_per_epoch)
        set_step_size(self.optimizer, factor)
        if self.meta_optimizer and self.method.meta:
            set_step_size(self.meta_optimizer, meta_schedule_factor(self.method.meta, step, total, factor))
        return factor

    def _batch(self, batch: ImageBatch) -> Batch:
        images = batch.images.to(self.dtype)
        if images.ndim == 4:  # frozen features have no memory format
            images = images.contiguous(memory_format=self.memory_format)
        weight = None if batch.label_weight is None else batch.label_weight.to(self.dtype)
        return Batch(images, batch.labels, batch.positions, batch.partners, weight)

    def _predicted_classes(self, images: LoadedSet, most: int | None = None) -> Tensor:
        return predicted_classes(self.stage.classifier, images, most, self.collectives, self.method.predict)

    def _evaluated_classes(self, images: LoadedSet) -> Tensor:
        average = self.stage.average
        if average is None:
            return self._predicted_classes(images)
        return predicted_classes(average.classifier, images, None, self.collectives, self.method.predict)

    def _evaluated_phi(self) -> dict[str, Tensor]:
        """The state of the whole classifier as it is evaluated: with the average in place of phi, if there is one."""
        average = self.stage.average  # in a later stage that of the head alone
        return self.classifier.state_dict() | (average.classifier.state_dict() if average else {})

    def _average_statistics(self, classifier: Classifier | None = None) -> None:
        """Averages the running statistics of `classifier`, by default the stage's, over workers.

        Running statistics are linear in the batch statistics, so averaging just before they are read gives the same result as
        averaging after each step.
        """
        if self.collectives.alone or self.config.compute.batch_norm == "sync":
            return
        mine = [buffer for buffer in (classifier or self.stage.classifier).buffers() if buffer.is_floating_point()]
        for buffer, mean in zip(mine, self.collectives.mean(mine), strict=True):
            buffer.copy_(mean)

    def _agreed(self, values: Iterable[float]) -> list[float]:
        """The values of worker 0, because clocks differ between workers."""
        given = list(values)
        if self.collectives.alone:
            return given
        numbers: list[float] = self.collectives.agreed(torch.tensor(given, dtype=torch.float64, device=self.device)).tolist()
        return numbers

    def _numerics(self) -> AbstractContextManager[None]:
        return numerics(self.config.compute, self.device)

    def wait(self) -> None:
        """Waits until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _measure(self, predict: Callable[[LoadedSet], Tensor]) -> dict[str, float]:
        counts = torch.bincount(self.stage.sets.val.labels, minlength=self.num_classes)
        metrics = self.method.metrics() | accuracy_metrics("val", self.val_class_accuracy, self.clean_counts, counts)
        if self.method.refresh_interval is not None:
            val, meta = self.stage.sets.val, self.stage.sets.meta
            accuracy = self.val_class_accuracy
            if meta is not val or self.stage.average:  # the method's accuracies are those of phi
                accuracy = class_accuracies(predict(meta), meta.labels, self.num_classes)
            self._meta_accuracy = without_gaps(accuracy)
            metrics["meta/acc"] = self._meta_accuracy.mean().item()
        return metrics

    @torch.no_grad()
    def _signs_of_collapse(self) -> dict[str, float]:
        """The verdict on the epoch in numbers; none for a method without a meta step."""
        method, theta = self.method, list(self.method.parameters())
        if not theta and method.perturbation_shape(1) is None:
            return {}
        exact, measured = method.class_weights(), self.bilevel_step.weights
        weights = measured.means() if exact is None else exact.where(self.class_counts > 0, math.nan)
        images = None if exact is not None or weights is None else [int(count) for count in measured.counts.tolist()]
        extremes = method.output_extremes() if theta else None
        dead = extremes is not None and saturated(*extremes)
        return self.watch.take(None if weights is None else with_gaps(weights), images, dead, self._theta_is_still())

    def _theta_is_still(self) -> bool | None:
        """None if theta could not move: the method has none, or the epoch had no meta step."""
        stage, last = self.stage, (self.epoch - self.stage.epochs.start) * self.stage.steps_per_epoch
        steps = range(last - stage.steps_per_epoch, last)
        if self.meta_optimizer is None or not any(self.bilevel_step.updates_theta(step) for step in steps):
            return None
        pairs = zip(self.method.parameters(), self._theta_before, strict=True)
        moved = torch.stack([torch.stack([(now - before).norm(), before.norm()]) for now, before in pairs]).norm(dim=0)
        groups = self.optimizer.param_groups[0], self.meta_optimizer.param_groups[0]
        factors = [float(group["lr"]) / group["initial_lr"] for group in groups]
        length, before = moved.tolist()
        return still(length / max(before, 1e-30), math.prod(factors), self.health.lever)


def with_gaps(values: Tensor) -> list[float | None]:
    """Values by class, with None in place of NaN."""
    return [None if math.isnan(value) else value for value in values.tolist()]


def refresh_due(interval: float | None, step: int, steps_per_epoch: int) -> bool:
    """Whether the class accuracies are measured before `step` (from 0): before the first, then every `interval` epochs."""
    if interval is None:
        return False
    period = interval * steps_per_epoch
    # The small addend corrects rounding: 28 / (0.14 * 8) is 25, but less in floating point.
    return math.floor(step / period + 1e-9) > math.floor((step - 1) / period + 1e-9)
