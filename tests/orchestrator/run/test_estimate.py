import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.search_quality import SCHEDULERS, SPACE, curve, sweep_of
from orchestrator.cluster.cluster_file import Cluster, read_cluster
from orchestrator.config.scheduler_config import RunAllConfig
from orchestrator.config.search_config import ConfirmConfig
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.virtual_sweep import run
from orchestrator.run import estimate as estimates
from orchestrator.run.disk import DiskUse
from orchestrator.run.estimate import Estimate, Rehearsal, Tried, estimate, rehearse, try_out
from trainables.fused_run import FusedRun

WAVES = {"as results arrive": None, "waves as wide as the slots": 4, "waves of twice the slots": 8}
SLOTS = 4


def sweep(scheduler: str, wave: int | None, sampler: str = "tpe", seed: int = 0) -> SweepConfig:
    tree: dict[str, Any] = {
        "trial": {"epochs": 27},
        "space": SPACE,
        "search": {"trials": 40, "sampler": sampler, "seed": seed, "deterministic": wave is not None, "wave": wave},
        "scheduler": SCHEDULERS[scheduler],
        "resources": {"max_concurrent": SLOTS},
    }
    return sweep_of(tree)


def test_without_a_scheduler_every_trial_runs_all_its_epochs(config: SweepConfig) -> None:
    search = config.search.model_copy(update={"confirm": ConfirmConfig(top=2, seeds=3)})
    found = rehearse(config.model_copy(update={"scheduler": RunAllConfig(), "search": search}), slots=2)
    assert found.epochs == (22 + 2 + (2 + 2) * 3) * 40
    assert found.wall == pytest.approx(found.epochs / 2, rel=0.03)  # hardly anything waits


def test_all_arms_are_rehearsed_also_when_they_have_many_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    methods = {"type": "categorical", "choices": ["cross_entropy", "focal", "difficulty_net"]}
    tree = {
        "trial": {"epochs": 9, "method": {"name": "cross_entropy"}},
        "space": {"method.name": methods, "optim.lr": {"type": "float", "low": 0.01, "high": 0.1}},
        "search": {
            "per_method": 20,
            "confirm": {"top": 1, "seeds": 2},
            "references": {"slow": {"tuned": True, "optim": {"momentum": 0.99}}, "plain": {}},
        },
        "scheduler": {"name": "none"},
    }
    config = sweep_of(tree)
    whole = rehearse(config, slots=2)
    assert whole.epochs == 9 * (4 * 20 + 1 + (4 + 1) * 2)
    monkeypatch.setattr(estimates, "MOST_REHEARSED", 40)
    assert rehearse(config, slots=2).epochs == whole.epochs


