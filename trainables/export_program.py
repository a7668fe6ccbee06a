"""The exported model as a program, which runs without this project. It is compared with the model before it counts."""

import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from trainables.config_file import ConfigError
from trainables.files import NO_SPACE
from trainables.inference import Model, load_model

PROGRAM, ONNX = "model.pt2", "model.onnx"
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""What the extra `onnx` installs."""
TOLERANCE = 1e-5
"""How far the program's probabilities may be from the model's."""
MOST_IMAGES, PIXELS_AT_ONCE = 256, 2**22
"""The program is checked on so many images, and on no more pixel values than this."""

Run = Callable[[Tensor], Tensor]
"""uint8 images (B, C, H, W) -> probabilities (B, num_classes)."""


class ProgramRefused(RuntimeError):
    """The model could not be exported as a program, or the program does not compute what the model does; there is no file."""


class Checked(NamedTuple):
    """How near a program is to its model."""

    num_images: int
    max_difference: float
    """Of any two probabilities."""


def write_program(folder: Path) -> Checked:
    """Writes the program of the model in an exported folder to PROGRAM there, for torch.export.load.

    The program is read back from its file and compared with the model, on one image and on a batch of random ones.

    Raises:
        ProgramRefused: when there is no such program, or it does not match; nothing is left behind.
    """

    def write(model: Model, images: Tensor, file: Path) -> Run:
        torch.export.save(traced(model, images), file)
        found: Run = torch.export.load(file).module()
        return found

    return _checked(folder, folder / PROGRAM, write)


def write_onnx(folder: Path) -> Checked:
    """The same as an ONNX file, ONNX, which is compared with the model as onnxruntime computes it. Needs the extra `onnx`.

    Raises:
        ProgramRefused: when there is no such program, or it does not match; nothing is left behind.
    """

    def write(model: Model, images: Tensor, file: Path) -> Run:
        import onnxruntime

        torch.onnx.export(
            traced(model, images),
            (images[:2],),
            file,
            input_names=["images"],
            output_names=["probabilities"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        return lambda some: torch.from_numpy(session.run(None, {"images": some.numpy()})[0])

    return _checked(folder, folder / ONNX, write)


def has_onnx() -> bool:
    """Whether the extra `onnx` is installed."""
    return all(find_spec(package) for package in ONNX_PACKAGES)


def traced(model: Model, images: Tensor) -> torch.export.ExportedProgram:
    """The model as a graph of operators, for any number of images."""
    with torch.no_grad():
        program = torch.export.export(model.module, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    program.example_inputs = None  # they would be in the file
    return program


def _checked(folder: Path, file: Path, write: Callable[[Model, Tensor, Path], Run]) -> Checked:
    """Writes a program and compares it with the model of the folder.

    Args:
        folder: holds the model.
        file: of the program.
        write: writes the file, and returns what runs the program in it.

    Raises:
        ProgramRefused: when this fails, or the program does not match; the file is removed.
        OSError: when the disk is full.
    """
    try:
        model = load_model(folder)
    except ConfigError as error:
        raise ProgramRefused(f"{file.name} is left out: {error}") from error
    images = random_images(model.transform.shape, model.transform.white)
    try:
        run = write(model, images, file)
        with torch.no_grad():
            difference = max(largest_difference(run(some), model.module(some)) for some in (images[:1], images))
    except OSError as error:
        file.unlink(missing_ok=True)
        if error.errno in NO_SPACE:  # the caller may wait for space
            raise
        raise _refused(file, error) from error
    except Exception as error:  # torch.export raises exceptions of many types
        file.unlink(missing_ok=True)
        raise _refused(file, error) from error
    if not difference <= TOLERANCE:  # NaN is refused, too
        file.unlink()
        raise ProgramRefused(
            f"{file.name} is left out: the program's probabilities are up to {difference:.2g} away from the model's, on "
            f"{len(images)} images; allowed: {TOLERANCE:g}"
        )
    return Checked(len(images), difference)


def _refused(file: Path, error: Exception) -> ProgramRefused:
    reason = str(error).strip().partition("\n")[0]
    return ProgramRefused(f"{file.name} is left out: torch cannot export this model ({type(error).__name__}: {reason})")


def random_images(shape: tuple[int, int, int], white: int) -> Tensor:
    """Images (N, C, H, W), uint8, of random brightness and contrast, always the same ones."""
    number = max(2, min(MOST_IMAGES, PIXELS_AT_ONCE // math.prod(shape)))
    generator = torch.Generator().manual_seed(0)
    darkest, brightest = torch.rand(2, number, shape[0], 1, 1, generator=generator)
    noise = torch.rand(number, *shape, generator=generator)
    values: Tensor = (darkest + (brightest - darkest) * noise) * white
    return values.round().to(torch.uint8)


def largest_difference(first: Tensor, second: Tensor) -> float:
    """Of any two probabilities; NaN where one of them is NaN."""
    return math.inf if first.shape != second.shape else (first - second).abs().max().item()
