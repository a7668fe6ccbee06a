"""A worker: receives commands for its trial runs, one after another, and answers them. Several workers share one trial; a worker
alone may have several trials, which it trains together.

When the connection breaks, because the commanding process has died or closed it, the worker process ends at once.
"""

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from trainables.alive import heard_by
from trainables.checkpoint import pack, unpack
from trainables.collectives import ALONE, Collectives
from trainables.config import TrialConfig
from trainables.config_file import Origin, check
from trainables.data.loaded import LoadedData
from trainables.engine.health import OutOfMemory, TrialEnded
from trainables.fusion import fusion_key
from trainables.side_by_side import FusedEpochFailed, Outcome, SideBySide
from trainables.trial_run import TrialRun
from trainables.workers.commands import Answer, Command, WorkerReport

HEARTBEAT_EVERY_S = 1.0
"""Shortest time between two heartbeats."""


def serve(connection: Connection, rank: int, size: int) -> None:
    """Answers commands until the command `stop`."""
    commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
    # A thread of its own reads the connection, so that a broken connection is noticed while an epoch runs.
    threading.Thread(target=_listen, args=(connection, commands), daemon=True).start()
    worker = Worker(Collectives(rank, size) if size > 1 else ALONE)
    while (command := commands.get())[0] != "stop":
        heartbeat = _Heartbeat(connection)
        with heard_by(heartbeat.again):
            answer = worker.answer(command, heartbeat)
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


class Worker:
    """Does what it is told.

    Args:
        collectives: the workers of the group.
    """

    def __init__(self, collectives: Collectives) -> None:
        self._collectives = collectives
        self._runs = [TrialRun(collectives)]
        """By place. They are kept from one trial to the next, because a run keeps data that fit."""
        self._together = SideBySide()
        self._shared: tuple[str, LoadedData] | None = None
        """The data of the trials that are trained together, and these trials' fusion key."""

    def answer(self, command: Command, after_step: Callable[[int], None] | None = None) -> Answer:
        """Carries a command out.

        Args:
            command: any but `stop`.
            after_step: called after each step of an epoch.
        """
        try:
            reports = self._carry_out(command, after_step)
            return Answer("done", reports if self._collectives.rank == 0 else ())
        except OutOfMemory as reason:
            # Without memory this trial ends; the next one may fit. Of several workers, however, the others may still wait for
            # this one in a collective: then the group cannot be used again.
            return Answer("ended" if self._collectives.alone else "exhausted", reason=str(reason), status=reason.status)
        except TrialEnded as reason:
            return Answer("ended", reason=str(reason), status=reason.status)
        except ValueError as reason:
            # When a worker is lost, Ray Train takes the process group away from the others, in the middle of what they do.
            return Answer("failed" if self._collectives.are_gone() else "refused", reason=str(reason))
        except FusedEpochFailed as reason:
            return Answer("exhausted", reason=str(reason))
        except Exception as reason:
            return Answer("failed", reason=f"{type(reason).__name__}: {reason}")

    def _carry_out(self, command: Command, after_step: Callable[[int], None] | None) -> tuple[WorkerReport, ...]:
        match command:
            case ("begin", place, config, packed, source):
                return self._begin(place, config, packed, source)
            case ("epoch", places):
                return self._epoch(places, after_step)
            case ("state", place):
                return self._state(place)
        raise AssertionError(f"a worker has no command {command[0]}")

    def _begin(self, place: int, config: dict[str, Any], packed: bytes | None, source: str) -> tuple[WorkerReport, ...]:
        trial = check(TrialConfig, config, Origin("the trial's settings"))
        if place == 0:
            del self._runs[1:]
        self._together = SideBySide()
        self._runs += [TrialRun(self._collectives) for _ in range(len(self._runs), place + 1)]
        run, key = self._runs[place], fusion_key(trial)
        loaded = self._shared[1] if self._shared and self._shared[0] == key and place else None
        if packed is None:
            run.start(trial, loaded)
        else:
            run.resume(unpack(packed, source), trial, source, loaded)
        self._shared = (key, run.loaded) if key else None
        return (_report(run),)

    def _epoch(self, places: Sequence[int], after_step: Callable[[int], None] | None) -> tuple[WorkerReport, ...]:
        runs = [self._runs[place] for place in places]
        outcomes = self._together.run_epoch(runs, after_step)
        if len(outcomes) == 1 and isinstance(outcomes[0], Exception):
            raise outcomes[0]
        return tuple(_report(run, outcome) for run, outcome in zip(runs, outcomes, strict=True))

    def _state(self, place: int) -> tuple[WorkerReport, ...]:
        run = self._runs[place]
        return (_report(run, packed=pack(run.state()) if self._collectives.rank == 0 else None),)


def _report(run: TrialRun, outcome: Outcome | None = None, packed: bytes | None = None) -> WorkerReport:
    best_epoch, best_metrics = (run.best.epoch, run.best.metrics) if run.best else (None, {})
    metrics, ended = (outcome, None) if isinstance(outcome, dict) else ({}, outcome)
    classes = run.class_table() if metrics else {}
    kind, status = ("ended", ended.status) if isinstance(ended, TrialEnded) else ("refused", "")
    answer = None if ended is None else Answer(kind, reason=str(ended), status=status)
    return WorkerReport(run.epoch, best_epoch, best_metrics, metrics, classes, packed, run.pairing_digests(), answer)


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
