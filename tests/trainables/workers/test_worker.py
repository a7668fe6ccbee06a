"""One worker in a process of its own, commanded as a group commands it."""

import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import trainables.workers.worker
from trainables.checkpoint import GOING_ON, pack, unpack
from trainables.collectives import Collectives
from trainables.config import ComputeConfig, OptimConfig, TrialConfig
from trainables.data_config import DigitsConfig
from trainables.engine.health import OutOfMemory
from trainables.method_config import DifficultyNetConfig
from trainables.trial_run import TrialRun
from trainables.workers.commands import Ended, GroupLost, Hello, Workers, call
from trainables.workers.worker import serve

TRIAL = TrialConfig(epochs=500, method=DifficultyNetConfig(hidden_width=4), device="cpu")
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


def begin(trial: TrialConfig = TRIAL, packed: bytes | None = None) -> tuple[Any, ...]:
    return ("begin", trial.model_dump(), packed, "the last epoch's state")


def without_times(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name not in TIMES}


@pytest.mark.slow
def test_a_worker_trains_as_a_trial_run_does_and_goes_on_from_the_state_that_it_is_asked_for(worker: tuple[Workers, Any]) -> None:
    workers, alone = worker[0], TrialRun()
    alone.start(TRIAL)
    assert workers.ask(begin())[:3] == (0, None, {})
    first, saved, second = workers.ask(("epoch",)), workers.ask(("state",)), workers.ask(("epoch",))
    for report in (first, second):
        assert without_times(report.metrics) == pytest.approx(without_times(alone.run_epoch()), rel=1e-12, nan_ok=True)
        assert report.classes["accuracy"] == alone.class_table()["accuracy"]
    assert (second.epoch, second.best_metrics["val/acc"]) == (2, max(r.metrics["val/acc"] for r in (first, second)))
    assert workers.ask(begin(packed=saved.packed))[:2] == (1, 1)
    again = workers.ask(("epoch",))
    assert without_times(again.metrics) == pytest.approx(without_times(second.metrics), rel=0, nan_ok=True)


@pytest.mark.slow
def test_each_way_to_fail_has_its_answer_and_the_next_trial_can_begin(worker: tuple[Workers, Any]) -> None:
    workers, _ = worker
    with pytest.raises(ValueError, match=r"data.n_max"):
        workers.ask(begin(TRIAL.model_copy(update={"data": DigitsConfig(n_max=10_000)})))
    with pytest.raises(Ended, match=r"^out of memory at the start: this process took up to") as caught:  # ten terabytes
        workers.ask(begin(TRIAL.model_copy(update={"method": DifficultyNetConfig(hidden_width=1_600_000)})))
    assert caught.value.status == "failed"
    with pytest.raises(GroupLost, match=r"worker 0 .*: KeyError: 'split_sha256'") as lost:
        workers.ask(begin(packed=pack({"config": TRIAL.model_dump(), **dict.fromkeys(GOING_ON)})))
    assert lost.value.all_there
    assert not lost.value.hopeless
    workers.ask(begin(TRIAL.model_copy(update={"optim": OptimConfig(lr=1e30)})))
    with pytest.raises(Ended, match="became"):
        workers.ask(("epoch",))
    workers.ask(begin())
    workers.ask(("epoch",))
    packed = workers.ask(("state",)).packed
    with pytest.raises(
        ValueError, match=r"the last epoch's state belongs to another configuration: compute.precision was 'float32'"
    ):
        workers.ask(begin(TRIAL.model_copy(update={"compute": ComputeConfig(precision="bf16")}), packed))
    assert workers.ask(begin()).epoch == 0


@pytest.mark.slow
def test_a_worker_forks_a_trial_as_a_trial_run_does(worker: tuple[Workers, Any]) -> None:
    workers, alone = worker[0], TrialRun()
    changed = TRIAL.model_copy(update={"method": DifficultyNetConfig(hidden_width=4, driver_weight=2.0, meta_lr=0.1)})
    workers.ask(begin())
    workers.ask(("epoch",))
    packed = workers.ask(("state",)).packed
    assert packed is not None
    alone.resume(unpack(packed), changed, "the state")
    assert workers.ask(begin(changed, packed))[:2] == (1, None)
    fork = workers.ask(("epoch",))
    assert without_times(fork.metrics) == pytest.approx(without_times(alone.run_epoch()), rel=1e-12, nan_ok=True)
    assert (fork.epoch, fork.best_epoch) == (2, 2)


@pytest.mark.parametrize(("size", "kind"), [(1, "ended"), (2, "exhausted")])
def test_only_a_worker_alone_goes_on_to_the_next_trial_after_one_without_memory(
    size: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_epoch(*_: object) -> None:
        raise OutOfMemory("out of memory in epoch 1")

    run = TrialRun(Collectives(1, size))
    monkeypatch.setattr(run, "run_epoch", run_epoch)
    answer = trainables.workers.worker._answer(run, ("epoch",), 1, multiprocessing.Pipe()[0])
    assert (answer.kind, answer.reason, answer.status) == (kind, "out of memory in epoch 1", "failed")


def talk(address: tuple[str, int], token: bytes) -> None:
    """A worker that shows after each step that it lives."""
    trainables.workers.worker.HEARTBEAT_EVERY_S = 0.0
    work(address, token)


@pytest.mark.slow
def test_a_worker_says_how_many_steps_it_has_made() -> None:
    steps: list[int] = []
    with commanded(talk) as (workers, _):
        workers.ask(begin())
        for _ in range(2):
            workers.ask(("epoch",), steps.append)
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
        workers.ask(begin())
        workers.tell(("epoch",))
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
    ends = multiprocessing.Pipe()
    for size, kind in ((2, "failed"), (1, "refused")):
        run = TrialRun(Collectives(0, size))
        assert trainables.workers.worker._answer(run, ("epoch",), 0, ends[0]).kind == kind
    for end in ends:
        end.close()
