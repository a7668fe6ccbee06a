from typing import Any

import pytest

from orchestrator.config.limits_config import BudgetConfig
from orchestrator.ledger.usage import Seconds, clock_of, usage_of


def event(time: float, kind: str, trial_id: str = "", **fields: Any) -> dict[str, Any]:
    return {"time": time, "event": kind, **({"trial_id": trial_id} if trial_id else {}), **fields}


EVENTS = [
    event(0, "sweep_start"),
    event(5, "slots", slots=2, gpus_per_slot=1.0),
    event(10, "trial_start", "t0"),
    event(12, "trial_start", "t1"),
    event(20, "epoch", "t0"),
    event(20, "decide", "t0", action="pause"),  # from here on its slot is free
    event(30, "epoch", "t1"),
    event(32, "trial_end", "t1", status="diverged"),
    event(35, "trial_start", "t0"),
    event(40, "epoch", "t0"),
    # killed, and gone on much later with one slot
    event(1000, "sweep_resume"),
    event(1005, "slots", slots=1, gpus_per_slot=1.0),
    event(1010, "trial_start", "t0"),
    event(1030, "epoch", "t0"),
    event(1030, "trial_end", "t0", status="finished"),
]


def test_a_trial_is_busy_in_its_stints_only() -> None:
    assert usage_of(EVENTS).busy_s() == {"t0": 10 + 5 + 20, "t1": 20}


def test_trials_that_are_trained_together_have_equal_shares_of_the_time() -> None:
    together = [
        event(0, "sweep_start"),
        event(0, "slots", slots=1, gpus_per_slot=1.0),
        *(event(10, "trial_start", trial_id) for trial_id in ("t0", "t1", "t2")),
        event(40, "checkpoint", "t0"),
        event(40, "epoch", "t0", shared_by=3),
        event(40, "epoch", "t1", shared_by=3),
        event(40, "trial_end", "t1", status="stopped_early"),  # the two others go on
        event(40, "trial_end", "t2", status="diverged", shared_by=3),
        event(50, "epoch", "t0", shared_by=2),
        event(60, "retry", "t0"),
    ]
    usage = usage_of(together)
    assert usage.busy_s() == {"t0": 10 + 5 + 10, "t1": 10, "t2": 10}
    assert usage.slot_s() == 50
    assert usage.gpu_hours() == pytest.approx(50 / 3600)  # that of the process, once


def test_slots_count_from_the_first_trial_of_a_segment_to_its_last_event() -> None:
    usage = usage_of(EVENTS)
    assert usage.wall_s() == 30 + 20
    assert usage.slot_s() == 2 * 30 + 20
    assert usage.gpu_hours() == pytest.approx(80 / 3600)
    assert usage.idle_share() == pytest.approx(1 - 55 / 80)
    assert usage.wall_s(now=1040) == 30 + 30


@pytest.mark.parametrize(
    ("kind", "fields", "busy_s"),
    [
        ("epoch", {}, 15),
        ("checkpoint", {}, 0),  # its epoch comes next, or is repeated
        ("retry", {}, 15),
        ("group_lost", {}, 15),
        ("trial_end", {"status": "diverged"}, 15),
        ("trial_end", {"status": "failed"}, 15),
        ("trial_end", {"status": "stopped_early"}, 0),  # it may have waited at a rung, and the sweep ends it
        ("trial_end", {"status": "interrupted"}, 0),
        ("decide", {"action": "continue"}, 0),
    ],
)
def test_a_trial_is_busy_until_the_last_thing_that_it_gave(kind: str, fields: dict[str, Any], busy_s: float) -> None:
    events = [event(10, "trial_start", "t0"), event(25, kind, "t0", **fields)]
    assert usage_of(events).busy_s() == {"t0": busy_s}


def test_reading_the_test_set_and_the_export_use_no_slot() -> None:
    after = [
        event(1500, "test_read", "t0"),
        event(1600, "export", "t0"),
        event(1650, "export_other", "t0"),
        event(1700, "sweep_end", status="finished"),
    ]
    assert usage_of([*EVENTS, *after]).slot_s() == usage_of(EVENTS).slot_s()


def test_nothing_is_used_before_the_first_trial() -> None:
    usage = usage_of(EVENTS[:2])
    assert (usage.wall_s(now=100), usage.idle_share(), usage.busy_s()) == (0, 0, {})


def test_the_part_of_the_budget_that_is_used_up_is_named() -> None:
    usage = usage_of(EVENTS)
    assert usage.exceeds(BudgetConfig(wall_hours=51 / 3600), 1030) is None
    assert usage.exceeds(BudgetConfig(wall_hours=49 / 3600), 1030) == f"budget.wall_hours of {49 / 3600:g} is used up"
    assert usage.exceeds(BudgetConfig(cost=80.0, cost_per_gpu_hour=3600.0), 1030) == "budget.cost of 80 is used up"
    assert usage.exceeds(BudgetConfig(cost=81.0, cost_per_gpu_hour=3600.0), 1030) is None


