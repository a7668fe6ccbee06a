from typing import Any

from orchestrator.ledger.events import Event
from orchestrator.ledger.trial_states import TrialState, TrialStates, trial_states_of

SUGGESTED: list[Event] = [
    {"event": "suggest", "trial_id": trial_id, "role": "search", "variant": "", "seed": 0, "config": {"select_by": "val/acc"}}
    for trial_id in ("t0000", "t0001")
]


def epoch(number: int, value: float | None, attempt: int = 1, trial_id: str = "t0000") -> Event:
    metrics: dict[str, Any] = {"val/acc": value, "time_s": attempt}
    return {"event": "epoch", "trial_id": trial_id, "epoch": number, "attempt": attempt, "metrics": metrics}


def first(events: list[Event]) -> TrialState:
    return trial_states_of([*SUGGESTED, *events])["t0000"]


def test_of_equal_epochs_the_first_is_the_best_and_one_without_a_number_is_none() -> None:
    member = first([epoch(1, None), epoch(2, 0.5), epoch(3, 0.75), epoch(4, 0.75), epoch(5, None)])
    assert (member.best_epoch, member.best_value, member.epoch) == (3, 0.75, 5)
    assert first([epoch(1, None)]).best_value is None


def test_of_a_best_epoch_that_is_repeated_the_last_attempt_counts() -> None:
    member = first([epoch(1, 0.5), epoch(2, 0.75), epoch(3, 0.25), epoch(2, 0.75, attempt=2)])
    assert (member.best_epoch, member.best_metrics["time_s"], member.epoch) == (2, 2, 2)


def test_a_damaged_state_is_lost_to_its_own_trial_though_another_found_it() -> None:
    saved = [{"event": "checkpoint", "trial_id": "t0000", "epoch": n, "path": f"{n}", "sha256": ""} for n in (1, 2)]
    damaged = {"event": "damaged", "trial_id": "t0001", "epoch": 1, "path": "2", "reason": "flipped"}
    assert [checkpoint.epoch for checkpoint in first([*saved, damaged]).checkpoints] == [1]


def test_each_start_and_each_loss_has_an_attempt_of_its_own() -> None:
    events: list[Event] = [
        {"event": "trial_start", "trial_id": "t0000", "attempt": 2},
        {"event": "group_lost", "trial_id": "t0000", "epoch": 1, "reason": "gone"},
        {"event": "retry", "trial_id": "t0000", "attempt": 4, "reason": "gone"},
    ]
    assert [first(events[:count]).attempt for count in range(4)] == [1, 2, 3, 4]
    assert [first(events[:count]).failures for count in range(4)] == [0, 0, 0, 1]


def test_an_interrupted_trial_is_where_it_was_and_runs_again_when_it_is_taken_up() -> None:
    start = {"event": "trial_start", "trial_id": "t0000", "attempt": 1}
    interrupted = {"event": "trial_end", "trial_id": "t0000", "status": "interrupted", "stop_reason": None}
    assert (first([start, interrupted]).state, first([start, interrupted]).status) == ("running", "interrupted")
    assert first([start, interrupted, start]).status == "running"
    members: TrialStates = trial_states_of([*SUGGESTED, start])
    assert [member.trial_id for member in members.in_state("waiting")] == ["t0001"]


def test_a_trial_that_has_ended_keeps_the_settings_that_it_ran_with_but_finds_its_images() -> None:
    before = {"select_by": "val/acc", "threads": 1, "data": {"root": "old"}, "seed": 0}
    now = before | {"threads": 4, "data": {"root": "new"}}
    events: list[Event] = [
        {"event": "sweep_start", "config": {"trial": before}},
        *({**event, "config": before} for event in SUGGESTED),
        {"event": "trial_start", "trial_id": "t0000", "attempt": 1},
        {"event": "trial_end", "trial_id": "t0000", "status": "finished", "stop_reason": None},
        {"event": "sweep_resume", "config": {"trial": now}},
    ]
    ended, waiting = trial_states_of(events).values()
    assert ended.config == before | {"data": {"root": "new"}}
    assert waiting.config == ended.onward == now
    assert ended.configuration == waiting.configuration  # other threads make no other configuration
