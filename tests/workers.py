"""Worker processes of one trial, started once for many jobs, and the jobs that tests give them."""

import functools
import multiprocessing
import queue
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn

import trainables.models
from trainables.checkpoint import pack, unpack
from trainables.classifier_config import SmallCNNConfig
from trainables.collectives import ALONE, Collectives
from trainables.config import ComputeConfig, TrialConfig
from trainables.engine.health import TrialEnded
from trainables.evaluate import predicted_classes
from trainables.models import Classifier
from trainables.trial_run import TrialRun

PATIENCE_S = 120


class Workers:
    """`run` gives a job to the first so many processes, which then are the workers of a group."""

    def __init__(self, most: int, folder: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["workers"])  # torch is imported once
        self._folder, self._groups = folder, [0]
        self._ends: list[Connection] = []
        self._processes = []
        for rank in range(most):
            mine, theirs = context.Pipe()
            process = context.Process(target=serve, args=(rank, theirs), daemon=True)
            process.start()
            self._ends.append(mine)
            self._processes.append(process)

    def run(self, size: int, job: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `job(collectives, *arguments)` returned on each worker."""
        if self._groups[-1] != size:
            self._groups.append(size)
        for end in self._ends[:size]:
            end.send((size, f"file://{self._folder}/{len(self._groups)}", job, arguments))
        answers = []
        for end in self._ends[:size]:
            if not end.poll(PATIENCE_S):
                raise queue.Empty(f"a worker did not answer {job.__name__} in time")
            answers.append(end.recv())
        if failed := [answer for ok, answer in answers if not ok]:
            raise AssertionError("\n".join(failed))
        return [answer for _, answer in answers]

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


def serve(rank: int, end: Connection) -> None:
    torch.set_num_threads(1)
    place = None
    while True:
        size, meeting, job, arguments = end.recv()
        try:
            if meeting != place:
                if place is not None:
                    dist.destroy_process_group()
                dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
                place = meeting
            end.send((True, job(Collectives(rank, size), *arguments)))
        except BaseException:
            end.send((False, traceback.format_exc()))


@functools.cache
def run_of(collectives: Collectives, compute: ComputeConfig) -> TrialRun:
    """One for many jobs: it keeps data and programs."""
    return TrialRun(collectives)


def started(collectives: Collectives, config: TrialConfig) -> TrialRun:
    run = run_of(collectives, config.compute)
    run.start(config)
    return run


def train(collectives: Collectives, config: TrialConfig, epochs: int, before: bytes | None = None) -> dict[str, Any]:
    """Some epochs from the start or from a packed state: numbers by name, metrics by epoch, and the packed state afterwards."""
    run = run_of(collectives, config.compute)
    if before is None:
        run.start(config)
    else:
        run.resume(unpack(before), config, "a test")
    metrics = [run.run_epoch() for _ in range(epochs)]
    tensors = {
        name: tensor.numpy().copy()
        for part, module in (("phi", run.classifier), ("theta", run.method))
        for name, tensor in ((f"{part}.{name}", tensor) for name, tensor in module.state_dict().items())
    }
    return {
        "tensors": tensors,
        "metrics": metrics,
        "state": pack(run.state()),
        "table": run.class_table(),
        "best": run.best.epoch,
        "pairing": run.pairing_digests(),
    }


def train_as(
    collectives: Collectives, config: TrialConfig, epochs: int, build: Callable[..., Classifier], before: bytes | None = None
) -> dict[str, Any]:
    """As `train` with another network as small CNN. Its `widths` must be no other trial's, whose programs would be used."""
    original = trainables.models.CLASSIFIERS["small_cnn"]
    trainables.models.CLASSIFIERS["small_cnn"] = build
    try:
        return train(collectives, config, epochs, before)
    finally:
        trainables.models.CLASSIFIERS["small_cnn"] = original


def without_batch_norm(config: SmallCNNConfig, shape: tuple[int, int, int], num_classes: int) -> Classifier:
    width = config.widths[0]
    return _built([nn.Conv2d(shape[0], width, 3, stride=2), nn.Tanh(), nn.Conv2d(width, 4, 2)], shape, num_classes)


def with_dropout(config: SmallCNNConfig, shape: tuple[int, int, int], num_classes: int) -> Classifier:
    width = config.widths[0]
    first = [nn.Conv2d(shape[0], width, 3, stride=2), nn.GroupNorm(2, width), nn.Dropout(0.2), nn.Tanh()]
    return _built([*first, nn.Dropout2d(0.3), nn.Conv2d(width, 4, 2)], shape, num_classes)


def _built(layers: list[nn.Module], shape: tuple[int, int, int], num_classes: int) -> Classifier:
    backbone = nn.Sequential(*layers, nn.Flatten())
    num_features = backbone(torch.zeros(1, *shape)).shape[1]
    return Classifier(backbone, nn.Linear(num_features, num_classes), num_features)


def running_statistics(collectives: Collectives, config: TrialConfig) -> list[dict[str, Any]]:
    """The buffers at the end of an epoch before workers have averaged them, and after."""
    run, found = started(collectives, config), []
    average = run._average_statistics

    def watched() -> None:
        for act in (lambda: None, average):
            act()
            found.append({name: buffer.numpy().copy() for name, buffer in run.classifier.named_buffers()})

    run._average_statistics = watched  # type: ignore[method-assign]
    try:
        run.run_epoch()
    finally:
        del run._average_statistics
    return found[-2:]


def predictions(collectives: Collectives, config: TrialConfig) -> list[tuple[list[int], list[int]]]:
    """Predicted classes with shared work and without: of all val images, and of the first three."""
    run = started(collectives, config)
    run.run_epoch()
    pairs = []
    for most in (None, 3):
        ours, theirs = (predicted_classes(run.classifier, run.loaded.val, most, c) for c in (collectives, ALONE))
        pairs.append((ours.tolist(), theirs.tolist()))
    return pairs


def messages_per_step(collectives: Collectives, config: TrialConfig) -> list[list[str]]:
    """The collectives of each step of an epoch, by their names in torch."""
    run, steps, names = started(collectives, config), [], list[str]()
    run.run_epoch()  # the programs are there; what is looked at now and then is behind us
    originals = {name: getattr(dist, name) for name in ("all_reduce", "all_gather_into_tensor", "broadcast")}

    def counted(name: str, *arguments: Any, **options: Any) -> Any:
        names.append(name)
        return originals[name](*arguments, **options)

    for name in originals:
        setattr(dist, name, functools.partial(counted, name))
    try:
        for batch, meta_batch, step in run.batches():
            names.clear()
            run._step(batch, meta_batch, step)
            steps.append(list(names))
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)
    return steps


def ending(collectives: Collectives, config: TrialConfig) -> str:
    """How a trial ends that must not go on."""
    run = started(collectives, config)
    try:
        for _ in range(config.epochs):
            run.run_epoch()
    except TrialEnded as reason:
        return f"{type(reason).__name__}: {reason}"
    return "it went on"


def epoch_time(collectives: Collectives, config: TrialConfig) -> float:
    return started(collectives, config).time_epoch(limit_s=0.1)
