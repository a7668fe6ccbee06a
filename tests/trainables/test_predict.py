import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exports import PATTERNS, export_of
from miniatures import cifar, own_images
from PIL import Image

from trainables.data import ImageSet
from trainables.data.image_files import save_images
from trainables.inference import load_model
from trainables.predict import main


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder with a model of the digits, and a folder with six of its val images."""
    folder = tmp_path_factory.mktemp("digits")
    run, _ = export_of(folder / "best", {"epochs": 2, "method": {"name": "cross_entropy"}})
    data = run.loaded.data
    save_images(data.source, ImageSet(data.val.ids[:6], data.val.labels[:6]), folder / "val")
    return folder / "best", folder / "val"


def predicted(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, output, and what is said beside it."""
    code = main([str(argument) for argument in arguments])
    return (code, *capsys.readouterr())


def accuracy_of(capsys: pytest.CaptureFixture[str], best: Path, files: list[Path]) -> float:
    """The mean over classes; each file lies in a folder with the name of its class."""
    code, out, _ = predicted(capsys, best, *files, "--json")
    assert code == 0
    hits: dict[str, list[bool]] = {}
    for image in json.loads(out)["images"]:
        of_class = Path(image["file"]).parent.name
        hits.setdefault(of_class, []).append(image["classes"][0]["class"] == of_class)
    return float(np.mean([np.mean(found) for found in hits.values()]))


