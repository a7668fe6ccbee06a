from pathlib import Path
from typing import Any

import pytest
from simulation import SPACE, Simulation, sweep

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.warm_start import earlier_trials, other_settings
from orchestrator.ledger.events import Event, Role
from orchestrator.ledger.trial_states import trial_states_of
from trainables.config_file import ConfigError, Origin, check

OLD = Path("results/old")


def start(config: SweepConfig, learnt: list[dict[str, Any]] | None = None) -> Event:
    return {"event": "sweep_start", "time": 0.0, "config": config.model_dump(), "warm_start": learnt}


def run(config: SweepConfig, learnt: list[dict[str, Any]] | None = None) -> Simulation:
    simulation = Simulation(config)
    simulation.events = [start(config, learnt)]
    simulation.run()
    return simulation


def proposals(simulation: Simulation) -> list[dict[str, object]]:
    return [event["params"] for event in simulation.events if event["event"] == "suggest" and event["role"] == Role.SEARCH]


def test_a_new_sweep_learns_from_the_searched_trials_of_an_old_one() -> None:
    config = sweep(trials=19, sampler="tpe")
    old = run(config)
    learnt = earlier_trials(OLD, old.events, config)
    assert len(learnt) == 19  # all but plain cross-entropy
    for trial, member in zip(learnt, list(trial_states_of(old.events).values())[1:], strict=True):
        assert trial["values"].keys() == SPACE.keys()
        assert trial["values"]["method.meta_lr"] == member.config["method"]["meta_lr"]
        assert trial["status"] == member.status
        assert trial["objectives"] == [member.best_value]
    warm = run(config, learnt)
    assert proposals(warm)[:4] != proposals(old)[:4]  # no longer the random ones of a beginning


def test_learnt_from_are_trials_that_ended_by_their_own_numbers() -> None:
    def fails(trial_id: str, epoch: int, attempt: int) -> str | None:
        return {"t0001": "diverged", "t0002": "failed"}.get(trial_id)

    config = sweep("none", trials=6, failures={"max_failed_fraction": 1.0})
    whole, simulation = (Simulation(config, fails=fails, value=lambda config, epoch: None if epoch == 1 else 0.5) for _ in "ab")
    whole.events, simulation.events = [start(config)], [start(config)]
    last = next(n for n, event in enumerate(whole.run()) if event["event"] == "trial_end" and event["trial_id"] == "t0003")
    simulation.run(crash_after=last + 1)
    members = trial_states_of(simulation.events)
    assert {member.status for member in members.values()} == {"finished", "diverged", "failed", "running"}
    found = [member for member in list(members.values())[1:] if member.status in ("finished", "diverged")]
    learnt = earlier_trials(OLD, simulation.events, config)
    assert [trial["status"] for trial in learnt] == [member.status for member in found]
    history = {str(epoch): 0.5 for epoch in range(2, 10)}  # the first epoch's value was no number
    assert [trial["history"] for trial in learnt] == [{} if member.status == "diverged" else history for member in found]


def test_an_offspring_teaches_nothing_because_its_value_is_not_of_its_settings_alone() -> None:
    config = sweep("pbt", trials=9)
    old = run(config)
    members = list(trial_states_of(old.events).values())
    roots = [member for member in members if member.role == Role.SEARCH and not member.parent]
    assert len(roots) < len(members) - 1
    assert [trial["objectives"] for trial in earlier_trials(OLD, old.events, config)] == [[root.best_value] for root in roots]


def test_settings_that_are_not_searched_and_were_others_are_named() -> None:
    config = sweep()
    method = config.trial.method.model_copy(update={"meta_lr": 0.5})
    optim = config.trial.optim.model_copy(update={"lr": 0.1})
    other = config.model_copy(update={"trial": config.trial.model_copy(update={"method": method, "optim": optim})})
    assert other_settings([start(config)], other) == ["trial.optim.lr 0.05 then, 0.1 now"]


def test_what_was_learnt_is_learnt_again_after_a_crash() -> None:
    config = sweep(trials=9, sampler="tpe", deterministic=True)
    learnt = earlier_trials(OLD, run(config).events, config)
    undisturbed, crashed = run(config, learnt), Simulation(config, order=7)
    crashed.events = [start(config, learnt)]
    for crash in (9, 30, 50):
        crashed.run(crash_after=crash)
    crashed.run()
    assert proposals(crashed) == proposals(undisturbed)


def test_points_outside_the_new_space_teach_nothing_and_hurt_nobody() -> None:
    old = run(sweep(trials=9))
    narrow = sweep().model_dump() | {"space": {**SPACE, "method.meta_lr": {"type": "float", "low": 0.099, "high": 0.1}}}
    config = check(SweepConfig, narrow, Origin("test"))
    run(config, earlier_trials(OLD, old.events, config))


def test_values_that_mean_something_else_are_refused() -> None:
    config = sweep()
    other = config.model_copy(update={"trial": config.trial.model_copy(update={"select_by": "val/acc_few"})})
    with pytest.raises(ConfigError, match=r"trial.select_by is 'val/acc' there and 'val/acc_few' here"):
        earlier_trials(OLD, run(config).events, other)
    with pytest.raises(ConfigError, match="none of its trials has ended"):
        earlier_trials(OLD, [start(config)], config)
    with pytest.raises(ConfigError, match="holds no sweep to start from"):
        earlier_trials(OLD, [], config)


def test_from_a_comparison_a_sweep_learns_the_trials_of_its_own_method_and_stages() -> None:
    crt = {"tuned": True, "stages": [{"name": "representation"}, {"name": "crt", "epochs": 2}]}
    mfrw = {"tuned": True, "method": {"name": "mfrw"}}
    old = run(sweep("none", trials=5, references={"crt": crt, "mfrw": mfrw}))
    members = trial_states_of(old.events).values()
    learnt = earlier_trials(OLD, old.events, sweep("none", trials=5))
    assert [trial["objectives"] for trial in learnt] == [[m.best_value] for m in members if m.variant == "difficulty_net"]
    assert len(learnt) == 5
    other = sweep("none").model_dump() | {"space": {"method.meta_lr": SPACE["method.meta_lr"]}}
    other["trial"]["method"] = {"name": "gdw"}
    with pytest.raises(ConfigError, match="none of its trials with this method and these stages has ended"):
        earlier_trials(OLD, old.events, check(SweepConfig, other, Origin("test")))


def test_a_comparison_of_arms_begins_without_trials() -> None:
    config = sweep(trials=4, references={"slow": {"tuned": True, "optim": {"lr": 0.001}}})
    with pytest.raises(ConfigError, match=r"--warm-start results/old: this sweep compares 2 arms .* allowed: no --warm-start"):
        earlier_trials(OLD, run(sweep()).events, config)
