"""How several trials share one GPU best: as processes, under MPS, or on streams of one process; each against one trial alone.

`python -m benchmarks.gpu --part packing` runs it. A trial is Difficulty-Net with the exact meta-gradient on a ResNet-32 and
random images. On a GPU its steps are captured. On a CPU only processes are compared, which shows that the measurement runs.
"""

import contextlib
import multiprocessing
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch

from trainables.classifier_config import ResNetCifarConfig
from trainables.config import BilevelConfig, ComputeConfig, TrialConfig
from trainables.data_config import GeneratedConfig
from trainables.method_config import DifficultyNetConfig
from trainables.optim_config import OptimConfig
from trainables.trial_run import TrialRun

AT_ONCE = (1, 2, 4, 8)
MPS_CONTROL = "nvidia-cuda-mps-control"
START_S = 300.0
"""How long processes may take to trace, compile and capture."""


@dataclass(frozen=True)
class Load:
    """What each trial does."""

    depth: int = 32
    image_size: int = 32
    batch_size: int = 128
    epochs: int = 3
    compiled: bool = False
    device: str = "cuda"

    def config(self, seed: int) -> TrialConfig:
        """The trial; its training set has some 60 batches."""
        largest = self.batch_size * 10
        return TrialConfig(
            seed=seed,
            epochs=1000,
            device=self.device,
            data=GeneratedConfig(
                num_classes=10, images_per_class=largest + 40, image_size=self.image_size, n_max=largest, imbalance_factor=4
            ),
            classifier=ResNetCifarConfig(depth=self.depth),
            method=DifficultyNetConfig(),
            optim=OptimConfig(batch_size=self.batch_size),
            bilevel=BilevelConfig(meta_batch_size=min(100, self.batch_size)),
            compute=ComputeConfig(
                cuda_graphs=self.device == "cuda", channels_last=True, compile=self.compiled, deterministic=False
            ),
        )


def of_processes(load: Load, number: int) -> float:
    """Steps a second of so many trials together, each in a process of its own."""
    context = multiprocessing.get_context("spawn")
    together, answers = context.Barrier(number), context.Queue()
    processes = [context.Process(target=_work, args=(load, seed, together, answers), daemon=True) for seed in range(number)]
    for process in processes:
        process.start()
    try:
        return sum(answers.get(timeout=START_S * 2) for _ in processes)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _work(load: Load, seed: int, together: Barrier, answers: "multiprocessing.Queue[float]") -> None:
    run = TrialRun()
    run.start(load.config(seed))
    run.run_epoch()  # traces, compiles and captures
    together.wait(START_S)
    began, steps = time.perf_counter(), 0
    for _ in range(load.epochs):
        run.run_epoch()  # waits for the device at its end
        steps += run.steps_per_epoch
    answers.put(steps / (time.perf_counter() - began))
    together.wait(START_S)  # the others must not measure beside fewer


def of_streams(load: Load, number: int) -> float:
    """Steps a second of so many trials together, as captured graphs on streams of this process."""
    runs = [TrialRun() for _ in range(number)]
    streams = [torch.cuda.Stream() for _ in runs]  # type: ignore[no-untyped-call]
    for seed, run in enumerate(runs):
        run.start(load.config(seed))
        run.run_epoch()
    torch.cuda.synchronize()
    began, steps = time.perf_counter(), 0
    for _ in range(load.epochs):
        batches = [run.batches() for run in runs]
        for _ in range(runs[0].steps_per_epoch):
            for run, stream, own in zip(runs, streams, batches, strict=True):
                with torch.cuda.stream(stream):
                    run._step(*next(own))
                steps += 1
    torch.cuda.synchronize()
    return steps / (time.perf_counter() - began)


@contextlib.contextmanager
def mps() -> Iterator[None]:
    """A daemon of MPS of our own, which processes that start inside share the GPU through.

    Raises:
        OSError: when there is no such program, or it does not start.
    """
    if shutil.which(MPS_CONTROL) is None:
        raise FileNotFoundError(f"there is no {MPS_CONTROL}")
    with tempfile.TemporaryDirectory(prefix="tailtune-mps-") as folder:
        places = {name: str(Path(folder)) for name in ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY")}
        before = {name: os.environ.get(name) for name in places}
        os.environ |= places
        try:
            started = subprocess.run([MPS_CONTROL, "-d"], capture_output=True, text=True, timeout=30, check=False)
            if started.returncode:
                raise OSError(
                    f"{MPS_CONTROL} ended with {started.returncode}: {started.stderr.strip() or started.stdout.strip()}"
                )
            yield
        finally:
            subprocess.run([MPS_CONTROL], input="quit\n", capture_output=True, text=True, timeout=30, check=False)
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def measure(load: Load, at_once: tuple[int, ...] = AT_ONCE) -> dict[str, Any]:
    """Steps a second of each way and number of trials, as multiples of one trial alone; `best` names the fastest way."""
    alone = of_processes(load, 1)
    found: dict[str, Any] = {"packing_alone_steps_per_s": alone}
    several = [number for number in at_once if number > 1]
    rates = {f"processes_{number}": of_processes(load, number) for number in several}
    if load.device == "cuda":
        try:
            with mps():
                rates |= {f"mps_{number}": of_processes(load, number) for number in several}
        except (OSError, subprocess.SubprocessError) as error:
            found["packing_mps_left_out"] = str(error)
        rates |= {f"streams_{number}": of_streams(load, number) for number in several}
        compiled = Load(**(vars(load) | {"compiled": True}))
        rates |= {f"compiled_{number}": of_processes(compiled, number) for number in (1, *several[:2])}
    found |= {f"packing_{name}_over_alone": rate / alone for name, rate in rates.items()}
    found["packing_best"] = max(rates | {"alone": alone}, key=lambda name: (rates | {"alone": alone})[name])
    return found
