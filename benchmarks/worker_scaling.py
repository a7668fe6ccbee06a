"""Measures what a training step gains from several workers: their time beside that of one worker, and where the rest goes.

    python -m benchmarks.worker_scaling [--workers 2] [--repeats 9] [--batch-norm sync] [--json]

Setup: ResNet-32 for 100 classes, batch 128, meta batch 100, random 32x32 images, Difficulty-Net with the exact meta-gradient. On
CPUs, workers are processes of one thread each that communicate over gloo. With several GPUs, each worker has one GPU and
communicates over NCCL, and all numbers of workers from 2 to the number of GPUs are measured. One worker and several workers take
turns in the same processes, so that other load on the machine falls on both. Figures are medians of the slowest worker's time.

Efficiency is the time of one worker divided by N times the time of N workers. `cpu_efficiency` is the CPU seconds of one
worker divided by the CPU seconds of all N workers together, which other load on the machine does not change.

Where the rest goes: `share` is one worker with an N-th of the images and without communication, while the other workers wait.
`apart` is all workers doing this at the same time. The difference from `one` to `share` is the cost of small batches; from
`share` to `apart`, that of the shared machine; from `apart` to `workers`, that of communication, of waiting for the slowest
worker, and of what each worker computes for the whole batch.
"""

import argparse
import functools
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from benchmarks.step_cost import BATCH_SIZE, META_BATCH_SIZE, NUM_CLASSES, versions
from trainables.classifier_config import ResNetCifarConfig
from trainables.collectives import ALONE, Collectives
from trainables.config import BilevelConfig, OptimConfig
from trainables.engine.bilevel import BilevelStep
from trainables.engine.linearize import Linearizer
from trainables.engine.meta_gradient import Batch
from trainables.engine.optimizers import build_meta_optimizer, build_optimizer
from trainables.engine.sharded import ShardedLinearizer
from trainables.method_config import DifficultyNetConfig
from trainables.methods import Task, build_method
from trainables.models import build_classifier

Step = Callable[[], object]
MESSAGES = ("all_reduce", "all_gather_into_tensor")