def test_a_price_is_needed_for_a_cost() -> None:
    with pytest.raises(ValueError, match=r"budget.cost is set, but budget.cost_per_gpu_hour is not"):
        BudgetConfig(cost=5.0)


def test_machines_that_come_with_the_work_count_from_when_a_slot_has_them_until_it_gives_them_back() -> None:
    events = [
        event(0, "slots", slots=2, gpus_per_slot=2.0, machines_may_come=True),
        event(10, "trial_start", "t0"),
        event(10, "trial_start", "t1"),
    ]
    assert usage_of(events).gpu_hours(now=500) == 0  # both wait for machines
    events += [
        event(500, "group_start", "t0", slot=7, held_since=480.0),
        event(500, "epoch", "t0"),
        event(520, "trial_end", "t0", status="finished"),
        event(540, "group_start", "t1", slot=8, held_since=530.0),
        event(540, "epoch", "t1"),
        event(560, "group_lost", "t1", slot=8),
        event(580, "group_start", "t1", slot=8, held_since=570.0),
        event(580, "epoch", "t1"),
        event(590, "group_end", "t1", slot=8),
    ]
    usage = usage_of(events)
    held = (590 - 480) + (560 - 530) + (590 - 570)
    assert usage.gpu_hours() == pytest.approx(2 * held / 3600)
    assert usage.busy_s() == {"t0": 500 - 480, "t1": (560 - 530) + (580 - 570)}
    assert usage.gpu_hours(now=600) == pytest.approx(2 * (held + 10) / 3600)
    later = [
        *events,
        event(1000, "sweep_resume"),
        event(1000, "slots", slots=2, gpus_per_slot=2.0, machines_may_come=True),
        event(1010, "trial_start", "t1"),
    ]
    assert usage_of(later).gpu_hours(now=2000) == pytest.approx(2 * held / 3600)  # nobody holds a machine now
    assert usage_of(EVENTS).machine_hours() is None


def test_slots_that_come_and_go_count_for_as_long_as_they_are_there() -> None:
    events = [
        event(0, "slots", slots=1, gpus_per_slot=1.0),
        event(10, "trial_start", "t0"),
        event(30, "slots", slots=3, gpus_per_slot=1.0),
        event(60, "epoch", "t0"),
        event(70, "slots", slots=2, gpus_per_slot=1.0),
        event(80, "epoch", "t0"),
    ]
    usage = usage_of(events)
    slot_s = (30 - 10) * 1 + (70 - 30) * 3 + (80 - 70) * 2
    assert usage.slot_s() == slot_s
    assert usage.gpu_hours() == pytest.approx(slot_s / 3600)
    assert usage.wall_s() == 80 - 10
    assert (usage.slots, usage.most_slots) == (2, 3)
    later = [
        *events,
        event(1000, "sweep_resume"),
        event(1000, "slots", slots=4, gpus_per_slot=1.0),
        event(1010, "trial_start", "t0"),
    ]
    assert usage_of(later).slot_s(now=1020) == slot_s + 4 * 10


def test_the_hours_of_machines_are_told_apart_and_each_segment_counts_its_own() -> None:
    def machines(time: float, up_s: float, starting_s: float) -> dict[str, Any]:
        return event(time, "machines", gpus_up=2.0, gpus_starting=0.0, up_s=up_s, starting_s=starting_s, idle_timeout_s=300.0)

    def segment(start: float) -> list[dict[str, Any]]:
        return [
            event(start, "slots", slots=1, gpus_per_slot=2.0, machines_may_come=True),
            machines(start, 0.0, 200.0),
            event(start + 10, "trial_start", "t0"),
            event(start + 40, "group_start", "t0", slot=7, held_since=start + 20.0, ready_at=start + 35.0),
            event(start + 60, "epoch", "t0"),
            event(start + 90, "group_end", "t0", slot=7),
            machines(start + 100, 500.0, 400.0),
        ]

    one = usage_of(segment(0)).machine_hours()
    assert one is not None
    assert [round(hours * 3600, 3) for hours in one if hours is not None] == [2 * 25, 2 * 45, 500 - 2 * 70, 400, 2 * 300]
    assert one.total * 3600 == pytest.approx(500 + 400 + 600)
    two = usage_of([*segment(0), event(1000, "sweep_resume"), *segment(1000)]).machine_hours()
    assert two is not None
    assert two[:4] == pytest.approx([2 * hours for hours in one[:4] if hours is not None])
    assert two.afterwards == one.afterwards
    other = segment(1000)
    other[0] |= {"gpus_per_slot": 4.0}
    mixed = usage_of([*segment(0), event(1000, "sweep_resume"), *other]).machine_hours()
    assert mixed is not None
    assert mixed.trials * 3600 == pytest.approx((2 + 4) * 25)


