from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from simulation import Simulation, sweep

from orchestrator.ledger.events import SCHEMA, Event, Kind, trial_of
from orchestrator.ledger.ledger import FIELDS, LEDGER, Ledger, LedgerError, read_ledger


def test_every_kind_of_event_has_its_fields() -> None:
    assert set(FIELDS) == set(Kind)
    assert len(get_args(Event)) == len(Kind)
    for kind, fields in FIELDS.items():
        assert get_args(get_type_hints(fields)["event"]) == (kind,)
        assert fields.__doc__


@pytest.mark.parametrize("scheduler", ["asha", "promotion", "pbt"])
def test_what_a_conductor_writes_has_all_fields_of_its_kind(scheduler: str) -> None:
    events = Simulation(sweep(scheduler, **({} if scheduler == "pbt" else {"confirm": {"top": 2, "seeds": 2}}))).run()
    assert {event["event"] for event in events} >= {"suggest", "decide", "trial_end"}
    for event in events:
        kind: Any = FIELDS[event["event"]]
        assert kind.__required_keys__ <= event.keys() <= kind.__required_keys__ | kind.__optional_keys__


def test_a_field_that_a_kind_does_not_have_is_a_mistake_of_ours(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger, pytest.raises(AssertionError, match=r"an event slots has no \['slot'\]"):
        ledger.append(Kind.SLOTS, slot=2)


def test_the_first_event_carries_the_schema_and_no_other_does(tmp_path: Path) -> None:
    for _ in range(2):
        with Ledger(tmp_path) as ledger:
            ledger.append(Kind.SLOTS, slots=2, gpus_per_slot=0)
    assert [event.get("schema") for event in read_ledger(tmp_path)] == [SCHEMA, None]


@pytest.mark.parametrize("schema", ["", '"schema":2,'])
def test_a_ledger_of_another_version_is_refused_with_a_way_out(tmp_path: Path, schema: str) -> None:
    line = f'{{{schema}"n":0,"time":0.0,"event":"sweep_start","prev":""}}\n'
    (tmp_path / LEDGER).write_text(line)
    with pytest.raises(LedgerError, match=rf"have schema {2 if schema else 1}; allowed: {SCHEMA}, .* or begin a new sweep"):
        read_ledger(tmp_path)
    with pytest.raises(LedgerError, match="Nothing was changed"):
        Ledger(tmp_path)
    assert (tmp_path / LEDGER).read_text() == line


def test_the_trial_of_an_event_is_empty_for_events_of_the_whole_sweep() -> None:
    assert trial_of({"event": Kind.SLOTS, "slots": 1, "gpus_per_slot": 0.0}) == ""
    assert trial_of({"event": Kind.TRIAL_START, "trial_id": "t0001", "attempt": 1}) == "t0001"
