"""Predicts the classes of image files with an exported model, after the same pre-processing as in training.

    python -m trainables.predict RESULTS/NAME/best IMAGES_OR_FOLDER... [--csv|--json] [--top 5]

Exit codes: 0 done; 1 some images could not be read, all others were predicted; 2 the input was wrong, nothing predicted; 130
interrupted.
"""

import argparse
import csv
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from trainables import parsers
from trainables.command_line import ended_like_ctrl_c, steady_output
from trainables.config_file import ConfigError
from trainables.files import one_line, shown
from trainables.model_folder import check_model_folder

if TYPE_CHECKING:
    from torch import Tensor

    from trainables.config import TrialConfig
    from trainables.data.image_files import Transform
    from trainables.inference import Model

PIXELS_AT_ONCE = 2**22
"""Pixel values in a batch; the activations take a hundred times as much memory, and more."""
NAMED = 3
"""How many files a note names."""
Classes = list[tuple[str, float]]
"""The most probable classes of an image with their probabilities, the most probable first."""


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    with steady_output():
        return run(parsers.predict().parse_intermixed_args(arguments))


def run(given: argparse.Namespace) -> int:
    """Does what the command line asks for. Returns the exit code."""
    try:
        if given.top < 1:
            raise ConfigError(f"command line: --top is {given.top}; allowed: a whole number of at least 1")
        if bool(given.images) == bool(given.save_val):
            raise ConfigError("command line: allowed: image files and folders, or --save-val DIR, one of the two")
        check_model_folder(given.model)
        for place in given.images:
            if not place.exists():
                raise ConfigError(f"{shown(place)}: there is no such file or folder")
        with ended_like_ctrl_c():
            return predict(given)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


class Prediction(NamedTuple):
    """What the model says about an image, or why it says nothing."""

    file: str
    classes: Classes
    fault: str | None = None
    """Why the image could not be read."""


def predict(given: argparse.Namespace) -> int:
    """Predicts all images and prints the result. Returns the exit code."""
    from trainables.inference import read_inference

    model, config = read_inference(given.model)
    files = wanted_files(given, config)
    print(f"{given.model}: {len(model.class_names)} classes; {model.transform.words()}", file=sys.stderr)
    show = show_csv if given.csv else show_json if given.json else show_text
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large images, which are read, and of odd ones, which are as in training
        unreadable = show(given.model, predictions(model, config, files, given.top))
    if unreadable:
        print(f"{unreadable} of {len(files)} images could not be read", file=sys.stderr)
    return 1 if unreadable else 0


def wanted_files(given: argparse.Namespace, config: "TrialConfig") -> list[Path]:
    """The image files that the command line names."""
    from trainables.data import build_data
    from trainables.data.image_files import find_images, save_images
    from trainables.data_config import ImageFolderConfig

    try:
        if given.save_val:
            data = build_data(config.data, config.seed)
            return save_images(data.source, data.val, given.save_val)
        extra = config.data.extra_endings if isinstance(config.data, ImageFolderConfig) else []
        found = find_images(given.images, {ending.lower() for ending in extra})
    except FileExistsError as error:
        raise ConfigError(f"command line: --save-val is {given.save_val}, which exists already; choose a new folder") from error
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error
    if found.left_out:
        listed = ", ".join(one_line(shown(file)) for file in found.left_out[:NAMED])
        more = f" and {len(found.left_out) - NAMED} more" if len(found.left_out) > NAMED else ""
        print(f"note: not taken for images, because of their endings: {listed}{more}", file=sys.stderr)
    return found.files


def predictions(model: "Model", config: "TrialConfig", files: list[Path], top: int) -> Iterator[Prediction]:
    """The predictions for the files, in their order, batch by batch; images that cannot be read are named on stderr."""
    from trainables.machine import num_cores

    batch_size = max(1, min(256, PIXELS_AT_ONCE // math.prod(model.transform.shape)))
    classify = classifier(model, config, top)
    with ThreadPoolExecutor(num_cores()) as readers:
        for first in range(0, len(files), batch_size):
            batch = files[first : first + batch_size]
            read = list(readers.map(lambda file: pixels_or_fault(model.transform, file), batch))
            rows = iter(classify([pixels for pixels in read if not isinstance(pixels, str)]))
            for file, pixels in zip(batch, read, strict=True):
                if isinstance(pixels, str):
                    print(f"error: {one_line(pixels)}", file=sys.stderr)
                    yield Prediction(shown(file), [], pixels)
                else:
                    yield Prediction(shown(file), next(rows))
            print_progress(first + len(batch), len(files))


def pixels_or_fault(transform: "Transform", file: Path) -> "Tensor | str":
    """An image's pixels (C, H, W), uint8, or why it cannot be read."""
    try:
        return transform(file)
    except ValueError as error:
        return str(error)


def classifier(model: "Model", config: "TrialConfig", top: int) -> Callable[[list["Tensor"]], list[Classes]]:
    """A function from images (C, H, W), uint8, to the `top` most probable classes of each."""
    import torch

    from trainables.engine.numerics import numerics
    from trainables.machine import choose_device, num_cores

    device = choose_device("cpu" if config.device == "cpu" else "auto")  # this machine may have no GPU, unlike the training's
    torch.set_num_threads(num_cores())
    module = model.module.to(device)

    def classify(images: list["Tensor"]) -> list[Classes]:
        if not images:
            return []
        with numerics(config.compute, device):
            probabilities, classes = module(torch.stack(images).to(device)).topk(min(top, len(model.class_names)))
        rows = zip(classes.tolist(), probabilities.tolist(), strict=True)
        return [[(model.class_names[c], p) for c, p in zip(*row, strict=True)] for row in rows]

    return classify


def print_progress(done: int, number: int) -> None:
    """Prints on stderr how many images are done, in a terminal."""
    if sys.stderr.isatty():
        print(f"{done}/{number} images", end="\r" if done < number else "\r\033[K", file=sys.stderr, flush=True)


def show_text(folder: Path, found: Iterator[Prediction]) -> int:
    """Prints a line for each image. Returns how many could not be read, as the other functions do."""
    unreadable = 0
    for prediction in found:
        if prediction.fault:
            unreadable += 1
        else:
            print(
                f"{one_line(prediction.file)}  "
                + "  ".join(f"{name} {probability:.4f}" for name, probability in prediction.classes)
            )
    return unreadable


def show_csv(folder: Path, found: Iterator[Prediction]) -> int:
    """Prints a row for each image and class, the most probable class first."""
    rows, unreadable = csv.writer(sys.stdout, lineterminator="\n"), 0
    rows.writerow(["file", "rank", "class", "probability"])
    for prediction in found:
        unreadable += prediction.fault is not None
        for rank, (name, probability) in enumerate(prediction.classes, 1):
            rows.writerow([prediction.file, rank, name, f"{probability:.6g}"])
    return unreadable


def show_json(folder: Path, found: Iterator[Prediction]) -> int:
    """Prints one object: the images with their classes, and those that could not be read with the reason."""
    every = list(found)
    unreadable = [{"file": prediction.file, "reason": prediction.fault} for prediction in every if prediction.fault]
    images = [
        {
            "file": prediction.file,
            "classes": [{"class": name, "probability": round(probability, 6)} for name, probability in prediction.classes],
        }
        for prediction in every
        if not prediction.fault
    ]
    print(json.dumps({"model": str(folder), "images": images, "unreadable": unreadable}, indent=1))
    return len(unreadable)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
