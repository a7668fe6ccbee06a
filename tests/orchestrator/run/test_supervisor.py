import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from desk import CLASSES, Desk
from simulation import sweep

from orchestrator.config.limits_config import BudgetConfig
from orchestrator.config.resources_config import ResourcesConfig
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.ledger import ledger as ledger_module
from orchestrator.ledger.class_arrays import read_class_arrays
from orchestrator.ledger.events import Event
from orchestrator.ledger.ledger import read_ledger
from orchestrator.ledger.trial_states import TrialStates
from orchestrator.outcome.tables import write_tables
from orchestrator.run.member import EpochReport
from trainables.workers.worker_group import GroupConfig


@pytest.fixture
def desk(tmp_path: Path, config: SweepConfig) -> Iterator[Desk]:
    desk = Desk(tmp_path, config)
    yield desk
    desk.ledger.__exit__()


def test_a_report_becomes_an_epoch_a_checkpoint_and_arrays_by_class(desk: Desk) -> None:
    trial_id = desk.begin()
    for epoch in range(1, 41):
        assert desk.report(trial_id, epoch) == (epoch == 40)
    assert desk.kinds()[-4:] == ["epoch", "checkpoint", "epoch", "trial_end"]
    write_tables(desk.folder, read_ledger(desk.folder))
    kept = sorted(path.name for path in (desk.folder / "checkpoints" / trial_id).iterdir())
    assert kept == ["0040-1"]  # it holds the best epoch: no export could use the state before


def trials_with_states(folder: Path) -> set[str]:
    return {path.name for path in (folder / "checkpoints").iterdir()}


@pytest.mark.parametrize("keep", ["best", "all"])
def test_ended_trials_keep_their_states_on_the_disk_if_they_are_among_the_best(
    tmp_path: Path, config: SweepConfig, keep: str
) -> None:
    trial = config.trial.model_copy(update={"epochs": 1})
    tree = config.model_dump() | {"trial": trial.model_dump(), "checkpoints": {"keep": keep}, "scheduler": {"name": "none"}}
    desk = Desk(tmp_path, SweepConfig.model_validate(tree))
    with desk.ledger:
        trials = [desk.begin()]
        while trials[-1] != "t0010":
            quality = len(trials) * 7 % 11  # neither rising nor falling
            report = {"epoch": 1, "path": f"checkpoints/{trials[-1]}/0001-1", "sha256": "abc"}
            (tmp_path / report["path"]).mkdir(parents=True)
            assert desk.take(EpochReport(trials[-1], 1, {"val/acc": quality / 100}, CLASSES, report))
            trials.append(desk.begin())
        references = set(trials[: len(config.search.references)])
        searched = [(number * 7 % 11, trial_id) for number, trial_id in enumerate(trials[:-1], 1) if trial_id not in references]
        best = {trial_id for _, trial_id in sorted(searched)[-5:]}
        assert trials_with_states(tmp_path) == (best | references if keep == "best" else set(trials[:-1]))


def test_what_happened_on_the_way_is_told_and_an_ending_ends_the_trial(desk: Desk) -> None:
    first, second = desk.begin(), desk.begin()
    damaged = {"event": "damaged", "path": "checkpoints/t0000/0001-1", "reason": "flipped"}
    assert desk.take(EpochReport(first, 1, events=(damaged,), ended="diverged", reason="nan"))
    events = read_ledger(desk.folder)
    assert (events[-2]["event"], events[-2]["trial_id"], events[-2]["epoch"]) == ("damaged", first, 1)
    assert (events[-1]["status"], events[-1]["stop_reason"]) == ("diverged", "nan")
    desk.lose(second, "gone")
    assert desk.kinds()[-1] == "retry"
    assert desk.supervisor.next_stints()[0].trial_id == second
    desk.lose(first, "its process died later")  # which is no concern of the trial any more
    assert desk.kinds()[-1] == "retry"


def processes(desk: Desk, folder: Path) -> tuple[list[Any], list[Path]]:
    """Two that serve a trial each."""
    started, signs = [], []
    for _ in range(2):
        trial_id = desk.begin()
        started.append(subprocess.Popen(["sleep", "600"]))
        signs.append(folder / "slots" / f"{trial_id}.heartbeat")
        signs[-1].write_text(str(started[-1].pid))
        os.utime(signs[-1], (desk.now, desk.now))
    return started, signs


