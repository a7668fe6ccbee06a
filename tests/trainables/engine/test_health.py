import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainables.engine.health import LOOK_EVERY, DeadMetaGradient, Diverged, Health, OutOfMemory, lever, within_memory
from trainables.machine import peak_resident
from trainables.methods.base import DEAD_AFTER


def measured(**changed: float) -> dict[str, Tensor]:
    values = {"virtual/loss": 1.0, "meta/loss": 2.0, "meta/grad_norm": 0.5, "train/loss": 3.0, "train/grad_norm": 4.0}
    return {name: torch.tensor(changed.get(name.replace("/", "_"), value)) for name, value in values.items()}


def test_the_reported_quantities_are_averaged_over_the_steps_that_have_them() -> None:
    health = Health(DEAD_AFTER)
    health.record(0, measured(train_loss=1.0), alpha=0.1)
    health.record(1, {"train/loss": torch.tensor(2.0)}, alpha=0.1)
    assert health.epoch_means() == {"train/loss": 1.5, "meta/loss": 2.0, "meta/grad_norm": 0.5}
    health.record(2, measured(), alpha=0.1)
    assert health.epoch_means()["train/loss"] == 3.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_step_and_the_first_quantity_that_broke_are_named(value: float) -> None:
    health = Health(DEAD_AFTER)
    health.record(6, measured(), alpha=0.1)
    health.record(7, measured(meta_loss=value, train_loss=math.nan), alpha=0.1)
    health.record(8, measured(virtual_loss=math.nan), alpha=0.1)
    with pytest.raises(Diverged, match=rf"^meta/loss became {value} in step 8$"):
        health.epoch_means()


def test_a_broken_trial_does_not_go_on_to_the_end_of_a_long_epoch() -> None:
    health = Health(DEAD_AFTER)
    for step in range(LOOK_EVERY - 1):
        health.record(step, measured(train_loss=math.nan), alpha=0.1)
    with pytest.raises(Diverged, match=r"in step 1$"):
        health.record(LOOK_EVERY, measured(), alpha=0.1)


def feed(health: Health, norms: list[float], alpha: float = 0.1, first_step: int = 0) -> None:
    for step, norm in enumerate(norms, first_step):
        health.record(step, measured(meta_grad_norm=norm), alpha)
    health.epoch_means()


def test_twenty_meta_gradients_of_exactly_zero_end_the_trial() -> None:
    feed(Health(DEAD_AFTER), [0.0] * (DEAD_AFTER - 1))
    with pytest.raises(DeadMetaGradient, match="exactly 0 in 20 consecutive updates up to step 20"):
        feed(Health(DEAD_AFTER), [0.0] * DEAD_AFTER)


def test_the_count_goes_on_over_epochs_and_starts_again_after_a_live_one() -> None:
    health = Health(DEAD_AFTER)
    feed(health, [0.0] * 19)
    feed(health, [1e-30], first_step=19)
    feed(health, [0.0] * 12, first_step=20)
    assert health.zero_updates == 12
    with pytest.raises(DeadMetaGradient):
        feed(Health(DEAD_AFTER, zero_updates=12), [0.0] * 8)


def test_steps_without_an_update_of_theta_do_not_count() -> None:
    health = Health(DEAD_AFTER)
    feed(health, [0.0] * 10)
    for step in range(30):
        health.record(step, {"train/loss": torch.tensor(1.0)}, alpha=0.1)
    health.epoch_means()
    assert health.zero_updates == 10


def test_zeros_are_no_alarm_without_a_step_or_where_no_meta_gradient_is_wanted() -> None:
    feed(Health(DEAD_AFTER), [0.0] * 60, alpha=0.0)
    feed(Health(None), [0.0] * 60)


def test_python_without_memory_ends_the_trial_with_the_size_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainables.engine.health.peak_resident", lambda: 3 * 2**30)
    with pytest.raises(OutOfMemory) as caught, within_memory("in epoch 7"):
        bytearray(2**62)
    assert caught.value.status == "failed"
    assert str(caught.value) == (
        "out of memory in epoch 7: this process took up to 3.0 GiB; what helps: a smaller optim.batch_size, "
        "bilevel.meta_batch_size or compute.micro_batch, bilevel.memory=lean, or fewer trials side by side"
    )


def test_torch_without_memory_on_a_cpu_ends_the_trial_too() -> None:
    with pytest.raises(OutOfMemory, match="at the start: this process took"), within_memory("at the start"):
        torch.empty(2**60)


@pytest.mark.parametrize("error", [RuntimeError("shapes do not fit"), ValueError("data.root"), Diverged("train/loss")])
def test_other_errors_are_none_of_memory(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, within_memory("in epoch 1"):
        raise error
    assert caught.value is error


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_the_size_of_the_process_is_in_bytes() -> None:
    """Linux may count what the process was before it became this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    known = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    assert 0.9 * known < peak_resident() < 100 * known


def test_the_lever_is_the_meta_gradient_next_to_the_lengths_of_its_factors() -> None:
    assert lever(0.5, 2.0, 5.0) == 0.05
    assert lever(0.0, 2.0, 5.0) == 0
    assert lever(None, 2.0, 5.0) is lever(0.5, None, 5.0) is lever(0.5, 0.0, 5.0) is lever(0.5, 2.0, 0.0) is None


def test_an_epochs_lever_is_that_of_the_means() -> None:
    health = Health(DEAD_AFTER)
    for step, (gradient, v) in enumerate([(0.2, 1.0), (0.6, 3.0)]):
        lengths = {"meta/grad_norm": gradient, "meta/v_norm": v, "train/grad_norm": 4.0}
        health.record(step, {name: torch.tensor(length, dtype=torch.float64) for name, length in lengths.items()}, alpha=0.1)
    assert set(health.epoch_means()) == {"meta/grad_norm"}
    assert health.lever == pytest.approx(0.4 / (2 * 4))
    health.record(2, {"train/grad_norm": torch.tensor(1.0)}, alpha=0.1)
    health.epoch_means()
    assert health.lever is None
