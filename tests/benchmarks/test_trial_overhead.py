import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import trial_overhead
from benchmarks.trial_overhead import ARMS, gaps, main, measure


def test_a_trial_lasts_from_the_end_of_the_one_before() -> None:
    assert gaps(10.0, [15.0, 17.0, 20.0]) == [5.0, 2.0, 3.0]


def test_figures_are_medians_over_all_rounds_without_the_first_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = {
        "documented_2_workers": [[50.0, 7.0, 9.0], [70.0, 8.0, 8.0]],
        "ours_2_workers": [[20.0, 0.1, 0.3], [10.0, 0.2, 0.2]],
    }

    def run_arm(name: str, trials: int) -> list[float]:
        return rounds[name].pop(0) if name in rounds else [4.0, 1.0, 0.0]

    monkeypatch.setattr(trial_overhead, "run_arm", run_arm)
    found = measure(rounds=2, trials=3)
    assert (found["documented_2_workers_s"], found["documented_2_workers_first_s"]) == (8.0, 60.0)
    assert (found["ours_2_workers_s"], found["ours_2_workers_first_s"]) == (0.2, 15.0)
    assert found["documented_over_ours"] == pytest.approx(40.0)
    assert (found["compilations_first"], found["compilations_later"]) == (4.0, 1.0)


def test_an_arm_that_fails_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_overhead.sys, "executable", "false")
    for name in ARMS:
        with pytest.raises(RuntimeError, match=f"{name} ended with exit code 1"):
            trial_overhead.run_arm(name, 2)


def test_one_trial_is_not_enough(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--trials", "1"])
    assert "--trials is 1; allowed: at least 2" in capsys.readouterr().err


def test_neither_ray_nor_torch_is_loaded_before_an_arm_does() -> None:
    program = "import sys, benchmarks.trial_overhead; assert not {'ray', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