def test_machines_that_are_lost_count_up_to_the_loss_and_their_successors_from_when_they_came() -> None:
    """Both events are written when the epoch has been repeated."""
    events = [
        event(0, "slots", slots=1, gpus_per_slot=1.0, machines_may_come=True),
        event(0, "trial_start", "t0"),
        event(20, "group_start", "t0", slot=7, held_since=0.0, ready_at=10.0),
        event(20, "epoch", "t0"),
        event(3500, "group_lost", "t0", slot=7, lost_at=1000.0),
        event(3500, "group_start", "t0", slot=7, held_since=3000.0, ready_at=3010.0),
        event(3500, "epoch", "t0"),
    ]
    usage = usage_of(events)
    assert usage.gpu_hours() == pytest.approx((1000 + 500) / 3600)
    assert usage.busy_s() == {"t0": (1000 - 10) + (3500 - 3010)}


def test_trials_that_wait_for_a_machine_together_take_nothing_of_it_until_it_is_there() -> None:
    shared = {"slot": 7, "shared_by": 2}
    both = ("t0", "t1")
    past = [
        event(0, "slots", slots=1, gpus_per_slot=1, machines_may_come=True),
        *(event(0, "trial_start", trial) for trial in both),
        *(event(120, "group_start", trial, **shared, held_since=80.0, ready_at=100.0) for trial in both),
        *(event(120, "epoch", trial, shared_by=2) for trial in both),
        *(event(300, "group_lost", trial, **shared, lost_at=140.0) for trial in both),
        *(event(300, "group_start", trial, **shared, held_since=240.0, ready_at=260.0) for trial in both),
        *(event(300, "epoch", trial, shared_by=2) for trial in both),
    ]
    usage = usage_of(past)
    assert usage.busy_s() == {"t0": 10 + 10 + 20, "t1": 10 + 10 + 20}
    assert usage.gpu_hours() * 3600 == pytest.approx((140 - 80) + (300 - 240))


@pytest.mark.parametrize("number", [1, 2, 4])
def test_machines_count_once_however_many_trials_tell_of_several_losses_in_an_epoch(number: int) -> None:
    trials = [f"t{trial}" for trial in range(number)]
    fields = {"slot": 7, "shared_by": number}
    told = [
        ("group_start", {"held_since": 0.0, "ready_at": 10.0}),
        ("group_lost", {"lost_at": 60.0}),
        ("group_start", {"held_since": 200.0, "ready_at": 210.0}),
        ("group_lost", {"lost_at": 230.0}),
        ("group_start", {"held_since": 300.0, "ready_at": 310.0}),
    ]
    past = [
        event(0, "slots", slots=1, gpus_per_slot=1, machines_may_come=True),
        *(event(0, "trial_start", trial) for trial in trials),
        *(event(400, kind, trial, **fields, **more) for trial in trials for kind, more in told),
        *(event(400, "epoch", trial, shared_by=number) for trial in trials),
    ]
    assert usage_of(past).gpu_hours() * 3600 == pytest.approx(60 + 30 + 100)


def test_the_time_between_an_interruption_and_the_resumption_does_not_count() -> None:
    times = [
        ("sweep_start", 0),
        ("trial_end", 10),
        ("sweep_end", 12),
        ("sweep_resume", 1000),
        ("trial_end", 1030),
        ("export", 1090),
        ("export_other", 1095),
    ]
    seconds = Seconds()
    for kind, time in times:
        seconds.apply({"event": kind, "time": float(time)})
    assert seconds.total == 10 + 30


def test_the_clock_counts_from_enter_to_the_end_of_each_command() -> None:
    def event(time: float, kind: str, **fields: float) -> dict[str, object]:
        return {"event": kind, "time": time, **fields}

    first = [event(20, "sweep_start", entered=13.0), event(50, "trial_end"), event(55, "export"), event(57, "sweep_end")]
    assert clock_of(first) == (44.0, 1)
    assert clock_of(first, now=60.0) == (47.0, 1)  # the report is written after the last event
    assert clock_of([*first, event(900, "export_other"), event(950, "test_read")]) == (44.0, 1)
    resumed = [*first, event(1000, "sweep_resume", entered=990.0), event(1010, "trial_end"), event(1011, "sweep_end")]
    assert clock_of(resumed, now=1015.0) == (44.0 + 25.0, 2)
    old = [event(20, "sweep_start"), event(50, "trial_end"), event(57, "sweep_end")]  # of a version that did not note Enter
    assert clock_of(old) == (37.0, 1)
    killed = [event(20, "sweep_start", entered=15.0), event(50, "epoch"), event(200, "sweep_resume", entered=190.0)]
    assert clock_of(killed, now=210.0) == (35.0 + 20.0, 2)
