"""Commands to the workers of a group and their answers, over one connection to each worker.

This file detects workers that die or send no heartbeat. A connection is a socket between two processes that Ray has started:
when one process dies, the operating system closes the socket, and the other process sees it at once.
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

from trainables.alive import alive

Command = tuple[Any, ...]
"""(`begin`, place, config, packed state or None, source of the state for errors), (`epoch`, places), (`state`, place), (`stop`,).

The place tells apart the trials that a single worker trains together; several workers have one trial, at place 0. `begin` at
place 0 ends all trials before.
"""
Address = tuple[str, int]
TOKEN_BYTES = 32
HOPELESS = ("refused", "exhausted")
"""Kinds of answers that would be the same after a restart with other workers."""
GRACE_S = 5.0
"""How long the other workers may still answer after the first answer that is not `done`."""


class Hello(NamedTuple):
    """The first message of a worker: its identity."""

    rank: int
    pid: int
    node_id: str
    placement_group: str
    """Id, in hex, of the Ray placement group that reserves the resources of all workers."""
    host: str
    """Name of its machine."""
    versions: dict[str, str]
    """As `trainables.program` gives them."""


class WorkerReport(NamedTuple):
    """Where a trial stands after a command, reported by the worker of rank 0."""

    epoch: int
    best_epoch: int | None
    best_metrics: dict[str, float]
    metrics: dict[str, float]
    classes: dict[str, list[Any]]
    packed: bytes | None
    """The packed state, from which other workers can continue; only after `state`."""
    pairing: dict[str, str] | None = None
    """Digests of what the trial has in common with others; see trainables/pairing.py."""
    ended: "Answer | None" = None
    """`ended` or `refused`, with the reason, if this trial cannot go on while others of the same process do."""


class Answer(NamedTuple):
    """The result of a command.

    `kind` is one of five words. `done`: the command succeeded. `ended`: the trial ended by its own rules. `refused`: the input is
    wrong. `exhausted`: one of several workers ran out of memory while the others were computing, or trials cannot be trained
    together. `failed`: any other error.
    """

    kind: str
    reports: tuple[WorkerReport, ...] = ()
    """Of each trial that the command names."""
    reason: str = ""
    status: str = ""
    """The trial's final status, if it has ended."""


class GroupLost(Exception):
    """The workers cannot go on; the message gives the reason.

    Args:
        reason: the message.
        all_there: whether all worker processes still exist; then the command failed, but no process was lost.
        hopeless: whether a restart with other workers would fail in the same way.
    """

    def __init__(self, reason: str, all_there: bool = False, hopeless: bool = False) -> None:
        super().__init__(reason)
        self.all_there, self.hopeless = all_there, hopeless


