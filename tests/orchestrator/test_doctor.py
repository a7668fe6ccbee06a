import errno
import fcntl
import importlib
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import miniatures
import pytest
import torch

import orchestrator.doctor as doctor
import orchestrator.finding as finding
from orchestrator.doctor import (
    Finding,
    check_cores,
    check_gpus,
    check_home,
    check_import,
    check_left_behind,
    check_locks,
    check_results,
    check_shared_memory,
    check_sweep,
    check_temporary,
    guarded,
    main,
)
from trainables import machine

SPACES = Path(__file__).parents[2] / "search_spaces"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_machine_that_can_run_the_sweep_is_well(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--results", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    names = ("python", "torch", "ray", "optuna", "mlflow", "cores", "gpus", "home", "temporary", "locks", "GiB free")
    assert all(name in output for name in names)
    assert re.search(r"ready: \S+ -m orchestrator.sweep", output)


def test_a_broken_package_is_reported_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(importlib, "import_module", broken)
    finding = check_import("torchvision", "torchvision")
    assert finding.level == "problem"
    assert "RuntimeError: operator torchvision::nms does not exist" in finding.text
    assert finding.cure


def test_a_missing_package_is_reported() -> None:
    assert check_import("no-such-distribution", "json") == Finding(
        "problem", "no-such-distribution", "is not installed", doctor.REINSTALL
    )


def test_a_check_that_breaks_is_a_finding_itself() -> None:
    finding = guarded("gpus", lambda: 1 / 0)
    assert (finding.level, finding.text) == ("problem", "ZeroDivisionError: division by zero")


def test_an_unwritable_results_folder_is_a_problem(tmp_path: Path) -> None:
    assert check_results(tmp_path).level == "ok"
    assert check_results(Path("/proc/x")).level == "problem"


def test_a_quota_of_the_container_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(64), raising=False)
    monkeypatch.setattr(machine, "cpu_quota", lambda: 2.5)
    assert check_cores() == Finding("note", "cores", "2 of 64: a quota of 2.5 (docker run --cpus)")
    monkeypatch.setattr(machine, "cpu_quota", lambda: None)
    assert check_cores() == Finding("ok", "cores", "64")


def test_a_missing_home_folder_is_a_problem_whose_cure_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert check_home() == Finding("problem", "home", "HOME is not set, and Ray needs a home folder", "export HOME=/tmp")
    monkeypatch.setattr(importlib, "import_module", lambda name: 1 / 0)  # Ray cannot be imported without one
    assert check_import("ray", "ray.tune").cure == "export HOME=/tmp"


def test_a_long_temporary_folder_is_said_and_one_without_a_way_out_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * 99)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    assert check_temporary().level == "ok"
    assert "100 bytes; sockets are in /tmp, whose name is shorter" in check_temporary().text
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert (check_temporary().level, check_temporary().cure) == ("problem", "export TMPDIR=/tmp")


def test_little_shared_memory_is_said_with_a_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/tmp")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=64 * 2**20))
    finding = check_shared_memory("/tmp")
    assert (finding.level, "/tmp has 64 MiB free" in finding.text, "--shm-size" in finding.cure) == ("note", True, True)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=2**31))
    assert check_shared_memory("/tmp").level == "ok"


def test_results_without_locks_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    assert check_locks(tmp_path / "not" / "yet").level == "ok"
    monkeypatch.setattr(fcntl, "flock", refuse)
    finding = check_locks(tmp_path)
    assert (finding.level, finding.text) == ("note", f"{tmp_path}: files cannot be locked (No locks available)")
    assert finding.cure


def test_what_killed_sweeps_and_dead_sessions_leave_is_named_with_a_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert check_left_behind() == Finding("ok", "left behind", "nothing")
    for number in (os.getpid(), 2**22 + 1):  # no process has the second number
        (tmp_path / "ray" / f"session_2026-01-01_00-00-00_000000_{number}").mkdir(parents=True)
    finding = check_left_behind()
    assert finding.cure == f"rm -r {tmp_path}/ray/session_2026-01-01_00-00-00_000000_{2**22 + 1}"
    (tmp_path / "tailtune-x").mkdir()
    (tmp_path / "tailtune-x" / "lock").touch()
    assert check_left_behind().cure == f"the next sweep removes them; or: rm -r {tmp_path}/tailtune-x"


def test_hidden_gpus_are_not_taken_for_a_broken_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(shutil, "which", lambda name: pytest.fail("the driver is not asked"))
    finding = check_gpus()
    assert (finding.level, "CUDA_VISIBLE_DEVICES" in finding.text) == ("note", True)


