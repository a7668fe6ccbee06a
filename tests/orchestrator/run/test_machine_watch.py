"""Slots that follow machines. The machines are imagined here; real Ray with its autoscaler runs in tests/cluster."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from desk import CLASSES, Desk
from simulation import sweep

from orchestrator.cluster.machines import Fleet, Machines
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.ledger.ledger import read_ledger
from orchestrator.run import machine_watch
from orchestrator.run.member import EpochReport
from orchestrator.run.signals import HOLDS, Slots
from trainables.workers.worker_group import GroupConfig

PAIR = GroupConfig(2, 2, 1, 1, "cpu", heartbeat_timeout_s=600, start_s=600, restarts=3, machines_may_come=True)


class Imagined(Machines):
    """Machines that are as many as a test says."""

    def __init__(self, workers: int) -> None:
        super().__init__({"GPU": 1.0})
        self.workers, self.come_and_go = workers, True
        self.asked: list[tuple[int, int, bool]] = []

    def look(self) -> Fleet:
        return Fleet(self.workers, float(self.workers), 0.0)

    def demand(self, trials: int, workers: int, one_waits: bool) -> None:
        self.asked.append((trials, workers, one_waits))

    def doings(self) -> str:
        return "the autoscaler is starting 2 gpu_worker"


@pytest.fixture
def desk(tmp_path: Path, config: SweepConfig) -> Iterator[Desk]:
    desk = Desk(tmp_path, config)
    yield desk
    desk.ledger.__exit__()


@pytest.fixture(autouse=True)
def dead(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Processes that are gone; all others of these tests are imagined."""
    found: set[int] = set()
    monkeypatch.setattr(machine_watch, "lives", lambda process: process not in found)
    return found


@pytest.fixture
def machines() -> Imagined:
    return Imagined(0)


@pytest.fixture
def cluster(tmp_path: Path, config: SweepConfig, machines: Imagined) -> Iterator[Desk]:
    """Up to four slots of two workers, and no machine yet."""
    resources = config.resources.model_copy(update={"gpus_per_worker": 1.0})
    desk = Desk(tmp_path, config.model_copy(update={"resources": resources}), PAIR, machines, slots=4)
    yield desk
    desk.ledger.__exit__()


def number_of_slots(desk: Desk) -> list[int]:
    return [event["slots"] for event in read_ledger(desk.folder) if event["event"] == "slots"]


def holds_machines(desk: Desk, trial_id: str, process: int) -> None:
    """The trial's process has got its machines; its workers are not up yet."""
    desk.supervisor._slots.heartbeat_file(trial_id).write_text(str(process))
    (desk.folder / "slots" / f"{process}.{HOLDS}").touch()


def has_machines(desk: Desk, trial_id: str, process: int, epoch: int = 1) -> None:
    """The trial, which is in a process, trains with workers that have just come up."""
    holds_machines(desk, trial_id, process)
    desk.report(trial_id, epoch, events=({**GROUP, "slot": process, "held_since": desk.now},))


GROUP = {"event": "group_start", "workers": 2, "seconds": 1.0}


def test_who_waits_for_machines_is_told_after_a_minute_with_what_becomes_of_them(cluster: Desk, machines: Imagined) -> None:
    desk = cluster
    trial_id, slots = desk.begin(), desk.supervisor._slots
    slots.wait(trial_id, "2 workers with 1 CPU and 1 GPU each")
    desk.wait(50)
    assert desk.notes == []
    desk.wait(20)
    others = "3 trials that have not begun, for 2 workers with 1 CPU and 1 GPU each (the autoscaler is starting 2 gpu_worker)"
    assert desk.notes == [f"waiting: {trial_id} for 2 workers with 1 CPU and 1 GPU each; {others}"]
    slots.wait(trial_id, None)
    machines.workers = 6
    desk.wait(4)
    assert desk.notes[1:] == [f"waiting: {others}", f"waiting: {others.replace('3 trials that have', '1 trial that has')}"]
    machines.workers = 8
    desk.wait(4)
    assert desk.notes[3:] == ["no trial waits any more"]


