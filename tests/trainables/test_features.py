"""From images to vectors to a head, and back: what was computed apart is what the whole network computes."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from exports import export_of
from miniatures import own_images
from PIL import Image
from safetensors.torch import load_file

from trainables import extraction, features, predict, train
from trainables.classifier_config import ResNetConfig
from trainables.config import TrialConfig
from trainables.config_file import dump_yaml, read_settings
from trainables.data import build_data, open_source
from trainables.data.feature_files import BACKBONE
from trainables.data.source import Vectors
from trainables.export_model import read_model, read_test
from trainables.export_program import ProgramRefused, write_program
from trainables.extraction import PLAN
from trainables.inference import load_model
from trainables.model_folder import MODEL
from trainables.models import CLASSIFIERS, build_classifier
from trainables.suspects import examine

SMALL = {"epochs": 2, "method": {"name": "cross_entropy"}, "classifier": {"name": "small_cnn", "widths": [4, 6]}}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of the digits, `best`, and the configuration of its trial, `trial.yaml`."""
    folder = tmp_path_factory.mktemp("digits")
    run, _ = export_of(folder / "best", SMALL)
    (folder / "trial.yaml").write_text(dump_yaml(run.config.model_dump()))
    return folder


@pytest.fixture(scope="module")
def vectors(digits: Path) -> Path:
    """The vectors of all digits."""
    assert features.main([str(digits / "trial.yaml"), "--model", str(digits / "best"), "--out", str(digits / "vectors")]) == 0
    return digits / "vectors"


def head_on(vectors: Path, **more: Any) -> dict[str, Any]:
    """A trial on the vectors."""
    data = TrialConfig().data.model_dump(
        include={"imbalance_factor", "n_max", "meta_per_class", "val_per_class", "test_per_class"}
    )
    settings = {"epochs": 3, "data": {"source": "features", "root": str(vectors), **data}, "classifier": {"name": "linear"}}
    return settings | {"method": {"name": "difficulty_net"}} | more


def open_features(folder: Path) -> Vectors:
    images = open_source(TrialConfig.model_validate(head_on(folder)).data).images
    assert isinstance(images, Vectors)
    return images


