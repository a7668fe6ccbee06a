"""A results folder and its copy in a store: whenever the head is lost, what the copied ledger names can be fetched."""

import errno
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty_store import FaultyStore, faulty_store

from orchestrator.copy import copier as copier_module
from orchestrator.copy import results_store
from orchestrator.copy.copier import Copier
from orchestrator.copy.fetch import check_store, fetch
from orchestrator.copy.results_store import CopyFailed, ResultsStore
from orchestrator.ledger.class_arrays import append_epoch, lines_file, seal
from orchestrator.ledger.events import Kind
from orchestrator.ledger.head import HEAD
from orchestrator.ledger.ledger import LEDGER, Ledger, read_ledger
from orchestrator.request import read_request
from trainables.checkpoint import read_checkpoint, write_checkpoint
from trainables.config_file import ConfigError

KEPT = 2
PARTS = "parts/t0000.parquet"
CLASSES = ("accuracy", "meta_accuracy", "difficulty", "weight", "train_count", "clean_count")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes follow each other at once, and segments of the ledger are full after a few lines."""
    monkeypatch.setattr(copier_module, "PASS_S", 0.0)
    monkeypatch.setattr(copier_module, "RETRY_S", 0.2)
    monkeypatch.setattr(copier_module, "ANSWER_S", 1.0)
    monkeypatch.setattr(copier_module, "SEGMENT_BYTES", 2000)
    monkeypatch.setattr(results_store, "CHUNK_BYTES", 700)


@pytest.fixture(scope="module")
def s3() -> Iterator[FaultyStore]:
    with faulty_store() as found:
        yield found


def silent(text: str) -> None:
    raise AssertionError(text)


def run(
    folder: Path,
    store: ResultsStore,
    epochs: range,
    note: Callable[[str], None] = silent,
    pause_s: float = 0.0,
    ends: bool = False,
) -> bool:
    """What a sweep does to its folder, with a copy: states come, older ones go, and at last the trial `ends`. Returns whether the
    copy is complete.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.yaml").write_text("trial: {}\n")
    with Ledger(folder) as ledger:
        copier = Copier(folder, store, note)
        ledger.listen(copier)
        if not ledger.past:
            ledger.append(Kind.SWEEP_START)
        for epoch in epochs:
            place = path_of(epoch)
            digest = write_checkpoint(folder / place, os.urandom(1500))
            append_epoch(folder, "t0000", epoch, {name: [1] for name in CLASSES})
            ledger.append(Kind.CHECKPOINT, trial_id="t0000", epoch=epoch, path=place, sha256=digest)
            if epoch > KEPT:
                ledger.sync()
                copier.remove(folder.resolve() / path_of(epoch - KEPT), False)  # as a sweep names it, whose folder is relative
            time.sleep(pause_s)
        if ends:
            seal(folder, "t0000", set(epochs))
            ledger.append(Kind.TRIAL_END, trial_id="t0000", status="finished", stop_reason=None, class_arrays=PARTS)
            copier.remove(lines_file(folder.resolve(), "t0000"), False)
        return copier.close()


def path_of(epoch: int) -> str:
    return f"checkpoints/t0000/{epoch:04d}-0"


def check_whole(folder: Path) -> int:
    """Sees that the newest states that the ledger names are there, with the epochs' arrays. Returns the number of epochs."""
    named = [event for event in read_ledger(folder) if event["event"] == Kind.CHECKPOINT]
    for event in named[-KEPT:]:
        read_checkpoint(folder / event["path"], event["sha256"])
    if any(event["event"] == Kind.TRIAL_END for event in read_ledger(folder)):
        assert (folder / PARTS).is_file()
    elif named:
        lines = (folder / "parts" / "t0000.jsonl").read_text().splitlines()
        assert {event["epoch"] for event in named} <= {json.loads(line)["epoch"] for line in lines}
    return len(named)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Watched(ResultsStore):
    """A store in a folder of which a copy is kept after each change: what is left if the head is lost just then."""

    def __init__(self, place: Path, kept: Path) -> None:
        super().__init__(f"file://{place}")
        self._place, self._kept, self.moments = place, kept, 0
        self._one = threading.Lock()

    def put(self, path: str, content: bytes | Path) -> None:
        with self._one:
            super().put(path, content)
            self._keep()

    def remove(self, path: str) -> None:
        with self._one:
            super().remove(path)
            self._keep()

    def _keep(self) -> None:
        shutil.copytree(self._place, self._kept / str(self.moments))
        self.moments += 1


