"""Measures one training step in time, memory and operations: plain cross-entropy beside the ways to compute a meta-gradient.

    python -m benchmarks.step_cost [--repeats 9] [--compile] [--precision bf16] [--channels-last] [--json]
    python -m benchmarks.step_cost --methods all        # or some names: every method instead, with its default settings

Setup: ResNet-32 for 100 classes, batch 128, meta batch 100, random 32x32 images, Difficulty-Net; on a GPU if there is one.
A method that weighs images late in the training is measured there.
`plain` is a hand-written loop over torch.optim.SGD without our code; with --compile, `plain` is torch.compile of the same
network. The variants take turns, so that other load on the machine falls on all of them. Figures are medians. torch's flop
counter counts the operations. Peak memory is what a step allocates beyond the memory before the step, as torch accounts for it.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from trainables.classifier_config import ResNetCifarConfig
from trainables.config import BilevelConfig, OptimConfig
from trainables.engine.bilevel import BilevelStep, Course
from trainables.engine.cuda_graph import CapturedStep
from trainables.engine.linearize import Linearizer
from trainables.engine.meta_gradient import Batch
from trainables.engine.numerics import autocasting
from trainables.engine.optimizers import build_meta_optimizer, build_optimizer
from trainables.loss_config import MethodSettings
from trainables.method_config import DifficultyNetConfig, MethodConfig
from trainables.methods import METHODS, Task, build_method
from trainables.methods.context import Moment
from trainables.models import Classifier, build_classifier

NUM_CLASSES, BATCH_SIZE, META_BATCH_SIZE, IMAGE_SIZE = 100, 128, 100, 32
INTERVAL = 10
VARIANTS = {
    "exact": BilevelConfig(),
    "lean": BilevelConfig(memory="lean"),
    "double_backward": BilevelConfig(meta_gradient="double_backward"),
    "finite_difference": BilevelConfig(meta_gradient="finite_difference"),
    "stale": BilevelConfig(actual_step="stale"),
    "none": BilevelConfig(meta_gradient="none"),
}
"""The variants besides `plain` and `interval10`, the mean over INTERVAL exact steps with that interval."""

Step = Callable[[], object]


class Machine:
    """The device, and how the steps run on it."""

    def __init__(self, compiled: bool, precision: str, channels_last: bool, captured: bool = False) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.compiled, self.captured = compiled, captured
        self.autocast = torch.bfloat16 if precision == "bf16" else None
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.linearizer = Linearizer(self.autocast, (BATCH_SIZE, META_BATCH_SIZE) if compiled else ())

    def batch(self, size: int) -> Batch:
        images = torch.randn(size, 3, IMAGE_SIZE, IMAGE_SIZE, device=self.device).contiguous(memory_format=self.memory_format)
        return Batch(images, torch.randint(NUM_CLASSES, (size,), device=self.device))

    def classifier(self) -> Classifier:
        classifier = build_classifier(ResNetCifarConfig(), (3, IMAGE_SIZE, IMAGE_SIZE), NUM_CLASSES, seed=0)
        return classifier.to(self.device, memory_format=self.memory_format)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def plain_step(machine: Machine) -> Step:
    """A step of cross-entropy and SGD, written by hand."""
    classifier, batch = machine.classifier(), machine.batch(BATCH_SIZE)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.1, momentum=0.9)
    mode = "reduce-overhead" if machine.captured else None  # torch.compile with CUDA graphs
    forward = torch.compile(classifier, mode=mode) if machine.compiled else classifier

    def step() -> None:
        optimizer.zero_grad()
        with autocasting(machine.device, machine.autocast):
            logits = forward(batch.images)
        F.cross_entropy(logits.float(), batch.labels).backward()
        optimizer.step()

    return step


def bilevel_step(machine: Machine, config: BilevelConfig, settings: MethodSettings | None = None) -> Step:
    """A step of ours, of Difficulty-Net without other `settings`. The step number rises by one with each call."""
    classifier, batch, meta_batch = machine.classifier(), machine.batch(BATCH_SIZE), machine.batch(META_BATCH_SIZE)
    task = Task(NUM_CLASSES, classifier.num_features, torch.arange(1, NUM_CLASSES + 1).flip(0), batch_size=BATCH_SIZE)
    method = build_method(settings or DifficultyNetConfig(), task, seed=0).to(machine.device, torch.float32)
    method.refresh(torch.rand(NUM_CLASSES, device=machine.device))
    optimizer = build_optimizer(OptimConfig(lr=0.1), classifier, machine.captured)
    meta_optimizer = build_meta_optimizer(method, machine.captured)
    late = Moment.zero(machine.device)
    late.set(9, steps_per_epoch=1, total_steps=10)  # CB-DA and LDAM-DRW are plain cross-entropy before four fifths
    step = BilevelStep(classifier, method, optimizer, meta_optimizer, config, machine.linearizer, course=Course(late))
    run = CapturedStep(step) if machine.captured else step
    number = -1

    def next_step() -> None:
        nonlocal number
        number += 1
        run(batch, meta_batch if step.needs_meta_batch(number) else None, number)

    return next_step


def several(step: Step, times: int) -> Step:
    """A function that calls `step` several times."""

    def steps() -> None:
        for _ in range(times):
            step()

    return steps


def seconds(machine: Machine, step: Step) -> float:
    machine.wait()
    began = time.perf_counter()
    step()
    machine.wait()
    return time.perf_counter() - began


def peak_bytes(machine: Machine, step: Step) -> int:
    """The most memory that tensors held at one time during a step, beyond what they held before it."""
    if machine.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:
        step()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(file))
        events = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((event["ts"], event["args"]) for event in events if event.get("name") == "[memory]")
    before = changes[0][1]["Total Allocated"] - changes[0][1]["Bytes"]
    return max(change["Total Allocated"] for _, change in changes) - before


def operations(step: Step) -> int:
    """Floating-point operations of a step, by torch's formulas."""
    with OperationCount() as count:
        step()
    return count.total


