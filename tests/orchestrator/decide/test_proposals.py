"""Arms of a sweep: each is tuned as if it were alone, with the same number of trials."""

import json
from collections import Counter
from statistics import fmean
from typing import Any

import pytest
from simulation import EPOCHS, SCHEDULERS, Simulation, formula

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.conductor import decision_hash
from orchestrator.decide.proposals import seed_of_arm
from orchestrator.decide.virtual_sweep import run
from orchestrator.ledger.events import Event, Role
from orchestrator.ledger.trial_states import TrialState, trial_states_of
from trainables.config_file import Origin, check

METHODS = ["cross_entropy", "focal", "difficulty_net"]
SPACE = {
    "method.name": {"type": "categorical", "choices": METHODS},
    "optim.lr": {"type": "float", "low": 0.001, "high": 0.5, "log": True},
    "method.gamma": {"type": "float", "low": 0.5, "high": 2.0, "or_exactly": 0.0},
    "method.meta_lr": {"type": "float", "low": 0.001, "high": 0.1, "log": True},
}
CRT = {
    "tuned": True,
    "method": {"name": "cross_entropy"},
    "optim": {"momentum": 0.5},
    "stages": [{"name": "representation"}, {"name": "crt", "epochs": 2}],
}


def tree(scheduler: str = "none", slots: int = 3, **search: Any) -> dict[str, Any]:
    return {
        "trial": {"epochs": EPOCHS, "method": {"name": "cross_entropy"}},
        "space": SPACE,
        "search": {"sampler": "random", "deterministic": True, **search},
        "scheduler": {"name": scheduler, **SCHEDULERS[scheduler]},
        "resources": {"max_concurrent": slots},
    }


def sweep(scheduler: str = "none", slots: int = 3, **search: Any) -> SweepConfig:
    return check(SweepConfig, tree(scheduler, slots, **search), Origin("test"))


def suggested(events: list[Event], role: Role = Role.SEARCH) -> list[Any]:
    return [event for event in events if event["event"] == "suggest" and event["role"] == role]


def members(events: list[Event], arm: str) -> list[TrialState]:
    return [trial for trial in trial_states_of(events).values() if trial.variant == arm and trial.role == Role.SEARCH]


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "nsga2", "qmc"])
def test_each_arm_proposes_what_it_would_propose_alone(sampler: str) -> None:
    """Each takes 12 trials, in waves of 2, of which the last ones follow from the results of the arm's first ones."""
    together = Simulation(sweep(per_method=12, sampler=sampler, wave=6)).run()
    learned = set()
    for number, arm in enumerate(sweep(per_method=12).arms()):
        alone = tree(sampler=sampler, wave=2, trials=12, seed=seed_of_arm(0, number))
        alone |= {"trial": arm.trial.model_dump(), "space": {name: p.model_dump() for name, p in arm.space.items()}}
        runs = [Simulation(check(SweepConfig, alone, Origin("test")), value=value).run() for value in (formula, opposite)]
        own = [event for event in suggested(together) if event["variant"] == arm.name]
        assert [(event["params"], event["config"]) for event in own] == [
            (event["params"], event["config"]) for event in suggested(runs[0])
        ]
        learned.add([event["params"] for event in suggested(runs[1])] != [event["params"] for event in own])
    assert (True in learned) == (sampler != "qmc")  # results count, so that a result of another arm would have shown


def opposite(config: dict[str, Any], epoch: int) -> float:
    return 1 - formula(config, epoch)


def test_arms_take_turns_and_get_equal_numbers_of_trials() -> None:
    events = Simulation(sweep(per_method=4, references={"crt": CRT, "plain": {"optim": {"lr": 0.3}}})).run()
    assert [event["variant"] for event in suggested(events)] == [*METHODS, "crt"] * 4
    assert [event["variant"] for event in suggested(events, Role.REFERENCE)] == ["plain"]
    assert {event["config"]["method"]["name"] for event in suggested(events) if event["variant"] == "focal"} == {"focal"}


def test_the_first_arm_has_the_seed_of_the_search_and_no_two_arms_draw_the_same_points() -> None:
    events = Simulation(sweep(per_method=4, references={"crt": CRT}, seed=7)).run()
    rates = [event["params"]["optim.lr"] for event in suggested(events)]
    assert len(set(rates)) == 4 * 4
    assert seed_of_arm(7, 0) == 7
    assert len({seed_of_arm(seed, number) for seed in range(9) for number in range(1, 30)}) == 9 * 29


def test_each_arm_has_a_trial_that_runs_to_the_end_also_where_too_few_wait_for_one_to_be_promoted() -> None:
    events = Simulation(sweep("promotion", per_method=1, references={"crt": CRT})).run()
    assert [trial.status for trial in trial_states_of(events).values()] == ["finished"] * 4


def test_what_a_tuned_reference_fixes_never_varies_and_the_rest_is_searched() -> None:
    config = check(
        SweepConfig,
        tree(trials=6, references={"crt": CRT})
        | {"space": {"optim.lr": SPACE["optim.lr"], "optim.momentum": {"type": "float", "low": 0.6, "high": 0.9}}},
        Origin("test"),
    )
    events = Simulation(config).run()
    arms = {name: [trial.config for trial in members(events, name)] for name in ("cross_entropy", "crt")}
    assert [len(trials) for trials in arms.values()] == [6, 6]
    assert {trial["optim"]["momentum"] for trial in arms["crt"]} == {0.5}
    assert {json.dumps(trial["stages"]) for trial in arms["crt"]} == {json.dumps(config.arms()[1].trial.model_dump()["stages"])}
    assert len({trial["optim"]["lr"] for trial in arms["crt"]}) == 6
    assert len({trial["optim"]["momentum"] for trial in arms["cross_entropy"]}) == 6


