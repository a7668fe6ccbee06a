import itertools
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from orchestrator.ledger.events import Event
from orchestrator.ledger.ledger import read_ledger
from orchestrator.ledger.usage import usage_of
from orchestrator.report.timeline import Stint, stints_of


def ledger(*lines: tuple[str, str, float]) -> list[Event]:
    """Events from kind, trial and time; of a decision or an end, the kind is followed by what it says."""
    found: list[Event] = []
    for kind, trial_id, time in lines:
        name, _, word = kind.partition(" ")
        more = {"action": word} if name == "decide" else {"status": word} if name == "trial_end" else {}
        found.append({"event": name, "time": time, **({"trial_id": trial_id} if trial_id else {}), **more})  # type: ignore[arg-type]
    return found


def test_a_stint_lasts_until_the_last_thing_that_it_gave() -> None:
    events = ledger(
        ("sweep_start", "", 90),
        ("trial_start", "t0", 100),
        ("trial_start", "t1", 101),
        ("epoch", "t0", 110),
        ("epoch", "t1", 112),
        ("decide stop", "t0", 120),
        ("trial_end stopped_early", "t0", 121),
        ("trial_start", "t2", 122),
        ("trial_end diverged", "t2", 130),
    )
    assert stints_of(events) == [Stint("t0", 0, 10, False, 0), Stint("t1", 1, 12, False, 1), Stint("t2", 22, 30, False, 0)]


def test_a_lost_process_ends_a_stint_and_another_slot_goes_on() -> None:
    events = ledger(
        ("trial_start", "t0", 0), ("epoch", "t0", 5), ("retry", "t0", 9), ("trial_start", "t0", 12), ("epoch", "t0", 20)
    )
    assert [(stint.began, stint.ended, stint.is_lost) for stint in stints_of(events)] == [(0, 9, True), (12, 20, False)]


def test_the_time_between_an_interruption_and_the_resumption_is_left_out() -> None:
    events = ledger(
        ("trial_start", "t0", 100),
        ("epoch", "t0", 110),
        ("trial_end interrupted", "t0", 111),
        ("sweep_end", "", 112),
        ("sweep_resume", "", 9000),
        ("trial_start", "t0", 9004),
        ("epoch", "t0", 9010),
    )
    assert [(stint.began, stint.ended) for stint in stints_of(events)] == [(0, 10), (15, 21)]


@pytest.mark.parametrize("kind", ["plain", "confirmed", "ablation"])
def test_stints_are_as_long_as_the_trials_took_and_no_slot_has_two_at_a_time(folder_of: Callable[[str], Path], kind: str) -> None:
    folder = folder_of(kind)
    stints = stints_of(read_ledger(folder))
    took = {row["trial_id"]: row["wall_s"] for row in pq.read_table(folder / "trials.parquet").to_pylist() if row["wall_s"]}
    found: dict[str, float] = {}
    for stint in stints:
        found[stint.trial_id] = found.get(stint.trial_id, 0.0) + stint.ended - stint.began
    assert found == pytest.approx(took)
    for lane in {stint.lane for stint in stints}:
        own = [stint for stint in stints if stint.lane == lane]
        assert all(first.ended <= second.began for first, second in itertools.pairwise(own))
    assert len({stint.lane for stint in stints}) == usage_of(read_ledger(folder)).most_slots