def test_a_trial_leaves_a_process_without_machines_once_another_process_is_free_and_that_costs_nothing(
    desk: Desk,
) -> None:
    slots = desk.supervisor._slots
    first, second = desk.begin(), desk.begin()
    for number, trial_id in enumerate((first, second)):
        slots.heartbeat_file(trial_id).write_text(str(100 + number))
        slots.wait(trial_id, "2 workers with 1 CPU each")
    desk.wait(30, *map(slots.heartbeat_file, (first, second)))
    assert not slots.is_to_retreat(first)  # nobody is free: both wait
    assert not slots.is_to_retreat(second)
    slots.wait(first, None)
    desk.report(first, 1, events=({**GROUP, "slot": 100},))
    desk.wait(30, *map(slots.heartbeat_file, (first, second)))
    assert not slots.is_to_retreat(second)  # the one process with machines is at work
    desk.supervisor.conductor.after_ending(first, "diverged", "the process is free now")
    desk.wait(2)
    assert not slots.is_to_retreat(second)  # most likely it is between two trials
    desk.wait(4)
    assert slots.is_to_retreat(second)
    slots.leave_behind(second, [{"event": "group_lost", "reason": "worker 0 died", "slot": 101}])
    desk.lose(second, "Retreat")
    assert desk.kinds()[-1] == "group_lost"
    assert "retry" not in desk.kinds()
    [stint] = desk.supervisor.next_stints()
    assert (stint.trial_id, stint.attempt) == (second, 2)  # after the loss


@pytest.fixture
def fused(tmp_path: Path, machines: Imagined) -> Iterator[Desk]:
    """Up to two slots that train up to three trials each, on a machine of their own."""
    group = PAIR._replace(min_workers=1, max_workers=1)
    desk = Desk(tmp_path, sweep("none", trials=12, fused=3, slots=2), group, machines, slots=2)
    yield desk
    desk.ledger.__exit__()


def test_trials_that_are_trained_together_wait_for_one_machine_and_leave_together(fused: Desk, machines: Imagined) -> None:
    slots, machines.workers = fused.supervisor._slots, 2
    fused.wait(2)
    first, second = fused.begin_bundle(), fused.begin_bundle()
    for process, bundle in ((100, first), (101, second)):
        for trial_id in bundle:
            slots.heartbeat_file(trial_id).write_text(str(process))
        slots.wait(bundle[0], "a worker with 1 CPU and 1 GPU")
    fused.wait(2)
    assert machines.asked[-1] == (0, 1, True)  # both ask themselves; the six trials that wait have no slots
    slots.wait(first[0], None)
    event = {**GROUP, "slot": 100, "held_since": fused.now}
    reports = [EpochReport(name, 1, {"val/acc": 0.5}, CLASSES, None, (event,) * (name == first[0])) for name in first]
    assert not fused.supervisor.on_reports(fused.bundles[first[0]], reports)
    for trial_id in first:
        fused.supervisor.conductor.after_ending(trial_id, "diverged", "the process is free now")
    fused.wait(30, *map(slots.heartbeat_file, second))
    assert [slots.is_to_retreat(trial_id) for trial_id in second] == [True, False, False]
    fused.supervisor.on_error(fused.bundles[second[0]], second, "Retreat")
    assert "retry" not in fused.kinds()
    assert fused.begin_bundle() == second
    assert slots.waiting() == {}


def test_a_process_that_dies_with_its_workers_is_not_taken_for_a_free_one(desk: Desk) -> None:
    slots = desk.supervisor._slots
    first, second = desk.begin(), desk.begin()
    for number, trial_id in enumerate((first, second)):
        slots.heartbeat_file(trial_id).write_text(str(100 + number))
    desk.report(first, 1, events=({**GROUP, "slot": 100},))
    slots.wait(second, "2 workers with 1 CPU each")
    desk.lose(first, "the process is gone")
    desk.wait(30, slots.heartbeat_file(second))
    assert not slots.is_to_retreat(second)