@pytest.mark.parametrize("scheduler", [name for name in SCHEDULERS if name != "pbt"])
@pytest.mark.parametrize("sampler", ["tpe", "qmc"])
def test_a_comparison_that_was_killed_goes_on_as_if_it_had_not_been(scheduler: str, sampler: str) -> None:
    config = sweep(
        scheduler, per_method=10, sampler=sampler, references={"crt": CRT, "plain": {}}, confirm={"top": 1, "seeds": 2}
    )
    undisturbed = Simulation(config).run()
    for crash in range(7, len(undisturbed), len(undisturbed) // 3):
        crashing = Simulation(config, order=crash)
        crashing.run(crash_after=crash)
        assert decision_hash(crashing.run()) == decision_hash(undisturbed)


@pytest.mark.parametrize("scheduler", ["asha", "promotion", "hyperband", "median"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_no_trial_is_judged_by_trials_of_another_arm(scheduler: str, deterministic: bool) -> None:
    """The third method lies below the second in every epoch, and the first lies below both."""
    above = {method: 0.3 * place for place, method in enumerate(METHODS)}

    def value(config: dict[str, Any], epoch: int) -> float:
        return above[config["method"]["name"]] + 0.2 * formula(config, epoch)

    events = Simulation(sweep(scheduler, per_method=9, deterministic=deterministic), value=value).run()
    arm_of = {event["trial_id"]: event["variant"] for event in suggested(events)}
    compared = Counter()
    for event in events:
        if event["event"] == "decide":
            low = above[arm_of[event["trial_id"]]]
            assert event["of"] <= 9
            if event["cutoff"] is not None:
                compared[arm_of[event["trial_id"]]] += 1
                assert low < event["cutoff"] < low + 0.3
    assert set(compared) == set(METHODS)
    for method in METHODS:
        statuses = Counter(trial.status for trial in members(events, method))
        assert statuses["finished"] >= 1
        assert statuses["stopped_early"] >= 1


def test_the_best_of_each_arm_are_confirmed_on_the_same_seeds() -> None:
    config = sweep(per_method=5, references={"crt": CRT, "lucky": {"optim": {"lr": 0.499}}}, confirm={"top": 2, "seeds": 3})
    simulation = Simulation(config, value=lambda trial, epoch: formula(trial, epoch) + (trial["optim"]["lr"] == 0.499))
    events = simulation.run()
    runs = suggested(events, Role.CONFIRM)
    assert len(runs) == config.num_confirmations() == (4 * 2 + 1) * 3
    best = []
    for arm in config.arms():
        ranked = sorted(members(events, arm.name), key=lambda trial: -(trial.best_value or 0))
        best += [trial.trial_id for trial in ranked[:2]]
        assert {event["confirms"] for event in runs if event["variant"] == arm.name} == set(best[-2:])
    best.append(next(event["trial_id"] for event in suggested(events, Role.REFERENCE)))  # whatever it reached
    assert [(event["confirms"], event["seed"]) for event in runs] == [(trial, seed) for seed in (1, 2, 3) for trial in best]


def test_an_arm_whose_grid_is_used_up_leaves_the_turns_to_the_others() -> None:
    space = {
        "method.name": SPACE["method.name"],
        "optim.lr": {"type": "float", "low": 0.001, "high": 0.1, "log": True, "points": 3},
        "method.gamma": {"type": "float", "low": 0.5, "high": 2.0, "points": 2},
    }
    constraints = ["optim.lr <= 0.004 * method.gamma"]  # holds for 2 of the 6 points of focal
    config = tree(per_method=3, sampler="grid", constraints=constraints) | {"space": space}
    events = Simulation(check(SweepConfig, config, Origin("test"))).run()
    count = Counter(event["variant"] for event in suggested(events))
    assert count == {"cross_entropy": 3, "focal": 2, "difficulty_net": 3}


def test_a_comparison_runs_in_virtual_time() -> None:
    config = sweep("asha", per_method=4, references={"crt": CRT}, confirm={"top": 1, "seeds": 2})
    done = run(config, lambda settings, epoch: 0.5 + 0.01 * epoch, slots=2)
    assert len(done.conductor.trials) == config.num_trials() + config.num_confirmations() == 24


def test_a_better_search_shows_in_every_arm() -> None:
    """Each arm's own optimum: TPE finds it in each arm nearly as well as alone, and better than at random."""
    optimum = {"cross_entropy": 0.002, "focal": 0.03, "difficulty_net": 0.4}

    def value(settings: dict[str, Any], epoch: int) -> float:
        return 1 - abs(float(settings["optim.lr"]) / optimum[settings["method.name"]] - 1) / 500

    found = {}
    for sampler in ("random", "tpe"):
        config = sweep(per_method=25, sampler=sampler, seed=3)
        trials = run(config, value, slots=3).conductor.trials.values()
        late = [[t for t in trials if t.variant == method][12:] for method in METHODS]
        found[sampler] = [fmean(t.best_value or 0 for t in arm) for arm in late]
    assert all(tpe > chance for tpe, chance in zip(found["tpe"], found["random"], strict=True))
