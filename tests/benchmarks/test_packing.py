"""The comparison of ways to share a GPU, as far as a CPU can run it."""

import pytest

from benchmarks import packing
from benchmarks.packing import Load, measure, mps, of_processes

SMALL = Load(depth=20, image_size=8, batch_size=2, epochs=1, device="cpu")


@pytest.mark.slow
def test_two_processes_begin_together_and_each_trains() -> None:
    assert of_processes(SMALL, 2) > 0


def test_rates_are_told_as_multiples_of_one_trial_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "of_processes", lambda load, number: {1: 10.0, 2: 15.0, 4: 12.0}[number])
    assert measure(SMALL, (1, 2, 4)) == {
        "packing_alone_steps_per_s": 10.0,
        "packing_processes_2_over_alone": 1.5,
        "packing_processes_4_over_alone": 1.2,
        "packing_best": "processes_2",
    }


def test_without_mps_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(OSError, match=r"there is no nvidia-cuda-mps-control"), mps():
        pass
