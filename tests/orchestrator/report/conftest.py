"""Results folders of several kinds, each written once: sweeps in virtual time, with arrays by class and tables."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.virtual_folder import write_folder
from orchestrator.config.sweep_config import SweepConfig, read_sweep

SPACES = Path(__file__).parents[3] / "search_spaces"
SHORT = ("trial.epochs=6", "scheduler.grace_epochs=2")


def sweep(*changes: str) -> SweepConfig:
    return read_sweep(SPACES / "digits_lt.yaml", [*SHORT, *changes])


def plain(folder: Path) -> Path:
    return write_folder(folder, sweep("search.trials=6"))


def larger(folder: Path) -> Path:
    """With enough trials for importances, which take seconds."""
    return write_folder(folder, sweep("search.trials=12"))


def confirmed(folder: Path) -> Path:
    return write_folder(folder, sweep("search.trials=6", "search.confirm={top: 2, seeds: 3}"))


def none_finished(folder: Path) -> Path:
    """A sweep that has just begun."""
    return write_folder(folder, sweep("search.trials=4"), lambda settings, epoch: None if epoch > 1 else 0.3, end=None)


def one_trial(folder: Path) -> Path:
    return write_folder(folder, sweep("search.trials=1", "search.references={}"))


def failures(folder: Path) -> Path:
    """Every trial diverged in its first epoch."""
    return write_folder(folder, sweep("search.trials=4", "search.references={}"), lambda settings, epoch: None, end="failed")


def objectives(folder: Path) -> Path:
    changes = ("search.trials=8", "search.objectives=[val/acc, val/acc_few]", "search.sampler=nsga2", "scheduler.name=none")
    return write_folder(folder, sweep(*changes))


def ablation(folder: Path) -> Path:
    config = read_sweep(
        SPACES / "ablation_lambda.yaml", ["ablation.seeds=4", "trial.epochs=4", "ablation.metric=val/acc", "ablation.margin=0.02"]
    )
    return write_folder(folder, config)


KINDS: dict[str, Callable[[Path], Path]] = {
    kind.__name__: kind for kind in (plain, larger, confirmed, none_finished, one_trial, failures, objectives, ablation)
}


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a kind of sweep. It is shared: whoever changes it copies it first."""
    place = tmp_path_factory.mktemp("reports")

    def folder(kind: str) -> Path:
        return place / kind if (place / kind).exists() else KINDS[kind](place / kind)

    return folder


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importances have tests of their own; here, their intervals need not take seconds."""
    monkeypatch.setattr("orchestrator.report.material.RESAMPLES", 8)
    monkeypatch.setattr("orchestrator.report.material.RESAMPLES_OF_MANY", 4)