class OperationCount(TorchDispatchMode):
    """Counts operations with the formulas of torch's FlopCounterMode, which itself cannot be used around torch.autograd.grad."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for every operator."""
        result = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func.overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def measure(machine: Machine, repeats: int) -> dict[str, float | str]:
    """Medians in ms, peak memory in MB, operations in 1e9, and the ratios that the table shows, of the modes."""
    torch.manual_seed(0)
    # torch.compile cannot differentiate twice, and comparing an eager double backward with compiled steps would be unfair.
    variants = {name: config for name, config in VARIANTS.items() if not (machine.compiled and name == "double_backward")}
    steps = {"plain": plain_step(machine)} | {name: bilevel_step(machine, config) for name, config in variants.items()}
    result = figures(machine, steps, {"interval10": bilevel_step(machine, BilevelConfig(meta_interval=INTERVAL))}, repeats)
    if "double_backward" in steps:
        result["double_backward_over_exact"] = float(result["double_backward_ms"]) / float(result["exact_ms"])
    return result


def measure_methods(machine: Machine, names: list[str], repeats: int) -> dict[str, float | str]:
    """The same figures for plain cross-entropy and for the methods `names`, each with its defaults, as `method_<name>`."""
    torch.manual_seed(0)
    methods = {name: TypeAdapter(MethodConfig).validate_python({"name": name}) for name in names}
    steps = {f"method_{name}": bilevel_step(machine, BilevelConfig(), settings) for name, settings in methods.items()}
    return figures(machine, {"plain": plain_step(machine)} | steps, {}, repeats)


def figures(machine: Machine, steps: dict[str, Step], spread: dict[str, Step], repeats: int) -> dict[str, float | str]:
    """Medians in ms, peak memory in MB, operations in 1e9, and each over those of `plain`.

    Args:
        machine: where the steps run.
        steps: by name; one is called `plain`.
        spread: steps of which only each INTERVAL-th has a meta step. Their figure is the mean time of INTERVAL steps.
        repeats: rounds, in each of which all steps take turns.
    """
    for step in (*steps.values(), *(several(step, INTERVAL) for step in spread.values())):
        step()  # traces, compiles
        step()
    times: dict[str, list[float]] = {name: [] for name in (*steps, *spread)}
    for _ in range(repeats):
        for name, step in steps.items():
            times[name].append(seconds(machine, step))
        for name, step in spread.items():
            times[name].append(seconds(machine, several(step, INTERVAL)) / INTERVAL)
    result: dict[str, float | str] = {}
    for name, values in times.items():
        result[f"{name}_ms"] = statistics.median(values) * 1e3
        result[f"{name}_over_plain"] = statistics.median(values) / statistics.median(times["plain"])
    if not machine.captured:  # a replay allocates nothing: the memory was allocated during capture
        memory = {name: peak_bytes(machine, step) for name, step in steps.items()}
        for name, value in memory.items():
            result[f"{name}_memory_mb"] = value / 1e6
            result[f"{name}_memory_over_plain"] = value / memory["plain"]
    if not machine.compiled:  # the counter sees a compiled program as one operation
        counted = {name: operations(step) for name, step in steps.items()}
        for name, value in counted.items():
            result[f"{name}_gflop"] = value / 1e9
            result[f"{name}_flop_over_plain"] = value / counted["plain"]
    return result


def versions() -> dict[str, str]:
    """The date, the hardware and the versions that the numbers come from."""
    cuda = torch.cuda.is_available()
    hardware = torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    return {
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def print_table(result: dict[str, float | str]) -> None:
    names = [key.removesuffix("_ms") for key in result if key.endswith("_ms")]
    columns = {"ms": "_ms", "time": "_over_plain", "memory": "_memory_over_plain", "operations": "_flop_over_plain"}
    width = max(18, *(len(name) + 1 for name in names))
    print(f"{'':<{width}}" + "".join(f"{column:>12}" for column in columns))
    for name in names:
        cells = [result.get(f"{name}{suffix}") for suffix in columns.values()]
        print(f"{name:<{width}}" + "".join(f"{'' if cell is None else f'{cell:.2f}':>12}" for cell in cells))
    if "double_backward_over_exact" in result:
        print(f"double_backward over exact: {result['double_backward_over_exact']:.2f}")


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_cost")
    parser.add_argument("--repeats", type=int, default=9, help="rounds of timing (default: 9)")
    parser.add_argument("--compile", action="store_true", help="torch.compile for plain and for ours")
    parser.add_argument("--precision", choices=["float32", "bf16"], default="float32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--methods", nargs="+", choices=["all", *METHODS], metavar="NAME", help="methods, or all of them")
    parser.add_argument("--json", action="store_true", help="print one flat JSON object")
    given = parser.parse_args(arguments)
    machine = Machine(given.compile, given.precision, given.channels_last)
    if given.methods:
        names = list(METHODS) if "all" in given.methods else given.methods
        result = measure_methods(machine, names, given.repeats)
    else:
        result = measure(machine, given.repeats)
    result |= versions()
    result |= {"compiled": given.compile, "precision": given.precision, "channels_last": given.channels_last}
    if given.json:
        print(json.dumps(result))
    else:
        print_table(result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
