"""Measures what a trial costs besides its training: seconds from the end of one trial to the end of the next trial.

    python -m benchmarks.trial_overhead [--rounds 2] [--trials 4] [--json]

The first trial's time begins at the start of the run. `ours` is a sweep of ours, with sampler and ledger, over tiny trials of one
epoch with two steps. `documented` is what Ray's guide "Hyperparameter Tuning with Ray Tune" shows for Ray Train, without
training: a Tune function builds a TorchTrainer and fits it, and TuneReportCallback passes the workers' reports on. `documented`
departs from the guide only where it might wait for ever: a trial's function reserves next to no CPU, so that its workers get
their CPUs, and a failure ends the run. `digits` are trials of the default sweep, each with another hidden_width, from their start
to the end of an epoch of one step, evaluation on val included. `compilations` counts what torch.compile compiles in the first
trial, and in two more trials with other hidden widths.

An arm is a function that runs trials one after another and returns the seconds of each. Every run of an arm has a separate
process and a separate Ray, on this machine and without a GPU. Arms take turns, so that other load on the machine falls on all of
them. Figures are medians over all trials except the first of each run.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.config.sweep_config import SweepConfig

# The process of each arm imports this file too, so the file imports neither Ray nor torch at the top.
ARM_LIMIT_S = 1800
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # the default of 60 may be too short on two busy cores
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}


def measure_documented(num_workers: int, trials: int) -> list[float]:
    """Seconds of each trial of the documented pattern."""
    with own_ray() as folder:
        import ray.train.torch
        from ray import tune
        from ray.tune.integration.ray_train import TuneReportCallback

        # Functions inside a function are pickled by value, as those of a script are, so no process has to import this file.
        def train_fn(config: dict[str, Any]) -> None:
            ray.train.report({"loss": 0.0})

        def train_driver_fn(config: dict[str, Any]) -> None:
            trainer = ray.train.torch.TorchTrainer(
                train_fn,
                train_loop_config=config,
                scaling_config=ray.train.ScalingConfig(num_workers=num_workers, resources_per_worker={"CPU": 0.5}),
                run_config=ray.train.RunConfig(
                    name=f"train-trial_id={tune.get_context().get_trial_id()}",
                    storage_path=str(folder / "train"),
                    callbacks=[TuneReportCallback()],
                    failure_config=ray.train.FailureConfig(max_failures=0, controller_failure_limit=0),  # default: for ever
                ),
            )
            trainer.fit()

        ends: list[float] = []

        class Ends(tune.Callback):
            def on_trial_complete(self, **info: Any) -> None:
                ends.append(time.perf_counter())

        tuner = tune.Tuner(
            tune.with_resources(train_driver_fn, {"CPU": 0.01}),  # the default of 1 would leave too few CPUs for the workers
            param_space={"lr": tune.uniform(0, 1)},
            tune_config=tune.TuneConfig(num_samples=trials, max_concurrent_trials=1),
            run_config=tune.RunConfig(name="tune", storage_path=str(folder / "tune"), callbacks=[Ends()], verbose=0),
        )
        began = time.perf_counter()
        results = tuner.fit()
        if results.errors or len(ends) != trials:
            raise RuntimeError(f"{len(ends)} of {trials} trials ended well; the first error: {results.errors[:1]}")
    return gaps(began, ends)


def measure_ours(num_workers: int, trials: int) -> list[float]:
    """Seconds of each trial of a sweep of ours. Several workers form a group; a single worker is the slot's own process."""
    with own_ray() as folder:
        from orchestrator.ledger.ledger import Ledger, read_ledger
        from orchestrator.run.runner import run_trials

        (folder / "sweep").mkdir()
        began = time.time()
        with Ledger(folder / "sweep") as ledger:
            run_trials(tiny_sweep(num_workers, trials), folder / "sweep", ledger, [], print)
        ends = [event for event in read_ledger(folder / "sweep") if event["event"] == "trial_end"]
    if len(ends) != trials or any(event["status"] != "finished" for event in ends):
        raise RuntimeError(f"not all of {trials} trials ended well: {ends[:1]}")
    return gaps(began, [event["time"] for event in ends])


def tiny_sweep(num_workers: int, trials: int) -> "SweepConfig":
    """A sweep of trials with one epoch of two steps, on images of 8x8 pixels."""
    from orchestrator.config.sweep_config import SweepConfig

    tiny = {"source": "generated", "num_classes": 2, "image_size": 8, "n_max": 4, "imbalance_factor": 1}
    tiny |= {"meta_per_class": 2, "val_per_class": 2, "test_per_class": 2}
    return SweepConfig.model_validate(
        {
            "trial": {"epochs": 1, "data": tiny, "optim": {"batch_size": 4}, "device": "cpu"},
            "space": {"method.hidden_width": {"type": "int", "low": 4, "high": 64}},
            "search": {"trials": trials, "sampler": "random"},
            "scheduler": {"name": "none"},
            "resources": {"workers": num_workers, "cpus_per_worker": 0.5, "max_concurrent": 1},
        }
    )