def test_where_methods_are_compared_a_trial_of_each_is_timed(config: SweepConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = {"cross_entropy": 1.0, "difficulty_net": 4.0}
    tried = lambda trial, limit_s, fused: Tried(timed[trial.method.name], int(timed[trial.method.name]), 10)  # noqa: E731
    monkeypatch.setattr(estimates, "_try_out", tried)
    fixed = {"tuned": True, "method": {"name": "cross_entropy"}}
    tree = config.model_dump() | {"space": {"optim.lr": {"type": "float", "low": 0.01, "high": 0.1}}}
    tree["search"]["references"] = {"plain": fixed, "fast": fixed | {"optim": {"batch_size": 64}}}
    assert try_out(sweep_of(tree)) == Tried((4.0 + 1.0 + 1.0) / 3, 4, 10)


def test_no_further_method_is_timed_when_the_time_is_over(config: SweepConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    now, timed = [0.0], []

    def tried(trial: Any, limit_s: float, fused: int) -> Tried:
        now[0] += 15
        timed.append(limit_s)
        return Tried(4.0, 1, 10)

    monkeypatch.setattr(estimates, "_try_out", tried)
    monkeypatch.setattr(estimates, "time", SimpleNamespace(monotonic=lambda: now[0]))
    methods = {"type": "categorical", "choices": ["cross_entropy", "focal", "difficulty_net"]}
    tree = {"trial": {"method": {"name": "cross_entropy"}}, "space": {"method.name": methods}}
    tree |= {"search": {"per_method": 1}, "scheduler": {"name": "none"}}
    tree["space"]["optim.lr"] = {"type": "float", "low": 0.01, "high": 0.1}
    assert try_out(sweep_of(tree)) == Tried(4.0, 1, 10, cut=True)
    assert len(timed) == 2  # the third would begin after 30 s
    assert try_out(sweep_of(tree | {"resources": {"gpus_per_worker": 1}})).cut
    assert timed[2:] == [0.0, 0.0]  # what a step takes on the CPU says nothing of a GPU


def test_a_scheduler_stops_trials_but_no_reference(config: SweepConfig) -> None:
    found = rehearse(config, slots=2)
    assert (22 + 2) * 15 < found.epochs < (22 + 2) * 40
    alone = config.model_copy(update={"search": config.search.model_copy(update={"trials": 0})})
    assert rehearse(alone, slots=1).epochs == 2 * 40


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("wave", WAVES)
def test_the_time_of_a_sweep_is_estimated_within_a_quarter_with_its_waiting(scheduler: str, wave: str) -> None:
    """Beside sweeps in virtual time that search with TPE on curves that the estimate knows nothing of."""
    walls = [run(sweep(scheduler, WAVES[wave], seed=seed), curve, SLOTS, seed).wall for seed in range(3)]
    assert rehearse(sweep(scheduler, WAVES[wave]), SLOTS).wall == pytest.approx(statistics.median(walls), rel=0.25)


def test_waves_that_are_narrow_take_longer_for_the_same_epochs() -> None:
    free, narrow = (rehearse(sweep("asha", wave, "random"), SLOTS) for wave in (None, SLOTS))
    assert narrow.epochs == pytest.approx(free.epochs, rel=0.2)
    assert narrow.wall > 1.3 * free.wall


def test_a_long_sweep_goes_on_like_its_first_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    long = sweep("asha", 8, "random")
    long = long.model_copy(update={"search": long.search.model_copy(update={"trials": 250})})
    whole = rehearse(long, SLOTS)
    monkeypatch.setattr(estimates, "MOST_REHEARSED", 100)
    assert list(rehearse(long, SLOTS)) == pytest.approx(list(whole), rel=0.2)


def test_the_time_includes_waiting() -> None:
    found = Estimate(Rehearsal(epochs=60, wall=40), epoch_s=2.0, concurrent=2, workers=1, device="cpu", disk=DiskUse(4, 100, 50))
    assert found.training_s == 80
    assert found.waiting == pytest.approx(0.25)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_where_no_cluster_answers_the_steps_are_timed_here_for_the_machines_of_its_file(
    config: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimates, "_try_out", lambda trial, limit_s, fused: Tried(1.0, 1, 10))
    resources = config.resources.model_copy(update={"gpus_per_worker": 1, "cpus_per_worker": 1, "max_concurrent": 9})
    file = read_cluster(Path(__file__).parents[3] / "clusters" / "fake.yaml")
    notes: list[str] = []
    found = estimate(config.model_copy(update={"resources": resources}), Cluster("127.0.0.1:9", file), notes.append)
    assert notes == ["no cluster answers, or it does not let this process in; the steps are timed on this machine"]
    assert (found.machine, found.concurrent) == (None, 4)  # the file allows four machines with a GPU


def test_the_time_of_fused_trials_is_that_of_their_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One epoch of four trials together is timed, and eight trials run at a time on two slots."""
    made: list[int] = []
    monkeypatch.setattr(FusedRun, "time_epoch", lambda self, limit_s: made.append(len(self.members)) or 2.0)
    tree = {
        "trial": {"epochs": 10, "classifier": {"name": "linear"}, "data": {"source": "generated"}},
        "space": {"optim.lr": {"type": "float", "low": 0.01, "high": 0.1}},
        "search": {"trials": 30},
        "scheduler": {"name": "none"},
        "resources": {"fused": 4, "max_concurrent": 2},
    }
    fused = estimate(SweepConfig.model_validate(tree))
    assert made == [4]
    assert (fused.concurrent, fused.fused, fused.epoch_s) == (8, 4, 2.0)
    assert fused.rehearsal.wall == pytest.approx(30 * 10 / 8, rel=0.25)
    assert fused.worker_s == pytest.approx(2 * fused.training_s)
