"""What each arm reached: numbers by hand, and what is left out."""

import math
from typing import Any

import pytest

from orchestrator.outcome.arm_results import ArmResult, arm_results

ARMS = ["plain", "slow", "lost"]


def row(arm: str, value: float | None, seed: int = 0, confirms: str | None = None, status: str = "finished") -> dict[str, Any]:
    role = "confirm" if confirms else "search"
    known = {"role": role, "variant": arm, "seed": seed, "confirms": confirms, "status": status}
    return {"trial_id": "t", "config/select_by": "val/acc", "best/val/acc": value, **known}


SEARCHED = [row("plain", 0.6), row("plain", 0.7), row("slow", 0.9, status="stopped_early"), row("slow", 0.5), row("lost", 0.8)]


def test_arms_are_compared_by_their_confirmed_means_in_pairs_of_seeds() -> None:
    runs = [row("plain", 0.50, 1, "t1"), row("plain", 0.60, 2, "t1"), row("plain", 0.55, 3, "t1")]
    runs += [row("slow", 0.54, 1, "t3"), row("slow", 0.62, 2, "t3"), row("slow", 0.61, 3, "t3")]
    runs += [row("lost", 0.90, 1, "t4"), row("lost", 0.90, 2, "t4"), row("lost", None, 3, "t4", status="diverged")]
    slow, plain, lost = arm_results([*SEARCHED, *runs], ARMS)
    assert (slow.name, slow.num_trials, slow.best, slow.configuration) == ("slow", 2, 0.5, "t3")
    assert slow.mean == pytest.approx(0.59)
    assert slow.sd == pytest.approx(math.sqrt((0.05**2 + 0.03**2 + 0.02**2) / 2))
    assert slow.gain == pytest.approx(0.04)  # of 0.04, 0.02 and 0.06
    assert slow.gain_half == pytest.approx(4.302653 * 0.02 / math.sqrt(3))  # of Student's t with 2 degrees of freedom
    assert (plain.name, plain.best, plain.gain, plain.gain_half) == ("plain", 0.7, None, None)
    assert plain.mean == pytest.approx(0.55)
    assert lost == ArmResult("lost", 1, 0.8, None, None, None, None, None)  # two seeds of three would flatter it


def test_the_configuration_with_the_highest_mean_stands_for_its_arm() -> None:
    runs = [row("plain", 0.5, 1, "t0"), row("plain", 0.7, 2, "t0"), row("plain", 0.6, 1, "t1"), row("plain", 0.65, 2, "t1")]
    (plain,) = arm_results([*SEARCHED, *runs], ["plain"])
    assert (plain.configuration, plain.mean) == ("t1", pytest.approx(0.625))


def test_without_a_confirmation_arms_stand_by_their_best_trials() -> None:
    results = arm_results([*SEARCHED, row("new", None, status="failed")], [*ARMS, "new"])
    assert [(result.name, result.best, result.mean) for result in results] == [
        ("lost", 0.8, None),
        ("plain", 0.7, None),
        ("slow", 0.5, None),
        ("new", None, None),
    ]