def test_whenever_the_head_is_lost_what_the_copied_ledger_names_is_there(tmp_path: Path) -> None:
    watched = Watched(tmp_path / "store", tmp_path / "moments")
    assert run(tmp_path / "head", watched, range(1, 30), pause_s=0.01, ends=True)
    assert not lines_file(tmp_path / "head", "t0000").exists()
    seen = []
    for moment in range(watched.moments):
        left = ResultsStore(f"file://{tmp_path}/moments/{moment}")
        if fetch(left, tmp_path / "new", lambda text: None):
            seen.append(check_whole(tmp_path / "new"))
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
    assert seen == sorted(seen)
    assert len(set(seen)) > 5  # the copy did not come at the end alone
    assert seen[-1] == 29


def test_a_sweep_that_goes_on_elsewhere_has_all_and_copies_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ResultsStore(f"file://{tmp_path}/store")
    monkeypatch.chdir(tmp_path)
    assert run(Path("first"), store, range(1, 8))
    assert fetch(store, tmp_path / "second", lambda text: None)
    assert contents(tmp_path / "second") == contents(tmp_path / "first")
    assert run(tmp_path / "second", store, range(8, 20))
    assert fetch(store, tmp_path / "third", lambda text: None)
    assert contents(tmp_path / "third") == contents(tmp_path / "second")
    assert check_whole(tmp_path / "third") == 19
    kept = {path.rpartition("/")[0] for path in store.files() if path.startswith("checkpoints/")}
    assert kept == {path_of(18), path_of(19)}
    # What the first folder has is the beginning of the copy: it is brought up to date. Afterwards there is nothing to fetch.
    assert fetch(store, tmp_path / "first", lambda text: None)
    assert check_whole(tmp_path / "first") == 19
    assert not fetch(store, tmp_path / "first", silent)


@pytest.mark.slow
def test_a_store_that_throttles_fails_and_is_gone_only_delays(s3: FaultyStore, tmp_path: Path) -> None:
    store = ResultsStore(s3.address("results", "faulty"))
    s3.throttle(0.2)
    s3.fail_every(10)
    s3.go_away(3)
    try:
        assert run(tmp_path / "head", store, range(1, 40), lambda text: None, pause_s=0.1)
    finally:
        s3.heal()
    s3.fail_every(10)
    try:
        assert fetch(store, tmp_path / "new", lambda text: None)
    finally:
        s3.heal()
    assert contents(tmp_path / "new") == contents(tmp_path / "head")
    assert check_whole(tmp_path / "new") == 39


class Broken(ResultsStore):
    """A store that takes nothing while it is broken."""

    is_broken = True

    def put(self, path: str, content: bytes | Path) -> None:
        if self.is_broken:
            raise OSError("out of order")
        super().put(path, content)


def test_a_store_that_stays_away_is_told_once_and_gets_the_rest_when_it_is_back(tmp_path: Path) -> None:
    store, notes = Broken(f"file://{tmp_path}/store"), []
    folder = tmp_path / "head"
    folder.mkdir()
    with Ledger(folder) as ledger:
        copier = Copier(folder, store, notes.append)
        copier(ledger.append(Kind.SWEEP_START))
        wait_for(lambda: notes)
        assert not copier.close(patience_s=0.1)
        assert len(notes) == 1
        assert f"are not copied to file://{tmp_path}/store at present, and are tried again: out of order" in notes[0]
        store.is_broken = False
        assert copier.close()
    assert notes[1] == f"the results are copied to file://{tmp_path}/store again"
    fetch(store, tmp_path / "new", lambda text: None)
    assert contents(tmp_path / "new") == contents(folder)


