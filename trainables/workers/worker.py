"""One of several workers: receives commands for its trial run, one after another, and answers them.

When the connection breaks, because the commanding process has died or closed it, the worker process ends at once.
"""

import os
import queue
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from trainables.alive import heard_by
from trainables.checkpoint import pack, unpack
from trainables.collectives import ALONE, Collectives
from trainables.config import TrialConfig
from trainables.config_file import Origin, check
from trainables.engine.health import OutOfMemory, TrialEnded
from trainables.trial_run import TrialRun
from trainables.workers.commands import Answer, Command, WorkerReport

HEARTBEAT_EVERY_S = 1.0
"""Shortest time between two heartbeats."""


def serve(connection: Connection, rank: int, size: int) -> None:
    """Answers commands until the command `stop`."""
    commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
    # A thread of its own reads the connection, so that a broken connection is noticed while an epoch runs.
    threading.Thread(target=_listen, args=(connection, commands), daemon=True).start()
    run = TrialRun(Collectives(rank, size) if size > 1 else ALONE)
    while (command := commands.get())[0] != "stop":
        heartbeat = _Heartbeat(connection)
        with heard_by(heartbeat.again):
            answer = _answer(run, command, rank, heartbeat)
        connection.send(answer)


def _listen(connection: Connection, commands: "queue.SimpleQueue[Command]") -> None:
    command: Command = ("",)
    try:
        while command[0] != "stop":
            command = connection.recv()
            commands.put(command)
    except (EOFError, OSError):
        # Ends the whole process, even if the main thread is stuck in a collective. The other workers would wait for this one.
        os._exit(1)


def _answer(run: TrialRun, command: Command, rank: int, heartbeat: "_Heartbeat") -> Answer:
    try:
        metrics: dict[str, float] = {}
        if command[0] == "begin":
            _begin(run, *command[1:])
        elif command[0] == "epoch":
            metrics = run.run_epoch(heartbeat)
        packed = pack(run.state()) if command[0] == "state" and rank == 0 else None
        return Answer("done", _report(run, metrics, packed) if rank == 0 else None)
    except OutOfMemory as reason:
        # Without memory this trial ends; the next one may fit. Of several workers, however, the others may still wait for this
        # one in a collective: then the group cannot be used again.
        return Answer("exhausted" if run.collectives.size > 1 else "ended", reason=str(reason), status=reason.status)
    except TrialEnded as reason:
        return Answer("ended", reason=str(reason), status=reason.status)
    except ValueError as reason:
        # When a worker is lost, Ray Train takes the process group away from the others, in the middle of what they do.
        return Answer("failed" if run.collectives.are_gone() else "refused", reason=str(reason))
    except Exception as reason:
        return Answer("failed", reason=f"{type(reason).__name__}: {reason}")


def _begin(run: TrialRun, config: dict[str, Any], packed: bytes | None, source: str) -> None:
    trial = check(TrialConfig, config, Origin("the trial's settings"))
    if packed is None:
        run.start(trial)
    else:
        run.resume(unpack(packed, source), trial, source)


def _report(run: TrialRun, metrics: dict[str, float], packed: bytes | None) -> WorkerReport:
    best_epoch, best_metrics = (run.best.epoch, run.best.metrics) if run.best else (None, {})
    classes = run.class_table() if metrics else {}
    return WorkerReport(run.epoch, best_epoch, best_metrics, metrics, classes, packed, run.pairing_digests())


class _Heartbeat:
    """Sends a heartbeat, the number of steps done in the epoch, at most once in HEARTBEAT_EVERY_S seconds."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._last, self._done = connection, time.monotonic(), 0

    def again(self) -> None:
        """The work goes on, between steps."""
        self(self._done)

    def __call__(self, done: int) -> None:
        self._done = done
        if time.monotonic() - self._last >= HEARTBEAT_EVERY_S:
            self._connection.send(done)
            self._last = time.monotonic()
