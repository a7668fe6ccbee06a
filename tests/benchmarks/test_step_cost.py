import functools
import re
from collections.abc import Callable, Iterable

import pytest
import torch

from benchmarks import step_cost
from benchmarks.step_cost import (
    VARIANTS,
    Machine,
    OperationCount,
    bilevel_step,
    measure_methods,
    operations,
    peak_bytes,
    plain_step,
)
from trainables.classifier_config import ResNetCifarConfig
from trainables.methods import METHODS


@pytest.fixture(scope="module")
def machine() -> Machine:
    """What several tests trace the network on once."""
    return Machine(compiled=False, precision="float32", channels_last=False)


@pytest.fixture
def small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations come in the same ratios as with 32 pixels and batches of 128 and 100, in a sixteenth of the time."""
    monkeypatch.setattr(step_cost, "IMAGE_SIZE", 16)
    monkeypatch.setattr(step_cost, "BATCH_SIZE", 32)
    monkeypatch.setattr(step_cost, "META_BATCH_SIZE", 25)


@pytest.fixture
def few_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of 32 pixels, because smaller ones take too little memory beside the parameters, in a network of 20 layers."""
    monkeypatch.setattr(step_cost, "ResNetCifarConfig", functools.partial(ResNetCifarConfig, depth=20))
    monkeypatch.setattr(step_cost, "BATCH_SIZE", 32)
    monkeypatch.setattr(step_cost, "META_BATCH_SIZE", 25)


def test_operations_are_counted_as_they_are() -> None:
    a, b = torch.randn(3, 4), torch.randn(4, 5)
    assert operations(lambda: torch.autograd.grad((a.requires_grad_() @ b).sum(), a)) == 2 * (2 * 3 * 4 * 5)
    with OperationCount() as count:
        a + a
    assert count.total == 0


def test_peak_memory_is_what_lives_at_the_same_time(machine: Machine) -> None:
    if machine.device.type == "cuda":
        pytest.skip("counts on the CPU")

    def one_after_the_other() -> None:
        for _ in range(3):
            torch.ones(1000)

    def together() -> float:
        tensors = [torch.ones(1000) for _ in range(3)]
        return float(tensors[0][0])

    assert 4000 <= peak_bytes(machine, one_after_the_other) < 8000
    assert 12_000 <= peak_bytes(machine, together) < 16_000


def steps_of(machine: Machine, variants: Iterable[str]) -> dict[str, Callable[[], object]]:
    """A plain step and the variants of ours, each run once."""
    steps = {"plain": plain_step(machine)} | {name: bilevel_step(machine, VARIANTS[name]) for name in variants}
    for step in steps.values():
        step()
    return steps


@pytest.mark.slow
@pytest.mark.usefixtures("small_images")
def test_a_step_takes_the_operations_that_the_settings_promise(machine: Machine) -> None:
    """The numbers beside bilevel.meta_gradient in trainables/config.py."""
    count = {name: operations(step) for name, step in steps_of(machine, VARIANTS).items()}
    ratio = {name: round(value / count["plain"], 2) for name, value in count.items()}
    assert ratio == {
        "plain": 1,
        "exact": 3.11,
        "lean": 3.45,
        "double_backward": 4.12,
        "finite_difference": 2.78,
        "stale": 2.45,
        "none": 1,
    }


@pytest.mark.slow
@pytest.mark.usefixtures("few_layers")
def test_a_step_takes_the_memory_that_the_settings_promise(machine: Machine) -> None:
    """The numbers beside bilevel.memory in trainables/config.py."""
    memory = {name: peak_bytes(machine, step) for name, step in steps_of(machine, ("exact", "lean", "double_backward")).items()}
    assert memory["exact"] / memory["plain"] < 2.0
    assert memory["lean"] / memory["plain"] < 1.35
    assert memory["double_backward"] > 1.5 * memory["exact"]


@pytest.mark.slow
@pytest.mark.usefixtures("small_images")
def test_a_method_costs_what_its_kind_promises(machine: Machine) -> None:
    """The column `cost` of docs/methods.md."""
    found = measure_methods(machine, ["ldam_drw", "cb_da", "mfrw_mes"], repeats=1)
    ratio = {key.removesuffix("_flop_over_plain"): value for key, value in found.items() if key.endswith("_flop_over_plain")}
    assert {name: round(float(value), 2) for name, value in ratio.items()} == {
        "plain": 1,
        "method_ldam_drw": 1,
        "method_cb_da": 3.11,
        "method_mfrw_mes": 3.12,  # 3.11 for images of 32 pixels
    }
    assert float(found["method_ldam_drw_memory_over_plain"]) < 1.35
    assert float(found["method_cb_da_ms"]) > 0


def test_every_method_can_be_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []

    def measure(machine: Machine, names: list[str], repeats: int) -> dict[str, float | str]:
        measured.extend(names)
        return {"plain_ms": 1.0, "method_label_aware_smoothing_ms": 2.0}

    monkeypatch.setattr(step_cost, "measure_methods", measure)
    assert step_cost.main(["--methods", "all"]) == 0
    assert measured == [*METHODS]
    assert re.search(r"method_label_aware_smoothing +2\.00", capsys.readouterr().out)
    with pytest.raises(SystemExit):
        step_cost.main(["--methods", "focl"])
    assert "invalid choice: 'focl'" in capsys.readouterr().err
