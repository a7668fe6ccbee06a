import errno
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exports import PATTERNS, export_of, val_images
from torch import Tensor, nn

from trainables.classifier_config import CLASSIFIER_SETTINGS
from trainables.export_program import (
    ONNX,
    ONNX_PACKAGES,
    PROGRAM,
    TOLERANCE,
    ProgramRefused,
    largest_difference,
    random_images,
    write_onnx,
    write_program,
)
from trainables.inference import load_model
from trainables.method_config import METHOD_SETTINGS
from trainables.models.stage_heads import STAGE_HEADS

ALONE = """
import sys
sys.modules["trainables"] = sys.modules["orchestrator"] = None  # an import of them fails
import numpy, torch
run = torch.export.load(sys.argv[1]).module()
for name in ("one", "many", "none"):
    images = torch.from_numpy(numpy.load(f"{name}.npy"))
    numpy.save(f"{name}_out.npy", run(images).numpy())
assert not [name for name in sys.modules if name.startswith(("trainables.", "orchestrator."))]
"""


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of the digits."""
    folder = tmp_path_factory.mktemp("digits")
    export_of(folder, {"epochs": 2, "method": {"name": "logit_adjustment", "where": "prediction", "tau": 0.5}})
    return folder


@pytest.mark.slow
def test_a_fresh_process_without_this_project_computes_the_same_probabilities(digits: Path, tmp_path: Path) -> None:
    found = write_program(digits)
    assert found.num_images == 256
    assert found.max_difference <= TOLERANCE == 1e-5
    module = load_model(digits).module
    rng = np.random.default_rng(1)
    images = {"one": 1, "many": 256, "none": 0}
    for name, number in images.items():
        np.save(tmp_path / f"{name}.npy", rng.integers(0, 17, (number, 1, 8, 8), dtype=np.uint8))
    subprocess.run([sys.executable, "-c", ALONE, str(digits / PROGRAM)], cwd=tmp_path, check=True)
    for name, number in images.items():
        here = module(torch.from_numpy(np.load(tmp_path / f"{name}.npy"))).numpy()
        there = np.load(tmp_path / f"{name}_out.npy")
        assert here.shape == there.shape == (number, 10)
        assert np.abs(here - there).max(initial=0) <= 1e-5
        assert there.sum(1) == pytest.approx(np.ones(number), abs=1e-5)


SMALL = {
    "resnet": {"depth": 10, "train": "last_blocks"},
    "resnet_cifar": {"depth": 20},
    "torchvision": {"model": "mobilenet_v3_small", "train": "norm_bias"},
    "timm": {"model": "test_resnet", "train": "last_blocks"},
}
BUILDABLE = [name for name in CLASSIFIER_SETTINGS if name != "timm" or find_spec("timm")]
ROWS: dict[str, dict[str, Any]] = {
    **{f"method {name}": {"method": {"name": name}} for name in METHOD_SETTINGS},
    "method logit_adjustment, prediction": {"method": {"name": "logit_adjustment", "where": "prediction"}},
    **{f"stage {name}": {"stages": [{"name": "representation"}, {"name": name, "epochs": 1}]} for name in STAGE_HEADS},
    "two stages": {"epochs": 3, "stages": [{"name": "representation"}, {"name": "tau_norm"}, {"name": "crt", "epochs": 1}]},
    **{f"classifier {name}": {"classifier": {"name": name} | SMALL.get(name, {})} for name in BUILDABLE},
    "cosine head": {"classifier": {"name": "small_cnn", "head": "cosine"}},
}


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_every_method_stage_and_classifier_is_exported_with_its_predictions(row: str, tmp_path: Path) -> None:
    settings = {"epochs": 2, "data": PATTERNS, "method": {"name": "cross_entropy"}} | ROWS[row]
    run, accuracy = export_of(tmp_path, settings)
    images, labels = val_images(run)
    write_program(tmp_path)
    module = load_model(tmp_path).module
    probabilities = torch.export.load(tmp_path / PROGRAM).module()(images)
    assert torch.allclose(probabilities, module(images), rtol=0, atol=1e-5)
    assert class_mean(probabilities.argmax(1) == labels, labels) == pytest.approx(accuracy, abs=1e-9)


def class_mean(hits: Tensor, labels: Tensor) -> float:
    return torch.stack([hits[labels == c].double().mean() for c in labels.unique()]).mean().item()


@pytest.mark.slow
def test_the_file_for_onnx_computes_the_same_probabilities(digits: Path) -> None:
    for package in ONNX_PACKAGES:
        pytest.importorskip(package)
    import onnxruntime

    assert write_onnx(digits).max_difference <= 1e-5
    images = torch.randint(0, 17, (256, 1, 8, 8), dtype=torch.uint8)
    session = onnxruntime.InferenceSession(digits / ONNX, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images.numpy()})
    assert np.abs(found - load_model(digits).module(images).numpy()).max() <= 1e-5


class Branching(nn.Module):
    """What torch.export cannot trace: the graph depends on the values."""

    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean((2, 3)) if images.sum() > 5 else images.float().amax((2, 3))


def test_a_model_that_torch_cannot_export_has_no_program(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(digits)
    monkeypatch.setattr("trainables.export_program.load_model", lambda folder: model._replace(module=Branching()))
    (digits / PROGRAM).unlink(missing_ok=True)
    with pytest.raises(ProgramRefused, match=r"model.pt2 is left out: torch cannot export this model \(\w+: "):
        write_program(digits)
    assert not (digits / PROGRAM).exists()


def test_on_a_full_disk_the_caller_may_wait(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(program: torch.export.ExportedProgram, file: Path) -> None:
        file.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("torch.export.save", full)
    with pytest.raises(OSError, match="No space left"):
        write_program(digits)
    assert not (digits / PROGRAM).exists()


@pytest.mark.parametrize("away", [2e-5, float("nan")])
def test_a_program_that_does_not_match_its_model_is_removed(digits: Path, monkeypatch: pytest.MonkeyPatch, away: float) -> None:
    load = torch.export.load

    class Off:
        """A program whose probabilities of one image are wrong by a little."""

        def __init__(self, file: Path) -> None:
            self._run = load(file).module()

        def module(self) -> "Off":
            return self

        def __call__(self, images: Tensor) -> Tensor:
            found: Tensor = self._run(images).clone()
            found[-1, 3] += away
            return found

    monkeypatch.setattr("torch.export.load", Off)
    with pytest.raises(ProgramRefused, match=r"are up to (2e-05|nan) away from the model's, on 256 images; allowed: 1e-05"):
        write_program(digits)
    assert not (digits / PROGRAM).exists()


def test_programs_are_compared_on_images_of_all_brightnesses_and_on_fewer_large_ones() -> None:
    images = random_images((1, 8, 8), white=16)
    assert (len(images), images.dtype, images.min(), images.max()) == (256, torch.uint8, 0, 16)
    assert images.float().mean((1, 2, 3)).std() > 2
    assert len(random_images((3, 224, 224), white=255)) == 27
    assert len(random_images((3, 1500, 1500), white=255)) == 2


def test_tables_of_other_shapes_do_not_match() -> None:
    assert largest_difference(torch.zeros(2, 3), torch.zeros(2, 4)) == float("inf")
    assert largest_difference(torch.zeros(2, 3), torch.full((2, 3), 0.25)) == 0.25


def test_the_program_is_no_place_for_images(digits: Path) -> None:
    """The images that the trace was made with may be a person's."""
    write_program(digits)
    assert torch.export.load(digits / PROGRAM).example_inputs is None
