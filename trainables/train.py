"""Trains one configuration in this process, without a cluster. An exported best/config.yaml runs here as it is.

    python -m trainables.train CONFIG.yaml [key=value ...] [--out DIR] [--read-test]

Exit codes: 0 done; 1 diverged; 2 the input was wrong, nothing written; 130 interrupted.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from trainables.config import TrialConfig
from trainables.config_file import ConfigError, dump_yaml, read_settings


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainables.train", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path, help="a trial's YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change, for example seed=1")
    parser.add_argument("--out", type=Path, help="new folder for config.yaml, metrics.json and model.safetensors (default: none)")
    parser.add_argument(
        "--read-test", action="store_true", help="read the sealed test set, once, with the best-val epoch's model"
    )
    given = parser.parse_intermixed_args(arguments)
    try:
        config = read_settings(TrialConfig, given.config, given.overrides)
        if given.out and given.out.exists():
            raise ConfigError(
                f"command line: --out is {given.out}, which exists already; nothing was changed; choose a new folder"
            )
        return train(config, given.config, given.out, given.read_test)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; nothing was written", file=sys.stderr)
        return 130


def train(config: TrialConfig, source: Path, out: Path | None, with_test: bool) -> int:
    """Trains to the last epoch, prints each, and writes `out` when it is given."""
    from trainables.export_model import read_test, write_model
    from trainables.trial_run import Diverged, TrialRun

    run = TrialRun()
    try:
        run.start(config)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error
    try:
        while run.epoch < config.epochs:
            metrics = run.run_epoch()
            print(
                f"epoch {run.epoch:>3}/{config.epochs}  "
                + "  ".join(f"{key} {metrics[key]:.4f}" for key in shown(metrics, config))
            )
    except Diverged as reason:
        print(f"diverged: {reason}", file=sys.stderr)
        return 1
    assert run.best is not None
    print(f"best {config.select_by} {run.best.metrics[config.select_by]:.4f} (epoch {run.best.epoch})")
    print_recorded(source.with_name("metrics.json"), config, run.best.metrics[config.select_by])
    results: dict[str, Any] = {
        "selected_by": config.select_by,
        "best": {"epoch": run.best.epoch, **run.best.metrics},
        "last": metrics,
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        write_model(folder / "model.safetensors", run.best.phi, config, run.loaded.data)
        if with_test:
            results["test"] = read_test(folder / "model.safetensors")
            print(f"test/acc {results['test']['test/acc']:.4f} (read once, best-val epoch)")
        if out:
            (out / "config.yaml").write_text(dump_yaml(config.model_dump()), encoding="utf-8")
            (out / "metrics.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
            print(f"wrote {out}")
    return 0


def shown(metrics: dict[str, float], config: TrialConfig) -> list[str]:
    """The metrics worth a line in the terminal, those that the method has."""
    return [key for key in dict.fromkeys(("train/loss", "meta/loss", "meta/grad_norm", config.select_by)) if key in metrics]


def print_recorded(file: Path, config: TrialConfig, reached: float) -> None:
    """When the configuration lies beside the numbers of the same trial, says whether they were reached again."""
    if not file.is_file() or not (file.parent / "config.yaml").is_file():
        return
    if read_settings(TrialConfig, file.parent / "config.yaml") != config:
        return
    recorded = json.loads(file.read_text(encoding="utf-8"))["best"].get(config.select_by)
    verdict = "the same" if recorded == reached else f"{reached - recorded:+.4f} away"
    print(f"recorded in {file}: {recorded:.4f}; this run is {verdict}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
