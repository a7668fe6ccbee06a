from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation import Simulation, formula, sweep

from orchestrator.ledger.events import Role, Status
from orchestrator.outcome.tables import best_runs, trial_rows

schedulers = pytest.mark.parametrize("scheduler", ["none", "asha", "promotion", "pbt"])


def holders(simulation: Simulation) -> set[str]:
    """The trials with a state on the disk."""
    return {path.split("/")[1] for path in simulation.states}


@schedulers
@given(order=st.integers(0, 1000), crashes=st.lists(st.integers(1, 300), max_size=3))
@settings(max_examples=15)
def test_whenever_a_sweep_ends_its_best_trial_has_its_state(scheduler: str, order: int, crashes: list[int]) -> None:
    simulation = Simulation(sweep(scheduler, trials=14), order)
    for crash in crashes:
        simulation.run(crash_after=crash)
        rows = trial_rows(simulation.events)
        assert not (runs := best_runs(rows)) or runs[0]["trial_id"] in holders(simulation)
    rows = trial_rows(simulation.run())
    assert best_runs(rows)[0]["trial_id"] in holders(simulation)


@given(order=st.integers(0, 1000), crash=st.integers(1, 400))
@settings(max_examples=15)
def test_of_configurations_that_run_on_many_seeds_the_best_one_has_the_state_of_a_run(order: int, crash: int) -> None:
    """Their means rise and fall until the end."""

    def value(config: dict[str, Any], epoch: int) -> float:
        return formula(config | {"method": {"width": config["method"].get("hidden_width", 0)}}, epoch)  # the seed counts, too

    config = sweep("none", trials=40)
    few = {"method.hidden_width": {"type": "int", "low": 1, "high": 12}}
    config = config.model_validate(config.model_dump() | {"space": few})
    simulation = Simulation(config, order, value=value)
    simulation.run(crash_after=crash)
    runs = best_runs(trial_rows(simulation.run()))
    assert any(run["trial_id"] in holders(simulation) for run in runs)
    assert len(holders(simulation)) <= 12 + 5 + 1  # one run of each configuration, the best ones, and the reference


@schedulers
def test_the_five_best_references_and_what_goes_on_have_states_and_no_other_trial(scheduler: str) -> None:
    simulation = Simulation(sweep(scheduler, trials=30))
    simulation.run()
    members = simulation.conductor.trials.values()
    finished = [member for member in members if member.status == Status.FINISHED and member.role == Role.SEARCH]
    runs = Counter(member.configuration for member in members)
    once = [member for member in finished if runs[member.configuration] == 1]
    best = sorted(once, key=lambda member: (-(member.best_value or 0), member.number))[:5]
    # A member may get the settings of another one; of such a configuration a run keeps its state.
    again = {member.configuration for member in finished} - {member.configuration for member in once}
    others = holders(simulation) - {member.trial_id for member in best} - {"t0000"}
    assert {member.trial_id for member in best} <= holders(simulation)
    assert sorted(simulation.conductor.trials[trial_id].configuration for trial_id in others) == sorted(again)
    for trial_id in holders(simulation):
        member = simulation.conductor.trials[trial_id]
        epochs = [checkpoint.epoch for checkpoint in member.checkpoints]
        last = max(epochs)
        # Should the last state be damaged, an older one can be exported if it holds the best epoch; no other one is of use.
        assert len(epochs) <= 2
        assert all(epoch >= (member.best_epoch or 0) for epoch in epochs if epoch != last)


def test_a_sweep_may_keep_the_states_of_all_trials() -> None:
    simulation = Simulation(sweep("asha", trials=12, keep="all"))
    simulation.run()
    assert holders(simulation) == set(simulation.conductor.trials)


def test_confirmations_keep_their_states_and_so_do_the_configurations_that_they_confirm() -> None:
    simulation = Simulation(sweep("none", trials=12, confirm={"top": 7, "seeds": 3}))
    simulation.run()
    confirming = [member for member in simulation.conductor.trials.values() if member.role == Role.CONFIRM]
    assert len(confirming) == 24  # of 7 configurations and of the reference
    assert holders(simulation) >= {member.trial_id for member in confirming} | {member.confirms for member in confirming}


@schedulers
@given(order=st.integers(0, 1000), crash=st.integers(1, 300))
@settings(max_examples=15)
def test_a_new_process_needs_no_state_that_the_one_before_removed(scheduler: str, order: int, crash: int) -> None:
    simulation = Simulation(sweep(scheduler, trials=14), order)
    simulation.run(crash_after=crash)
    before = set(simulation.states)
    simulation.run(crash_after=len(simulation.events))  # restores, and does nothing else
    assert simulation.states <= before
