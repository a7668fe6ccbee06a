"""Commands to the workers of a group and their answers, over one connection to each; who dies or falls silent is found out here.

A connection is a socket between two processes that Ray has started, so that a dead process shows at once, on both sides.
"""

import contextlib
import math
import secrets
import socket
import struct
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

Command = tuple[Any, ...]
"""(`begin`, config, packed state or None, its source), (`epoch`,) or (`stop`,)."""
Address = tuple[str, int]
TOKEN_BYTES = 32
HOPELESS = ("refused", "exhausted")
"""Answers that other workers would give as well."""
GRACE_S = 5.0
"""How long the other workers get to answer after one could not do what it was told."""


class Hello(NamedTuple):
    """How a worker introduces itself."""

    rank: int
    pid: int
    node_id: str
    placement_group: str
    """Id of what reserves the resources of all workers, in hex."""


class WorkerReport(NamedTuple):
    """Where the trial stands after a command, as the worker of rank 0 says."""

    epoch: int
    best_epoch: int | None
    best_metrics: dict[str, float]
    metrics: dict[str, float]
    classes: dict[str, list[float | None]]
    packed: bytes | None
    """The state after an epoch, from which other workers can go on."""


class Answer(NamedTuple):
    """What came of a command: `done`, or why not: `ended` as the trial's own rules say, `refused` as bad input, `exhausted` for
    want of memory in the middle of what the others do, or `failed`.
    """

    kind: str
    report: WorkerReport | None = None
    reason: str = ""
    status: str = ""
    """How the trial has ended."""


class GroupLost(Exception):
    """The workers cannot go on; the message says why.

    Args:
        reason: the message.
        all_there: whether none of them is missing: they could not do what they were told.
        hopeless: whether others would fare no better.
    """

    def __init__(self, reason: str, all_there: bool = False, hopeless: bool = False) -> None:
        super().__init__(reason)
        self.all_there, self.hopeless = all_there, hopeless