def test_what_a_store_did_not_keep_as_it_was_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ResultsStore(f"file://{tmp_path}/store")
    true = results_store._digest_of

    class Damaging:
        def __init__(self, target: Any) -> None:
            self._target = target

        def write(self, chunk: bytes) -> None:
            self._target.write(b"?" + chunk[1:])

    def damaged(source: Any, target: Any = None) -> tuple[str, int]:
        return true(source, target and Damaging(target))

    monkeypatch.setattr(results_store, "_digest_of", damaged)
    with pytest.raises(CopyFailed, match="after the upload"):
        store.put("checkpoints/t0000/0001-0/state.pt", b"a state")
    assert "checkpoints/t0000/0001-0/state.pt" not in store.files()


def test_two_sweeps_of_one_name_are_never_mixed(tmp_path: Path) -> None:
    store = ResultsStore(f"file://{tmp_path}/store")
    assert run(tmp_path / "one", store, range(1, 4))
    other = tmp_path / "other"
    assert run(other, ResultsStore(f"file://{tmp_path}/elsewhere"), range(1, 4))
    before = contents(other)
    with pytest.raises(ConfigError, match="went on in two ways; nothing was changed"):
        fetch(store, other, lambda text: None)
    assert {name: content for name, content in contents(other).items() if "fetched" not in name} == before
    with pytest.raises(ConfigError, match="holds a sweep already; nothing was started"):
        check_store(store, tmp_path / "one", resume=False)
    check_store(store, tmp_path / "one", resume=True)


def test_a_ledger_that_was_changed_in_the_store_is_refused(tmp_path: Path) -> None:
    store = ResultsStore(f"file://{tmp_path}/store")
    assert run(tmp_path / "head", store, range(1, 20))
    first, *_, second = sorted((tmp_path / "store" / "ledger").iterdir())
    text = first.read_text()
    first.write_text(text.replace('"epoch":2', '"epoch":3'))
    with pytest.raises(ConfigError, match=r"not what was written: .*line before it was changed"):
        fetch(store, tmp_path / "new", lambda text: None)
    first.write_text(text)
    end = second.read_text()
    second.unlink()
    with pytest.raises(ConfigError, match=r"not what was written: .*it had at least 20"):
        fetch(store, tmp_path / "new", lambda text: None)
    second.write_text(end)
    first.unlink()
    with pytest.raises(ConfigError, match=r"bytes from \d+ to \d+ are missing"):
        fetch(store, tmp_path / "new", lambda text: None)
    assert not (tmp_path / "new" / LEDGER).exists()


def test_of_two_processes_the_first_leaves_the_copy_to_the_second(tmp_path: Path) -> None:
    store, notes = ResultsStore(f"file://{tmp_path}/store"), []
    folder = tmp_path / "first"
    folder.mkdir()
    with Ledger(folder) as ledger:
        copier = Copier(folder, store, notes.append)
        ledger.listen(copier)
        ledger.append(Kind.SWEEP_START)
        while not (tmp_path / "store" / HEAD).exists():
            time.sleep(0.01)
        fetch(store, tmp_path / "second", lambda text: None)
        assert run(tmp_path / "second", store, range(1, 4))
        ledger.append(Kind.SWEEP_RESUME)
        assert not copier.close()
    assert "another process goes on with this sweep" in notes[0]
    fetch(store, tmp_path / "third", lambda text: None)
    assert check_whole(tmp_path / "third") == 3


def test_a_store_that_cannot_be_written_is_refused_at_once(s3: FaultyStore, tmp_path: Path) -> None:
    s3.address("results", "x")  # creates the bucket
    since = time.monotonic()
    with pytest.raises(ConfigError, match=r"s3://no-such-bucket/x cannot be written: .*nothing was started"):
        check_store(ResultsStore("s3://no-such-bucket/x"), tmp_path, resume=False)
    assert time.monotonic() - since < 30
    with pytest.raises(ConfigError, match="'ftp://host/x' is no address of a store; allowed: s3://"):
        ResultsStore("ftp://host/x")


def test_a_copier_leaves_the_copy_of_another_sweep_as_it_is(tmp_path: Path) -> None:
    """Two sweeps that were begun at the same moment on two machines: neither saw the other in the store."""
    store, notes = ResultsStore(f"file://{tmp_path}/store"), []
    assert run(tmp_path / "one", store, range(1, 4))
    before = contents(tmp_path / "store")
    assert not run(tmp_path / "other", store, range(1, 4), notes.append)
    assert contents(tmp_path / "store") == before
    assert "or began another one there: nothing more is copied" in notes[0]
    assert check_whole(tmp_path / "other") == 3


