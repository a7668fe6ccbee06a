import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from trainables.classifier_config import ResNetConfig
from trainables.config import TrialConfig
from trainables.data import build_data
from trainables.data.loader import Request
from trainables.export_model import read_model, read_test, write_model
from trainables.method_config import CrossEntropyConfig
from trainables.models import build_classifier
from trainables.trial_run import TrialRun


@pytest.fixture
def run() -> TrialRun:
    run = TrialRun()
    run.start(TrialConfig(epochs=2, method=CrossEntropyConfig()))
    run.run_epoch()
    return run


def test_an_exported_model_gives_the_same_logits(run: TrialRun, tmp_path: Path) -> None:
    write_model(tmp_path / "model.safetensors", run.classifier.state_dict(), run.config, run.loaded.data, run.loaded.format)
    classifier, config, _ = read_model(tmp_path / "model.safetensors")
    ((images, *_),) = run.loaded.val.batches([Request(torch.arange(20))])
    assert torch.equal(classifier(images), run.classifier.eval()(images))
    assert config == run.config


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_a_model_s_file_has_the_permissions_that_the_umask_gives(run: TrialRun, tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write_model(tmp_path / "model.safetensors", run.classifier.state_dict(), run.config, run.loaded.data, run.loaded.format)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model.safetensors").stat().st_mode) == mode


def test_an_exported_model_is_read_without_the_file_that_its_training_began_with(run: TrialRun, tmp_path: Path) -> None:
    config = TrialConfig(classifier=ResNetConfig(depth=10, weights=str(tmp_path / "gone.safetensors")))
    trained = build_classifier(config.classifier, (1, 8, 8), 10, seed=3, pretrained=False).eval()
    write_model(tmp_path / "model.safetensors", trained.state_dict(), config, run.loaded.data, run.loaded.format)
    classifier, read, _ = read_model(tmp_path / "model.safetensors")
    images = torch.randn(4, 1, 8, 8)
    assert torch.equal(classifier(images), trained(images))
    assert read == config
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        build_classifier(config.classifier, (1, 8, 8), 10, seed=3)


def test_the_file_says_how_to_use_it(run: TrialRun, tmp_path: Path) -> None:
    write_model(tmp_path / "model.safetensors", run.classifier.state_dict(), run.config, run.loaded.data, run.loaded.format)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["class_names"]) == [str(digit) for digit in range(10)]
    assert json.loads(metadata["image_shape"]) == [1, 8, 8]
    assert json.loads(metadata["normalisation"]) == {
        name: list(values) for name, values in run.loaded.format.normalisation._asdict().items()
    }
    assert metadata["split_sha256"] == run.loaded.data.sha256


def test_the_test_reading_is_what_a_plain_loop_finds(run: TrialRun, tmp_path: Path) -> None:
    write_model(tmp_path / "model.safetensors", run.classifier.state_dict(), run.config, run.loaded.data, run.loaded.format)
    data = run.loaded.data
    mean, std = (values[0] for values in run.loaded.format.normalisation)
    images = (torch.from_numpy(data.source.images[data.test.ids]).float() - mean) / std
    hits = run.classifier.eval()(images).argmax(1) == torch.from_numpy(data.test.labels)
    assert read_test(tmp_path / "model.safetensors")["test/acc"] == pytest.approx(hits.float().mean().item())


def test_a_test_set_of_other_images_is_not_read(run: TrialRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "model.safetensors", run.classifier.state_dict(), run.config, run.loaded.data, run.loaded.format)
    other = build_data(run.config.data, run.config.seed + 1)
    monkeypatch.setattr("trainables.export_model.build_data", lambda config, seed: other)
    with pytest.raises(
        ValueError, match=r"data: the images or labels are not those of .*model.safetensors: the split's sha256 was"
    ):
        read_test(tmp_path / "model.safetensors")
