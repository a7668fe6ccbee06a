import tracemalloc
from pathlib import Path

import pytest

from orchestrator.ledger.ledger import LEDGER, Ledger, read_ledger
from orchestrator.ledger.stored import BLOCK
from orchestrator.ledger.trial_states import trial_states_of
from orchestrator.ledger.usage import usage_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with Ledger(tmp_path) as ledger:
        for epoch in range(2 * BLOCK + 3):
            ledger.append("epoch", trial_id="t0000", epoch=epoch, attempt=1, metrics={"val/acc": epoch / 7})
    return tmp_path


def test_events_from_the_file_are_what_a_list_of_them_would_be(folder: Path) -> None:
    stored, listed = read_ledger(folder), list(read_ledger(folder))
    assert len(stored) == len(listed) == 2 * BLOCK + 3
    assert [event["n"] for event in listed] == list(range(len(listed)))
    assert list(reversed(stored)) == listed[::-1]
    for index in (0, 5, BLOCK, -1):
        assert stored[index] == listed[index]
    for part in (slice(2, 9), slice(None, 3), slice(-4, None), slice(None, None, 500), slice(9, 2)):
        assert stored[part] == listed[part]
    assert list(stored.up_to(7)) == listed[:7]
    with pytest.raises(IndexError):
        stored[len(listed)]


def test_what_is_written_later_does_not_change_the_events_from_before(folder: Path) -> None:
    with Ledger(folder) as ledger:
        past, number = ledger.past, len(ledger.past)
        ledger.append("slots", slots=2, gpus_per_slot=0)
        assert (len(past), len(ledger.events)) == (number, number + 1)
        assert past[-1]["event"] == "epoch"
        assert ledger.events[-1]["event"] == "slots"


def test_a_ledger_of_many_events_is_read_in_little_memory(tmp_path: Path) -> None:
    """A list of its events would take twelve times the file."""
    metrics = {f"metric/{number}": number / 7 for number in range(20)}
    with Ledger(tmp_path) as ledger:
        ledger.append("sweep_start", config={}, split_sha256="", split={}, class_counts=[1], git_commit=None, versions={})
        for number in range(100):
            trial_id = f"t{number:04d}"
            config = {"select_by": "val/acc", "epochs": 100}
            ledger.append("suggest", trial_id=trial_id, role="search", variant="", seed=0, config=config)
            ledger.append("trial_start", trial_id=trial_id, attempt=1)
            for epoch in range(1, 101):
                ledger.append("epoch", trial_id=trial_id, epoch=epoch, attempt=1, metrics={"val/acc": epoch / 200, **metrics})
            ledger.append("trial_end", trial_id=trial_id, status="finished", stop_reason=None)
    size = (tmp_path / LEDGER).stat().st_size
    tracemalloc.start()
    try:
        events = read_ledger(tmp_path)
        trials, usage = trial_states_of(events), usage_of(events)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(trials) == len(usage.busy_s()) == 100
    assert peak < size / 2