def test_what_is_being_written_is_not_copied(tmp_path: Path) -> None:
    store = ResultsStore(f"file://{tmp_path}/store")
    (tmp_path / "head" / "best.partial").mkdir(parents=True)
    (tmp_path / "head" / "best.partial" / "config.yaml").write_text("half")
    assert run(tmp_path / "head", store, range(1, 3))
    assert not [path for path in store.files() if "partial" in path]


def test_nothing_is_fetched_over_a_link(tmp_path: Path) -> None:
    store = ResultsStore(f"file://{tmp_path}/store")
    assert run(tmp_path / "head", store, range(1, 3))
    (tmp_path / "mine").mkdir()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "checkpoints").symlink_to(tmp_path / "mine")
    with pytest.raises(ConfigError, match="is a symbolic link"):
        fetch(store, tmp_path / "new", lambda text: None)
    assert not list((tmp_path / "mine").iterdir())


def test_ctrl_c_ends_the_waiting_for_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copier_module, "ANSWER_S", 60.0)
    folder = tmp_path / "head"
    folder.mkdir()
    with Ledger(folder) as ledger:
        copier = Copier(folder, Broken(f"file://{tmp_path}/store"), lambda text: None)
        ledger.listen(copier)
        ledger.append(Kind.SWEEP_START)
        time.sleep(0.3)  # the thread waits between two attempts
        timer = threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT])
        timer.start()
        since = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            copier.close()
        copier._thread.join(10)
        assert not copier._thread.is_alive()
    assert time.monotonic() - since < 20


def test_what_lies_beside_the_results_in_the_store_stays_and_does_no_harm(tmp_path: Path) -> None:
    store = ResultsStore(f"file://{tmp_path}/store")
    assert run(tmp_path / "head", store, range(1, 4))
    stranger = tmp_path / "store" / "checkpoints" / ".DS_Store"
    stranger.write_text("as a Mac leaves it on a shared disk")
    assert run(tmp_path / "head", store, range(4, 6))
    assert stranger.exists()
    fetch(store, tmp_path / "new", lambda text: None)
    assert check_whole(tmp_path / "new") == 5


def test_a_disk_that_cannot_be_read_any_more_takes_nothing_from_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, notes = ResultsStore(f"file://{tmp_path}/store"), []
    assert run(tmp_path / "head", store, range(1, 4))
    before = contents(tmp_path / "store")
    scan = os.scandir

    def dying(place: Any) -> Any:
        if str(place).endswith("head/checkpoints"):
            raise OSError(errno.EIO, "Input/output error", str(place))
        return scan(place)

    with Ledger(tmp_path / "head") as ledger:
        monkeypatch.setattr(os, "scandir", dying)
        copier = Copier(tmp_path / "head", store, notes.append)
        ledger.append(Kind.SWEEP_RESUME)
        assert not copier.close(patience_s=0.1)
    assert "Input/output error" in notes[0]
    assert {name: content for name, content in contents(tmp_path / "store").items() if name != "owner"} == {
        name: content for name, content in before.items() if name != "owner"
    }


def test_a_file_that_was_written_anew_with_the_same_size_is_fetched(tmp_path: Path) -> None:
    """Two exports of one architecture have the same size."""
    store = ResultsStore(f"file://{tmp_path}/store")
    for place, model in (("first", "1"), ("second", "2")):
        fetch(store, tmp_path / place, lambda text: None)
        (tmp_path / place / "best").mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "best" / "model.safetensors").write_text(f"model {model}")
        assert run(tmp_path / place, store, range(1, 2) if model == "1" else range(2, 3))
    assert fetch(store, tmp_path / "first", lambda text: None)
    assert (tmp_path / "first" / "best" / "model.safetensors").read_text() == "model 2"


