import contextlib
import multiprocessing
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import pytest

from trainables.workers.commands import TOKEN_BYTES, Answer, Ended, GroupLost, Hello, WorkerReport, Workers, call

SILENCE_S = 2.0
DONE = WorkerReport(1, 1, {}, {}, {}, None)
Behaviour = Callable[[Connection, int], None]


def nothing_wrong() -> None:
    """The check of a group whose processes are all there."""


def staff(workers: Workers, *behaviours: Behaviour) -> None:
    """A thread for each worker, which introduces itself and then does as it likes."""

    def work(rank: int, behave: Behaviour) -> None:
        connection = call(workers.address, workers.token, Hello(rank, os.getpid(), "here", "group", "host", {}))
        with contextlib.suppress(EOFError, OSError):  # the test has ended
            connection.recv()
            behave(connection, rank)

    for rank, behave in enumerate(behaviours):
        threading.Thread(target=work, args=(rank, behave), daemon=True).start()
    workers.wait_for(len(behaviours), 10)


def answering(answer: Answer) -> Behaviour:
    return lambda connection, rank: connection.send(answer)


def done(connection: Connection, rank: int) -> None:
    connection.send(Answer("done", (DONE,) if rank == 0 else ()))
    connection.recv()  # stays


def silent(connection: Connection, rank: int) -> None:
    time.sleep(60)


@pytest.fixture
def workers() -> Iterator[Workers]:
    workers = Workers("127.0.0.1", SILENCE_S, nothing_wrong)
    yield workers
    workers.close()


def test_rank_0_reports_for_all(workers: Workers) -> None:
    staff(workers, done, done, done)
    assert [hello.rank for hello in workers.hellos] == [0, 1, 2]
    assert workers.ask(("epoch",)) == (DONE,)


def test_a_worker_that_dies_is_named_at_once(workers: Workers) -> None:
    staff(workers, silent, lambda connection, rank: connection.close())
    with pytest.raises(GroupLost, match=r"worker 1 \(process \d+\) died"):
        workers.ask(("epoch",))


def test_a_killed_process_is_found_dead() -> None:
    workers = Workers("127.0.0.1", 60, nothing_wrong)
    process = multiprocessing.get_context("spawn").Process(target=_one_worker, args=(workers.address, workers.token), daemon=True)
    process.start()
    workers.wait_for(1, 30)
    threading.Timer(0.3, os.kill, (workers.hellos[0].pid, signal.SIGKILL)).start()
    with pytest.raises(GroupLost, match=f"worker 0 \\(process {process.pid}\\) died"):
        workers.ask(("epoch",))
    workers.close()


def _one_worker(address: tuple[str, int], token: bytes) -> None:
    call(address, token, Hello(0, os.getpid(), "here", "group", "host", {}))
    time.sleep(60)


def test_silent_workers_are_named_with_the_limit_and_the_command(workers: Workers) -> None:
    staff(workers, done, silent, silent)
    pattern = r"no heartbeat from worker 1 \(process \d+\) and worker 2 \(process \d+\) for 2 s, told to epoch"
    with pytest.raises(GroupLost, match=pattern):
        workers.ask(("epoch",))


def test_a_worker_that_stops_in_the_middle_of_an_answer_is_found_too() -> None:
    workers = Workers("127.0.0.1", 1, nothing_wrong)

    def torn(connection: Connection, rank: int) -> None:
        os.write(connection.fileno(), struct.pack("!i", 1000) + b"half of it")
        time.sleep(60)

    staff(workers, torn)
    with pytest.raises(GroupLost, match=r"worker 0 \(process \d+\) fell silent in the middle of an answer"):
        workers.ask(("epoch",))
    workers.close()


def test_a_worker_that_dies_before_it_has_introduced_itself_does_not_count(workers: Workers) -> None:
    with socket.create_connection(workers.address) as half:
        half.sendall(workers.token)
    staff(workers, done)
    assert workers.ask(("epoch",)) == (DONE,)


def test_a_worker_that_sends_heartbeats_is_waited_for(workers: Workers) -> None:
    def slow(connection: Connection, rank: int) -> None:
        for _ in range(6):
            time.sleep(SILENCE_S / 4)
            connection.send(0)
        done(connection, rank)

    staff(workers, slow)
    assert workers.ask(("epoch",)) == (DONE,)  # after one and a half times the limit