def test_vectors_are_what_the_backbone_computes(digits: Path, vectors: Path) -> None:
    source = open_source(TrialConfig.model_validate(head_on(vectors)).data)
    images = open_source(TrialConfig().data)
    assert isinstance(source.images, Vectors)
    assert isinstance(images.images, np.ndarray)
    classifier, _, metadata = read_model(digits / "best" / MODEL)
    mean, std = (torch.tensor(json.loads(metadata["normalisation"])[name])[:, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        expected = classifier.backbone((torch.from_numpy(images.images).float() - mean) / std).numpy()
    assert source.images.features.dtype == np.float16
    assert source.images.features == pytest.approx(expected, abs=1e-3, rel=1e-3)
    assert np.array_equal(source.labels, images.labels)
    assert source.class_names == images.class_names
    assert source.images.names is not None
    assert source.images.names[3] == b"id 3"


def test_pretrained_weights_see_pixels_as_they_expect_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = build_classifier(ResNetConfig(depth=10), (1, 8, 8), 10, seed=5).backbone.eval()
    torch.save(backbone.state_dict(), tmp_path / "weights.pth")
    settings = {"epochs": 1, "classifier": {"name": "resnet", "depth": 10, "weights": str(tmp_path / "weights.pth")}}
    (tmp_path / "trial.yaml").write_text(dump_yaml(settings))
    assert features.main([str(tmp_path / "trial.yaml"), "--precision", "float32", "--out", str(tmp_path / "vectors")]) == 0
    found, images = open_features(tmp_path / "vectors"), open_source(TrialConfig().data).images
    assert isinstance(images, np.ndarray)
    # ImageNet's statistics, of a grey image the mean of its three channels; the digits count up to 16.
    mean, std = np.mean([0.485, 0.456, 0.406]), np.mean([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = backbone((torch.from_numpy(images[:50]) / 16 - mean) / std).numpy()
    assert found.features[:50] == pytest.approx(expected, abs=1e-4, rel=1e-4)
    assert found.seen is None  # nobody knows what the weights were trained on


def test_a_trial_on_vectors_has_the_sets_of_the_trial_on_images(vectors: Path) -> None:
    of_vectors, of_images = (build_data(TrialConfig.model_validate(given).data, 0) for given in (head_on(vectors), {}))
    for name in ("train", "meta", "val", "test"):
        mine, theirs = getattr(of_vectors, name), getattr(of_images, name)
        assert np.array_equal(mine.ids, theirs.ids)
        assert np.array_equal(mine.labels, theirs.labels)
    seen = of_vectors.source.images.seen  # type: ignore[union-attr]
    assert seen is not None
    assert set(np.flatnonzero(seen)) == set(of_images.train.ids)
    assert not any("backbone" in note for note in of_vectors.notes)
    other_seed = build_data(TrialConfig.model_validate(head_on(vectors)).data, 1)
    assert any("the backbone was trained on" in note for note in other_seed.notes)


@pytest.mark.parametrize(
    "classifier", [{"name": "linear"}, {"name": "mlp_adapter", "bottleneck": 5}, {"name": "linear", "head": "cosine"}]
)
def test_an_exported_model_of_vectors_predicts_images_as_the_two_steps_do(
    vectors: Path, tmp_path: Path, classifier: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = export_of(tmp_path / "best", head_on(vectors, classifier=classifier))
    data = run.loaded.data
    digits_source = open_source(TrialConfig().data)
    assert isinstance(digits_source.images, np.ndarray)
    with torch.no_grad():
        (batch,) = run.loaded.val.batches([extraction.Request(torch.arange(len(data.val)))])
        head, _, _ = read_model(tmp_path / "best" / MODEL)
        expected = head(batch.images).softmax(1)
        found = load_model(tmp_path / "best").module(torch.from_numpy(digits_source.images[data.val.ids]))
    assert torch.allclose(found, expected, atol=2e-3)  # the vectors were rounded to float16
    assert 0 <= read_test(tmp_path / "best" / MODEL)["test/acc"] <= 1
    # The same from a file, on the command line.
    pixels = np.round(digits_source.images[data.val.ids[0], 0] * (255 / 16)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    capsys.readouterr()
    assert predict.main([str(tmp_path / "best"), str(tmp_path / "one.png"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["images"][0]["classes"][0]
    assert shown["class"] == str(int(found[0].argmax()))
    assert shown["probability"] == pytest.approx(float(found[0].max()), abs=1e-5)


def test_suspects_of_a_model_of_vectors_are_named_without_pictures(vectors: Path, tmp_path: Path) -> None:
    export_of(tmp_path / "best", head_on(vectors, method={"name": "cross_entropy"}))
    found = examine(tmp_path / "best" / MODEL)
    assert found.names[0].startswith("id ")
    assert set(found.thumbnails) == {None}


def test_a_model_of_vectors_without_a_backbone_refuses_images(
    vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own").mkdir()
    for file in vectors.glob("*.parquet"):
        (tmp_path / "own" / file.name).write_bytes(file.read_bytes())
    export_of(tmp_path / "best", head_on(tmp_path / "own", epochs=1))
    Image.new("L", (8, 8)).save(tmp_path / "one.png")
    assert predict.main([str(tmp_path / "best"), str(tmp_path / "one.png")]) == 2
    assert "a model of feature vectors whose backbone is not known" in capsys.readouterr().err
    with pytest.raises(ProgramRefused, match=r"model\.pt2 is left out: .* whose backbone is not known"):
        write_program(tmp_path / "best")  # an export goes on without the file


def test_a_backbone_that_cannot_be_built_here_is_named_with_the_reason(
    vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    export_of(tmp_path / "best", head_on(vectors, epochs=1))
    Image.new("L", (8, 8)).save(tmp_path / "one.png")

    def build(*given: Any) -> None:
        raise ModuleNotFoundError("No module named 'some_package'")

    monkeypatch.setitem(CLASSIFIERS, "small_cnn", build)
    assert predict.main([str(tmp_path / "best"), str(tmp_path / "one.png")]) == 2
    said = capsys.readouterr().err
    assert "the backbone of the vectors cannot be built here (ModuleNotFoundError: No module named 'some_package')" in said
    assert read_test(tmp_path / "best" / MODEL)["test/acc"] >= 0  # which needs no backbone


def test_the_command_for_a_sweep_has_the_split_of_the_images(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["data.n_max=60", "data.noise.kind=flip", "data.noise.rate=0.2", "data.val_per_class=20"]
    out = tmp_path / "some vectors"
    assert features.main([str(digits / "trial.yaml"), *settings, "--model", str(digits / "best"), "--out", str(out)]) == 0
    command = shlex.split(capsys.readouterr().out.strip().splitlines()[-1])
    assert command[-6:-4] == ["features", f"trial.data.root={out}"]
    shipped = Path(__file__).parents[2] / "search_spaces/features.yaml"
    changed = [change.removeprefix("trial.") for change in command[-5:]]
    of_sweep = read_settings(TrialConfig, shipped, changed, section="trial")
    of_images = read_settings(TrialConfig, digits / "trial.yaml", settings)
    here, there = (build_data(config.data, 0) for config in (of_sweep, of_images))
    assert np.array_equal(here.train.ids, there.train.ids)
    assert np.array_equal(here.train.labels, there.train.labels)
    assert np.array_equal(here.val.ids, there.val.ids)


@pytest.mark.slow
def test_a_command_that_was_killed_goes_on_where_it_was(digits: Path, vectors: Path, tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom trainables import extraction, features\n"
        "extraction.SHARD_ROWS, write = 400, extraction._write\n"
        "def slowly(*given): write(*given); print('written', flush=True); time.sleep(float(sys.argv.pop()))\n"
        "extraction._write = slowly\n"
        "sys.exit(features.main(sys.argv[1:-5]))"
    )
    out = tmp_path / "vectors"
    words = [sys.executable, "-c", program, str(digits / "trial.yaml"), "--model", str(digits / "best"), "--out", str(out)]
    with subprocess.Popen([*words, *["60"] * 5], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "written" not in process.stdout.readline():
            pass
        os.kill(process.pid, signal.SIGKILL)
    there = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    assert set(there) == {PLAN, BACKBONE, "images-00000.parquet"}
    # Not all files are there, and that is noticed.
    with pytest.raises(ValueError, match=r"is followed by images-00001\.parquet, which is missing"):
        open_source(TrialConfig.model_validate(head_on(out)).data)
    done = subprocess.run([*words, *["0"] * 5], capture_output=True, text=True, check=True)
    assert "1797 images of digits, 1x8x8, 400 of them known already" in done.stdout
    assert {name: (out / name).stat().st_mtime_ns for name in there} == there
    whole, pieces = (open_source(TrialConfig.model_validate(head_on(folder)).data) for folder in (vectors, out))
    assert isinstance(whole.images, Vectors)
    assert isinstance(pieces.images, Vectors)
    assert len(list(out.glob("*.parquet"))) == 5
    assert np.array_equal(whole.images.features, pieces.images.features)
    assert np.array_equal(whole.labels, pieces.labels)


def test_other_vectors_are_never_overwritten(
    digits: Path, vectors: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = {file: file.stat().st_mtime_ns for file in vectors.iterdir()}
    words = [str(digits / "trial.yaml"), "--model", str(digits / "best")]
    assert features.main([*words, "--out", str(vectors)]) == 0  # all is known
    assert features.main([*words, "--out", str(vectors), "--precision", "float32"]) == 2
    assert capsys.readouterr().err.endswith("holds other vectors (precision differ); nothing was changed; choose a new folder\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("mine")
    assert features.main([*words, "--out", str(tmp_path / "mine")]) == 2
    assert capsys.readouterr().err.endswith("exists and holds no vectors; nothing was changed; choose a new folder\n")
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    assert {file: file.stat().st_mtime_ns for file in vectors.iterdir()} == before


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "the backbone of small_cnn has random weights, and so its vectors say little; allowed: --model RESULTS/NAME/best"),
        (["--model", "best", "data.source=generated"], "takes images of 1 channels that count up to 16"),
        (["--model", "best", "--views", "2"], "--views is 2, but data.augment is empty, so that all views would be equal"),
        (["--model", "best", "--views", "-1"], "--views is -1; allowed: a whole number from 0 on"),
        (["--model", "nowhere"], "there is no such folder"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    digits: Path, tmp_path: Path, words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(digits / word) if word in ("best", "nowhere") else word for word in words]
    assert features.main([str(digits / "trial.yaml"), *given, "--out", str(tmp_path / "out")]) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_files_of_images_with_views_and_parts(tmp_path: Path, loading: str, capsys: pytest.CaptureFixture[str]) -> None:
    own_images(tmp_path / "pets", ("train", "test"))
    augment = {"memory": ["crop_flip"], "stream": ["resized_crop", "flip"]}[loading]
    data = {"source": "image_folder", "root": str(tmp_path / "pets"), "loading": loading, "image_size": 12, "augment": augment}
    data |= {"profile": "natural", "meta_per_class": 1, "val_per_class": 1, "test_per_class": None}
    run, _ = export_of(tmp_path / "best", SMALL | {"epochs": 1, "data": data})
    (tmp_path / "trial.yaml").write_text(dump_yaml(run.config.model_dump()))
    out = tmp_path / "vectors"
    words = [str(tmp_path / "trial.yaml"), "--model", str(tmp_path / "best"), "--views", "3", "--out", str(out)]
    assert features.main(words) == 0
    assert {file.name for file in out.glob("*.parquet")} == {"train-00000.parquet", "test-00000.parquet"}
    table = pq.read_table(out / "train-00000.parquet")
    own = np.array(table["features"].to_pylist())
    views = np.array(table["views"].to_pylist()).reshape(len(own), 3, -1)
    assert all((np.abs(views[:, i] - views[:, k]) > 1e-3).any(1).mean() > 0.5 for i, k in ((0, 1), (0, 2), (1, 2)))
    assert table["image"][0].as_py().startswith("train/")
    # The vectors of val are the features that the trial itself has computed in its evaluation.
    classifier = run.classifier.eval()
    with torch.no_grad():
        (batch,) = run.loaded.val.batches([extraction.Request(torch.arange(len(run.loaded.val)))])
        expected = classifier.backbone(batch.images).numpy()
    assert own[run.loaded.data.val.ids] == pytest.approx(expected, abs=1e-3, rel=1e-3)
    settings = {"source": "features", "root": str(out), "profile": "natural", "meta_per_class": 1, "val_per_class": 1}
    trained = export_of(tmp_path / "head", SMALL | {"data": settings | {"augment": ["views"]}, "classifier": {"name": "linear"}})[
        0
    ]
    assert trained.epoch == 2
    # An image file is resized as its own training saw it.
    model, before = load_model(tmp_path / "head"), load_model(tmp_path / "best")
    assert model.transform == before.transform


def test_a_configuration_of_an_export_trains_again_on_the_vectors(vectors: Path, tmp_path: Path) -> None:
    (tmp_path / "head.yaml").write_text(dump_yaml(head_on(vectors, epochs=1)))
    assert train.main([str(tmp_path / "head.yaml"), "--out", str(tmp_path / "first")]) == 0
    assert train.main([str(tmp_path / "first/config.yaml"), "--out", str(tmp_path / "second")]) == 0
    first, second = (load_file(tmp_path / name / MODEL) for name in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {name.split(".")[0] for name in first} == {"head", "frozen"}


def test_images_classifiers_are_refused_for_vectors(vectors: Path) -> None:
    with pytest.raises(ValueError, match=r"classifier.name is 'small_cnn', which takes images, but data.source is 'features'"):
        TrialConfig.model_validate(head_on(vectors, classifier={"name": "small_cnn"}))


def test_progress_says_how_fast_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    progress = features.Progress(10)
    progress(4)
    time.sleep(0.01)
    progress(6)
    progress.end()
    assert capsys.readouterr().out.startswith("10 images in 0 s, ")