SOURCES: dict[str, dict[str, Any]] = {
    "digits": {"source": "digits"},
    "generated, colour": PATTERNS,
    "generated, grey": {**PATTERNS, "channels": 1},
    "own images, memory": {"source": "image_folder", "loading": "memory", "image_size": 8, "augment": ["crop_flip"]},
    "own images, grey": {"source": "image_folder", "loading": "memory", "image_size": 8, "augment": [], "grey": True},
    "own images, stream": {"source": "image_folder", "image_size": 8},
    "cifar10": {"source": "cifar10", "n_max": 10, "imbalance_factor": 5, "meta_per_class": 2, "val_per_class": 4},
}


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_the_predictions_have_the_accuracy_that_the_trial_had_on_val(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = dict(SOURCES[source])
    if data["source"] == "image_folder":
        data |= own_images(tmp_path / "own") | {"root": str(tmp_path / "own"), "val_per_class": 3, "test_per_class": 1}
    if data["source"] == "cifar10":
        cifar(tmp_path / "cifar", monkeypatch, 10)
        data |= {"root": str(tmp_path / "cifar"), "download": False}
    settings = {"epochs": 3, "data": data, "method": {"name": "cross_entropy"}, "optim": {"batch_size": 8}}
    run, accuracy = export_of(tmp_path / "best", settings | {"compute": {"readers": 0}})
    files = save_images(run.loaded.data.source, run.loaded.data.val, tmp_path / "val")
    assert accuracy_of(capsys, tmp_path / "best", files) == pytest.approx(accuracy, abs=1e-9)


def test_each_form_of_output_has_the_same_predictions(digits: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    best, val = digits
    _, text, said = predicted(capsys, best, val, "--top", 3)
    _, rows, _ = predicted(capsys, best, "--csv", val, "--top", 3)  # options may stand anywhere
    _, tree, _ = predicted(capsys, "--top", 3, best, "--json", val)
    assert "10 classes; images become grey, are resized to the middle 8x8 pixels" in said
    found = json.loads(tree)
    assert (found["model"], found["unreadable"], len(found["images"])) == (str(best), [], 6)
    table = list(csv.DictReader(io.StringIO(rows)))
    of_tree = [
        (image["file"], str(rank), each["class"], f"{each['probability']:.4f}")
        for image in found["images"]
        for rank, each in enumerate(image["classes"], 1)
    ]
    assert [(row["file"], row["rank"], row["class"], f"{float(row['probability']):.4f}") for row in table] == of_tree
    lines = [line.split() for line in text.splitlines()]
    assert [(line[0], *line[1:3]) for line in lines] == [(file, name, p) for file, rank, name, p in of_tree if rank == "1"]
    assert [len(line) for line in lines] == [7] * 6


def test_the_most_probable_classes_come_first_with_the_models_probabilities(
    digits: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    best, val = digits
    model, file = load_model(best), sorted(val.rglob("*.png"))[0]
    probabilities = model.module(model.transform(file)[None])[0]
    _, out, _ = predicted(capsys, best, file, "--json", "--top", 99)
    (image,) = json.loads(out)["images"]
    order = torch.argsort(probabilities, descending=True).tolist()
    assert [each["class"] for each in image["classes"]] == [model.class_names[c] for c in order]
    assert [each["probability"] for each in image["classes"]] == pytest.approx(probabilities[order].tolist(), abs=1e-6)


@pytest.mark.parametrize("form", [[], ["--csv"], ["--json"]])
def test_unreadable_files_are_named_and_skipped_and_the_others_predicted(
    digits: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], form: list[str]
) -> None:
    best, val = digits
    good = sorted(val.rglob("*.png"))[0]
    noise = np.random.default_rng(0).integers(0, 256, (90, 90), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:3000])
    (tmp_path / "text.txt").write_text("hello")
    code, out, said = predicted(capsys, best, tmp_path / "text.txt", good, tmp_path / "half.jpg", *form)
    assert code == 1
    assert "error: " in said
    assert "text.txt: not an image that can be read (of no known format)" in said
    assert "half.jpg: not an image that can be read" in said
    assert "2 of 3 images could not be read" in said
    if form == ["--json"]:
        found = json.loads(out)
        assert [image["file"] for image in found["images"]] == [str(good)]
        assert [Path(each["file"]).name for each in found["unreadable"]] == ["text.txt", "half.jpg"]
    else:
        assert str(good) in out
        assert "half" not in out


def test_images_of_every_form_are_those_of_their_pixels_or_are_refused(
    digits: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first picture of an animation counts; grey levels of 16 bits would be cut off."""
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    colour = Image.fromarray(noise)
    frames = [colour.quantize(8), *(Image.new("P", colour.size, shade) for shade in (0, 1))]
    frames[0].save(tmp_path / "animated.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "palette.png")
    frames[0].save(tmp_path / "transparent.png", transparency=b"\0" * 8)
    frames[0].convert("RGB").save(tmp_path / "colours.png")
    colour.convert("CMYK").save(tmp_path / "print.tif")
    colour.save(tmp_path / "screen.tif")
    Image.fromarray(noise[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    code, out, said = predicted(capsys, digits[0], tmp_path, "--csv")
    found = {Path(row["file"]).name: (row["class"], row["probability"]) for row in csv.DictReader(io.StringIO(out))}
    assert code == 1
    assert found["animated.gif"] == found["palette.png"] == found["transparent.png"] == found["colours.png"]
    assert found["print.tif"] == found["screen.tif"]
    assert len(found) == 6
    assert "deep.png: images of mode I;16 are not read; allowed: 8 bits a channel, grey or colour" in said


def test_a_large_image_is_read_without_a_warning_and_a_bomb_is_refused(
    digits: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (10, 15)).save(tmp_path / "large.png")
    Image.new("L", (100, 100)).save(tmp_path / "bomb.png")
    code, out, said = predicted(capsys, digits[0], tmp_path)  # warnings are errors in tests
    assert (code, len(out.splitlines()), len(said.splitlines())) == (1, 1, 3)
    assert "large.png  " in out
    assert "bomb.png: not an image that can be read (Image size (10000 pixels) exceeds limit" in said


def test_a_files_name_stays_in_its_line_and_a_pipe_in_a_folder_is_not_read(
    digits: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = sorted(digits[1].rglob("*.png"))[0].read_bytes()
    (tmp_path / "a\nb.png").write_bytes(content)
    (tmp_path / "c\x1b[2J.png").touch()
    os.mkfifo(tmp_path / "pipe.png")
    code, out, said = predicted(capsys, digits[0], tmp_path)
    assert (code, len(out.splitlines())) == (1, 1)
    assert "a\\nb.png  " in out
    assert "c\\x1b[2J.png: the file is empty" in said
    assert "pipe.png" in said.splitlines()[0]
    images = json.loads(predicted(capsys, digits[0], tmp_path, "--json")[1])["images"]
    assert images[0]["file"] == f"{tmp_path}/a\nb.png"


def test_files_in_folders_that_are_not_named_as_images_are_told_of(
    digits: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.png").write_bytes(sorted(digits[1].rglob("*.png"))[0].read_bytes())
    for number in range(5):
        (tmp_path / f"{number}.txt").touch()
    code, out, said = predicted(capsys, digits[0], tmp_path)
    assert (code, len(out.splitlines())) == (0, 1)
    assert "note: not taken for images, because of their endings: " in said
    assert "2.txt and 2 more" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["BEST"], "allowed: image files and folders, or --save-val DIR, one of the two"),
        (["BEST", "EMPTY"], "the folder holds no image; allowed: files ending with"),
        (["BEST", "GONE"], "there is no such file or folder"),
        (["GONE", "EMPTY"], "there is no such folder; allowed: the folder of an export"),
        (["EMPTY", "EMPTY"], "holds no model.safetensors"),
        (["BEST", "EMPTY", "--top", "0"], "--top is 0; allowed: a whole number of at least 1"),
        (["BEST", "--save-val", "EMPTY"], "which exists already; choose a new folder"),
    ],
)
def test_wrong_input_predicts_nothing(
    digits: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"BEST": str(digits[0]), "EMPTY": str(tmp_path / "empty"), "GONE": str(tmp_path / "gone")}
    code, out, said = predicted(capsys, *(places.get(argument, argument) for argument in arguments))
    assert (code, out) == (2, "")
    assert said.startswith("error: ")
    assert message in said


def test_the_models_val_images_can_be_saved_and_predicted_in_one_command(
    digits: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = predicted(capsys, digits[0], "--save-val", tmp_path / "val")
    assert (code, len(out.splitlines())) == (0, 240)
    assert len(list((tmp_path / "val" / "3").glob("*.png"))) == 24


@pytest.mark.slow
def test_it_runs_as_a_program(digits: tuple[Path, Path]) -> None:
    command = [sys.executable, "-m", "trainables.predict", str(digits[0]), str(digits[1]), "--csv"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 7
