"""One worker in a process of its own, commanded as a group commands it."""

import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fused_trials import ALONE as FUSABLE
from fused_trials import METHODS, assert_close, members_of, sizes_of_fused_runs, started

import trainables.workers.worker
from trainables.checkpoint import GOING_ON, pack, unpack
from trainables.collectives import ALONE, Collectives
from trainables.config import ComputeConfig, OptimConfig, TrialConfig
from trainables.data_config import DigitsConfig
from trainables.engine.health import OutOfMemory
from trainables.fused_run import FusedRun
from trainables.method_config import DifficultyNetConfig
from trainables.trial_run import TrialRun
from trainables.workers.commands import Ended, GroupLost, Hello, WorkerReport, Workers, call
from trainables.workers.worker import Worker, serve

TRIAL = TrialConfig(epochs=500, method=DifficultyNetConfig(hidden_width=4), device="cpu")
EPOCH, STATE = ("epoch", (0,)), ("state", 0)
TIMES = ("time/step_ms", "time/epoch_s")


def work(address: tuple[str, int], token: bytes) -> None:
    serve(call(address, token, Hello(0, os.getpid(), "here", "group", "host", {})), 0, 1)


@contextmanager
def commanded(target: Callable[..., None]) -> Iterator[tuple[Workers, Any]]:
    workers = Workers("127.0.0.1", 120, lambda: None)
    process = multiprocessing.get_context("spawn").Process(target=target, args=(workers.address, workers.token), daemon=True)
    process.start()
    workers.wait_for(1, 120)
    yield workers, process
    process.kill()
    workers.close()


@pytest.fixture(scope="module")
def worker() -> Iterator[tuple[Workers, Any]]:
    with commanded(work) as both:
        yield both


def begin(trial: TrialConfig = TRIAL, packed: bytes | None = None, place: int = 0) -> tuple[Any, ...]:
    return ("begin", place, trial.model_dump(), packed, "the last epoch's state")


def ask(workers: Workers, command: tuple[Any, ...]) -> WorkerReport:
    """What a worker reports of the only trial that a command names."""
    [report] = workers.ask(command)
    return report


def without_times(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name not in TIMES}


@pytest.mark.slow
def test_a_worker_trains_as_a_trial_run_does_and_goes_on_from_the_state_that_it_is_asked_for(worker: tuple[Workers, Any]) -> None:
    workers, alone = worker[0], TrialRun()
    alone.start(TRIAL)
    assert ask(workers, begin())[:3] == (0, None, {})
    first, saved, second = ask(workers, EPOCH), ask(workers, STATE), ask(workers, EPOCH)
    for report in (first, second):
        assert without_times(report.metrics) == pytest.approx(without_times(alone.run_epoch()), rel=1e-12, nan_ok=True)
        assert report.classes["accuracy"] == alone.class_table()["accuracy"]
    assert (second.epoch, second.best_metrics["val/acc"]) == (2, max(r.metrics["val/acc"] for r in (first, second)))
    assert ask(workers, begin(packed=saved.packed))[:2] == (1, 1)
    again = ask(workers, EPOCH)
    assert without_times(again.metrics) == pytest.approx(without_times(second.metrics), rel=0, nan_ok=True)


@pytest.mark.slow
def test_each_way_to_fail_has_its_answer_and_the_next_trial_can_begin(worker: tuple[Workers, Any]) -> None:
    workers, _ = worker
    with pytest.raises(ValueError, match=r"data.n_max"):
        ask(workers, begin(TRIAL.model_copy(update={"data": DigitsConfig(n_max=10_000)})))
    with pytest.raises(Ended, match=r"^out of memory at the start: this process took up to") as caught:  # ten terabytes
        ask(workers, begin(TRIAL.model_copy(update={"method": DifficultyNetConfig(hidden_width=1_600_000)})))
    assert caught.value.status == "failed"
    with pytest.raises(GroupLost, match=r"worker 0 .*: KeyError: 'split_sha256'") as lost:
        ask(workers, begin(packed=pack({"config": TRIAL.model_dump(), **dict.fromkeys(GOING_ON)})))
    assert lost.value.all_there
    assert not lost.value.hopeless
    ask(workers, begin(TRIAL.model_copy(update={"optim": OptimConfig(lr=1e30)})))
    with pytest.raises(Ended, match="became"):
        ask(workers, EPOCH)
    ask(workers, begin())
    ask(workers, EPOCH)
    packed = ask(workers, STATE).packed
    with pytest.raises(
        ValueError, match=r"the last epoch's state belongs to another configuration: compute.precision was 'float32'"
    ):
        ask(workers, begin(TRIAL.model_copy(update={"compute": ComputeConfig(precision="bf16")}), packed))
    assert ask(workers, begin()).epoch == 0


@pytest.mark.slow
def test_a_worker_forks_a_trial_as_a_trial_run_does(worker: tuple[Workers, Any]) -> None:
    workers, alone = worker[0], TrialRun()
    changed = TRIAL.model_copy(update={"method": DifficultyNetConfig(hidden_width=4, driver_weight=2.0, meta_lr=0.1)})
    ask(workers, begin())
    ask(workers, EPOCH)
    packed = ask(workers, STATE).packed
    assert packed is not None
    alone.resume(unpack(packed), changed, "the state")
    assert ask(workers, begin(changed, packed))[:2] == (1, None)
    fork = ask(workers, EPOCH)
    assert without_times(fork.metrics) == pytest.approx(without_times(alone.run_epoch()), rel=1e-12, nan_ok=True)
    assert (fork.epoch, fork.best_epoch) == (2, 2)


def in_a_trial(collectives: Collectives) -> Worker:
    worker = Worker(collectives)
    worker._runs[0].config, worker._runs[0].epoch = TRIAL, 0
    return worker


