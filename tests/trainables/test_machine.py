import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import miniatures
import psutil
import pytest

from trainables import machine
from trainables.machine import (
    RAY_NAMES,
    READER_NAMES,
    SOCKET_NAME_MAX,
    gpu_names,
    memory_bytes,
    process_began,
    processor,
    ray_folder,
    socket_folder,
    this_machine,
)


def test_a_temporary_folder_that_is_short_enough_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usual = "/" + "x" * (SOCKET_NAME_MAX - RAY_NAMES - 1)
    assert socket_folder(RAY_NAMES, usual) == usual
    monkeypatch.setenv("RAY_TMPDIR", "/somewhere")
    assert ray_folder() == "/somewhere"


def test_with_a_long_temporary_folder_sockets_are_in_a_short_one(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = "/" + "x" * (SOCKET_NAME_MAX - RAY_NAMES)
    assert socket_folder(RAY_NAMES, usual) == "/tmp"
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", usual)
    assert ray_folder() == "/tmp"


def test_where_no_folder_is_short_enough_the_refusal_names_length_and_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match=r"TMPDIR is /x+, 201 bytes; allowed: at most 75, because"):
        socket_folder(READER_NAMES, "/" + "x" * 200)


@pytest.mark.slow
def test_readers_hand_batches_over_with_any_temporary_folder(tmp_path: Path) -> None:
    scratch = tmp_path / ("a_scratch_folder_as_slurm_makes_it" * 3)
    scratch.mkdir()
    counts = miniatures.own_images(tmp_path / "images", endings=(".png",))
    data = [f"data.{key}={value}" for key, value in counts.items()] + [f"data.root={tmp_path / 'images'}", "data.image_size=8"]
    (tmp_path / "config.yaml").write_text("epochs: 1\ndata: {source: image_folder, root: images}\ncompute: {readers: 1}\n")
    command = [sys.executable, "-m", "trainables.train", "config.yaml", *data, "optim.batch_size=4", "device=cpu"]
    where = {**os.environ, "TMPDIR": str(scratch)}
    done = subprocess.run(command, cwd=tmp_path, env=where, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "epoch   1/1" in done.stdout
    assert not list(scratch.glob("pymp-*"))


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/a/b", {"cpu.max": "400000 100000", "a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2.0),
        ("0::/outer/name", {"cpu.max": "300000 100000"}, 3.0),  # inside a container: the outer name is missing
        ("4:cpu,cpuacct:/x", {"cpu,cpuacct/x/cpu.cfs_quota_us": "250000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"}, 2.5),
        ("1:cpu:/outer", {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("7:memory:/x", {}, None),
    ],
)
def test_the_quota_of_a_container_is_the_smallest_of_the_groups_around_it(
    tmp_path: Path, membership: str, files: dict[str, str], quota: float | None
) -> None:
    (tmp_path / "self").write_text(membership + "\n")
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text + "\n")
    assert machine.cpu_quota(tmp_path / "groups", tmp_path / "self") == quota


def test_no_more_cores_are_used_than_the_quota_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(64), raising=False)
    for quota, cores in ((None, 64), (2.5, 2), (0.5, 1), (100.0, 64)):
        monkeypatch.setattr(machine, "cpu_quota", lambda quota=quota: quota)
        assert machine.num_cores() == cores


def test_the_network_interface_of_an_address_is_found() -> None:
    assert machine.interface_of("127.0.0.1") == "lo"
    assert machine.interface_of("192.0.2.77") == ""


def test_the_processors_name_is_read_or_its_architecture_given(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Fast 9000 @ 3 GHz\nflags\t: x\nmodel name\t: Other\n")
    assert processor(tmp_path / "cpuinfo") == "Fast 9000 @ 3 GHz"
    assert processor(tmp_path / "gone") == platform.machine()


def test_the_memory_is_what_the_system_says() -> None:
    assert memory_bytes() == pytest.approx(psutil.virtual_memory().total, rel=0.01)


@pytest.mark.parametrize(
    ("membership", "files", "limit"),
    [
        ("0::/", {"memory.max": "4096"}, 4096),
        ("0::/", {"memory.max": "max"}, None),
        ("0::/a/b", {"memory.max": "max", "a/memory.max": "8192", "a/b/memory.max": "12288"}, 8192),
        ("5:memory:/x", {"memory/x/memory.limit_in_bytes": "4096"}, 4096),
        ("5:memory:/x", {"memory/x/memory.limit_in_bytes": "9223372036854771712"}, None),  # means no limit
        ("3:cpu:/x", {"memory/x/memory.limit_in_bytes": "4096"}, None),
    ],
)
def test_the_memory_of_a_container_is_the_smallest_of_the_groups_around_it(
    tmp_path: Path, membership: str, files: dict[str, str], limit: int | None
) -> None:
    (tmp_path / "self").write_text(membership + "\n")
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text + "\n")
    assert machine.memory_limit(tmp_path / "groups", tmp_path / "self") == (limit or memory_bytes())


def test_the_machine_is_this_one() -> None:
    found = this_machine()
    assert found["cores"] == os.cpu_count()
    assert found["python"] == platform.python_version()
    assert found["memory_gib"] == pytest.approx(psutil.virtual_memory().total / 2**30, abs=0.1)


def test_gpus_are_called_as_their_driver_calls_them(tmp_path: Path) -> None:
    assert gpu_names(tmp_path) == []
    for number, model in enumerate(("NVIDIA H100 80GB HBM3", "NVIDIA L4")):
        (tmp_path / f"0000:0{number}:00.0").mkdir()
        (tmp_path / f"0000:0{number}:00.0" / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t 24\n")
    assert gpu_names(tmp_path) == ["NVIDIA H100 80GB HBM3", "NVIDIA L4"]


def test_a_process_knows_when_it_was_started(tmp_path: Path) -> None:
    before = time.time()
    code = "import time; time.sleep(0.3); from trainables.machine import process_began; print(process_began())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert before - 0.05 <= float(found.stdout) <= time.time() - 0.3 + 0.05
    before = time.time()
    assert before <= process_began(tmp_path / "absent") <= time.time()


@pytest.mark.parametrize("kept", [False, True])
def test_steps_take_no_new_pages_when_freed_memory_is_kept(kept: bool) -> None:
    program = f"""if True:
        import resource, torch
        from trainables.machine import keep_freed_memory
        if {kept}:
            keep_freed_memory()
        torch.set_num_threads(1)
        layers = [layer for _ in range(4) for layer in (torch.nn.LazyConv2d(32, 3), torch.nn.BatchNorm2d(32), torch.nn.ReLU())]
        net, images = torch.nn.Sequential(*layers), torch.rand(64, 3, 32, 32)
        for step in range(20):
            if step == 15:  # until then, memory to keep is collected
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            net(images).square().mean().backward()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    pages = int(done.stdout)
    assert (pages < 5000) if kept else (pages > 10_000), pages
