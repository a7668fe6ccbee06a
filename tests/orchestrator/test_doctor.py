import importlib
import re
import shutil
import sys
from pathlib import Path

import miniatures
import pytest

import orchestrator.doctor as doctor
from orchestrator.doctor import Finding, check_import, check_results, check_sweep, guarded, main

SPACES = Path(__file__).parents[2] / "search_spaces"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_machine_that_can_run_the_sweep_is_well(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--results", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in ("python", "torch", "ray", "optuna", "mlflow", "cores", "gpus", "GiB free"))
    assert "ready: python -m orchestrator.sweep" in output


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


def test_problems_end_with_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "NEEDED", {"no-such-distribution": "json"})
    assert main([]) == 1
    assert "1 to mend" in capsys.readouterr().out


def test_the_doctor_itself_needs_only_the_standard_library() -> None:
    imported = [
        line.split()[1].split(".")[0]
        for line in Path(doctor.__file__).read_text().splitlines()
        if line.startswith(("import ", "from "))
    ]
    assert set(imported) <= set(sys.stdlib_module_names)


@pytest.fixture
def photographs(tmp_path: Path) -> list[str]:
    """A folder of own images, and the sweep's settings for it on a machine like this."""
    counts = miniatures.own_images(tmp_path / "images", endings=(".png",))
    changes = {f"trial.data.{key}": value for key, value in counts.items()} | {"trial.data.root": tmp_path / "images"}
    changes |= {"resources.gpus_per_worker": 0, "trial.compute.readers": 0, "trial.threads": 1, "resources.max_concurrent": 1}
    return [f"{key}={value}" for key, value in changes.items()]


def findings(overrides: list[str]) -> list[Finding]:
    return list(check_sweep(SPACES / "own_images.yaml", overrides))


def test_images_that_are_all_right_are_counted(photographs: list[str]) -> None:
    assert findings(photographs) == [Finding("ok", "data", "27 images of image_folder read; none is in two sets")]


def test_every_broken_image_is_named(photographs: list[str], tmp_path: Path) -> None:
    for name in ("cat/03.png", "dog/05.png"):
        (tmp_path / "images" / name).write_text("a text")
    *faults, read = findings(photographs)
    assert sorted(fault.text for fault in faults) == [
        f"data.root: {tmp_path}/images/{name}: not an image that can be read (of no known format)"
        for name in ("cat/03.png", "dog/05.png")
    ]
    assert all(fault.level == "problem" and fault.cure for fault in faults)
    assert read == Finding("ok", "data", "25 images of image_folder read; none is in two sets")


def test_images_in_two_sets_are_shown_side_by_side(photographs: list[str], tmp_path: Path) -> None:
    cats = tmp_path / "images" / "cat"
    for number in range(1, 12):  # all cats are the same one
        shutil.copy(cats / "00.png", cats / f"{number:02}.png")
    summary, *pairs = findings(photographs)
    assert "the same pixels are in two sets: 1 in train and meta, 1 in train and val, 2 in train and test" in summary.text
    assert len(pairs) == 4
    assert re.fullmatch(rf"train: {cats}/\d\d.png = meta: {cats}/\d\d.png", pairs[0].text)


def test_a_sweep_that_does_not_fit_the_machine_or_its_data_is_a_problem(photographs: list[str]) -> None:
    (few,) = findings([*photographs, "trial.data.test_per_class=20"])
    assert few.level == "problem"
    assert "class 2 (fish) has only 6" in few.text
    (wrong,) = findings([*photographs, "trial.data.rot=x"])
    assert "trial.data.rot is not a setting (did you mean root?)" in wrong.text
    assert findings([*photographs, "trial.threads=9999"])[0].subject == "machine"