def test_problems_end_with_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "NEEDED", {"no-such-distribution": "json"})
    assert main(["--json"]) == 1
    out, err = capsys.readouterr()
    assert "1 to mend" in err
    answer = json.loads(out)
    assert (answer["exit_code"], answer["error"]) == (1, None)
    problems = [finding for finding in answer["findings"] if finding["level"] == "problem"]
    assert [(finding["subject"], bool(finding["cure"])) for finding in problems] == [("no-such-distribution", True)]


def test_the_doctor_itself_needs_only_the_standard_library() -> None:
    imported = {
        line.split()[1].split(".")[0] if module == finding else line.split()[1]
        for module in (doctor, finding)
        for line in Path(module.__file__ or "").read_text().splitlines()
        if line.startswith(("import ", "from "))
    }
    assert {name.split(".")[0] for name in imported - {"orchestrator.finding"}} <= set(sys.stdlib_module_names)


@pytest.fixture
def photographs(tmp_path: Path) -> list[str]:
    """A folder of own images, and the sweep's settings for it on a machine like this."""
    counts = miniatures.own_images(tmp_path / "images", endings=(".png",))
    changes = {f"trial.data.{key}": value for key, value in counts.items()} | {"trial.data.root": tmp_path / "images"}
    changes |= {"resources.gpus_per_worker": 0, "trial.compute.readers": 0, "trial.threads": 1, "resources.max_concurrent": 1}
    changes |= {
        "trial.data.meta": "separate",
        "trial.data.at_least_per_class": "null",
    }  # four sets of as many images as asked for
    return [f"{key}={value}" for key, value in changes.items()]


def findings(overrides: list[str]) -> list[Finding]:
    found = check_sweep(SPACES / "own_images.yaml", overrides)
    return [finding for finding in found if isinstance(finding, Finding) and not finding.text.startswith("data.source is")]


def test_images_that_are_all_right_are_counted(photographs: list[str]) -> None:
    assert findings(photographs) == [
        Finding("ok", "data", "27 images of image_folder read"),
        Finding("ok", "data", "3 classes: cat 12, dog 9, fish 6"),
        Finding(
            "ok",
            "data",
            "sets: train 15, meta 3, val 3, test 6; classes with many (over 100), medium and few (under 20) images to train on: "
            "0, 0, 3",
        ),
        Finding("note", "data", "27 images of an extreme size: cat/00.png (12x9), cat/01.png (9x12), cat/02.png (10x10), ..."),
    ]


def test_every_broken_image_is_named(photographs: list[str], tmp_path: Path) -> None:
    for name in ("cat/03.png", "dog/05.png"):
        (tmp_path / "images" / name).write_text("a text")
    *faults, summary = (finding for finding in findings(photographs) if finding.level == "problem")
    assert sorted(fault.text for fault in faults) == [
        f"data.root: {tmp_path}/images/{name}: not an image that can be read (of no known format)"
        for name in ("cat/03.png", "dog/05.png")
    ]
    assert summary.text == "2 images cannot be read, and a sweep does not start"
    assert "trial.data.broken=skip" in summary.cure
    assert all(finding.level != "problem" for finding in findings([*photographs, "trial.data.broken=skip"]))


def test_a_missing_image_is_a_problem_and_what_is_not_read_a_note(photographs: list[str], tmp_path: Path) -> None:
    (tmp_path / "images" / "cat" / "scan.heic").write_text("something")
    (tmp_path / "images" / "dog" / "gone.png").symlink_to(tmp_path / "gone.png")
    note, missing, *_ = findings(photographs)
    text = "data.extra_endings is []: 1 file in the class folders is not read (1 .heic)"
    assert note == Finding("note", "data", text)
    assert missing.level == "problem"
    assert missing.text == f"data.root: {tmp_path}/images/dog/gone.png: there is no such file"


def test_images_in_two_sets_are_shown_side_by_side(photographs: list[str], tmp_path: Path) -> None:
    cats = tmp_path / "images" / "cat"
    for number in range(1, 12):  # all cats are the same one
        shutil.copy(cats / "00.png", cats / f"{number:02}.png")
    texts = [finding.text for finding in findings(photographs)]
    assert any(text.startswith("the same pixels in two sets: ") for text in texts)
    assert any(re.fullmatch(rf"train: {cats}/\d\d.png = test: {cats}/\d\d.png", text) for text in texts)


def test_a_sweep_that_does_not_fit_the_machine_or_its_data_is_a_problem(photographs: list[str]) -> None:
    (few,) = (one for one in findings([*photographs, "trial.data.test_per_class=20"]) if one.level == "problem")
    assert "class 2 (fish) has only 6" in few.text
    (wrong,) = findings([*photographs, "trial.data.rot=x"])
    assert "trial.data.rot is not a setting (did you mean root?)" in wrong.text
    assert findings([*photographs, "trial.threads=9999"])[0].subject == "machine"
