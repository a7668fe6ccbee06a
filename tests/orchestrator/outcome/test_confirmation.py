from typing import Any

import pytest

from orchestrator.outcome.confirmation import confirmation, verdict
from orchestrator.outcome.tables import best_trial


def row(trial_id: str, value: float, confirms: str | None = None, seed: int = 0, status: str = "finished") -> dict[str, Any]:
    return {
        "trial_id": trial_id,
        "role": "confirm" if confirms else "search",
        "status": status,
        "seed": seed,
        "confirms": confirms,
        "config/select_by": "val/acc",
        "best/val/acc": value,
    }


def test_the_winner_has_the_best_mean_and_is_exported_by_its_best_run() -> None:
    rows = [row("t0", 0.9), row("t1", 0.8)]
    rows += [row("t2", 0.7, "t0", 1), row("t3", 0.75, "t1", 1), row("t4", 0.7, "t0", 2), row("t5", 0.76, "t1", 2)]
    found = confirmation(rows)
    assert found is not None
    assert found.comparison is not None
    means = [(summary.name, summary.mean) for summary in found.comparison.summaries]
    assert means == [("t1", pytest.approx(0.755)), ("t0", pytest.approx(0.7))]
    assert best_trial(rows)["trial_id"] == "t5"


def test_runs_are_compared_seed_by_seed_in_whatever_order_they_were_made() -> None:
    rows = [row("t2", 0.75, "t0", 1), row("t3", 0.5, "t1", 2), row("t4", 0.75, "t0", 2), row("t5", 0.5, "t1", 1)]
    rows += [row("t6", 0.5, "t0", 3), row("t7", 0.25, "t1", 3)]
    shuffled = [rows[number] for number in (0, 5, 2, 1, 4, 3)]
    for some_order in (rows, shuffled):  # on each seed t0 is better by a quarter, though the seeds differ as much
        found = confirmation(some_order)
        assert found is not None
        assert found.comparison is not None
        assert found.comparison.summaries[1].p_value == 0.0


def test_a_configuration_that_diverged_on_a_seed_is_out_of_the_running() -> None:
    rows = [row("t0", 0.9), row("t1", 0.8)]
    rows += [row("t2", 0.99, "t0", 1), row("t3", 0.6, "t1", 1), row("t4", 0.0, "t0", 2, "diverged"), row("t5", 0.7, "t1", 2)]
    found = confirmation(rows)
    assert found is not None
    assert found.comparison is not None
    assert ([summary.name for summary in found.comparison.summaries], found.left_out) == (["t1"], ["t0"])
    assert verdict(found.comparison) == "t1 is the only one, so there is nothing to tell it apart from"
    assert best_trial(rows)["trial_id"] == "t5"


def test_where_no_configuration_has_all_its_runs_the_search_decides_and_says_so() -> None:
    rows = [row("t0", 0.9), row("t1", 0.8), row("t2", 0.95, "t1", 1), row("t3", 0.9, "t1", 2, "failed")]
    found = confirmation(rows)
    assert found == (None, ["t1"])
    assert best_trial(rows)["trial_id"] == "t0"
    assert confirmation(rows[:2]) is None
    assert confirmation(rows[:3]) == (None, [])  # one seed has no spread
