"""What a trial costs that trains nothing: seconds from the end of one to the end of the next, and of the first from the start on.

    python -m benchmarks.trial_overhead [--trials 4] [--json]

`documented` is what Ray's guide "Hyperparameter Tuning with Ray Tune" shows for Ray Train: a Tune function that builds a
TorchTrainer and fits it, its workers' reports passed on by TuneReportCallback. It departs from the guide only where it might wait
for ever: a trial's function takes next to no CPU, so that its workers get theirs, and a failure ends the run.

An arm is a function that runs trials one after another and returns the seconds of each. Every run of an arm has a process and a
Ray of its own, on this machine and without a GPU, so that arms can take turns.
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# An arm's process imports this file, too: it loads neither Ray nor torch itself.
ARM_LIMIT_S = 1800
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # 60 by default, which two busy cores may take
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}


def measure_documented(num_workers: int, trials: int) -> list[float]:
    """Seconds of each trial of the documented pattern."""
    with own_ray() as folder:
        import ray.train.torch
        from ray import tune
        from ray.tune.integration.ray_train import TuneReportCallback

        # Functions inside a function travel by value, as they do from a script: no process has to import this file.
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
                    failure_config=ray.train.FailureConfig(max_failures=0, controller_failure_limit=0),  # by default: for ever
                ),
            )
            trainer.fit()

        ends: list[float] = []

        class Ends(tune.Callback):
            def on_trial_complete(self, **info: Any) -> None:
                ends.append(time.perf_counter())

        tuner = tune.Tuner(
            tune.with_resources(train_driver_fn, {"CPU": 0.01}),  # 1 by default, which its workers would then lack
            param_space={"lr": tune.uniform(0, 1)},
            tune_config=tune.TuneConfig(num_samples=trials, max_concurrent_trials=1),
            run_config=tune.RunConfig(name="tune", storage_path=str(folder / "tune"), callbacks=[Ends()], verbose=0),
        )
        began = time.perf_counter()
        results = tuner.fit()
        if results.errors or len(ends) != trials:
            raise RuntimeError(f"{len(ends)} of {trials} trials ended well; the first error: {results.errors[:1]}")
    return gaps(began, ends)


ARMS: dict[str, Callable[[int], list[float]]] = {
    "documented_2_workers": lambda trials: measure_documented(2, trials),
}
"""Each runs so many trials and returns their seconds."""


@contextmanager
def own_ray() -> Iterator[Path]:
    """A Ray on this machine with a folder of its own, which it yields; both are gone afterwards."""
    import ray

    from trainables.machine import num_cores

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        ray.init(
            "local",
            num_cpus=max(num_cores(), 2),  # logical ones: two workers of half a CPU and the trial's function have room
            num_gpus=0,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=f"{folder}/ray",
        )
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        try:
            yield Path(folder)
        finally:
            ray.shutdown()


def gaps(began: float, ends: list[float]) -> list[float]:
    """Seconds of each trial, the first one's since `began`."""
    return [end - before for before, end in zip([began, *ends], ends, strict=False)]


def run_arm(name: str, trials: int) -> list[float]:
    """What the arm returns, from a process of its own.

    Raises:
        RuntimeError: when it failed; its errors are on stderr.
        subprocess.TimeoutExpired: when it took longer than ARM_LIMIT_S.
    """
    command = [sys.executable, "-m", "benchmarks.trial_overhead", "--arm", name, "--trials", str(trials)]
    done = subprocess.run(command, env=os.environ | ENVIRONMENT, stdout=subprocess.PIPE, text=True, timeout=ARM_LIMIT_S)
    if done.returncode:
        raise RuntimeError(f"{name} ended with exit code {done.returncode}")
    seconds: list[float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def measure(trials: int) -> dict[str, float]:
    """Of each arm the median over its trials but the first."""
    documented = run_arm("documented_2_workers", trials)
    return {"documented_2_workers_s": statistics.median(documented[1:]), "documented_first_s": documented[0]}


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trial_overhead")
    parser.add_argument("--trials", type=int, default=4, help="trials of the documented arm, at least 2 (default: 4)")
    parser.add_argument("--json", action="store_true", help="print one flat JSON object")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.trials < 2:
        parser.error(f"--trials is {given.trials}; allowed: at least 2, for the first one is a case of its own")
    if given.arm:
        print(f"\n{json.dumps(ARMS[given.arm](given.trials))}")
        return 0
    result = measure(given.trials)
    if given.json:
        from benchmarks.step_cost import versions

        print(json.dumps(result | versions()))
    else:
        print("\n".join(f"{name:<34} {value:12.2f}" for name, value in result.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