def test_heartbeats_say_how_far_the_first_worker_is(workers: Workers) -> None:
    def counting(connection: Connection, rank: int) -> None:
        for steps in (3, 5, 9):
            connection.send(steps + rank)
        done(connection, rank)

    seen: list[int] = []
    staff(workers, counting, counting)
    assert workers.ask(("epoch",), seen.append) == (DONE,)
    assert seen == [3, 5, 9]


def test_an_end_counts_when_all_workers_say_it(workers: Workers) -> None:
    staff(workers, *[answering(Answer("ended", reason="train/loss became nan", status="diverged"))] * 2)
    with pytest.raises(Ended, match="train/loss became nan") as caught:
        workers.ask(("epoch",))
    assert caught.value.status == "diverged"


def test_what_all_refuse_to_begin_is_bad_input(workers: Workers) -> None:
    staff(workers, *[answering(Answer("refused", reason="data.root: no such folder"))] * 2)
    with pytest.raises(ValueError, match=r"^data.root: no such folder$"):
        workers.ask(("begin",))


@pytest.mark.parametrize("kind", ["refused", "exhausted"])
@pytest.mark.parametrize("alone", [True, False])
def test_what_is_refused_or_too_large_in_mid_trial_loses_the_group_and_is_not_worth_another_try(
    kind: str, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainables.workers.commands.GRACE_S", 0.1)  # the other one may wait for it in the middle of a step
    workers = Workers("127.0.0.1", 60, nothing_wrong)
    answer = answering(Answer(kind, reason="no image, or no memory"))
    staff(workers, answer, silent if alone else answer)
    with pytest.raises(GroupLost, match=r"worker 0 .*: no image, or no memory") as caught:
        workers.ask(("epoch",))
    assert caught.value.hopeless
    workers.close()


def test_a_failure_is_told_with_its_own_reason_not_with_what_it_does_to_the_others(workers: Workers) -> None:
    broken = answering(Answer("failed", reason="RuntimeError: Connection closed by peer"))
    staff(workers, broken, lambda connection, rank: connection.close())
    with pytest.raises(GroupLost, match=r"worker 1 .* died") as caught:
        workers.ask(("epoch",))
    assert not caught.value.all_there


def test_waiting_ends_when_the_group_is_known_to_be_gone() -> None:
    def gone() -> None:
        raise GroupLost("Ray Train gave up")

    workers = Workers("127.0.0.1", 60, gone)
    with pytest.raises(GroupLost, match="Ray Train gave up"):
        workers.wait_for(1, 60)
    workers.close()


def test_workers_that_do_not_come_up_are_counted(workers: Workers) -> None:
    threading.Thread(
        target=call, args=(workers.address, workers.token, Hello(1, 1, "here", "group", "host", {})), daemon=True
    ).start()
    with pytest.raises(GroupLost, match=r"1 of 2 workers came up in 3 s"):
        workers.wait_for(2, 3)


def test_a_stranger_is_turned_away_unheard(workers: Workers) -> None:
    stranger = call(workers.address, b"x" * TOKEN_BYTES, Hello(7, 1, "elsewhere", "group", "host", {}))
    staff(workers, done)
    assert stranger.poll(10)
    with pytest.raises((EOFError, ConnectionResetError)):
        stranger.recv()
    assert [hello.rank for hello in workers.hellos] == [0]
    assert workers.ask(("epoch",)) == (DONE,)
    stranger.close()


def test_waiting_for_an_answer_ends_too_when_the_group_is_known_to_be_gone() -> None:
    known: list[str] = []

    def check() -> None:
        if known:
            raise GroupLost(known[0])

    workers = Workers("127.0.0.1", 60, check)
    staff(workers, silent)
    threading.Timer(0.2, known.append, ("Ray Train gave up",)).start()
    with pytest.raises(GroupLost, match="Ray Train gave up"):
        workers.ask(("epoch",))
    workers.close()


def test_the_limit_of_a_start_counts_from_when_the_machines_are_there() -> None:
    workers = Workers("127.0.0.1", SILENCE_S, nothing_wrong)
    asked: list[float] = []

    def can_start() -> bool:
        asked.append(time.monotonic())
        return len(asked) > 4

    began = time.monotonic()
    with pytest.raises(GroupLost, match=r"0 of 1 workers came up in 0\.1 s"):
        workers.wait_for(1, 0.1, can_start)
    assert len(asked) > 4
    assert time.monotonic() - began > 4 * 0.4
    workers.close()