def measure_digits(num_workers: int, trials: int) -> list[float]:
    """Seconds from the start of each trial to the end of its first step and of the evaluation on val."""
    from orchestrator.request import DEFAULT_SWEEP
    from trainables.config import OptimConfig, TrialConfig
    from trainables.config_file import read_settings
    from trainables.method_config import DifficultyNetConfig
    from trainables.trial_run import TrialRun

    given = read_settings(TrialConfig, DEFAULT_SWEEP, section="trial")
    with own_ray() as folder:
        from trainables.workers.worker_group import GroupConfig, WorkerGroup

        config = GroupConfig(num_workers, num_workers, 0.5, 0, "cpu", heartbeat_timeout_s=600, start_s=600, restarts=0)
        group = WorkerGroup(config, folder)  # its processes start with its first trial
        run = group.trials(1)[0] if num_workers > 1 else TrialRun()
        seconds = []
        for trial in range(trials):
            method, whole = DifficultyNetConfig(hidden_width=16 + trial), OptimConfig(batch_size=10_000)
            began = time.perf_counter()
            run.start(given.model_copy(update={"method": method, "optim": whole, "device": "cpu"}))
            run.run_epoch()
            seconds.append(time.perf_counter() - began)
        group.close()
    return seconds


def count_compilations(trials: int) -> list[float]:
    """Number of compilations by torch.compile in each trial. Each trial has another hidden_width."""
    from torch._dynamo.utils import counters

    from trainables.config import ComputeConfig, TrialConfig
    from trainables.method_config import DifficultyNetConfig
    from trainables.trial_run import TrialRun

    run, counts = TrialRun(), [0.0]
    for trial in range(trials):
        compute = ComputeConfig(compile=True)
        run.start(TrialConfig(epochs=1, method=DifficultyNetConfig(hidden_width=16 + trial), compute=compute, device="cpu"))
        run.run_epoch()
        counts.append(float(counters["stats"]["unique_graphs"]))
    return [after - before for before, after in itertools.pairwise(counts)]


ARMS: dict[str, Callable[[int], list[float]]] = {
    "ours_1_worker": lambda trials: measure_ours(1, trials),
    "ours_2_workers": lambda trials: measure_ours(2, trials),
    "documented_2_workers": lambda trials: measure_documented(2, trials),
    "digits_1_worker": lambda trials: measure_digits(1, trials),
    "digits_2_workers": lambda trials: measure_digits(2, trials),
    "compilations": count_compilations,
}
"""Each arm takes a number of trials, runs them, and returns their seconds."""


@contextmanager
def own_ray() -> Iterator[Path]:
    """Starts a Ray on this machine with a temporary folder, and yields the folder. Both are removed at the end."""
    import ray

    from orchestrator.run.connection import until_shut_down
    from trainables.machine import num_cores

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        ray.init(
            "local",
            num_cpus=max(num_cores(), 2),  # at least 2 logical CPUs: room for two workers of half a CPU and the trial's function
            num_gpus=0,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=f"{folder}/ray",
        )
        with until_shut_down():
            yield Path(folder)


def gaps(began: float, ends: list[float]) -> list[float]:
    """Seconds of each trial; those of the first trial count from `began`."""
    return [end - before for before, end in zip([began, *ends], ends, strict=False)]


def run_arm(name: str, trials: int) -> list[float]:
    """Runs an arm in a separate process and returns the arm's result.

    Raises:
        RuntimeError: when the process failed; its errors are on stderr.
        subprocess.TimeoutExpired: when the process took longer than ARM_LIMIT_S.
    """
    command = [sys.executable, "-m", "benchmarks.trial_overhead", "--arm", name, "--trials", str(trials)]
    done = subprocess.run(command, env=os.environ | ENVIRONMENT, stdout=subprocess.PIPE, text=True, timeout=ARM_LIMIT_S)
    if done.returncode:
        raise RuntimeError(f"{name} ended with exit code {done.returncode}")
    seconds: list[float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def measure(rounds: int, trials: int) -> dict[str, float]:
    """Runs the arms in turns.

    Args:
        rounds: turns of each arm.
        trials: trials of the documented pattern in each round. The other arms run more trials, because their trials are short.
    """
    lengths = {name: trials if name == "documented_2_workers" else 5 * trials for name in ARMS} | {"compilations": 3}
    runs: dict[str, list[list[float]]] = {name: [] for name in ARMS}
    for number in range(rounds):
        for name in ARMS:
            if name != "compilations" or number == 0:  # the count is the same each time
                print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr)
                runs[name].append(run_arm(name, lengths[name]))
    compilations = runs.pop("compilations")[0]
    result = {f"{name}_s": statistics.median(later for run in of for later in run[1:]) for name, of in runs.items()}
    result |= {f"{name}_first_s": statistics.median(run[0] for run in of) for name, of in runs.items()}
    result["documented_over_ours"] = result["documented_2_workers_s"] / result["ours_2_workers_s"]
    return result | {"compilations_first": compilations[0], "compilations_later": sum(compilations[1:])}


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trial_overhead")
    parser.add_argument("--rounds", type=int, default=2, help="turns that each arm takes (default: 2)")
    parser.add_argument(
        "--trials", type=int, default=4, help="trials of the documented pattern in a round, at least 2 (default: 4)"
    )
    parser.add_argument("--json", action="store_true", help="print one flat JSON object")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.trials < 2:
        parser.error(f"--trials is {given.trials}; allowed: at least 2, because the first trial is measured separately")
    if given.arm:
        print(f"\n{json.dumps(ARMS[given.arm](given.trials))}")
        return 0
    result = measure(given.rounds, given.trials)
    if given.json:
        from benchmarks.step_cost import versions

        print(json.dumps(result | versions()))
    else:
        print("\n".join(f"{name:<34} {value:12.2f}" for name, value in result.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
