"""What MLflow tells of a sweep beside its series; the events are written by hand."""

import math
from typing import Any

import pytest
from recorded import DIGITS

from orchestrator.config.sweep_config import read_sweep
from orchestrator.tracking.outcome import Outcome
from orchestrator.tracking.registry import Registered

START: dict[str, Any] = {"event": "sweep_start", "config": read_sweep(DIGITS).model_dump()}

CONFIG = {"method": {"meta_lr": 0.012345, "hidden_width": 16}, "epochs": 3}


def outcome(*events: dict[str, Any]) -> Outcome:
    found = Outcome()
    for event in (START, *events):
        found.apply(event)  # type: ignore[arg-type]
    return found


def trial(trial_id: str, *accuracies: float, best: int, status: str = "finished", **known: Any) -> list[dict[str, Any]]:
    """A trial from its suggestion to its end, with its accuracies by epoch and its best epoch."""
    suggested = {"event": "suggest", "trial_id": trial_id, "role": "search", "variant": "", "config": CONFIG, **known}
    epochs = [
        {"event": "epoch", "trial_id": trial_id, "epoch": epoch, "metrics": {"val/acc": value, "train/loss": 1.0}}
        for epoch, value in enumerate(accuracies, 1)
    ]
    end = {"event": "trial_end", "trial_id": trial_id, "status": status, "best_epoch": best, "best_value": accuracies[best - 1]}
    return [suggested, *epochs, end]


def test_a_trial_has_its_best_and_its_last_values() -> None:
    ended = outcome(*trial("t0", 0.5, 0.7, 0.6, best=2)).ended["t0"]
    assert (ended.best, ended.last_epoch, ended.last) == ({"val/acc": 0.7}, 3, {"val/acc": 0.6})


def test_a_trial_that_went_back_to_an_earlier_state_has_the_last_values_of_its_last_way() -> None:
    first = trial("t0", 0.5, 0.7, 0.6, best=2, status="interrupted")
    again = [{"event": "epoch", "trial_id": "t0", "epoch": 2, "metrics": {"val/acc": 0.8}}]
    end = {"event": "trial_end", "trial_id": "t0", "status": "stopped_early", "best_epoch": 2, "best_value": 0.8}
    ended = outcome(*first, *again, end).ended["t0"]
    assert (ended.best, ended.last_epoch, ended.last) == ({"val/acc": 0.8}, 2, {"val/acc": 0.8})


def test_a_configuration_on_fresh_seeds_has_mean_deviation_and_interval_without_the_seed_that_it_was_chosen_on() -> None:
    fresh = [("t1", 0.6, "finished"), ("t2", 0.8, "finished"), ("t3", 0.1, "diverged")]
    events = trial("t0", 0.9, best=1)
    for trial_id, value, status in fresh:
        events += trial(trial_id, value, best=1, status=status, role="confirm", confirms="t0")
    found = outcome(*events).over_seeds("t0")
    assert (found["seeds/n"], found["seeds/mean"], found["seeds/sd"]) == (2, pytest.approx(0.7), pytest.approx(math.sqrt(0.02)))
    half = 12.706204736432095 * math.sqrt(0.02) / math.sqrt(2)  # Student's t with 1 degree of freedom, from a table
    assert (found["seeds/low"], found["seeds/high"]) == (pytest.approx(0.7 - half), pytest.approx(0.7 + half))
    one = [*trial("t0", 0.9, best=1), *trial("t1", 0.7, best=1, role="confirm", confirms="t0")]
    assert outcome(*one).over_seeds("t0") == {}


def test_the_outcome_in_words_links_the_best_trial_and_the_references() -> None:
    export = {"event": "export", "trial_id": "t1", "metrics": {"test/acc": 0.65}}
    told = outcome(
        *trial("t0", 0.6, best=1, role="reference", variant="paper"),
        *trial("t1", 0.7, best=1),
        *trial("t2", 0.1, best=1, status="diverged"),
        export,
    )
    assert told.best_and_references() == ["t1", "t0"]
    registered = Registered("flowers", "3", "the champion is better")
    text = told.in_words("demo", {"t0": "aaa", "t1": "bbb"}, "7", [("all trials", "/#/x")], registered)
    assert text.startswith("**demo**: 3 trials: 2 finished, 1 diverged.")
    assert "| [t1](#/experiments/7/runs/bbb) | **best** | 0.7000 |" in text
    assert "| [t0](#/experiments/7/runs/aaa) | paper | 0.6000 |" in text
    assert "Settings of t1: method.meta_lr 0.0123, method.hidden_width 16." in text
    assert "read once: 0.6500" in text
    assert "[all trials](#/x)" in text
    assert "[version 3](#/models/flowers/versions/3) of the model flowers, not the champion: the champion is better." in text
