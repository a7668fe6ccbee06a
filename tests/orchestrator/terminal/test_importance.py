from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.ablate import main
from orchestrator.config.search_config import FloatParameter
from orchestrator.config.space import Space
from orchestrator.terminal.importance import print_importances
from trainables.config_file import dump_yaml

PLAN = {
    "trial": {"epochs": 1},
    "ablation": {"variants": {"tuned": {}, "untuned": {"optim.lr": 0.5}}, "reference": "tuned", "seeds": 3},
}
Found = tuple[Space, list[tuple[dict[str, float], float]]]


def found(number: int) -> Found:
    """Trials whose objective is one of two settings."""
    space: Space = {
        name: FloatParameter(low=0.0, high=1.0) for name in ("method.driver_weight", "stages.1.method.refresh_interval")
    }
    points = [(step / number, step * 7 % number / number) for step in range(number)]
    return space, [(dict(zip(space, point, strict=True)), point[0]) for point in points]


def test_the_table_fits_into_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.terminal.importance.searched_trials", lambda folder: found(12))
    console = Console(width=80, record=True)
    print_importances(console, Path("results/digits"))
    lines = console.export_text().splitlines()
    assert lines[0].strip() == "importance of the searched settings in digits"
    assert lines[1].split() == ["setting", "PED-ANOVA", "interval", "fANOVA", "interval"]
    first, second = lines[2:4]
    assert first.startswith("method.driver_weight ")
    assert second.startswith("stages.1.method.refresh_interval ")
    assert first.count(" to ") == second.count(" to ") == 2
    text = " ".join(" ".join(lines[4:]).split())
    assert text.startswith("Intervals are 90 % bootstrap intervals over 12 trials, those stopped early included; the ablation")


def test_a_sweep_with_too_few_trials_is_taken_apart_without_the_table(monkeypatch: pytest.MonkeyPatch, console: Console) -> None:
    monkeypatch.setattr("orchestrator.terminal.importance.searched_trials", lambda folder: found(5))
    print_importances(console, Path("results/digits"))
    text = "note: no importances of the searched settings: there are 5 trials to compare; allowed: 10 or more"
    assert console.export_text().strip() == text


def test_the_table_stands_before_an_ablation_of_a_sweep_and_before_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    steps: list[str] = []

    def printed(console: Console, folder: Path) -> None:
        steps.append(f"importances of {folder}")

    def step(name: str) -> object:
        return lambda *arguments: steps.append(name) or 0

    monkeypatch.setattr("orchestrator.terminal.importance.print_importances", printed)
    monkeypatch.setattr("orchestrator.outcome.parts.plan_of_sweep", lambda *_: PLAN)
    monkeypatch.setattr("orchestrator.ablate.plan", step("plan"))
    monkeypatch.setattr("orchestrator.ablate.run", step("run"))
    assert main(["--from-sweep", "results/digits", "--dry-run"]) == 0
    assert main(["--from-sweep", "results/digits"]) == 0
    (tmp_path / "plan.yaml").write_text(dump_yaml(PLAN))
    assert main([str(tmp_path / "plan.yaml"), "--dry-run"]) == 0
    assert steps == ["importances of results/digits", "plan", "importances of results/digits", "run", "plan"]
    assert main(["--from-sweep", "results/digits", "trial.epochs=none"]) == 2
    assert len(steps) == 5
