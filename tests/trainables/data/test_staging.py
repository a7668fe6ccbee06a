"""Files in a store are copied once for a machine, whatever happens to the store, the copiers and the copies."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faulty_store import FaultyStore, faulty_store

from trainables.data import build_data, cache, staging
from trainables.data.cache import PARTIAL, cache_folder
from trainables.data.decode import decode_all
from trainables.data.source import EncodedImages
from trainables.data.staging import MANIFEST, StoredFile, folder_name, staged_files
from trainables.data_config import ParquetConfig

ROOT = Path(__file__).parents[3]
BUCKETS = iter(f"photos{number}" for number in range(100))
CONTENTS = {f"{part}.parquet": os.urandom(size) for part, size in (("train", 300_000), ("val", 1000), ("test", 0))}


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyStore]:
    with faulty_store() as store:
        yield store


@pytest.fixture
def store(server: FaultyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    monkeypatch.setenv("TAILTUNE_CACHE", str(tmp_path / "cache"))
    server.served.clear()
    yield server
    server.heal()


@pytest.fixture
def bucket() -> str:
    return next(BUCKETS)


def filled(store: FaultyStore, bucket: str, contents: dict[str, bytes]) -> str:
    """The address of a folder with these files."""
    for name, content in contents.items():
        store.put(bucket, f"pets/{name}", content)
    return store.address(bucket, "pets")


def staged(address: str) -> dict[str, bytes]:
    return {Path(name).name: copy.read_bytes() for name, copy in staged_files(address, ".parquet").items()}


def copier(address: str) -> "subprocess.Popen[bytes]":
    """A process that stages the files of an address."""
    code = "import sys; from trainables.data.staging import staged_files; staged_files(sys.argv[1], '.parquet')"
    return subprocess.Popen([sys.executable, "-c", code, address], cwd=ROOT)


def wait_for_copying(cache: Path, at_least: int) -> None:
    """Waits until a file is being copied and has so many bytes."""
    deadline = time.monotonic() + 30
    while not any(file.stat().st_size >= at_least for file in cache.glob(f"*/*{PARTIAL}")):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def write_images(folder: Path) -> None:
    folder.mkdir()
    for part, number in (("train", 60), ("val", 12), ("test", 12)):
        images = np.random.default_rng(number).integers(0, 256, (number, 6, 6, 3), dtype=np.uint8)
        encoded = [_ppm(image) for image in images]
        table = pa.table({"image": pa.array(encoded, pa.binary()), "label": [i % 3 for i in range(number)]})
        pq.write_table(table.replace_schema_metadata({"class_names": "cat,dog,fish"}), folder / f"{part}-0.parquet")


def _ppm(image: np.ndarray) -> bytes:
    return b"P6 6 6 255\n" + image.tobytes()


def settings(root: str) -> ParquetConfig:
    return ParquetConfig(root=root, n_max=10, imbalance_factor=2, meta_per_class=1, val_per_class=2, test_per_class=2)


def test_a_trial_sees_the_same_images_in_a_store_and_in_a_local_folder(store: FaultyStore, bucket: str, tmp_path: Path) -> None:
    write_images(tmp_path / "pets")
    address = filled(store, bucket, {file.name: file.read_bytes() for file in (tmp_path / "pets").iterdir()})
    local, remote = (build_data(settings(root), seed=3) for root in (str(tmp_path / "pets"), address))
    assert remote.sha256 == local.sha256
    assert remote.class_names == local.class_names == ("cat", "dog", "fish")
    for data in (local, remote):
        assert isinstance(data.source.images, EncodedImages)
        assert data.train.ids.tolist() == local.train.ids.tolist()
    shown, expected = (decode_all(data.source.images, data.train.ids, None, grey=False) for data in (remote, local))  # type: ignore[arg-type]
    assert (shown == expected).all()
    assert remote.source.images.place(0) == f"{address}/test-0.parquet, row 0"  # type: ignore[union-attr]


def test_a_second_use_reads_only_the_listing(store: FaultyStore, bucket: str) -> None:
    address = filled(store, bucket, CONTENTS)
    assert staged(address) == CONTENTS
    store.served.clear()
    assert staged(address) == CONTENTS
    deadline = time.monotonic() + 5
    while not store.served and time.monotonic() < deadline:
        time.sleep(0.01)  # the store writes down what it has answered after the answer
    assert [(method, "list-type" in path) for method, path in store.served] == [("GET", True)]


def test_the_manifest_has_size_and_digest_of_each_file(store: FaultyStore, bucket: str) -> None:
    folder = next(iter(staged_files(filled(store, bucket, CONTENTS), ".parquet").values())).parent
    expected = {name: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for name, c in sorted(CONTENTS.items())}
    assert json.loads((folder / MANIFEST).read_text())["files"] == expected


@pytest.mark.slow
def test_processes_that_ask_at_once_copy_each_file_once(store: FaultyStore, bucket: str) -> None:
    address = filled(store, bucket, CONTENTS)
    store.limit(200_000)
    copiers = [copier(address) for _ in range(3)]
    assert [process.wait(60) for process in copiers] == [0, 0, 0]
    assert store.count("GET", "train.parquet") == store.count("GET", "val.parquet") == 1
    assert staged(address) == CONTENTS


@pytest.mark.slow
def test_a_killed_copier_leaves_nothing_that_looks_whole(
    store: FaultyStore, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = {"a.parquet": os.urandom(1000), "b.parquet": os.urandom(20_000_000)}
    address = filled(store, bucket, contents)
    store.limit(20_000_000)
    process = copier(address)
    wait_for_copying(tmp_path / "cache", staging.CHUNK_BYTES)
    process.send_signal(signal.SIGKILL)
    process.wait()
    store.heal()
    (folder,) = (tmp_path / "cache").iterdir()
    assert not (folder / MANIFEST).exists()
    assert not (folder / "b.parquet").exists()
    assert list(folder.glob(f"*{PARTIAL}"))
    store.served.clear()
    assert staged(address) == contents
    assert not list(folder.glob(f"*{PARTIAL}"))
    assert store.count("GET", "a.parquet") == 0  # it was whole


def test_changed_files_are_copied_anew(store: FaultyStore, bucket: str) -> None:
    address = filled(store, bucket, CONTENTS)
    staged(address)
    changed = {**CONTENTS, "val.parquet": b"other images"}
    filled(store, bucket, changed)
    assert staged(address) == changed
    store.delete(bucket, "pets/test.parquet")
    assert staged(address).keys() == {"train.parquet", "val.parquet"}


def test_a_file_of_the_same_size_and_another_time_counts_as_changed() -> None:
    one, other = (folder_name("s3://b/pets", [StoredFile("b/pets/a.parquet", 5, time)]) for time in (1, 2))
    assert one != other
    assert one.startswith("b-pets-")
    assert "secret" not in folder_name("s3://key:secret@b/pets", [])


@pytest.mark.parametrize("damage", ["shorter", "gone", "manifest"])
def test_a_damaged_copy_is_made_again(store: FaultyStore, bucket: str, damage: str) -> None:
    address = filled(store, bucket, CONTENTS)
    copy = staged_files(address, ".parquet")[f"{address}/train.parquet"]
    manifest = (copy.parent / MANIFEST).read_bytes()
    if damage == "shorter":
        copy.write_bytes(copy.read_bytes()[:-1])
    elif damage == "gone":
        copy.unlink()
    else:
        (copy.parent / MANIFEST).write_bytes(manifest[:50])
    store.served.clear()
    assert staged(address) == CONTENTS
    assert (copy.parent / MANIFEST).read_bytes() == manifest
    assert store.count("GET", "train.parquet") == (damage != "manifest")
    assert store.count("GET", "val.parquet") == 0


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["throttled", "failing", "gone"])
def test_a_store_that_fails_for_a_while_only_delays(store: FaultyStore, bucket: str, fault: str) -> None:
    contents = {f"{number}.parquet": os.urandom(9_000_000) for number in range(3)}
    address = filled(store, bucket, contents)
    if fault == "throttled":
        store.throttle(0.3)
    elif fault == "failing":
        store.fail_every(3)
    else:
        store.limit(5_000_000)
        threading.Timer(0.5, store.go_away, [3]).start()
    assert staged(address) == contents
    assert {"throttled": store.num_throttled, "failing": store.num_failed, "gone": store.num_refused}[fault]


@pytest.mark.slow
def test_a_store_may_be_gone_for_20_seconds(store: FaultyStore, bucket: str) -> None:
    address = filled(store, bucket, CONTENTS)
    since = time.monotonic()
    store.limit(100_000)
    threading.Timer(1, store.go_away, [20]).start()  # in the middle of train.parquet
    assert staged(address) == CONTENTS
    assert time.monotonic() - since > 20


@pytest.mark.slow
def test_a_transfer_that_breaks_in_the_middle_is_repeated(store: FaultyStore, bucket: str) -> None:
    content = os.urandom(20_000_000)
    address = filled(store, bucket, {"a.parquet": content})
    store.limit(10_000_000)
    for after in (0.4, 1.2):
        threading.Timer(after, store._cut_all).start()
    assert staged(address) == {"a.parquet": content}


class FailingFile:
    """A file whose reads fail so many times, and the store that opens it. With a real one, Arrow's retries may hide failures."""

    def __init__(self, content: bytes, failures: int) -> None:
        self.content, self.failures, self.opened = content, failures, 0
        self.listed = StoredFile("b/pets/a.parquet", len(content), None)

    def open_input_file(self, path: str) -> "FailingFile":
        self.opened += 1
        return self

    def size(self) -> int:
        return len(self.content)

    def read_at(self, size: int, start: int) -> bytes:
        self.failures -= 1
        if self.failures == 0:
            return self.content[start : start + size - 1]
        if self.failures > 0:
            raise OSError("AWS Error NETWORK_CONNECTION")
        return self.content[start : start + size]

    def chunks(self, patience_s: float) -> list[bytes]:
        return list(staging._chunks("s3://b/pets", self, self.listed, patience_s, threading.Event()))