@pytest.mark.parametrize(("size", "kind"), [(1, "ended"), (2, "exhausted")])
def test_only_a_worker_alone_goes_on_to_the_next_trial_after_one_without_memory(
    size: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_epoch(*_: object) -> None:
        raise OutOfMemory("out of memory in epoch 1")

    monkeypatch.setattr(TrialRun, "run_epoch", run_epoch)
    answer = in_a_trial(Collectives(1, size) if size > 1 else ALONE).answer(EPOCH)
    assert (answer.kind, answer.reason, answer.status) == (kind, "out of memory in epoch 1", "failed")


def talk(address: tuple[str, int], token: bytes) -> None:
    """A worker that shows after each step that it lives."""
    trainables.workers.worker.HEARTBEAT_EVERY_S = 0.0
    work(address, token)


@pytest.mark.slow
def test_a_worker_says_how_many_steps_it_has_made() -> None:
    steps: list[int] = []
    with commanded(talk) as (workers, _):
        ask(workers, begin())
        for _ in range(2):
            workers.ask(EPOCH, steps.append)
    told = [number for number, _ in itertools.groupby(steps)]  # batches of an evaluation say again how many it has made
    assert [number for number in told if number] == [1, 2, 3, 4, 5, 6, 7, 8] * 2
    assert len(steps) > 16


def hang(address: tuple[str, int], token: bytes) -> None:
    """A worker that waits in an epoch, as one does for another that is gone."""
    TrialRun.run_epoch = lambda *_: time.sleep(120)  # type: ignore[method-assign,assignment,return-value]
    work(address, token)


@pytest.mark.slow
def test_a_worker_whose_master_is_gone_ends_even_while_it_hangs_in_an_epoch() -> None:
    with commanded(hang) as (workers, process):
        ask(workers, begin())
        workers.tell(EPOCH)
        process.join(0.5)
        assert process.exitcode is None
        workers.close()
        process.join(10)
        assert process.exitcode == 1


def test_a_worker_whose_process_group_is_taken_away_has_failed_and_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Train does that to those that are left when a worker is lost; torch raises what a refused trial raises."""

    def torn(self: TrialRun, after_step: Callable[[int], None] | None = None) -> dict[str, float]:
        raise ValueError("Default process group has not been initialized, please make sure to call init_process_group.")

    monkeypatch.setattr(TrialRun, "run_epoch", torn)
    for collectives, kind in ((Collectives(0, 2), "failed"), (ALONE, "refused")):
        assert in_a_trial(collectives).answer(EPOCH).kind == kind


def reports(worker: Worker, command: tuple[Any, ...]) -> tuple[WorkerReport, ...]:
    answer = worker.answer(command)
    assert answer.kind == "done", answer
    return answer.reports


def begin_all(worker: Worker, configs: list[TrialConfig], first: int = 0) -> None:
    for place, config in enumerate(configs, first):
        reports(worker, begin(config, place=place))


def test_a_single_worker_trains_several_trials_together_and_each_as_it_would_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    fused = sizes_of_fused_runs(monkeypatch)
    configs = members_of(FUSABLE, METHODS[:4])
    configs[2] = configs[2].model_copy(update={"optim": configs[2].optim.model_copy(update={"lr": 1e300})})
    alone, worker = started(configs), Worker(ALONE)
    begin_all(worker, configs)
    expected = [run.run_epoch() for run in (alone[0], alone[1], alone[3])]
    found = reports(worker, ("epoch", (0, 1, 2, 3)))
    assert found[2].ended is not None
    assert (found[2].ended.kind, found[2].ended.status, found[2].metrics) == ("ended", "diverged", {})
    for report, metrics in zip((found[0], found[1], found[3]), expected, strict=True):
        assert without_times(report.metrics) == pytest.approx(without_times(metrics), rel=1e-10, nan_ok=True)
    for report, run in zip(reports(worker, ("epoch", (0, 3))), (alone[0], alone[3]), strict=True):  # place 1 has left
        assert without_times(report.metrics) == pytest.approx(without_times(run.run_epoch()), rel=1e-10, nan_ok=True)
        assert (report.epoch, report.ended) == (2, None)
    [left] = reports(worker, ("state", 1))
    assert left.packed is not None
    assert_close(unpack(left.packed)["phi"], alone[1].state()["phi"])
    assert fused == [4]


def test_trials_of_a_worker_share_data_only_if_they_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the first trial of those that follow could not begin."""
    fused, worker = sizes_of_fused_runs(monkeypatch), Worker(ALONE)
    begin_all(worker, members_of(FUSABLE, METHODS[:3]))
    reports(worker, ("epoch", (0, 1, 2)))
    others = members_of(FUSABLE.model_copy(update={"seed": 5}), METHODS[:2])
    begin_all(worker, others, first=1)
    for report, run in zip(reports(worker, ("epoch", (1, 2))), started(others), strict=True):
        assert without_times(report.metrics) == pytest.approx(without_times(run.run_epoch()), rel=1e-10, nan_ok=True)
    assert fused == [3, 2]


def test_trials_that_cannot_go_on_together_are_not_tried_again_together(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_epoch(*_: object) -> None:
        raise OutOfMemory("out of memory in epoch 1")

    worker = Worker(ALONE)
    begin_all(worker, members_of(FUSABLE, METHODS[:2]))
    monkeypatch.setattr(FusedRun, "run_epoch", run_epoch)
    answer = worker.answer(("epoch", (0, 1)))
    assert (answer.kind, answer.reason) == (
        "exhausted",
        "2 fused trials cannot go on together: out of memory in epoch 1, or a smaller resources.fused",
    )
