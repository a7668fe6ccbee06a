"""Measures trials on feature vectors: fused trials beside the same trials one after another; and how often a stream decodes.

    python -m benchmarks.features [--classifier linear] [--rounds 3] [--sizes 8,16,32] [--json]

A trial is 20 epochs of Difficulty-Net with the exact meta-gradient, on about 10,000 training vectors of 256 numbers in 100
classes, with a linear head, batch 128 and meta batch 100, evaluation included. The trials differ in step sizes, lambda and hidden
width. `--classifier cosine` gives them a cosine head, and `mlp_adapter` an adapter with a bottleneck of 64. Two processes with
one thread each train side by side, as two slots of a sweep do, without Ray. `unfused` trains one trial after another, `fused` K
at once; the best of `--sizes` counts. The arms take turns, so that other load on the machine falls on all of them. Figures are
medians over rounds. The data are loaded, and two epochs are trained, before the clock starts. `decodes_per_image` is that of
benchmarks/data.py: decodes in a trial on a stream, for each image that it needs. On a GPU, `gpu_1000_trials_s` is the time of
1,000 such trials, GPU_SIZE at once in one process; without one it is null.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import replace

PROCESSES = 2
EPOCHS = 20
GPU_TRIALS, GPU_SIZE = 1000, 50
CLASSIFIERS = {"linear": ("linear", "linear"), "cosine": ("linear", "cosine"), "mlp_adapter": ("mlp_adapter", "linear")}
"""The name of each classifier, and its head."""


def train(classifier: str, fused: int, trials: int, where: str = "cpu", waits: bool = True) -> float:
    """Seconds that this process needs for `trials` trials, `fused` of them at a time, on the device `where`. If it `waits`, it
    says that it is ready and reads a line from stdin first.
    """
    import torch

    from trainables.classifier_config import CLASSIFIER_SETTINGS
    from trainables.config import TrialConfig
    from trainables.data.features import FeatureSet
    from trainables.data.loaded import LoadedData, load_data
    from trainables.data.loader import LoadedSet, Request
    from trainables.data_config import GeneratedConfig
    from trainables.fused_run import FusedRun
    from trainables.method_config import DifficultyNetConfig
    from trainables.optim_config import OptimConfig
    from trainables.trial_run import TrialRun

    name, head = CLASSIFIERS[classifier]

    def config(number: int, epochs: int) -> TrialConfig:
        return TrialConfig(
            epochs=epochs,
            device=where,
            data=data,
            classifier=CLASSIFIER_SETTINGS[name](name=name, head=head),
            method=DifficultyNetConfig(
                hidden_width=(64, 96, 128)[number % 3], meta_lr=1e-3 * (1 + number % 4), driver_weight=0.1 * (number % 5)
            ),
            optim=OptimConfig(batch_size=128, lr=0.02 * (1 + number % 3), weight_decay=1e-4),
        )

    def vectors(images: LoadedSet) -> FeatureSet:
        [batch] = images.batches([Request(torch.arange(len(images)))])
        return FeatureSet(batch.images.flatten(1), images.labels)

    def all_trials(trials: int, epochs: int) -> None:
        for first in range(0, trials, fused):
            members = [TrialRun() for _ in range(first, min(first + fused, trials))]
            for number, member in enumerate(members, first):
                member.start(config(number, epochs), loaded)
            run = FusedRun(members) if fused > 1 else members[0]
            for _ in range(epochs):
                run.run_epoch()

    data = GeneratedConfig(
        num_classes=100,
        images_per_class=500,
        image_size=16,
        channels=1,
        imbalance_factor=100,
        n_max=440,
        val_per_class=15,
        test_per_class=10,
    )
    images: LoadedData = load_data(data, 0, torch.device(where), 0)
    loaded = replace(images, train=vectors(images.train), meta=vectors(images.meta), val=vectors(images.val))
    all_trials(fused, 2)
    if waits:
        print("ready", flush=True)
        sys.stdin.readline()
    began = time.perf_counter()
    all_trials(trials, EPOCHS)
    return time.perf_counter() - began


def trials_per_minute(classifier: str, fused: int) -> float:
    """What PROCESSES processes finish in a minute, `fused` trials at a time in each."""
    trials = max(2, fused)
    command = [sys.executable, "-m", "benchmarks.features", "--classifier", classifier, "--process", f"{fused},{trials}"]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)]
    for process in processes:
        assert process.stdout
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"{' '.join(command)} ended early")
    rate = 0.0
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        seconds = json.loads(process.communicate()[0])
        rate += 60 * trials / seconds
    return rate


def measure(classifier: str, rounds: int, sizes: list[int]) -> dict[str, float]:
    """Runs the arms in turns."""
    rates: dict[int, list[float]] = {size: [] for size in (1, *sizes)}
    for number in range(rounds):
        for size, of in rates.items():
            print(f"round {number + 1} of {rounds}: {size} at once", file=sys.stderr)
            of.append(trials_per_minute(classifier, size))
    medians = {size: statistics.median(of) for size, of in rates.items()}
    best = max(sizes, key=lambda size: medians[size])
    return {
        "fused_trials_per_minute": medians[best],
        "unfused_trials_per_minute": medians[1],
        "fused_over_unfused": medians[best] / medians[1],
        "fused_size": best,
    } | {f"fused_{size}_trials_per_minute": medians[size] for size in sizes}


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.features")
    parser.add_argument("--classifier", choices=list(CLASSIFIERS), default="linear", help="what is trained (default: linear)")
    parser.add_argument("--rounds", type=int, default=3, help="turns that each arm takes (default: 3)")
    parser.add_argument("--sizes", default="8,16,32", help="how many trials are fused, with commas (default: 8,16,32)")
    parser.add_argument("--json", action="store_true", help="print one flat JSON object")
    parser.add_argument("--process", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.process:
        fused, trials = map(int, given.process.split(","))
        print(json.dumps(train(given.classifier, fused, trials)))
        return 0
    try:
        sizes = [int(size) for size in given.sizes.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 2 or given.rounds < 1:
        parser.error(
            f"--sizes is {given.sizes}, --rounds is {given.rounds}; allowed: whole numbers from 2 on, and 1 or more rounds"
        )
    import torch

    from benchmarks.data import decodes_per_image

    result: dict[str, float | None] = dict(measure(given.classifier, given.rounds, sizes))
    result["decodes_per_image"] = decodes_per_image()
    on_gpu = torch.cuda.is_available()
    result["gpu_1000_trials_s"] = train(given.classifier, GPU_SIZE, GPU_TRIALS, "cuda", waits=False) if on_gpu else None
    if given.json:
        from benchmarks.step_cost import versions

        print(json.dumps(result | versions()))
    else:
        print("\n".join(f"{name:<34} {'-' if value is None else f'{value:.2f}':>12}" for name, value in result.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
