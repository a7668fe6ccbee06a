import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from trainables.classifier_config import ResNetConfig
from trainables.config import TrialConfig
from trainables.data.loaded import load_data
from trainables.data_config import DigitsConfig
from trainables.export_model import write_model
from trainables.models import Classifier, build_classifier
from trainables.models.heads import HEADS

State = dict[str, Tensor]
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def theirs() -> torch.nn.Module:
    """torchvision's ResNet-18 with statistics that have moved."""
    torch.manual_seed(1)
    model = torchvision.models.resnet18()
    model(torch.randn(8, 3, 32, 32))
    return model.eval()


def features(model: torch.nn.Module) -> Tensor:
    """Of torchvision's own model: what its head is given."""
    seen: list[Tensor] = []
    handle = model.fc.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    model(IMAGES)
    handle.remove()
    return seen[0]


def build(weights: Path | None, depth: int = 18, channels: int = 3, **settings: Any) -> Classifier:
    config = ResNetConfig(depth=depth, weights=None if weights is None else str(weights), **settings)
    return build_classifier(config, (channels, 32, 32), 5, seed=0).eval()


def error_of(path: Path, **settings: Any) -> str:
    with pytest.raises(ValueError, match=r"classifier\.weights: ") as error:
        build(path, **settings)
    return str(error.value).replace(str(path), "FILE")


def with_prefix(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + name: value for name, value in state.items()}