def test_slots_grow_and_shrink_with_the_machines_and_the_search_proposes_only_what_has_room(
    cluster: Desk, machines: Imagined
) -> None:
    first = cluster.begin()  # somebody waits for the machines
    assert cluster.supervisor.next_stints() == []
    for machines.workers in (2, 3):  # room for one trial
        cluster.wait(4)
        assert cluster.supervisor.next_stints() == []
    has_machines(cluster, first, 100)
    machines.workers = 6
    cluster.wait(4)
    assert len({cluster.begin(), cluster.begin()}) == 2
    assert cluster.supervisor.next_stints() == []
    machines.workers = 4  # one trial has lost its machines; none takes its place
    cluster.wait(4)
    cluster.supervisor.conductor.after_ending(first, "diverged", "its own fault")
    assert cluster.supervisor.next_stints() == []
    machines.workers = 100
    cluster.wait(4)
    assert number_of_slots(cluster) == [1, 3, 2, 4]  # never more than the limits allow
    assert cluster.kinds().count("suggest") == 3


def test_machines_are_asked_for_as_many_trials_as_could_run_less_those_that_have_or_ask_themselves(
    cluster: Desk, machines: Imagined
) -> None:
    cluster.wait(2)
    assert machines.asked[-1] == (4, 2, False)
    first = cluster.begin()
    cluster.supervisor._slots.wait(first, "2 workers with 1 CPU each")
    cluster.wait(2)
    assert machines.asked[-1] == (3, 2, True)
    cluster.supervisor._slots.wait(first, None)
    holds_machines(cluster, first, 100)
    cluster.wait(2)
    assert machines.asked[-1] == (3, 2, False)  # before the first epoch has ended
    cluster.report(first, 1, events=({**GROUP, "slot": 100, "held_since": cluster.now},))
    machines.workers = 4
    cluster.wait(2)
    assert machines.asked[-1] == (3, 2, False)
    cluster.supervisor._slots.wait(first, "2 workers with 1 CPU each")  # it has lost them: it is not counted twice
    cluster.wait(2)
    assert machines.asked[-1] == (3, 2, True)
    cluster.supervisor.conductor.halt("interrupted", "enough")
    cluster.wait(2)
    assert machines.asked[-1][0] == 0


def test_the_last_trials_ask_for_no_machines_that_nobody_would_use(cluster: Desk, machines: Imagined) -> None:
    machines.workers = 8
    cluster.wait(2)
    for _ in range(cluster.config.num_trials() - 1):
        cluster.supervisor.conductor.after_ending(cluster.begin(), "diverged", "over")
    last = cluster.begin()
    cluster.wait(2)
    assert machines.asked[-1] == (1, 2, False)  # held for the last one until it asks itself
    holds_machines(cluster, last, 100)
    cluster.wait(2)
    assert machines.asked[-1] == (0, 2, False)


def test_an_idle_process_gives_its_machines_back_once_and_this_ends_what_they_cost(cluster: Desk, machines: Imagined) -> None:
    machines.workers = 4
    cluster.wait(2)
    first, second = cluster.begin(), cluster.begin()
    has_machines(cluster, first, os.getpid())
    has_machines(cluster, second, 101)
    cluster.supervisor.conductor.after_ending(first, "diverged", "its process is idle now")
    slots: Slots = cluster.supervisor._slots
    signs = [slots.heartbeat_file(second)]
    cluster.wait(machines.patience_s - 2, *signs)
    assert not slots.is_to_release()
    cluster.wait(6, *signs)
    assert slots.is_to_release()
    cluster.wait(4, *signs)
    assert not slots.is_to_release()  # it was told once
    held = cluster.supervisor.usage.gpu_hours
    assert held(cluster.now + 3600) == pytest.approx(held(cluster.now) + 2 * 2)  # it has not answered: both still cost
    slots.say_released()
    cluster.wait(2, *signs)
    assert cluster.kinds()[-1] == "group_end"
    assert held(cluster.now + 3600) == pytest.approx(held(cluster.now) + 2)
    third = cluster.begin()  # the same process starts new workers for the next trial
    has_machines(cluster, third, os.getpid())
    cluster.wait(2 * machines.patience_s, slots.heartbeat_file(third), *signs)
    assert not slots.is_to_release()


