"""Packs are made once for a machine, whatever ends their makers, and take memory once for all processes."""

import io
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from trainables.data import packed as packs
from trainables.data.cache import PARTIAL
from trainables.data.loaded import LoadedData, load_data
from trainables.data.loader import Request
from trainables.data.packed import NoRoom, Pack, packed
from trainables.data.parquet import open_parquet
from trainables.data.source import EncodedImages, Ids
from trainables.data_config import ParquetConfig

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
IDS = np.array([3, 1, 4, 15, 9, 2, 6])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TAILTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packs, "PART_IMAGES", 3)
    monkeypatch.setattr(packs, "CHECKED_IMAGES", 1)
    return tmp_path / "cache"


def record(image: int) -> bytes:
    """Records of different lengths; that of image 2 is empty."""
    return bytes([image]) * (image - 2 if image > 2 else 2 - image)


class Asked:
    """Gives records, and remembers which images it was asked for."""

    def __init__(self) -> None:
        self.ids: list[int] = []

    def __call__(self, ids: Ids) -> Iterator[tuple[int, bytes]]:
        for image in ids.tolist():
            self.ids.append(image)
            yield image, record(image)


def contents(pack: Pack) -> dict[int, bytes]:
    return {image: pack.read(image) for image in IDS.tolist()}


EXPECTED = {image: record(image) for image in IDS.tolist()}


def test_a_pack_gives_the_records_back_and_is_made_once(cache: Path) -> None:
    asked = Asked()
    pack = packed("rows", b"a", IDS, asked)
    assert asked.ids == sorted(IDS.tolist())
    assert contents(pack) == EXPECTED
    assert [image in pack for image in (3, 0, 5, 15, 16)] == [True, False, False, True, False]
    assert pack.has(np.array([15, 5])).tolist() == [True, False]
    assert contents(packed("rows", b"a", IDS[::-1], asked)) == EXPECTED
    assert len(asked.ids) == 7
    (place,) = cache.iterdir()
    assert sorted(file.name for file in place.iterdir()) == ["00000.part", "00001.part", "00002.part", "lock", "used"]


def test_another_stamp_or_other_images_are_another_pack(cache: Path) -> None:
    for number, (stamp, ids) in enumerate([(b"a", IDS), (b"b", IDS), (b"a", IDS[1:])], start=1):
        asked = Asked()
        pack = packed("shrunk", stamp, ids, asked)
        assert asked.ids == sorted(ids.tolist())
        assert pack.read(15) == record(15)
        assert len(list(cache.iterdir())) == number


@pytest.mark.parametrize("left", [slice(-3), slice(3, None), slice(0)])
def test_a_part_that_is_not_whole_is_made_again_and_the_others_stay(cache: Path, left: slice) -> None:
    packed("rows", b"a", IDS, Asked())
    part = next(cache.glob("*/00001.part"))
    part.write_bytes(part.read_bytes()[left])
    asked = Asked()
    assert contents(packed("rows", b"a", IDS, asked)) == EXPECTED
    assert asked.ids == [4, 6, 9]


def test_a_record_that_is_not_as_it_was_written_is_refused(cache: Path) -> None:
    pack = packed("rows", b"a", IDS, Asked())
    part = next(cache.glob("*/00001.part"))
    with part.open("r+b") as file:
        file.seek(3)  # in the record of image 6, which is the second one
        file.write(b"x")
    assert pack.read(4) == record(4)
    with pytest.raises(OSError, match=rf"the copy in {part} is damaged; remove this file, and it is made again"):
        pack.read(6)


SLOWLY = """
import sys, time
import numpy as np
from trainables.data import packed
packed.PART_IMAGES = 3
def records(ids):
    for image in ids.tolist():
        time.sleep(float(sys.argv[1]))
        open(sys.argv[2], "a").write(f"{image} ")
        yield image, bytes([image]) * (image - 2 if image > 2 else 2 - image)
pack = packed.packed("rows", b"a", np.array([3, 1, 4, 15, 9, 2, 6]), records)
print(len(pack.read(15)))
"""


def maker(log: Path, pause_s: float) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", SLOWLY, str(pause_s), str(log)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_processes_at_once_make_a_pack_once(cache: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    makers = [maker(log, 0.1) for _ in range(2)]
    assert [process.communicate(timeout=60)[0] for process in makers] == ["13\n", "13\n"]
    assert sorted(map(int, log.read_text().split())) == sorted(IDS.tolist())