def lives(process: subprocess.Popen[bytes]) -> bool:
    """Whether nobody has killed it; a signal takes a moment."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(0.2)
    return process.returncode is None


def test_a_process_without_a_sign_of_life_is_killed_and_its_trial_tried_again(tmp_path: Path, config: SweepConfig) -> None:
    desk = Desk(tmp_path, config.model_copy(update={"resources": ResourcesConfig(heartbeat_timeout_s=60)}))
    with desk.ledger:
        (hanging, working), (_, sign) = processes(desk, tmp_path)
        desk.wait(59, sign)
        assert lives(hanging)
        desk.wait(3, sign)
        assert hanging.wait(60) == -signal.SIGKILL
        assert lives(working)
        working.kill()
        working.wait(60)
        desk.lose("t0000", "Ray's long words")
        retry = read_ledger(tmp_path)[-1]
        assert (retry["trial_id"], retry["event"]) == ("t0000", "retry")
        assert retry["reason"].startswith("no heartbeat for 60 s (resources.heartbeat_timeout_s)")
        desk.begin()
        desk.lose("t0000", "this time it raised an error")
        assert read_ledger(tmp_path)[-1]["stop_reason"] == "this time it raised an error"


def test_a_process_that_has_left_its_trial_may_be_silent(tmp_path: Path, config: SweepConfig) -> None:
    """It serves another one by then, or waits."""
    desk = Desk(tmp_path, config.model_copy(update={"resources": ResourcesConfig(heartbeat_timeout_s=60)}))
    with desk.ledger:
        started, _ = processes(desk, tmp_path)
        assert desk.take(EpochReport("t0000", 1, ended="diverged", reason="nan"))
        desk.lose("t0001", "it raised an error")
        desk.wait(200)
        assert all(lives(process) for process in started)
        for process in started:
            process.kill()
            process.wait(60)


@pytest.mark.parametrize("has_number", [True, False])
def test_of_two_hanging_processes_one_may_be_gone_or_have_no_number(
    tmp_path: Path, config: SweepConfig, has_number: bool
) -> None:
    desk = Desk(tmp_path, config.model_copy(update={"resources": ResourcesConfig(heartbeat_timeout_s=60)}))
    with desk.ledger:
        (gone, hanging), (sign, _) = processes(desk, tmp_path)
        gone.kill()
        gone.wait(60)
        sign.write_text(str(gone.pid) if has_number else "")
        os.utime(sign, (desk.now, desk.now))
        desk.wait(70)
        assert hanging.wait(60) == -signal.SIGKILL


def test_workers_of_a_slot_have_the_time_to_come_up_besides(tmp_path: Path, config: SweepConfig) -> None:
    limits = ResourcesConfig(heartbeat_timeout_s=60, start_limit_s=100, workers=[1, 2], gpus_per_worker=1)
    group = GroupConfig(1, 2, 1, 1, "cuda", heartbeat_timeout_s=60, start_s=100, restarts=0)
    desk = Desk(tmp_path, config.model_copy(update={"resources": limits}), group)
    with desk.ledger:
        assert read_ledger(tmp_path)[-1]["gpus_per_slot"] == 2
        started, _ = processes(desk, tmp_path)
        desk.wait(155)
        assert all(lives(process) for process in started)
        desk.wait(10)
        assert [process.wait(60) for process in started] == [-signal.SIGKILL] * 2


def test_a_clock_that_is_set_back_stops_nobody_from_looking(desk: Desk) -> None:
    desk.wait(4)
    desk.now -= 3600
    desk.supervisor.conductor.halt("interrupted", "the sweep was terminated")
    desk.supervisor.poll()
    assert (desk.folder / "slots" / "halted").exists()


def test_processes_wait_for_as_many_as_there_are_trials_for(desk: Desk) -> None:
    slots = desk.supervisor._slots
    desk.begin()
    assert slots.wait_for_all(timeout_s=0)
    desk.begin()
    assert not slots.wait_for_all(timeout_s=0)


def test_after_a_pause_of_polling_all_heartbeat_timers_restart(tmp_path: Path, config: SweepConfig) -> None:
    """The sweep itself was stopped, or waited for space on the disk: its processes had nobody to give signs to."""
    desk = Desk(tmp_path, config.model_copy(update={"resources": ResourcesConfig(heartbeat_timeout_s=60)}))
    with desk.ledger:
        started, _ = processes(desk, tmp_path)
        desk.wait(4)
        desk.now += 3600
        desk.wait(50)
        assert all(lives(process) for process in started)
        desk.wait(20)
        assert [process.wait(60) for process in started] == [-signal.SIGKILL] * 2


def test_an_old_sign_is_no_sign_of_the_next_stint(tmp_path: Path, config: SweepConfig) -> None:
    desk = Desk(tmp_path, config.model_copy(update={"resources": ResourcesConfig(heartbeat_timeout_s=60)}))
    with desk.ledger:
        (first, second), (sign, _) = processes(desk, tmp_path)
        desk.lose("t0000", "gone")
        assert desk.supervisor.next_stints()[0].trial_id == "t0000"  # its new process has not come up yet
        assert not sign.exists()
        for process in (first, second):
            process.kill()
            process.wait(60)


@pytest.mark.parametrize(
    ("budget", "seconds"),
    [({"wall_hours": 1.0}, 3600), ({"gpu_hours": 2.0}, 7200), ({"cost": 5.0, "cost_per_gpu_hour": 10.0}, 1800)],
)
def test_a_used_up_budget_ends_running_trials_with_their_epoch(
    tmp_path: Path, config: SweepConfig, budget: dict[str, float], seconds: float
) -> None:
    """Two slots with half a GPU each: an hour is a GPU hour."""
    halves = ResourcesConfig(gpus_per_worker=0.5)
    desk = Desk(tmp_path, config.model_copy(update={"budget": BudgetConfig(**budget), "resources": halves}))
    with desk.ledger:
        trial_id = desk.begin()
        desk.wait(seconds - 1)
        assert not desk.report(trial_id, 1)
        assert not (tmp_path / "slots" / "halted").exists()
        desk.wait(1)
        assert (tmp_path / "slots" / "halted").exists()
        assert desk.report(trial_id, 2)
        assert desk.supervisor.next_stints() == []
        assert desk.supervisor.over
        status, reason = desk.supervisor.conductor.halted
        assert (status, "is used up" in reason) == ("finished", True)
        assert desk.notes == [f"{reason}: running trials end with their current epoch"]


def test_a_budget_counts_over_all_resumptions_but_not_the_time_between(tmp_path: Path, config: SweepConfig) -> None:
    limited = config.model_copy(update={"budget": BudgetConfig(wall_hours=1.0)})
    first = Desk(tmp_path, limited)
    with first.ledger:
        trial_id = first.begin()
        first.now += 1800
        first.report(trial_id, 1)
    second = Desk(tmp_path, limited)
    with second.ledger:
        second.now = first.now + 1e6
        second.begin()
        second.wait(1799)
        assert not second.supervisor.over
        second.wait(1)
        assert second.supervisor.over


def test_a_ledger_on_a_full_disk_waits_and_loses_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    trial_id = desk.begin()
    write, full = os.write, iter([True])

    def short(descriptor: int, data: bytes) -> int:
        if next(full, False):
            write(descriptor, data[:7])  # a part still found room
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(ledger_module.os, "write", short)
    desk.report(trial_id, 1)
    assert desk.kinds()[-2:] == ["checkpoint", "epoch"]
    assert len([note for note in desk.notes if "no space left" in note]) == 1


def test_who_waits_for_space_is_told_once_and_so_is_its_end(desk: Desk) -> None:
    slots = desk.supervisor._slots
    desk.wait(4)
    slots.wait("t0001", "space: /x: no space left")
    desk.wait(10)
    slots.wait("t0001", None)
    desk.wait(10)
    assert desk.notes == ["waiting: t0001 for space: /x: no space left", "no trial waits any more"]


def test_a_process_that_dies_while_the_sweep_is_told_to_end_costs_no_retry(desk: Desk) -> None:
    trial_id = desk.begin()
    desk.supervisor.conductor.halt("interrupted", "the sweep was terminated")
    desk.lose(trial_id, "the machine is taken away")
    assert "retry" not in desk.kinds()
    desk.supervisor.conductor.interrupt("the sweep was terminated")
    assert read_ledger(desk.folder)[-1]["status"] == "interrupted"


def test_ctrl_c_while_the_end_of_a_trial_is_taken_leaves_it_finished(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    apply = TrialStates.apply

    def pressed(states: TrialStates, event: Event) -> None:
        if event["event"] == "trial_end" and event["status"] == "finished":
            os.kill(os.getpid(), signal.SIGINT)
        apply(states, event)

    monkeypatch.setattr(TrialStates, "apply", pressed)
    trial_id = desk.begin()
    for epoch in range(1, 40):
        desk.report(trial_id, epoch)
    with pytest.raises(KeyboardInterrupt):
        desk.report(trial_id, 40)
    desk.supervisor.conductor.interrupt("the sweep was interrupted")
    ends = [event for event in read_ledger(desk.folder) if event["event"] == "trial_end" and event["trial_id"] == trial_id]
    assert [end["status"] for end in ends] == ["finished"]


def test_states_that_nobody_reported_are_removed_and_those_of_the_ledger_stay(tmp_path: Path, config: SweepConfig) -> None:
    desk = Desk(tmp_path, config)
    with desk.ledger:
        trial_id = desk.begin()
        for epoch in (1, 2, 3):
            desk.report(trial_id, epoch)
        place = f"checkpoints/{trial_id}/0004-1"
        (tmp_path / place).mkdir()
        desk.ledger.append("checkpoint", trial_id=trial_id, epoch=4, path=place, sha256="abc")
        desk.ledger.append("epoch", trial_id=trial_id, epoch=4, attempt=1, metrics={"val/acc": 0.5})  # killed here
    (tmp_path / "checkpoints" / trial_id / "0005-1").mkdir()
    with Desk(tmp_path, config).ledger:
        assert sorted(path.name for path in (tmp_path / "checkpoints" / trial_id).iterdir()) == ["0003-1", "0004-1"]


def test_of_a_trial_that_diverges_the_last_state_stays(desk: Desk) -> None:
    trial_id = desk.begin()
    for epoch in (1, 2, 3):
        desk.report(trial_id, epoch)
    desk.take(EpochReport(trial_id, 4, ended="diverged", reason="nan"))
    assert [path.name for path in (desk.folder / "checkpoints" / trial_id).iterdir()] == ["0003-1"]


def test_a_trial_that_is_interrupted_and_goes_on_has_the_arrays_of_all_its_epochs(tmp_path: Path, config: SweepConfig) -> None:
    first = Desk(tmp_path, config)
    with first.ledger:
        trial_id = first.begin()
        first.report(trial_id, 1)
        first.supervisor.conductor.interrupt("the sweep was terminated")
    second = Desk(tmp_path, config)
    with second.ledger:
        assert second.begin() == trial_id
        second.report(trial_id, 2)
        second.take(EpochReport(trial_id, 3, ended="diverged", reason="nan"))
    assert set(read_class_arrays(tmp_path, read_ledger(tmp_path))["epoch"].to_pylist()) == {1, 2}


def test_a_disk_that_may_be_too_small_is_told_of_with_the_first_state(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**20))
    first, second = desk.begin(), desk.begin()
    desk.report(first, 1)
    desk.report(second, 1)
    (note,) = desk.notes
    assert "where 1.0 MiB are free" in note
    assert "checkpoints.keep is best" in note


def test_a_new_process_has_the_ledger_on_the_disk_before_it_removes_a_state(
    tmp_path: Path, config: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process before may have been killed with lines that no fsync has seen; a power cut after that must not take both."""
    desk = Desk(tmp_path, config)
    with desk.ledger:
        trial_id = desk.begin()
        desk.report(trial_id, 1)
    (tmp_path / f"checkpoints/{trial_id}/0000-1").mkdir()  # older, and not named any more
    done: list[str] = []
    real_fsync, real_rmtree = os.fsync, shutil.rmtree

    def fsync(descriptor: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real_fsync(descriptor)

    def rmtree(path: Path, ignore_errors: bool = False) -> None:
        done.append(f"remove {Path(path).name}")
        real_rmtree(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    monkeypatch.setattr("orchestrator.ledger.ledger.DURABLE", set())
    with Desk(tmp_path, config).ledger:
        assert done.index("ledger.jsonl") < done.index("remove 0000-1")


@pytest.fixture
def fused(tmp_path: Path) -> Iterator[Desk]:
    """Two slots that train up to three trials each."""
    desk = Desk(tmp_path, sweep("asha", trials=8, fused=3, slots=2, failures={"retries": 0}))
    yield desk
    desk.ledger.__exit__()


def report_all(desk: Desk, epoch: int, values: dict[str, float]) -> bool:
    """The process of these trials reports an epoch of each."""
    reports = []
    for trial_id, value in values.items():
        place = f"checkpoints/{trial_id}/{epoch:04d}-1"
        (desk.folder / place).mkdir(parents=True)
        checkpoint = {"epoch": epoch, "path": place, "sha256": "abc"}
        reports.append(EpochReport(trial_id, epoch, {"val/acc": value}, CLASSES, checkpoint))
    return desk.supervisor.on_reports(desk.bundles[next(iter(values))], reports)


def test_a_trial_that_is_stopped_leaves_a_process_in_which_others_go_on(fused: Desk) -> None:
    first, second = fused.begin_bundle(), fused.begin_bundle()
    assert (first, second) == (["t0000", "t0001", "t0002"], ["t0003", "t0004", "t0005"])
    bundle, slots = fused.bundles["t0003"], fused.supervisor._slots
    for epoch in (1, 2):
        assert not report_all(fused, epoch, dict.fromkeys(first, 0.9))
    assert not report_all(fused, 1, dict.fromkeys(second, 0.2))
    assert not report_all(fused, 2, {"t0003": 0.2, "t0004": 0.95, "t0005": 0.3})
    assert not slots.is_to_leave("t0004", bundle)
    assert slots.is_to_leave("t0003", bundle)
    assert not slots.is_to_leave("t0003", bundle)  # it is told once
    assert fused.supervisor.next_stints() == []  # both slots still have a trial
    assert report_all(fused, 3, {"t0004": 0.95}) is False
    events = [event for event in read_ledger(fused.folder) if event["event"] == "epoch"]
    assert [event.get("shared_by") for event in events[-4:]] == [3, 3, 3, None]


def test_a_process_that_is_lost_with_several_trials_costs_none_of_them_a_failure(fused: Desk) -> None:
    """Although no trial is retried here, each gets a process of its own."""
    lost = fused.begin_bundle()
    others = fused.begin_bundle()
    fused.supervisor.on_error(fused.bundles[lost[0]], lost, "killed for its memory")
    retries = [event for event in read_ledger(fused.folder) if event["event"] == "retry"]
    assert [(event["trial_id"], event["reason"], event["shared_by"]) for event in retries] == [
        (trial_id, "killed for its memory", 3) for trial_id in lost
    ]
    first = fused.bundles[lost[0]]
    assert fused.begin_bundle() == [lost[0]]
    fused.supervisor.on_error(first, lost, "told twice")  # they have left that process
    assert fused.supervisor.conductor.trials[lost[0]].state == "running"
    fused.lose(lost[0], "killed for its memory")
    assert fused.kinds()[-1] == "trial_end"
    assert fused.begin_bundle() == [lost[1]]
    fused.supervisor.on_error(fused.bundles[others[0]], others, "gone")  # the other process has its own trials
    assert fused.supervisor.conductor.trials[lost[1]].state == "running"


def test_a_trial_that_has_left_a_process_does_not_go_down_with_it(fused: Desk) -> None:
    trials, bundle = fused.begin_bundle(), fused.bundles
    first = bundle[trials[0]]
    fused.supervisor.on_reports(
        first,
        [EpochReport(trials[0], 1, ended="diverged", reason="nan")]
        + [EpochReport(trial_id, 1, {"val/acc": 0.5}, CLASSES) for trial_id in trials[1:]],
    )
    fused.supervisor.on_error(first, trials, "gone")
    assert fused.supervisor.conductor.trials[trials[0]].status == "diverged"
    retries = [event for event in read_ledger(fused.folder) if event["event"] == "retry"]
    assert [(event["trial_id"], event["shared_by"]) for event in retries] == [(trial_id, 2) for trial_id in trials[1:]]


def test_a_hung_process_is_killed_and_the_reason_stands_at_each_of_its_trials(fused: Desk, tmp_path: Path) -> None:
    trials = fused.begin_bundle()
    process = subprocess.Popen(["sleep", "600"])
    for trial_id in trials:
        sign = tmp_path / "slots" / f"{trial_id}.heartbeat"
        sign.write_text(str(process.pid))
        os.utime(sign, (fused.now, fused.now))
    fused.wait(fused.config.resources.heartbeat_timeout_s + 3)
    assert process.wait(60) == -signal.SIGKILL
    fused.supervisor.on_error(fused.bundles[trials[0]], trials, "Ray's long words")
    reasons = {event["reason"] for event in read_ledger(fused.folder) if event["event"] == "retry"}
    assert len(reasons) == 1
    assert "no heartbeat for 600 s" in reasons.pop()
    fused.begin_bundle()
    fused.begin_bundle()
    fused.lose(trials[1], "it raised an error")
    assert read_ledger(fused.folder)[-1]["stop_reason"] == "it raised an error"


def test_the_reports_of_a_process_cost_one_wait_for_the_ledger(fused: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = fused.begin_bundle()
    for epoch in (1, 2):
        report_all(fused, epoch, dict.fromkeys(trials, 0.5))
    waits: list[int] = []
    monkeypatch.setattr(ledger_module.os, "fsync", waits.append)
    ledger = fused.ledger._file.fileno()
    report_all(fused, 3, dict.fromkeys(trials, 0.5))
    assert waits.count(ledger) == 1  # before the states of the first epoch are removed
    fused.begin_bundle()
    assert waits.count(ledger) == 2