class Ended(Exception):
    """All workers report that the trial has ended. The message gives the reason, `status` the trial's final status."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Workers:
    """The connections to all workers of a group, on the side of the process that sends commands.

    Args:
        host: address at which the workers reach this process.
        heartbeat_timeout_s: longest time that a worker may go without a heartbeat.
        check: called at least about twice a second while this process waits; raises GroupLost when waiting is pointless.
    """

    def __init__(self, host: str, heartbeat_timeout_s: float, check: Callable[[], None]) -> None:
        self._server = socket.create_server((host, 0))
        self._heartbeat_timeout_s, self._check = heartbeat_timeout_s, check
        self._by_rank: dict[int, tuple[Hello, Connection]] = {}
        self.address: Address = self._server.getsockname()[:2]
        self.token = secrets.token_bytes(TOKEN_BYTES)

    @property
    def hellos(self) -> list[Hello]:
        """The identities of the connected workers, by rank."""
        return [self._by_rank[rank][0] for rank in sorted(self._by_rank)]

    def wait_for(self, number: int, limit_s: float, can_start: Callable[[], bool] = lambda: True) -> None:
        """Waits until `number` workers have connected.

        Args:
            number: of workers.
            limit_s: seconds.
            can_start: asked about twice a second; the seconds count from when the answer is true.

        Raises:
            GroupLost: when fewer have connected after `limit_s`.
        """
        deadline = time.monotonic() + limit_s
        self._server.settimeout(0.5)  # so that `check` and the deadline are tested while no worker connects
        while len(self._by_rank) < number:
            self._check()
            if not can_start():
                deadline = time.monotonic() + limit_s
            if time.monotonic() > deadline:
                raise GroupLost(f"{len(self._by_rank)} of {number} workers came up in {limit_s:g} s")
            if connection := self._accept():
                try:
                    hello: Hello = connection.recv()
                except (EOFError, OSError):  # the worker died after it connected
                    connection.close()
                    continue
                self._by_rank[hello.rank] = hello, connection
        self._server.close()

    def ask(self, command: Command, after_step: Callable[[int], None] | None = None) -> tuple[WorkerReport, ...]:
        """Sends a command to all workers and waits for their answers.

        Args:
            command: the same for all workers.
            after_step: called at each heartbeat of the worker of rank 0, with the number of steps done in the epoch. It must not
                raise: the next `ask` would read answers that belong to this command.

        Returns: the reports of the worker of rank 0, of each trial that the command names.

        Raises:
            GroupLost: when a worker dies, fails, runs out of memory, sends no heartbeat for too long, or refuses to go on in the
                middle of a trial.
            Ended: when all workers report that the trial has ended.
            ValueError: when all workers refuse to begin a trial.
        """
        self.tell(command)
        answers: dict[int, Answer] = {}
        heard = dict.fromkeys(sorted(self._by_rank), time.monotonic())  # by rank, whichever worker called first
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
                else:
                    alive()
                    if after_step and rank == 0:
                        after_step(answer)
            now = time.monotonic()
            # After one worker failed, the others may wait for it in a collective and never answer.
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
            with contextlib.suppress(OSError):  # a dead worker is reported by `ask`, when its answer is read
                connection.send(command)

    def close(self) -> None:
        """Closes all connections. A worker whose connection is closed ends its process."""
        self._server.close()
        for _, connection in self._by_rank.values():
            connection.close()

    def _accept(self) -> Connection | None:
        """The connection of the next worker, or None if none connects in time. Callers without the token are rejected.

        The token is read as plain bytes, because a Connection unpickles what it receives, and unpickling can run code.
        """
        try:
            caller, _ = self._server.accept()
        except TimeoutError:
            return None
        caller.settimeout(10)  # a caller that sends nothing must not keep the others waiting
        try:
            given = caller.recv(TOKEN_BYTES, socket.MSG_WAITALL)
        except OSError:
            given = b""
        if not secrets.compare_digest(given, self.token):
            caller.close()
            return None
        caller.settimeout(None)
        # Keepalive probes detect a machine that is gone without having closed its sockets.
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # A worker that is stopped in the middle of a large state would block recv or send for ever.
        for direction in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            caller.setsockopt(socket.SOL_SOCKET, direction, struct.pack("ll", math.ceil(self._heartbeat_timeout_s), 0))
        return as_connection(caller)

    def _receive(self, rank: int) -> Answer | int:
        """An answer, or a heartbeat: the number of steps done in the epoch."""
        try:
            answer: Answer | int = self._by_rank[rank][1].recv()
        except BlockingIOError:
            raise GroupLost(f"{self._name(rank)} fell silent in the middle of an answer") from None
        except (EOFError, OSError):
            raise GroupLost(f"{self._name(rank)} died") from None
        return answer

    def _agreed(self, answers: dict[int, Answer], command: Command) -> tuple[WorkerReport, ...]:
        """The common answer of all workers.

        Raises:
            GroupLost: when an answer is missing, the answers differ, or the command failed on all workers.
            Ended, ValueError: as `ask`.
        """
        first = answers[min(answers)]
        if len(answers) == len(self._by_rank) and {answer.kind for answer in answers.values()} == {first.kind}:
            if first.kind == "done":
                return first.reports
            if first.kind == "ended":
                raise Ended(first.status, first.reason)
            if first.kind == "refused" and command[0] == "begin":
                raise ValueError(first.reason)
        # One failure fails the command for all: the workers' states no longer agree.
        rank, answer = next((rank, answer) for rank, answer in sorted(answers.items()) if answer.kind != "done")
        raise GroupLost(f"{self._name(rank)}: {answer.reason}", all_there=True, hopeless=answer.kind in HOPELESS)

    def _name(self, rank: int) -> str:
        return f"worker {rank} (process {self._by_rank[rank][0].pid})"


def call(address: Address, token: bytes, hello: Hello) -> Connection:
    """Connects a worker to the process that sends commands; `token` proves that the worker belongs to the group."""
    caller = socket.create_connection(address, timeout=60)
    caller.settimeout(None)
    caller.sendall(token)
    connection = as_connection(caller)
    connection.send(hello)
    return connection


def as_connection(end: socket.socket) -> Connection:
    """A Connection over the socket `end`, which sends pickled objects without Nagle's delay."""
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Connection(end.detach())
