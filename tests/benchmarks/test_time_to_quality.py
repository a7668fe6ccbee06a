import json
from pathlib import Path

import pytest

from benchmarks.time_to_quality import Milestones, command_of, measure
from orchestrator.sweep import parse


def test_the_time_is_that_of_the_first_epoch_that_is_good_enough(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    milestones = Milestones(ledger, {1: 0.8, 2: 0.85, 3: 0.95})
    assert not milestones.all_reached()
    events = [
        {"time": 1.0, "event": "suggest"},
        *({"time": t, "metrics": {"val/acc": v}} for t, v in ((2, 0.7), (3, 0.8), (4, 0.9))),
    ]
    ledger.write_text("".join(json.dumps(event) + "\n" for event in events) + '{"time": 5, "metr')
    assert not milestones.all_reached()
    assert milestones.times == {1: 3, 2: 4}
    with ledger.open("a") as file:
        file.write('ics": {"val/acc": 0.97}}\n')
    assert milestones.all_reached()
    assert milestones.times == {1: 3, 2: 4, 3: 5}


def test_figures_are_medians_and_those_that_never_got_there_are_counted() -> None:
    seconds = {"ours": [10.0, 30.0, 20.0], "plain": [100.0, 900.0, 60.0]}
    found = measure(3, 900, lambda arm, seed, limit: {0.95: 2.0, 0.97: seconds[arm][seed] / 2, 0.99: seconds[arm][seed]})
    assert (found["ours_s"], found["plain_tune_s"], found["speedup"]) == (20, 100, 5)
    assert (found["ours_censored"], found["plain_censored"], found["plain_censored_at_97"]) == (0, 1, 0)
    assert found["speedup_of_means"] == pytest.approx(1060 / 60)
    assert (found["ours_s_at_97"], found["plain_1_s_at_97"], found["speedup_at_95"]) == (10, 450, 1)


def test_ours_is_the_default_sweep_with_more_trials(tmp_path: Path) -> None:
    given = parse(command_of("ours", 3, tmp_path / "ours")[3:])
    assert given.sweep.name == "digits_lt.yaml"
    assert given.overrides == ["search.trials=1000", "search.seed=3", "search.deterministic=false"]