FORMS: dict[str, Callable[[State], Any]] = {
    "torchvision's": lambda state: state,
    "state_dict among other things": lambda state: {"epoch": 3, "state_dict": state, "arch": "resnet18"},
    "model among other things": lambda state: {"model": state, "optimizer": {"state": {0: torch.ones(2)}, "lr": 0.1}},
    "DataParallel's": with_prefix("module."),
    "a whole classifier's": with_prefix("backbone."),
    "a whole classifier's in DataParallel, wrapped": lambda state: {"state_dict": with_prefix("module.backbone.")(state)},
    "without a head": lambda state: {name: value for name, value in state.items() if not name.startswith("fc.")},
    "before torch counted batches": lambda s: {name: v for name, v in s.items() if not name.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_of_a_torch_file_give_torchvisions_features(theirs: torch.nn.Module, form: str, tmp_path: Path) -> None:
    torch.save(FORMS[form](theirs.state_dict()), tmp_path / "weights.pth")
    assert torch.equal(build(tmp_path / "weights.pth").backbone(IMAGES), features(theirs))
    assert not torch.equal(build(None).backbone(IMAGES), features(theirs))


def test_weights_of_a_torch_file_of_old_are_read(theirs: torch.nn.Module, tmp_path: Path) -> None:
    torch.save(theirs.state_dict(), tmp_path / "weights.pth.tar", _use_new_zipfile_serialization=False)
    assert torch.equal(build(tmp_path / "weights.pth.tar").backbone(IMAGES), features(theirs))


@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_weights_of_a_safetensors_file_give_torchvisions_features(theirs: torch.nn.Module, prefix: str, tmp_path: Path) -> None:
    save_file(with_prefix(prefix)(theirs.state_dict()), tmp_path / "weights.safetensors")
    assert torch.equal(build(tmp_path / "weights.safetensors").backbone(IMAGES), features(theirs))


@pytest.mark.parametrize("head", HEADS)
def test_with_weights_the_head_still_comes_from_the_seed(theirs: torch.nn.Module, head: str, tmp_path: Path) -> None:
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    with_weights, without = build(tmp_path / "weights.safetensors", head=head), build(None, head=head)
    assert torch.equal(with_weights.head.weight, without.head.weight)


def test_the_path_is_kept_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert ResNetConfig(weights="folder/x.pth").weights == str(tmp_path / "folder" / "x.pth")
    assert ResNetConfig(weights="~/x.pth").weights == "/home/me/x.pth"
    assert ResNetConfig().weights is None


class Planted:
    """A pickle of it writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_file_with_a_program_in_it_is_refused_and_not_run(theirs: torch.nn.Module, tmp_path: Path) -> None:
    torch.save({"state_dict": theirs.state_dict(), "args": Planted(tmp_path / "ran")}, tmp_path / "weights.pth")
    message = error_of(tmp_path / "weights.pth")
    assert message.startswith(
        "classifier.weights: FILE cannot be read (UnpicklingError); allowed: a .safetensors file, or a torch "
    )
    assert "weights_only" not in message  # torch's own message says how to run it
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "weights.pth", weights_only=False)
    assert (tmp_path / "ran").exists()


def zipped(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
@pytest.mark.parametrize(
    "content", [b"", b"no weights", zipped(torch.ones(100))[:200], pickle.dumps({"a": object()}), bytes(range(256))]
)
def test_a_damaged_file_is_refused_by_name(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert error_of(tmp_path / name).startswith("classifier.weights: FILE cannot be read (")


def test_a_file_that_is_not_there_and_a_folder_are_refused(tmp_path: Path) -> None:
    for suffix in ("safetensors", "pth"):
        missing = tmp_path / f"missing.{suffix}"
        assert error_of(missing) == "classifier.weights: FILE cannot be read: No such file or directory"
    assert error_of(tmp_path) == "classifier.weights: FILE cannot be read: Is a directory"


def changed(**changes: Any) -> Callable[[State], Any]:
    """The state dict with other values; None takes a tensor out."""
    return lambda state: {n: value for n, value in (state | changes).items() if value is not None}


LAST = "layer4.1.bn2.weight"


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (changed(**{LAST: None}), {}, f"lacks {LAST}; is it of another depth than 18?"),
        (changed(x=torch.ones(1)), {}, "has x, which a ResNet-18 has not; is it of another depth than 18?"),
        (changed(**{LAST: torch.ones(3)}), {}, f"has {LAST} of shape (3,), expected (512,); is it of another depth than 18?"),
        (changed(**{LAST: 3.0}), {}, f"has {LAST} of shape float, expected (512,); is it of another depth than 18?"),
        (changed(**{"layer4.1.bn2.running_mean": None}), {}, "lacks layer4.1.bn2.running_mean; is it of another depth than 18?"),
        (
            lambda state: state,
            {"channels": 1},
            "has conv1.weight of shape (64, 3, 7, 7), expected (64, 1, 7, 7); is it of another number of channels than 1?",
        ),
        (
            lambda state: state,
            {"depth": 34},
            "lacks layer1.2.conv1.weight (and 79 more); is it of another depth than 34?",
        ),
        (
            lambda state: state,
            {"depth": 10},
            "has layer1.1.conv1.weight (and 47 more), which a ResNet-10 has not; is it of another depth than 10?",
        ),
        (
            lambda state: state,
            {"depth": 50},
            "lacks layer1.0.conv3.weight (and 164 more); has layer1.0.conv1.weight (and 22 more) of shape (64, 64, 3, 3), "
            "expected (64, 64, 1, 1); is it of another depth than 50?",
        ),
        (lambda state: [], {}, "holds a list; expected a state dict, tensors by name"),
        (
            lambda state: state | {"module.conv1.weight": state["conv1.weight"]},
            {},
            "has names that differ only in their prefix; keep one state dict in it",
        ),
    ],
)
def test_weights_that_do_not_fit_are_answered_with_given_and_expected(
    theirs: torch.nn.Module, change: Callable[[State], Any], settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    torch.save(change(theirs.state_dict()), tmp_path / "weights.pth")
    assert error_of(tmp_path / "weights.pth", **settings) == f"classifier.weights: FILE {message}"


def test_an_exported_model_can_be_the_pretrained_weights_of_another(tmp_path: Path) -> None:
    first = build_classifier(ResNetConfig(depth=10), (1, 8, 8), 10, seed=7).eval()
    digits = load_data(DigitsConfig(), 0, torch.device("cpu"), 0)
    write_model(tmp_path / "model.safetensors", first.state_dict(), TrialConfig(), digits.data, digits.format)
    second = build(tmp_path / "model.safetensors", depth=10, channels=1)
    assert torch.equal(second.backbone(IMAGES[:, :1]), first.backbone(IMAGES[:, :1]))
