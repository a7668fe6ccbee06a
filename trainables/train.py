"""Trains one configuration in this process, without a cluster.

An exported best/config.yaml runs unchanged. Of a sweep's file, the section `trial` is trained.

    python -m trainables.train CONFIG.yaml [key=value ...] [--out DIR] [--read-test]

Exit codes: 0 done; 1 diverged or failed; 2 the input was wrong, nothing written; 130 interrupted.
"""

import argparse
import functools
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainables import parsers
from trainables.command_line import ended_like_ctrl_c, steady_output
from trainables.config import TrialConfig
from trainables.config_file import ConfigError, dump_yaml, read_settings
from trainables.words import accuracies

if TYPE_CHECKING:
    from trainables.trial_run import TrialRun


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    with steady_output():
        given = parsers.train().parse_intermixed_args(arguments)
        return run(given)


def run(given: argparse.Namespace) -> int:
    """Does what the command line asks for. Returns the exit code."""
    try:
        overrides = [change.removeprefix("trial.") for change in given.overrides]  # `trial.` is the prefix in sweeps
        config = read_settings(TrialConfig, given.config, overrides, section="trial")
        with ended_like_ctrl_c(), new_folder(given.out) as out:
            return train(config, given.config, out, given.read_test, keep=given.out is not None)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; nothing was written", file=sys.stderr)
        return 130


@contextmanager
def new_folder(wanted: Path | None) -> Iterator[Path]:
    """Creates the output folder, or a temporary folder if `wanted` is None; an output folder that stays empty is removed.

    It is created before training, so that an unusable path is reported at once.

    Raises:
        ConfigError: when the folder exists or cannot be created.
    """
    if wanted is None:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    try:
        wanted.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(
            f"command line: --out is {wanted}: {error.strerror}; nothing was changed; choose a new folder"
        ) from error
    try:
        yield wanted
    finally:
        if not any(wanted.iterdir()):
            wanted.rmdir()


def train(config: TrialConfig, source: Path, out: Path, with_test: bool, keep: bool) -> int:
    """Trains all epochs, prints the metrics of each epoch, and writes the model, its numbers and its split to `out`."""
    from trainables.data.manifest import MANIFEST, check_manifest, write_manifest
    from trainables.engine.health import TrialEnded
    from trainables.export_model import read_test, write_model
    from trainables.trial_run import TrialRun

    run = TrialRun()
    try:
        run.start(config)
        check_manifest(source.with_name(MANIFEST), config.data, config.seed, run.loaded.data)
        print(overview(run), flush=True)
        for note in run.loaded.data.notes:
            print(f"note: {note}", flush=True)
        while run.epoch < config.epochs:
            head = f"epoch {run.epoch + 1:>3}/{config.epochs}  "
            metrics = run.run_epoch(functools.partial(print_step, head, run.steps_per_epoch) if sys.stdout.isatty() else None)
            found = "  ".join(f"{key} {metrics[key]:.4f}" for key in shown(metrics, config))
            print(f"{head}{found}  {metrics['time/epoch_s']:.1f} s", flush=True)
    except TrialEnded as reason:
        print(f"{reason.status}: {reason}", file=sys.stderr)
        return 1
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error
    assert run.best is not None
    best = {"epoch": run.best.epoch, **run.best.metrics}
    print(f"best {config.select_by} {best[config.select_by]:.4f} (epoch {run.best.epoch})")
    results: dict[str, Any] = {"selected_by": config.select_by, "best": best, "last": metrics}
    write_model(out / "model.safetensors", run.best.phi, config, run.loaded.data, run.loaded.format, run.best.epoch)
    if with_test:
        results["test"] = read_test(out / "model.safetensors")
        print(f"{accuracies(results['test'], 'test')} (read once, best-val epoch)")
    write_manifest(out / MANIFEST, config.data, config.seed, run.loaded.data)
    (out / "config.yaml").write_text(dump_yaml(config.model_dump()), encoding="utf-8")
    (out / "metrics.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    if keep:
        print(f"wrote {out}")
    print_recorded(source.with_name("metrics.json"), config, best[config.select_by])
    return 0


def overview(run: "TrialRun") -> str:
    """A summary of the trial: classifier, method, device, data and steps per epoch."""
    config, counts = run.config, run.loaded.data.class_counts
    wrong = f", {run.loaded.data.num_flipped} of them with a wrong label" if run.loaded.data.num_flipped else ""
    return (
        f"{config.classifier.name} with {config.method.name} on {run.device.type}: {counts.sum()} training images of "
        f"{config.data.source} in {len(counts)} classes, {counts.max()} to {counts.min()} a class{wrong}; "
        f"{run.steps_per_epoch} steps an epoch"
    )


def print_step(head: str, steps: int, done: int) -> None:
    """Prints the progress on one line, which each call overwrites; the epoch's own line replaces it."""
    print(f"{head}step {done}/{steps}", end="\r" if done < steps else "\r\033[K", flush=True)


def shown(metrics: dict[str, float], config: TrialConfig) -> list[str]:
    """The metrics that are printed for each epoch, if the method has them."""
    return [key for key in dict.fromkeys(("train/loss", "meta/loss", "meta/grad_norm", config.select_by)) if key in metrics]


def print_recorded(file: Path, config: TrialConfig, reached: float) -> None:
    """Prints whether this run has reproduced the recorded numbers, if `file` holds the numbers of the same configuration."""
    try:
        if read_settings(TrialConfig, file.with_name("config.yaml")) != config:
            return
        recorded = float(json.loads(file.read_text(encoding="utf-8"))["best"][config.select_by])
    except (OSError, ValueError, KeyError, TypeError):
        return  # no such files, or files of another kind
    verdict = "the same" if recorded == reached else f"{reached - recorded:+.4f} away"
    print(f"recorded in {file}: {recorded:.4f}; this run is {verdict}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
