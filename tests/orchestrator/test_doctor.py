import importlib
import sys
from pathlib import Path

import pytest

import orchestrator.doctor as doctor
from orchestrator.doctor import Finding, check_import, check_results, guarded, main


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