def worker_step(device: torch.device, collectives: Collectives, sync: bool, divided_by: int = 1) -> Step:
    """A worker's part of a step. `divided_by` divides the number of images in both batches."""
    classifier = build_classifier(ResNetCifarConfig(), (3, 32, 32), NUM_CLASSES, seed=0).to(device)
    task = Task(NUM_CLASSES, classifier.num_features, torch.full((NUM_CLASSES,), 100))
    method = build_method(DifficultyNetConfig(), task, seed=0).to(device)
    method.refresh(torch.linspace(0, 1, NUM_CLASSES, device=device))
    linearizer = Linearizer() if collectives.size == 1 else ShardedLinearizer(collectives, sync)
    optimizer, meta_optimizer = build_optimizer(OptimConfig(lr=0.1), classifier, False), build_meta_optimizer(method, False)
    step = BilevelStep(classifier, method, optimizer, meta_optimizer, BilevelConfig(), linearizer, collectives)
    generator = torch.Generator().manual_seed(0)

    def batch(size: int) -> Batch:
        images, labels = (
            torch.randn(size, 3, 32, 32, generator=generator),
            torch.randint(NUM_CLASSES, (size,), generator=generator),
        )
        return Batch(images[collectives.share(size)].to(device), labels.to(device))

    return functools.partial(step, batch(BATCH_SIZE // divided_by), batch(META_BATCH_SIZE // divided_by), 0)


def messages(step: Step) -> tuple[int, int]:
    """Number of collectives in a step, and number of bytes that a worker sends to them."""
    sizes: list[int] = []
    originals = {name: getattr(dist, name) for name in MESSAGES}

    def counted(name: str, *tensors: torch.Tensor) -> Any:
        sizes.append(tensors[-1].numel() * tensors[-1].element_size())  # the last tensor is what the worker sends
        return originals[name](*tensors)

    for name in MESSAGES:
        setattr(dist, name, functools.partial(counted, name))
    step()
    for name, original in originals.items():
        setattr(dist, name, original)
    return len(sizes), sum(sizes)


def work(rank: int, size: int, meeting: str, sync: bool, repeats: int, answers: Any) -> None:
    """The program of a worker process."""
    cuda = torch.cuda.is_available()
    torch.set_num_threads(1)
    if cuda:
        torch.cuda.set_device(rank)
    device = torch.device("cuda" if cuda else "cpu")
    dist.init_process_group("nccl" if cuda else "gloo", init_method=meeting, rank=rank, world_size=size)
    one, share = (worker_step(device, ALONE, sync, divided_by) for divided_by in (1, size))
    together = worker_step(device, Collectives(rank, size), sync)
    turns: dict[str, Step | None] = {
        "one": one if rank == 0 else None,
        "share": share if rank == 0 else None,
        "apart": share,
        "workers": together,
    }
    for step in (one, share, together, together):
        step()  # traces
    times: dict[str, list[float]] = {name: [] for name in turns}
    busy: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(repeats):
        for name, turn in turns.items():
            dist.barrier()
            began = time.process_time()
            times[name].append(seconds(turn, cuda) if turn else 0.0)
            busy[name].append(time.process_time() - began if turn else 0.0)
            dist.barrier()
    slowest = torch.tensor([times[name] for name in turns], dtype=torch.float64, device=device)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    total = torch.tensor([busy[name] for name in turns], dtype=torch.float64, device=device)
    dist.all_reduce(total)
    number, sent = messages(together)
    if rank == 0:
        found = (dict(zip(turns, values.tolist(), strict=True)) for values in (slowest, total))
        answers.put((*found, number, sent))
    dist.barrier()
    dist.destroy_process_group()


def seconds(step: Step, cuda: bool) -> float:
    began = time.perf_counter()
    step()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure(size: int, sync: bool, repeats: int) -> dict[str, float | str]:
    """Medians in ms with `size` workers."""
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{Path(folder) / 'meeting'}"
        arguments = [(rank, size, meeting, sync, repeats, answers) for rank in range(size)]
        processes = [context.Process(target=work, args=given) for given in arguments]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError("a worker failed; see above")
    times, busy, number, sent = answers.get()
    ms, busy_ms = ({name: statistics.median(values) * 1e3 for name, values in of.items()} for of in (times, busy))
    on_cpu = {} if torch.cuda.is_available() else {"cpu_efficiency": busy_ms["one"] / busy_ms["workers"]}
    return on_cpu | {
        "step_1_worker_ms": ms["one"],
        f"step_{size}_workers_ms": ms["workers"],
        f"share_of_{size}_ms": ms["share"],
        f"apart_{size}_ms": ms["apart"],
        f"scaling_efficiency_{size}": ms["one"] / (size * ms["workers"]),
        "scaling_efficiency": ms["one"] / (size * ms["workers"]),
        "collectives_per_step": number,
        "bytes_per_step": sent,
    }


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worker_scaling")
    parser.add_argument("--workers", type=int, default=2, help="processes on CPUs (default: 2)")
    parser.add_argument("--repeats", type=int, default=9, help="rounds of timing (default: 9)")
    parser.add_argument("--batch-norm", choices=["local", "sync"], default="local")
    parser.add_argument("--json", action="store_true", help="print one flat JSON object")
    given = parser.parse_args(arguments)
    gpus = torch.cuda.device_count()
    if gpus == 1:
        parser.error("there is one GPU, and NCCL needs one for each worker; CUDA_VISIBLE_DEVICES= measures on the CPU")
    torch.set_num_threads(1)
    result: dict[str, float | str] = {}
    for size in range(2, gpus + 1) if gpus else [given.workers]:
        result |= measure(size, given.batch_norm == "sync", given.repeats)
    result |= versions() | {"batch_norm": given.batch_norm}
    if given.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:<24}{value:>16.2f}" if isinstance(value, float) else f"{name:<24}{value:>16}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
