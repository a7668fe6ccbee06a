"""Computes feature vectors of images with a frozen backbone, for sweeps that train heads on them.

    python -m trainables.features CONFIG.yaml [key=value ...] --out DIR [--model RESULTS/NAME/best] [--views K]

The source of the images is that of CONFIG. The backbone is that of an exported model, or CONFIG's classifier with its weights. An
interrupted command goes on where it was when it is repeated.

Exit codes: 0 done; 2 the input was wrong, the error says what was written; 130 interrupted, the same command goes on.
"""

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainables import parsers
from trainables.command_line import ended_like_ctrl_c, steady_output
from trainables.config import TrialConfig
from trainables.config_file import ConfigError, read_settings, written
from trainables.data_config import DataConfig, LongTailConfig
from trainables.model_folder import check_model_folder
from trainables.settings import Settings, flatten
from trainables.shown_commands import shipped, shown_command
from trainables.words import plural

if TYPE_CHECKING:
    from trainables.extraction import Extraction, Shard

SWEEP = "features"
"""The shipped sweep that trains heads on vectors."""
OF_IMAGES = {"source", "augment", "mix", "mix_alpha", "remix_kappa", "remix_tau"}
"""Settings of all sources that do not decide a split."""
PROGRESS_S = 0.2


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    with steady_output():
        return run(parsers.features().parse_intermixed_args(arguments))


def run(given: argparse.Namespace) -> int:
    """Does what the command line asks for. Returns the exit code."""
    try:
        overrides = [change.removeprefix("trial.") for change in given.overrides]  # `trial.` is the prefix in sweeps
        config = read_settings(TrialConfig, given.config, overrides, section="trial")
        if given.views < 0:
            raise ConfigError(f"command line: --views is {given.views}; allowed: a whole number from 0 on")
        if given.model is not None:
            check_model_folder(given.model)
        with ended_like_ctrl_c():
            compute(given, config)
        return 0
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on", file=sys.stderr)
        return 130


def compute(given: argparse.Namespace, config: TrialConfig) -> None:
    """Computes what is missing, and prints what comes next."""
    from trainables.extraction import extract, plan_extraction, prepare_folder

    try:
        extraction = plan_extraction(config, given.model, given.views, given.precision)
    except ValueError as error:
        raise ConfigError(f"{given.config}: {error}; nothing was written") from error
    try:
        missing = prepare_folder(extraction, given.out)
    except OSError as error:
        raise ConfigError(f"command line: --out is {given.out}: {error}; choose a folder that can be written") from error
    try:
        print(overview(extraction, missing), flush=True)
        progress = Progress(sum(len(shard.ids) for shard in missing) * (1 + given.views))
        extract(extraction, missing, given.out, progress)
    except ValueError as error:
        raise ConfigError(
            f"{given.config}: {error}; what was computed stays in {given.out}, and the same command goes on"
        ) from error
    except OSError as error:
        raise ConfigError(f"command line: --out is {given.out}: {error}; the same command goes on") from error
    progress.end()
    size = sum(file.stat().st_size for file in given.out.iterdir())
    what = f"{plural(extraction.num_images, 'vector')} of {extraction.classifier.num_features} numbers"
    print(f"wrote {given.out}: {what}, {size / 2**20:.1f} MiB")
    print("a sweep of heads on them:")
    print(shown_command("orchestrator.sweep", SWEEP, *map(shlex.quote, settings_for(given.out, config))))


def overview(extraction: "Extraction", missing: list["Shard"]) -> str:
    """What will be computed, in words."""
    channels, height, width = extraction.format.shape
    number, left = extraction.num_images, sum(len(shard.ids) for shard in missing)
    known = f", {number - left} of them known already" if left < number else ""
    views = f" and {plural(extraction.views, 'augmented view')} of each" if extraction.views else ""
    return (
        f"{extraction.config.classifier.name} on {plural(number, 'image')} of {extraction.config.data.source}{views}, "
        f"{channels}x{height}x{width}{known}"
    )


class Progress:
    """A line that says how far the computation is, in a terminal.

    Args:
        number: of images, each view counted.
    """

    def __init__(self, number: int) -> None:
        self._number, self._done, self._began, self._shown = number, 0, time.monotonic(), 0.0

    def __call__(self, images: int) -> None:
        """Takes note of so many images more."""
        self._done += images
        now = time.monotonic()
        if not sys.stdout.isatty() or now - self._shown < PROGRESS_S:
            return
        self._shown = now
        rate = self._done / max(now - self._began, 1e-9)
        left = (self._number - self._done) / rate
        print(f"\r{self._done}/{self._number} images, {rate:.0f} a second, {left / 60:.0f} min left\033[K", end="", flush=True)

    def end(self) -> None:
        """Removes the line, and says how fast it was."""
        if sys.stdout.isatty():
            print("\r\033[K", end="")
        if self._done:
            took = time.monotonic() - self._began
            print(f"{plural(self._done, 'image')} in {took:.0f} s, {self._done / took:.0f} a second")


def settings_for(out: Path, config: TrialConfig) -> list[str]:
    """What the shipped sweep needs to read the vectors with the split of the images that `config` has."""
    shipped_data = read_settings(TrialConfig, shipped()[SWEEP], section="trial").data
    there, here = split_settings(shipped_data), split_settings(config.data)
    changes = {"root": str(out)} | {name: value for name, value in here.items() if value != there[name]}
    return [f"trial.data.{name}={written(value)}" for name, value in changes.items()]


def split_settings(data: DataConfig) -> dict[str, Any]:
    """The settings that decide a split, as all sources have them, by dotted name."""
    names = [name for name in LongTailConfig.model_fields if name not in OF_IMAGES]
    values = {name: getattr(data, name) for name in names}
    return flatten({name: value.model_dump() if isinstance(value, Settings) else value for name, value in values.items()})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