def test_the_time_of_the_machines_is_written_down_when_they_change_and_at_the_end(cluster: Desk, machines: Imagined) -> None:
    def written() -> list[dict[str, Any]]:
        return [dict(event) for event in read_ledger(cluster.folder) if event["event"] == "machines"]

    cluster.wait(10)
    machines.workers, machines.up_s, machines.starting_s = 2, 7.0, 50.0
    cluster.wait(10)
    machines.up_s = 20.0
    cluster.supervisor.close()
    assert [event["gpus_up"] for event in written()] == [0, 2, 2]
    assert (written()[-1]["up_s"], written()[-1]["starting_s"]) == (20, 50)
    assert machines.asked[-1][0] == 0


def test_a_process_that_dies_while_it_is_idle_has_no_machines_any_more(cluster: Desk, machines: Imagined, dead: set[int]) -> None:
    machines.workers = 2
    cluster.wait(2)
    first = cluster.begin()
    has_machines(cluster, first, 100)
    cluster.supervisor.conductor.after_ending(first, "diverged", "its process is idle now")
    dead.add(100)
    cluster.wait(2)
    assert cluster.kinds()[-1] == "group_end"
    held = cluster.supervisor.usage.gpu_hours
    assert held(cluster.now + 3600) == held(cluster.now)
    assert machines.asked[-1][0] == 4


def test_a_slot_that_goes_on_with_fewer_workers_stays(tmp_path: Path, config: SweepConfig, machines: Imagined) -> None:
    elastic, machines.workers = PAIR._replace(min_workers=1, max_workers=4), 8
    with (desk := Desk(tmp_path, config, elastic, machines)).ledger:
        for process, trial_id in enumerate((desk.begin(), desk.begin())):
            has_machines(desk, trial_id, process)
        machines.workers = 7
        desk.wait(4)
        assert number_of_slots(desk) == [2]
        machines.workers = 1
        desk.wait(4)
        assert number_of_slots(desk) == [2, 1]


def test_after_a_shrink_a_slot_with_machines_gets_work_although_many_trials_wait(cluster: Desk, machines: Imagined) -> None:
    machines.workers = 8
    cluster.wait(2)
    trials = [cluster.begin() for _ in range(4)]
    for process, trial_id in enumerate(trials, 100):
        has_machines(cluster, trial_id, process)
    machines.workers = 2
    slots = cluster.supervisor._slots
    for trial_id in trials[1:]:
        slots.wait(trial_id, "2 workers with 1 CPU and 1 GPU each")
    cluster.supervisor.conductor.after_ending(trials[0], "diverged", "its process is free now")
    cluster.wait(6, *map(slots.heartbeat_file, trials[1:]))
    left = [trial_id for trial_id in trials[1:] if slots.is_to_retreat(trial_id)]
    for trial_id in left:
        cluster.lose(trial_id, "Retreat")
    assert cluster.supervisor.next_stints()


def test_trials_that_wait_in_slots_that_are_too_many_are_told_once(cluster: Desk, machines: Imagined) -> None:
    machines.workers = 8
    cluster.wait(2)
    trials = [cluster.begin() for _ in range(4)]
    machines.workers = 2
    for trial_id in trials:
        cluster.supervisor._slots.wait(trial_id, "2 workers with 1 CPU and 1 GPU each")
    cluster.wait(70)
    assert "not begun" not in cluster.notes[-1]


def test_where_no_machine_comes_or_goes_nothing_is_given_back_and_nobody_waits_for_more(
    cluster: Desk, machines: Imagined
) -> None:
    machines.workers, machines.come_and_go = 2, False
    cluster.wait(2)
    first = cluster.begin()
    has_machines(cluster, first, os.getpid())
    cluster.supervisor.conductor.after_ending(first, "diverged", "its process is idle now")
    cluster.wait(2 * machines.patience_s)
    assert not cluster.supervisor._slots.is_to_release()
    assert cluster.notes == []
