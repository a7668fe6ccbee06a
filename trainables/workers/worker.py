"""What one of several workers does: it takes commands for its trial run, one after another, and answers them.

It ends with whoever commands it: when the connection breaks, the process goes, whatever it was doing.
"""

import os
import queue
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from trainables.checkpoint import pack, unpack
from trainables.collectives import ALONE, Collectives
from trainables.config import TrialConfig
from trainables.engine.health import OutOfMemory, TrialEnded
from trainables.trial_run import TrialRun
from trainables.workers.commands import Answer, Command, WorkerReport

HEARTBEAT_EVERY_S = 1.0
"""From one sign of life to the next, while an epoch runs."""


def serve(connection: Connection, rank: int, size: int) -> None:
    """Answers commands until there is one to stop."""
    commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, commands), daemon=True).start()
    run = TrialRun(Collectives(rank, size) if size > 1 else ALONE)
    while (command := commands.get())[0] != "stop":
        connection.send(_answer(run, command, rank, connection))


def _listen(connection: Connection, commands: "queue.SimpleQueue[Command]") -> None:
    command: Command = ("",)
    try:
        while command[0] != "stop":
            command = connection.recv()
            commands.put(command)
    except (EOFError, OSError):
        os._exit(1)  # nobody is left to answer; the others may be waiting for this worker, and must not do so for ever


def _answer(run: TrialRun, command: Command, rank: int, connection: Connection) -> Answer:
    try:
        metrics: dict[str, float] = {}
        if command[0] == "begin":
            _begin(run, *command[1:])
        else:
            metrics = run.run_epoch(_Heartbeat(connection))
        return Answer("done", _report(run, metrics) if rank == 0 else None)
    except OutOfMemory as reason:
        # The next trial may fare better, but not with workers of which some still wait for a message of this one.
        return Answer("exhausted" if run.collectives.size > 1 else "ended", reason=str(reason), status=reason.status)
    except TrialEnded as reason:
        return Answer("ended", reason=str(reason), status=reason.status)
    except ValueError as reason:
        return Answer("refused", reason=str(reason))
    except Exception as reason:
        return Answer("failed", reason=f"{type(reason).__name__}: {reason}")


def _begin(run: TrialRun, config: dict[str, Any], packed: bytes | None, source: str) -> None:
    trial = TrialConfig.model_validate(config)
    if packed is None:
        run.start(trial)
    else:
        run.resume(unpack(packed, source), trial, source)


def _report(run: TrialRun, metrics: dict[str, float]) -> WorkerReport:
    best_epoch, best_metrics = (run.best.epoch, run.best.metrics) if run.best else (None, {})
    classes, packed = (run.class_table(), pack(run.state())) if metrics else ({}, None)
    return WorkerReport(run.epoch, best_epoch, best_metrics, metrics, classes, packed)


class _Heartbeat:
    """Tells the other side now and then how many steps of the epoch have been made."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._last = connection, time.monotonic()

    def __call__(self, done: int) -> None:
        if time.monotonic() - self._last >= HEARTBEAT_EVERY_S:
            self._connection.send(done)
            self._last = time.monotonic()