def test_a_chunk_that_fails_or_is_short_is_fetched_again_from_a_file_that_is_opened_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(staging, "CHUNK_BYTES", 4)
    file = FailingFile(b"0123456789", failures=2)
    assert file.chunks(5) == [b"0123", b"4567", b"89"]
    assert file.opened == 3


def test_patience_ends() -> None:
    with pytest.raises(ValueError, match=r"^data\.root is .*, which cannot be read: AWS Error NETWORK_CONNECTION"):
        FailingFile(b"0123456789", failures=99).chunks(0.3)


@pytest.mark.parametrize("where", ["nobucket", "nofolder", "denied"])
def test_answers_of_the_store_are_told_at_once(store: FaultyStore, bucket: str, where: str) -> None:
    address = filled(store, bucket, CONTENTS)
    asked = {"nobucket": "s3://no-such-bucket/pets", "nofolder": f"{address}/cats", "denied": address}[where]
    store.deny(where == "denied")
    since = time.monotonic()
    with pytest.raises(ValueError, match=rf"^data\.root is '{asked}', which cannot be read: "):
        build_data(settings(asked), seed=0)
    assert time.monotonic() - since < 5


def test_permission_that_lacks_for_one_file_is_told(store: FaultyStore, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address, listing = filled(store, bucket, CONTENTS), staging._listing

    def list_and_deny(*arguments: Any) -> Any:
        found = listing(*arguments)
        store.deny()
        return found

    monkeypatch.setattr(staging, "_listing", list_and_deny)
    with pytest.raises(ValueError, match=r"^data\.root is .*ACCESS_DENIED"):
        staged_files(address, ".parquet")


def test_a_folder_without_parquet_files_is_named(store: FaultyStore, bucket: str) -> None:
    address = filled(store, bucket, {"a.jpg": b"x"})
    with pytest.raises(ValueError, match=rf"^data\.root is '{address}', which holds no \.parquet file"):
        build_data(settings(address), seed=0)
    store.put(bucket, "pets/spark.parquet/part-0", b"x")
    with pytest.raises(ValueError, match=rf"^data\.root is '{address}', where .*spark\.parquet is a folder; allowed: files"):
        build_data(settings(address), seed=0)


def test_a_damaged_file_is_named_with_its_copy(store: FaultyStore, bucket: str, tmp_path: Path) -> None:
    address = filled(store, bucket, CONTENTS)
    with pytest.raises(ValueError, match=rf"^data\.root: {address}/test\.parquet is no whole .* read from {tmp_path}/cache/"):
        build_data(settings(address), seed=0)


def test_room_is_checked_before_copying(store: FaultyStore, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = filled(store, bucket, CONTENTS)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**9, 10**9, 300_999))  # type: ignore[attr-defined]
    message = (
        rf"^data\.root is .* to {tmp_path}/cache/.*301000 bytes are needed: 300999 bytes are free; allowed: .*TAILTUNE_CACHE"
    )
    with pytest.raises(ValueError, match=message):
        staged_files(address, ".parquet")
    assert store.count("GET", ".parquet") == 0


