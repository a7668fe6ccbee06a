"""Long work outside training steps gives signs of life, so that nobody kills a process that works."""

import math
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from faulty_store import faulty_store
from fused_trials import ALONE, members_of, started

from orchestrator.run.signals import Slots
from orchestrator.run.trial import Trial
from trainables import evaluate, fused_run
from trainables.alive import alive, heard_by
from trainables.config import TrialConfig
from trainables.data import staging
from trainables.data.cache import locked
from trainables.data.packed import packed
from trainables.data.source import Ids
from trainables.data.staging import staged_files
from trainables.fused_run import FusedRun
from trainables.method_config import CrossEntropyConfig
from trainables.trial_run import TrialRun
from trainables.workers import worker


@pytest.fixture
def signs() -> Iterator[list[float]]:
    """The times of all signs of life."""
    heard: list[float] = []
    with heard_by(lambda: heard.append(time.monotonic())):
        yield heard


def test_only_those_who_listen_hear_them() -> None:
    heard: list[str] = []
    with heard_by(lambda: heard.append("outer")):
        with heard_by(lambda: heard.append("inner")):
            alive()
        alive()
    alive()
    assert heard == ["outer", "inner", "outer"]


def test_an_evaluation_gives_one_for_each_batch(signs: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    run = TrialRun()
    run.start(ALONE)
    monkeypatch.setattr(evaluate, "PIXELS_AT_ONCE", 7 * math.prod(run.loaded.val.shape))
    signs.clear()
    evaluate.predicted_classes(run.classifier, run.loaded.val)
    assert len(signs) >= len(run.loaded.val) / 7 > 3


def test_fused_trials_give_them_while_they_are_evaluated(signs: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    runs = started(members_of(ALONE, [CrossEntropyConfig(), CrossEntropyConfig()]))
    fused = FusedRun(runs)
    monkeypatch.setattr(fused_run, "PIXELS_AT_ONCE", 200)
    signs.clear()
    fused.run_epoch()
    assert len(signs) > 3


def test_a_cache_gives_one_for_each_image(signs: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def records(ids: Ids) -> Iterator[tuple[int, bytes]]:
        yield from ((image, b"x") for image in ids.tolist())

    monkeypatch.setenv("TAILTUNE_CACHE", str(tmp_path))
    packed("shrunk", b"", np.arange(20), records)
    assert len(signs) == 20


def test_whoever_waits_for_another_process_gives_them(signs: list[float], tmp_path: Path) -> None:
    holds, ends = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(tmp_path):
            holds.set()
            ends.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    holds.wait(60)
    threading.Timer(0.7, ends.set).start()
    with locked(tmp_path):
        assert len(signs) >= 2
    thread.join()


@pytest.mark.slow
def test_files_that_are_copied_give_them(signs: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILTUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(staging, "SIGN_S", 0.05)
    copy = staging._copy

    def slowly(*given: object) -> str:
        time.sleep(0.5)
        return copy(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(staging, "_copy", slowly)
    with faulty_store() as store:
        store.put("photos", "pets/train.parquet", b"some bytes")
        [copied] = staged_files(store.address("photos", "pets"), ".parquet").values()
    assert copied.read_bytes() == b"some bytes"
    assert len(signs) > 3


def test_a_trial_that_takes_long_to_begin_is_heard_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its images are decoded for minutes, say, before its first step."""
    trial = object.__new__(Trial)
    stint = {"trial_id": "t0000", "config": ALONE.model_dump(), "checkpoints": [], "attempt": 1, "first_epoch": 1}
    bundle = {"bundle": 0, "stints": [stint | {"due": [], "may_leave": [], "bundle": 0}]}
    trial.setup(bundle, Slots(1, tmp_path, tmp_path, 1))
    sign, start = trial._slots.heartbeat_file("t0000"), TrialRun.start
    beats: list[float] = []

    def slowly(self: TrialRun, config: TrialConfig, loaded: object = None) -> None:
        for _ in range(4):
            time.sleep(0.6)  # longer than the pause between two heartbeats
            before = sign.stat().st_mtime_ns
            alive()
            beats.append(sign.stat().st_mtime_ns - before)
        start(self, config)

    monkeypatch.setattr(TrialRun, "start", slowly)
    trial.step()
    assert min(beats) > 0


def test_a_worker_tells_its_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every kind of work, also before the first epoch."""
    commands = [("begin", 0, ALONE.model_dump(), None, ""), ("stop",)]
    sent: queue.Queue[object] = queue.Queue()

    class Connection:
        def recv(self) -> object:
            return commands.pop(0)

        def send(self, answer: object) -> None:
            sent.put(answer)

    def slowly(self: TrialRun, config: TrialConfig, loaded: object = None) -> None:
        self.epoch, self.best, self.loaded = 0, None, None  # type: ignore[assignment]
        for _ in range(3):
            time.sleep(0.03)
            alive()

    monkeypatch.setattr(TrialRun, "start", slowly)
    monkeypatch.setattr(TrialRun, "pairing_digests", lambda self: {})
    monkeypatch.setattr(worker, "HEARTBEAT_EVERY_S", 0.02)
    worker.serve(Connection(), 0, 1)  # type: ignore[arg-type]
    heartbeats = [answer for answer in sent.queue if isinstance(answer, int)]
    assert len(heartbeats) == 3