class Ended(Exception):
    """All workers say that the trial has ended; the message says why, `status` how."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Workers:
    """The connections to all workers of a group, for whoever commands them.

    Args:
        host: under which the workers reach this process.
        heartbeat_timeout_s: how long a worker may go without a sign of life.
        check: called now and then while this process waits; raises GroupLost when waiting makes no sense any more.
    """

    def __init__(self, host: str, heartbeat_timeout_s: float, check: Callable[[], None]) -> None:
        self._server = socket.create_server((host, 0))
        self._heartbeat_timeout_s, self._check = heartbeat_timeout_s, check
        self._by_rank: dict[int, tuple[Hello, Connection]] = {}
        self.address: Address = self._server.getsockname()[:2]
        self.token = secrets.token_bytes(TOKEN_BYTES)

    @property
    def hellos(self) -> list[Hello]:
        """Of those that are there, by rank."""
        return [self._by_rank[rank][0] for rank in sorted(self._by_rank)]

    def wait_for(self, number: int, limit_s: float) -> None:
        """Waits until all workers have called.

        Raises:
            GroupLost: when they have not after `limit_s`.
        """
        deadline = time.monotonic() + limit_s
        self._server.settimeout(0.5)
        while len(self._by_rank) < number:
            self._check()
            if time.monotonic() > deadline:
                raise GroupLost(f"{len(self._by_rank)} of {number} workers came up in {limit_s:g} s")
            if connection := self._accept():
                try:
                    hello: Hello = connection.recv()
                except (EOFError, OSError):  # it has died since
                    connection.close()
                    continue
                self._by_rank[hello.rank] = hello, connection
        self._server.close()

    def ask(self, command: Command, after_step: Callable[[int], None] | None = None) -> WorkerReport:
        """Sends a command to all workers and waits for their answers.

        Args:
            command: for all.
            after_step: called with the number of steps that the epoch has done, at the signs of life of the worker of rank 0. It
                must not raise: the answers would still be under way.

        Returns: what the worker of rank 0 reports.

        Raises:
            GroupLost: when a worker dies, fails, runs out of memory or is silent for too long, or refuses to go on in the middle
                of a trial.
            Ended: when all workers say that the trial has.
            ValueError: when all workers refuse to begin a trial.
        """
        self.tell(command)
        answers: dict[int, Answer] = {}
        heard = dict.fromkeys(self._by_rank, time.monotonic())
        trouble: float | None = None
        while pending := [rank for rank in heard if rank not in answers]:
            rank_of = {self._by_rank[rank][1]: rank for rank in pending}
            for ready in wait(list(rank_of), timeout=0.5):
                rank = rank_of[ready]  # type: ignore[index]
                heard[rank] = time.monotonic()
                answer = self._receive(rank)
                if isinstance(answer, Answer):
                    answers[rank] = answer
                    if answer.kind != "done":
                        trouble = trouble or heard[rank]
                elif after_step and rank == 0:
                    after_step(answer)
            now = time.monotonic()
            if trouble and now - trouble > GRACE_S:
                break
            if silent := [
                self._name(rank) for rank in pending if rank not in answers and now - heard[rank] > self._heartbeat_timeout_s
            ]:
                raise GroupLost(
                    f"no heartbeat from {' and '.join(silent)} for {self._heartbeat_timeout_s:g} s, told to {command[0]}"
                )
            self._check()
        return self._agreed(answers, command)

    def tell(self, command: Command) -> None:
        """Sends a command to all workers."""
        for _, connection in self._by_rank.values():
            with contextlib.suppress(OSError):  # a death is found when the answer does not come
                connection.send(command)

    def close(self) -> None:
        """Breaks all connections, at which workers end themselves."""
        self._server.close()
        for _, connection in self._by_rank.values():
            connection.close()

    def _accept(self) -> Connection | None:
        """The next worker that calls, if one does; whoever does not know the token is turned away."""
        try:
            caller, _ = self._server.accept()
        except TimeoutError:
            return None
        caller.settimeout(10)
        try:
            given = caller.recv(TOKEN_BYTES, socket.MSG_WAITALL)
        except OSError:
            given = b""
        if not secrets.compare_digest(given, self.token):
            caller.close()
            return None
        caller.settimeout(None)
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a machine that is gone does not say so
        # A process may be stopped in the middle of a large state, on its way in or out.
        for direction in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            caller.setsockopt(socket.SOL_SOCKET, direction, struct.pack("ll", math.ceil(self._heartbeat_timeout_s), 0))
        return as_connection(caller)

    def _receive(self, rank: int) -> Answer | int:
        """An answer, or as a sign of life the number of steps that the epoch has done."""
        try:
            answer: Answer | int = self._by_rank[rank][1].recv()
        except BlockingIOError:
            raise GroupLost(f"{self._name(rank)} fell silent in the middle of an answer") from None
        except (EOFError, OSError):
            raise GroupLost(f"{self._name(rank)} died") from None
        return answer

    def _agreed(self, answers: dict[int, Answer], command: Command) -> WorkerReport:
        """The answer of all, when it is one."""
        first = answers[min(answers)]
        if len(answers) == len(self._by_rank) and {answer.kind for answer in answers.values()} == {first.kind}:
            if first.kind == "done":
                assert first.report is not None
                return first.report
            if first.kind == "ended":
                raise Ended(first.status, first.reason)
            if first.kind == "refused" and command[0] == "begin":
                raise ValueError(first.reason)
        rank, answer = next((rank, answer) for rank, answer in sorted(answers.items()) if answer.kind != "done")
        raise GroupLost(f"{self._name(rank)}: {answer.reason}", all_there=True, hopeless=answer.kind in HOPELESS)

    def _name(self, rank: int) -> str:
        return f"worker {rank} (process {self._by_rank[rank][0].pid})"


def call(address: Address, token: bytes, hello: Hello) -> Connection:
    """A worker's connection to whoever commands; `token` shows that it is one of those which were started for that."""
    caller = socket.create_connection(address, timeout=60)
    caller.settimeout(None)
    caller.sendall(token)
    connection = as_connection(caller)
    connection.send(hello)
    return connection


def as_connection(end: socket.socket) -> Connection:
    """`end` for whole objects, which are sent at once."""
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Connection(end.detach())
