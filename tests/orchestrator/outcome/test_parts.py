"""The plan that takes the winner of a sweep apart, and the trials among which the winner was found."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from recorded import record_virtual

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.virtual_sweep import run
from orchestrator.ledger.events import Kind
from orchestrator.ledger.ledger import read_ledger
from orchestrator.outcome.parts import _short_names, plan_of_sweep, searched_trials
from trainables.config import TrialConfig
from trainables.config_file import ConfigError, Origin, check
from trainables.settings import named_values

LR = {"type": "float", "low": 0.1, "high": 1.0}
SPACE = {"optim.lr": LR, "method.meta_lr": LR, "optim.batch_size": {"type": "categorical", "choices": [16, 64]}}


def swept(folder: Path, space: dict[str, Any] = SPACE, epochs: int = 1, scheduler: str = "none", **search: Any) -> SweepConfig:
    """A sweep whose trials are the better, the larger their step size is; written as a ledger."""
    tree = {
        "trial": {"epochs": epochs},
        "scheduler": {"name": scheduler},
        "space": space,
        "search": {"sampler": "random", "trials": 5, **search},
    }
    config = check(SweepConfig, tree, Origin("SWEEP"))
    done = run(config, lambda settings, epoch: settings["optim.lr"] - 1, slots=1)
    record_virtual(folder, config, done)
    return config


def test_each_searched_setting_goes_back_to_its_default_in_turn(tmp_path: Path) -> None:
    swept(tmp_path)
    config = check(SweepConfig, plan_of_sweep(tmp_path), Origin("PLAN"))
    trials = {name: named_values(trial) for name, trial in config.trials_of_cells().items()}
    assert set(trials) == {"tuned", "untuned", "without_lr", "without_meta_lr", "without_batch_size"}
    default, tuned = named_values(TrialConfig()), trials["tuned"]
    assert all(trials["untuned"][name] == default[name] for name in SPACE)
    assert all(tuned[name] != default[name] for name in SPACE)
    for name in SPACE:
        short = name.split(".")[-1]
        assert trials[f"without_{short}"] == {**tuned, name: default[name]}
    assert config.ablation is not None
    assert config.ablation.reference_name == "tuned"
    assert min(fixed.trial.seed for fixed in config.fixed_trials()) > 0  # the sweep has used seed 0


def test_a_single_setting_makes_two_variants_and_no_path(tmp_path: Path) -> None:
    swept(tmp_path, {"optim.lr": LR})
    assert set(plan_of_sweep(tmp_path)["ablation"]["variants"]) == {"tuned", "untuned"}
    with pytest.raises(ConfigError, match=r"differs from the defaults in optim\.lr alone; allowed: --from-sweep without --path"):
        plan_of_sweep(tmp_path, path=True)


def test_the_path_begins_at_the_defaults_and_ends_at_the_winner(tmp_path: Path) -> None:
    swept(tmp_path)
    config = check(SweepConfig, plan_of_sweep(tmp_path, path=True), Origin("PLAN"))
    trials = {name: named_values(trial) for name, trial in config.trials_of_cells().items()}
    others = check(SweepConfig, plan_of_sweep(tmp_path), Origin("PLAN")).trials_of_cells()
    assert trials["none"] == named_values(others["untuned"])
    assert trials["full"] == named_values(others["tuned"])
    assert trials["lr"] == trials["none"] | {"optim.lr": trials["full"]["optim.lr"]}


def test_settings_whose_last_parts_are_the_same_have_their_whole_names() -> None:
    assert _short_names(["optim.lr", "stage.lr", "seed"]) == {"optim.lr": "optim_lr", "stage.lr": "stage_lr", "seed": "seed"}


def test_a_sweep_without_a_winner_of_the_search_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no sweep"):
        plan_of_sweep(tmp_path / "nothing")
    swept(tmp_path / "one", {}, trials=0, references={"plain": {"optim.lr": 0.5}})
    with pytest.raises(ConfigError, match="whose best trial, t0000, has the defaults in all searched settings"):
        plan_of_sweep(tmp_path / "one")


def test_the_trials_of_the_search_have_the_searched_settings_and_what_they_have_reached(tmp_path: Path) -> None:
    config = swept(tmp_path, references={"plain": {"optim.lr": 0.5}})
    space, trials = searched_trials(tmp_path)
    assert space == config.space
    assert len(trials) == 5  # the reference is none of them
    for settings, objective in trials:
        assert settings.keys() == space.keys()
        assert objective == settings["optim.lr"] - 1


def test_trials_that_were_stopped_early_count_as_well(tmp_path: Path) -> None:
    swept(tmp_path, epochs=9, scheduler="asha", trials=12)
    statuses = Counter(event["status"] for event in read_ledger(tmp_path) if event["event"] == Kind.TRIAL_END)
    assert statuses["stopped_early"] > 0
    assert statuses["stopped_early"] + statuses["finished"] == 12
    assert len(searched_trials(tmp_path)[1]) == 12


def test_of_several_arms_only_the_trials_of_the_winner_s_count(tmp_path: Path) -> None:
    swept(tmp_path, references={"small": {"optim.batch_size": 16, "optim.lr": 0.05, "tuned": True}})
    space, trials = searched_trials(tmp_path)
    assert "optim.batch_size" in space
    assert len(trials) == 5
    assert min(settings["optim.lr"] for settings, _ in trials) >= 0.1
