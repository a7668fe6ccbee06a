import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from exports import export_of, val_images
from PIL import Image

import trainables
from trainables import load_model
from trainables.config_file import ConfigError
from trainables.files import file_sha256
from trainables.inference import Model
from trainables.model_folder import MODEL
from trainables.trial_run import TrialRun

PAGE = Path(__file__).parents[2] / "docs" / "how_to" / "use_the_model.md"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrialRun, float]:
    """A folder with a model of the digits, the trial, and its val/acc. The method adjusts its predictions."""
    folder = tmp_path_factory.mktemp("digits")
    run, accuracy = export_of(folder, {"epochs": 2, "method": {"name": "logit_adjustment", "where": "prediction"}})
    return folder, run, accuracy


def test_the_probabilities_are_those_of_the_formulas(digits: tuple[Path, TrialRun, float]) -> None:
    """Normalisation and adjustment, written out."""
    folder, run, _ = digits
    module, _, names = load_model(folder)
    images, _ = val_images(run)
    (mean,), (std,) = run.loaded.format.normalisation
    classifier = run.classifier.eval()
    assert run.best is not None
    classifier.load_state_dict(run.best.phi)
    counts = torch.from_numpy(run.loaded.data.class_counts).double()
    with torch.no_grad():
        logits = classifier.head(classifier.backbone((images.float() - mean) / std))
        expected = torch.exp(logits) / (counts / counts.sum())
    expected = expected / expected.sum(1, keepdim=True)
    assert torch.allclose(module(images), expected.float(), atol=1e-6)
    assert names == tuple("0123456789")


def test_the_accuracy_on_val_is_that_of_the_trial(digits: tuple[Path, TrialRun, float]) -> None:
    folder, run, accuracy = digits
    images, labels = val_images(run)
    assert (load_model(folder).module(images).argmax(1) == labels).double().mean().item() == pytest.approx(accuracy, abs=1e-9)


def test_a_loaded_model_neither_learns_nor_depends_on_the_batch(digits: tuple[Path, TrialRun, float]) -> None:
    module = load_model(digits[0]).module
    images, _ = val_images(digits[1])
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert not module(images).requires_grad
    assert torch.allclose(torch.cat([module(one[None]) for one in images[:9]]), module(images)[:9], atol=1e-6)


def test_the_lines_of_the_docs_load_a_model_and_predict_an_image(
    digits: tuple[Path, TrialRun, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results" / "digits_lt").mkdir(parents=True)
    (tmp_path / "results" / "digits_lt" / "best").symlink_to(digits[0])
    images, labels = val_images(digits[1])
    right = next(
        number for number, image in enumerate(images) if load_model(digits[0]).module(image[None]).argmax() == labels[number]
    )
    Image.fromarray(np.round(images[right, 0].numpy() * 255 / 16).astype(np.uint8)).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    (snippet,) = [code for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "load_model" in code]
    assert len([line for line in snippet.splitlines() if line]) == 5
    exec(snippet, {})
    assert capsys.readouterr().out.strip() == str(labels[right].item())


@pytest.mark.slow
def test_importing_the_package_loads_no_torch() -> None:
    program = """if True:
        import sys
        import trainables
        assert not {"torch", "numpy", "PIL", "pydantic"} & set(sys.modules)
        assert dir(trainables) == ["Model", "load_model"]
        from trainables import load_model
        assert "torch" in sys.modules
    """
    subprocess.run([sys.executable, "-c", program], check=True)
    assert trainables.Model is Model
    with pytest.raises(AttributeError, match="has no attribute 'load'; it has Model, load_model"):
        trainables.load  # noqa: B018


def test_a_place_without_a_model_is_an_error_that_says_where_one_is(digits: tuple[Path, TrialRun, float], tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="gone: there is no such folder; allowed: the folder of an export, as results/NAME/best"
    ):
        load_model(tmp_path / "gone")
    with pytest.raises(ConfigError, match=f"{MODEL}: is a file"):
        load_model(digits[0] / MODEL)
    with pytest.raises(ConfigError, match=f"holds no {MODEL}; allowed: the folder of an export, as results/NAME/best$"):
        load_model(tmp_path)
    (tmp_path / "ledger.jsonl").touch()
    with pytest.raises(ConfigError, match=r"`\S+ -m orchestrator.export .*` makes one"):
        load_model(tmp_path)
    (tmp_path / "best").symlink_to(digits[0])
    with pytest.raises(ConfigError, match=r"is a results folder; its exported model is in .*best"):
        load_model(str(tmp_path))


@pytest.fixture
def copy(digits: tuple[Path, TrialRun, float], tmp_path: Path) -> Path:
    (tmp_path / MODEL).write_bytes((digits[0] / MODEL).read_bytes())
    return tmp_path


def test_a_damaged_file_is_an_error(copy: Path) -> None:
    file = copy / MODEL
    content = file.read_bytes()
    for damaged in (b"", b"nonsense" * 100, content[:-100], content[: len(content) // 2]):
        file.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"model.safetensors: not a model that can be read \(\w+: .*\); export it again"):
            load_model(copy)


def test_a_file_without_our_metadata_is_no_model(copy: Path) -> None:
    from safetensors.torch import save_file

    for metadata in (None, {"trial": "{}"}, {"trial": "[]", "image_shape": "[1]", "class_counts": "[1]"}):
        save_file({"a": torch.zeros(1)}, copy / MODEL, metadata)
        with pytest.raises(ConfigError, match="not a model that can be read"):
            load_model(copy)


def test_of_an_export_a_flipped_bit_is_noticed(copy: Path) -> None:
    file = copy / MODEL
    (copy / "provenance.json").write_text(json.dumps({"files": {MODEL: file_sha256(file)}}))
    load_model(copy)
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"was changed since its export: its sha256 is [0-9a-f]{64}, provenance.json has"):
        load_model(copy)
    (copy / "provenance.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"provenance\.json: not the provenance of an export"):
        load_model(copy)