@pytest.mark.slow
def test_what_a_killed_maker_has_not_made_is_made_by_the_next_one(cache: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = maker(log, 0.3)
    deadline = time.monotonic() + 60
    while not (log.exists() and len(log.read_text().split()) >= 4):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (place,) = cache.iterdir()
    assert [file.name for file in sorted(place.glob("*.part"))] == ["00000.part"]
    assert len(list(place.glob(f"*{PARTIAL}"))) == 1
    asked = Asked()
    assert contents(packed("rows", b"a", IDS, asked)) == EXPECTED
    assert asked.ids == [4, 6, 9, 15]
    assert not list(place.glob(f"*{PARTIAL}"))


def with_free(monkeypatch: pytest.MonkeyPatch, cache: Path, size: int) -> None:
    """A disk for the cache's parts alone, of so many bytes."""

    def usage(_: Path) -> Any:
        return type("Usage", (), {"free": size - sum(file.stat().st_size for file in cache.glob("*/*.part"))})

    monkeypatch.setattr(packs.shutil, "disk_usage", usage)


def test_a_disk_without_room_is_told_with_what_is_needed_before_all_is_written(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_free(monkeypatch, cache, 100)
    asked = Asked()
    ids = np.arange(10, 60)
    with pytest.raises(NoRoom, match=rf"{cache}/rows-\w+: about {8 * 49} bytes are still needed, and 100 bytes are free"):
        packed("rows", b"a", ids, asked)
    assert asked.ids == [10]
    assert not list(cache.glob(f"*/*{PARTIAL}"))


def test_a_disk_that_becomes_full_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packs, "sync", full)
    with pytest.raises(NoRoom, match="No space left on device"):
        packed("rows", b"a", IDS, Asked())
    assert not list(cache.glob(f"*/*{PARTIAL}"))


def test_for_room_those_packs_go_that_nobody_has_and_that_were_used_longest_ago(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = packed("shrunk", b"used", np.array([100]), Asked())
    for age, name in enumerate((b"new", b"old")):
        packed("shrunk", name, np.array([200]), Asked())
        newest = max(cache.iterdir(), key=lambda place: (place / "used").stat().st_ctime_ns)
        os.utime(newest / "used", (time.time() - 100 * age, time.time() - 100 * age))
    assert len(list(cache.iterdir())) == 3
    # Records of 98, 198 and 198 bytes, with 28 bytes of index each. Another 97 + 98 fit when one pack has gone.
    with_free(monkeypatch, cache, 98 + 198 + 198 + 3 * 28 + 50)
    packed("shrunk", b"more", np.array([99, 100]), Asked())
    left = len(list(cache.iterdir()))
    asked = Asked()
    packed("shrunk", b"new", np.array([200]), asked)
    assert (left, asked.ids) == (3, [])
    assert used.read(100) == record(100)


def test_new_rows_replace_rows_that_nobody_has(cache: Path) -> None:
    first = packed("rows", b"first", IDS, Asked())
    packed("rows", b"second", IDS, Asked())
    assert len(list(cache.iterdir())) == 2
    packed("shrunk", b"third", IDS, Asked())
    fourth = packed("rows", b"fourth", IDS, Asked())  # instead of the second
    assert len(list(cache.iterdir())) == 3
    assert contents(first) == contents(fourth) == EXPECTED


@pytest.mark.slow
def test_a_pack_that_a_child_process_has_is_not_removed(cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    pack, ours = packed("rows", b"first", IDS, Asked()), context.Event()
    child = context.Process(target=ours.wait)
    child.start()
    del pack
    packed("rows", b"second", IDS, Asked())
    assert len(list(cache.iterdir())) == 2
    ours.set()
    child.join()
    packed("rows", b"third", IDS, Asked())
    assert len(list(cache.iterdir())) == 1


def test_packs_are_made_where_the_file_system_has_no_locks(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def no_locks(file: object, flags: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert contents(packed("rows", b"a", IDS, Asked())) == EXPECTED
    assert contents(packed("rows", b"b", IDS, Asked())) == EXPECTED
    assert len(list(cache.iterdir())) == 2  # nobody knows who has them


def parquet(folder: Path, number: int = 60, side: int = 9, files: int = 2) -> dict[str, Any]:
    """Files of noise in three classes."""
    folder.mkdir(parents=True)
    for file in range(files):
        images = np.random.default_rng(file).integers(0, 256, (number // files, side, side, 3), dtype=np.uint8)
        encoded = []
        for pixels in images:
            Image.fromarray(pixels).save(opened := io.BytesIO(), format="PNG")
            encoded.append(opened.getvalue())
        pq.write_table(pa.table({"image": encoded, "label": np.arange(len(images)) % 3}), folder / f"{file}.parquet", 7)
    return {"root": str(folder), "profile": "natural", "meta_per_class": 2, "val_per_class": 2, "test_per_class": 2}


def rows(config: dict[str, Any], seed: int = 0, kept: LoadedData | None = None) -> LoadedData:
    return load_data(ParquetConfig(**config, loading="stream", image_size=8, augment=["flip"]), seed, CPU, 0, kept)


def everything(data: LoadedData) -> list[torch.Tensor]:
    """Train, meta and val; read without augmentation."""
    parts = (data.train, data.meta, data.val)
    return [batch.images for part in parts for batch in part.batches([Request(torch.arange(len(part)))])]


def test_a_streamed_parquet_source_gives_the_same_pixels_from_a_pack(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = parquet(cache.parent / "rows")
    expected = [everything(rows(config, seed)) for seed in (0, 1)]
    assert not cache.exists()  # the rows are few
    monkeypatch.setattr("trainables.data.parquet.IN_MEMORY_BYTES", 1)
    first = rows(config)
    assert all(map(torch.equal, everything(first), expected[0]))
    assert len(list(cache.iterdir())) == 1
    first.store.hold(first.data.test.ids)  # as at the end of a trial
    assert len(list(cache.iterdir())) == 2
    assert all(map(torch.equal, everything(first), expected[0]))
    second = rows(config, 1, first)
    assert all(map(torch.equal, everything(second), expected[1]))


def test_a_few_more_rows_are_held_in_memory_beside_those_in_a_pack(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = parquet(cache.parent / "rows")
    images = open_parquet(ParquetConfig(**config)).images
    assert isinstance(images, EncodedImages)
    whole = images.hold(np.arange(60))
    monkeypatch.setattr("trainables.data.parquet.IN_MEMORY_BYTES", 3000)
    packed_rows = images.shared(np.arange(40))
    both = packed_rows.shared(np.arange(36, 44)).shared(np.arange(44, 46))
    assert len(list(cache.iterdir())) == 1
    assert [both.read(image) for image in range(46)] == [whole.read(image) for image in range(46)]


def test_files_that_have_changed_are_packed_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainables.data.parquet.IN_MEMORY_BYTES", 1)
    config = parquet(cache.parent / "rows")
    before = everything(rows(config))
    file = cache.parent / "rows" / "0.parquet"
    table = pq.read_table(file)
    pq.write_table(table.set_column(0, "image", table["image"].take(list(range(29, -1, -1)))), file, 7)
    assert not torch.equal(everything(rows(config))[0], before[0])


def test_without_room_for_a_pack_each_process_holds_its_rows_and_a_warning_says_so(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parquet(cache.parent / "rows")
    expected = everything(rows(config))
    monkeypatch.setattr("trainables.data.parquet.IN_MEMORY_BYTES", 1)
    cache.write_text("a file, not a folder")
    with pytest.warns(UserWarning, match=rf"cannot be shared .* has its own in memory: {cache}/rows-\w+: .*; .*TAILTUNE_CACHE"):
        found = rows(config)
    assert all(map(torch.equal, everything(found), expected))


def _pss_bytes() -> int:
    text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    return int(re.findall(r"^Pss: +(\d+) kB", text, re.MULTILINE)[0]) * 1024


def _growth(images: EncodedImages, ids: Ids, barrier: Any, grown: Any) -> None:
    barrier.wait()
    before = _pss_bytes()
    held = images.shared(ids)
    total = sum(len(held.read(image)) for image in ids.tolist())
    images.release()
    barrier.wait()
    grown.put((_pss_bytes() - before, total))
    barrier.wait()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
def test_eight_workers_of_a_parquet_stream_take_its_memory_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = parquet(cache.parent / "rows", number=240, side=180, files=1)
    images = open_parquet(ParquetConfig(**config)).images
    assert isinstance(images, EncodedImages)
    context = multiprocessing.get_context("fork")
    copies = {}
    for name, limit in (("packed", 1), ("in memory", 2**40)):
        monkeypatch.setattr("trainables.data.parquet.IN_MEMORY_BYTES", limit)
        barrier, grown = context.Barrier(8), context.SimpleQueue()
        workers = [context.Process(target=_growth, args=(images, np.arange(240), barrier, grown)) for _ in range(8)]
        for worker in workers:
            worker.start()
        found = [grown.get() for _ in workers]
        for worker in workers:
            worker.join()
        assert {size for _, size in found} == {found[0][1]}
        assert found[0][1] > 2e7
        copies[name] = sum(growth for growth, _ in found) / found[0][1]
    assert copies["packed"] < 3  # the rows once, and what eight readers of a file need
    assert copies["in memory"] > 7