def test_a_disk_that_becomes_full_while_copying_is_told(
    store: FaultyStore, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = filled(store, bucket, CONTENTS)

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(staging, "sync", full)
        with pytest.raises(ValueError, match=rf"^data\.root is .* to {tmp_path}/cache/.*301000 bytes are needed: No space left"):
            staged_files(address, ".parquet")
    assert not list((tmp_path / "cache").glob("*/*.parquet"))
    assert not list((tmp_path / "cache").glob(f"*/*{PARTIAL}"))
    assert staged(address) == CONTENTS


def test_files_are_copied_where_the_file_system_has_no_locks(
    store: FaultyStore, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(file: object, flags: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    address = filled(store, bucket, CONTENTS)
    monkeypatch.setattr(fcntl, "flock", no_locks)
    found: list[dict[str, bytes]] = []
    threads = [threading.Thread(target=lambda: found.append(staged(address))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CONTENTS] * 3


def test_partial_files_of_other_machines_stay_while_their_copiers_may_live(tmp_path: Path) -> None:
    mine, young, old = (tmp_path / f"{name}{PARTIAL}" for name in (f"{cache._machine()}.ab", "other.cd", "other.ef"))
    for file in (mine, young, old):
        file.write_bytes(b"")
    os.utime(old, (0, 0))
    cache.remove_partials(tmp_path, alone=False)
    assert sorted(tmp_path.iterdir()) == sorted([mine, young])
    cache.remove_partials(tmp_path, alone=True)
    assert list(tmp_path.iterdir()) == [young]


@pytest.mark.parametrize("change", ["size", "time", "gone"])
def test_files_that_change_while_they_are_copied_are_not_mixed(
    store: FaultyStore, bucket: str, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, copy_all, rounds = filled(store, bucket, CONTENTS), staging._copy_all, []
    new = {"size": b"more", "time": b"x" * 1000, "gone": b""}[change]
    if change == "time":
        time.sleep(1.1 - time.time() % 1)  # the store's times are whole seconds

    def change_before(*arguments: Any) -> dict[str, str]:
        rounds.append(1)
        if len(rounds) == 1:
            store.delete(bucket, "pets/val.parquet") if change == "gone" else store.put(bucket, "pets/val.parquet", new)
        return copy_all(*arguments)

    monkeypatch.setattr(staging, "_copy_all", change_before)
    expected = {name: content for name, content in CONTENTS.items() if name != "val.parquet"}
    assert staged(address) == (expected if change == "gone" else {**expected, "val.parquet": new})
    assert len(rounds) == 2


def test_files_that_change_all_the_time_are_told(store: FaultyStore, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address, copy_all, numbers = filled(store, bucket, CONTENTS), staging._copy_all, iter(range(10, 20))

    def change_before(*arguments: Any) -> dict[str, str]:
        store.put(bucket, "pets/val.parquet", b"x" * next(numbers))
        return copy_all(*arguments)

    monkeypatch.setattr(staging, "_copy_all", change_before)
    with pytest.raises(ValueError, match=r"^data\.root is .*, whose files change while they are copied"):
        staged_files(address, ".parquet")


@pytest.mark.slow
def test_copying_needs_little_memory(store: FaultyStore, bucket: str) -> None:
    code = (
        "import resource, sys; from trainables.data import staging\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "staging.staged_files(sys.argv[1] + '/small', '.parquet'); before = peak()\n"
        "staging.staged_files(sys.argv[1], '.parquet'); print(peak() - before)"
    )
    store.put(bucket, "pets/small/a.parquet", b"x")
    address = filled(store, bucket, {"a.parquet": os.urandom(2**20) * 80})
    shown = subprocess.run([sys.executable, "-c", code, address], cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    assert int(shown.stdout) < 50


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("TAILTUNE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert str(cache_folder()) == "/home/me/.cache/tailtune/data"
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert str(cache_folder()) == "/cache/tailtune/data"
    monkeypatch.setenv("TAILTUNE_CACHE", "~/images")
    assert str(cache_folder()) == "/home/me/images"
