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
from trainables.methods import METHODS


def test_operations_are_counted_as_they_are() -> None:
    a, b = torch.randn(3, 4), torch.randn(4, 5)
    assert operations(lambda: torch.autograd.grad((a.requires_grad_() @ b).sum(), a)) == 2 * (2 * 3 * 4 * 5)
    with OperationCount() as count:
        a + a
    assert count.total == 0


def test_peak_memory_is_what_lives_at_the_same_time() -> None:
    machine = Machine(compiled=False, precision="float32", channels_last=False)
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


@pytest.mark.slow
def test_a_step_takes_the_operations_and_the_memory_that_the_settings_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers beside bilevel.meta_gradient and bilevel.memory in trainables/config.py."""
    monkeypatch.setattr(step_cost, "IMAGE_SIZE", 16)  # operations come in the same ratios, in a quarter of the time
    monkeypatch.setattr(step_cost, "BATCH_SIZE", 32)
    monkeypatch.setattr(step_cost, "META_BATCH_SIZE", 25)  # as 128 to 100
    machine = Machine(compiled=False, precision="float32", channels_last=False)

    def steps_of(variants: Iterable[str]) -> dict[str, Callable[[], object]]:
        steps = {"plain": plain_step(machine)} | {name: bilevel_step(machine, VARIANTS[name]) for name in variants}
        for step in steps.values():
            step()
        return steps

    steps = steps_of(VARIANTS)
    count = {name: operations(step) for name, step in steps.items()}
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
    monkeypatch.setattr(step_cost, "IMAGE_SIZE", 32)  # smaller images take too little memory beside the parameters
    memory = {name: peak_bytes(machine, step) for name, step in steps_of(("exact", "lean", "double_backward")).items()}
    assert memory["exact"] / memory["plain"] < 2.0
    assert memory["lean"] / memory["plain"] < 1.35
    assert memory["double_backward"] > 1.5 * memory["exact"]


@pytest.mark.slow
def test_a_method_costs_what_its_kind_promises(monkeypatch: pytest.MonkeyPatch) -> None:
    """The column `cost` of docs/methods.md."""
    monkeypatch.setattr(step_cost, "IMAGE_SIZE", 16)
    monkeypatch.setattr(step_cost, "BATCH_SIZE", 32)
    monkeypatch.setattr(step_cost, "META_BATCH_SIZE", 25)
    machine = Machine(compiled=False, precision="float32", channels_last=False)
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