def test_a_store_with_files_of_somebody_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    place = tmp_path / "store"
    (place / "parts").mkdir(parents=True)
    (place / "parts" / "a.parquet").write_text("images")
    for resume in (False, True):
        with pytest.raises(ConfigError, match=r"files that are no copy of a sweep \(parts/a.parquet\); nothing was started"):
            check_store(ResultsStore(f"file://{place}"), tmp_path / "x", resume)
    assert contents(place) == {"parts/a.parquet": b"images"}


@pytest.mark.parametrize("place", ["results/x", "results/x/copy", "results"])
def test_a_copy_inside_the_results_or_around_them_is_refused(place: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lie in one another; nothing was started; allowed: an address outside"):
        check_store(ResultsStore(f"file://{tmp_path}/{place}"), tmp_path / "results" / "x", resume=False)


def test_a_slow_pass_of_the_older_process_does_not_replace_what_the_newer_one_has_written(tmp_path: Path) -> None:
    reached, go_on, notes = threading.Event(), threading.Event(), []

    class Slow(ResultsStore):
        def put(self, path: str, content: bytes | Path) -> None:
            super().put(path, content)
            if path.startswith("checkpoints"):
                reached.set()
                go_on.wait(20)

    address, first = f"file://{tmp_path}/store", tmp_path / "first"
    assert run(first, ResultsStore(address), range(1, 2))
    with Ledger(first) as ledger:
        copier = Copier(first, Slow(address), notes.append)
        digest = write_checkpoint(first / path_of(2), b"a state")
        ledger.append(Kind.CHECKPOINT, trial_id="t0000", epoch=2, path=path_of(2), sha256=digest)
        copier(ledger.events[-1])
        assert reached.wait(20)
        fetch(ResultsStore(address), tmp_path / "second", lambda text: None)
        assert run(tmp_path / "second", ResultsStore(address), range(2, 5))
        go_on.set()
        assert not copier.close()
    assert "another process goes on with this sweep" in notes[0]
    fetch(ResultsStore(address), tmp_path / "third", lambda text: None)
    assert check_whole(tmp_path / "third") == 4


def test_a_copy_that_somebody_removes_is_made_anew(tmp_path: Path) -> None:
    store, notes = ResultsStore(f"file://{tmp_path}/store"), []
    folder = tmp_path / "head"
    assert run(folder, store, range(1, 4))
    with Ledger(folder) as ledger:
        copier = Copier(folder, store, notes.append)
        copier(ledger.append(Kind.SWEEP_RESUME))
        wait_for(lambda: copier._is_ours and HEAD in store.files())
        shutil.rmtree(tmp_path / "store")
        copier(ledger.append(Kind.SWEEP_RESUME))
        assert copier.close()
    fetch(store, tmp_path / "new", lambda text: None)
    assert contents(tmp_path / "new") == contents(folder)


def test_a_search_of_an_ablation_that_had_no_line_yet_is_not_fetched(tmp_path: Path) -> None:
    store = ResultsStore(f"file://{tmp_path}/store")
    assert run(tmp_path / "head", store, range(1, 3))
    assert run(tmp_path / "head" / "search_0", store.inside("search_0"), range(1, 4))
    (tmp_path / "store" / "search_1").mkdir()
    (tmp_path / "store" / "search_1" / "owner").write_text("lost before the first line")
    fetch(store, tmp_path / "new", lambda text: None)
    assert check_whole(tmp_path / "new") == 2
    assert check_whole(tmp_path / "new" / "search_0") == 3
    assert not (tmp_path / "new" / "search_1").exists()


def test_nothing_is_fetched_into_a_folder_with_other_files(tmp_path: Path) -> None:
    store = ResultsStore(f"file://{tmp_path}/store")
    assert run(tmp_path / "head", store, range(1, 3))
    (tmp_path / "mine" / "best").mkdir(parents=True)
    (tmp_path / "mine" / "best" / "model.safetensors").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds files that are no sweep \(best\); nothing was changed"):
        fetch(store, tmp_path / "mine", lambda text: None)
    assert contents(tmp_path / "mine") == {"best/model.safetensors": b"mine"}


def test_an_address_with_a_password_is_refused_without_showing_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds a password") as refused:
        read_request(None, [], None, "s3://KEY:MY-PASSWORD@bucket/results")
    assert "MY-PASSWORD" not in str(refused.value)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
