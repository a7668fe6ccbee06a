"""The sweep's state machine, driven without processes: any order of reports, any crash, any failure."""

import functools
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation import EPOCHS, SCHEDULERS, Simulation, formula, sweep

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.conductor import Conductor, Stint, decision_hash, decisions
from orchestrator.decide.schedulers import build_scheduler
from orchestrator.ledger.events import Event, Role
from orchestrator.ledger.trial_states import TrialStates, trial_states_of
from trainables.config_file import Origin, check

schedulers = pytest.mark.parametrize("scheduler", SCHEDULERS)


def kinds(events: list[Event], kind: str, *keys: str) -> list[tuple[Any, ...]]:
    return [tuple(event[key] for key in keys) for event in events if event["event"] == kind]


def check_whole(events: list[Event], config: SweepConfig) -> None:
    """Nothing is missing, nothing is there twice, and the sweep is over."""
    members = trial_states_of(events)
    ends = Counter(trial_id for trial_id, status in kinds(events, "trial_end", "trial_id", "status") if status != "interrupted")
    assert set(ends) == set(members)
    assert set(ends.values()) == {1}
    suggested = [trial_id for (trial_id,) in kinds(events, "suggest", "trial_id")]
    assert suggested == [f"t{number:04d}" for number in range(len(suggested))]
    assert sum(not member.parent and member.role == Role.SEARCH for member in members.values()) == config.search.trials
    assert sum(member.role == Role.REFERENCE for member in members.values()) == len(config.search.references)
    for member in members.values():
        first = member.parent["epoch"] + 1 if member.parent else 1
        assert sorted(member.values) == list(range(first, member.epoch + 1))
        assert (member.epoch == EPOCHS) == (member.status == "finished") or member.status in ("diverged", "failed")
    decided = Counter(kinds([event for event in events if event.get("action") != "promote"], "decide", "trial_id", "epoch"))
    assert set(decided.values()) <= {1}
    is_due = build_scheduler(config).is_due
    searched = [member for member in members.values() if member.role != Role.CONFIRM]
    due = {(member.trial_id, epoch) for member in searched for epoch in member.values if is_due(member.number, epoch)}
    assert set(decided) == {(trial_id, epoch) for trial_id, epoch in due if epoch < EPOCHS}


@schedulers
@given(order=st.integers(0, 1000), deterministic=st.booleans(), slots=st.integers(1, 4))
@settings(max_examples=15)
def test_every_sweep_comes_to_its_end(scheduler: str, order: int, deterministic: bool, slots: int) -> None:
    config = sweep(scheduler, deterministic=deterministic)
    simulation = Simulation(config, order, slots)
    check_whole(simulation.run(), config)
    assert simulation.most_running <= slots
    assert simulation.conductor.trials["t0000"].status == "finished"  # the reference is never stopped


@functools.cache
def undisturbed(scheduler: str) -> tuple[SweepConfig, list[Event]]:
    """A deterministic sweep with a model, and its events when three slots report in some order and nothing happens."""
    confirm = {"top": 2, "seeds": 2} if scheduler != "pbt" else None
    config = sweep(scheduler, deterministic=True, sampler="tpe", confirm=confirm)
    return config, Simulation(config).run()


@schedulers
@given(order=st.integers(0, 1000), slots=st.integers(1, 4))
@settings(max_examples=15)
def test_a_deterministic_sweep_decides_the_same_in_any_order_on_any_machine(scheduler: str, order: int, slots: int) -> None:
    config, expected = undisturbed(scheduler)
    assert list(decisions(Simulation(config, order, slots).run())) == list(decisions(expected))


@schedulers
@given(order=st.integers(0, 1000), data=st.data())
@settings(max_examples=15)
def test_a_deterministic_sweep_decides_the_same_with_crashes_at_any_events(
    scheduler: str, order: int, data: st.DataObject
) -> None:
    config, expected = undisturbed(scheduler)
    crashing = Simulation(config, order)
    for crash in sorted(data.draw(st.lists(st.integers(0, len(expected)), min_size=1, max_size=4))):
        crashing.run(crash_after=crash)
    events = crashing.run()
    check_whole(events, config)
    assert decision_hash(events) == decision_hash(expected)


def test_trials_that_were_interrupted_teach_the_sampler_what_they_reach_in_the_end() -> None:
    """Always the trial that began first goes on, so that nothing but what is known could make a difference."""

    def interrupted(trial: dict[str, Any], epoch: int) -> float:
        if len(simulation.events) > 240:  # over half of the trials have ended
            simulation.conductor.halt("interrupted", "the sweep was terminated")
        return formula(trial, epoch)

    config = sweep("none", trials=20, sampler="tpe")
    undisturbed, simulation = Simulation(config), Simulation(config, value=interrupted)
    undisturbed.random = simulation.random = SimpleNamespace(choice=min)
    simulation.run()
    simulation.conductor.interrupt("the sweep was terminated")
    simulation.value = formula
    assert decision_hash(simulation.run()) == decision_hash(undisturbed.run())


@schedulers
@given(data=st.data())
@settings(max_examples=15)
def test_after_a_crash_nothing_is_lost_and_an_epoch_at_most_is_done_again(scheduler: str, data: st.DataObject) -> None:
    config = sweep(scheduler)
    simulation = Simulation(config, order=data.draw(st.integers(0, 1000)))
    simulation.run(crash_after=data.draw(st.integers(0, 150)))
    before = trial_states_of(simulation.events)
    ended = {trial_id for trial_id, member in before.items() if member.state == "ended"}
    at = len(simulation.events)
    events = simulation.run()
    check_whole(events, config)
    assert not ended & {trial_id for (trial_id,) in kinds(events[at:], "trial_start", "trial_id")}
    places = kinds(events, "checkpoint", "path")
    assert len(set(places)) == len(places)  # what is done again touches no state of which the ledger has the digest
    again = Counter(
        trial_id
        for trial_id, epoch in kinds(events[at:], "epoch", "trial_id", "epoch")
        if trial_id in before and epoch in before[trial_id].values
    )
    assert set(again.values()) <= {1}


@given(order=st.integers(0, 1000), crash=st.integers(0, 200))
@settings(max_examples=20)
def test_more_trials_can_be_asked_for_later(order: int, crash: int) -> None:
    simulation = Simulation(sweep(trials=5), order)
    simulation.run(crash_after=crash)
    simulation.config = sweep(trials=9)
    check_whole(simulation.run(), simulation.config)


@schedulers
@given(order=st.integers(0, 1000), retries=st.integers(0, 2), deterministic=st.booleans())
@settings(max_examples=10)
def test_a_trial_whose_process_dies_goes_on_as_often_as_allowed(
    scheduler: str, order: int, retries: int, deterministic: bool
) -> None:
    def fails(trial_id: str, epoch: int, attempt: int) -> str | None:
        return "crash" if trial_id == "t0002" or (trial_id == "t0003" and attempt == 1) else None

    config = sweep(scheduler, failures={"retries": retries}, deterministic=deterministic)
    events = Simulation(config, order, fails=fails).run()
    members = trial_states_of(events)
    assert members["t0002"].status == "failed"
    assert kinds(events, "retry", "trial_id").count(("t0002",)) == retries
    assert (members["t0003"].status == "failed") == (retries == 0)
    check_whole(events, config)


@schedulers
def test_trials_that_end_by_themselves_are_not_tried_again(scheduler: str) -> None:
    def fails(trial_id: str, epoch: int, attempt: int) -> str | None:
        return {"t0001": "diverged", "t0004": "failed"}.get(trial_id) if epoch == 2 else None

    events = Simulation(sweep(scheduler), fails=fails).run()
    members = trial_states_of(events)
    assert (members["t0001"].status, members["t0004"].status) == ("diverged", "failed")
    assert not kinds(events, "retry", "trial_id")


@schedulers
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_trial_that_waits_goes_on_where_it_was_however_rarely_states_are_saved(scheduler: str, deterministic: bool) -> None:
    config = sweep(scheduler, checkpoint_interval=100, deterministic=deterministic)
    events = Simulation(config).run()
    check_whole(events, config)
    assert set(Counter(kinds(events, "epoch", "trial_id", "epoch")).values()) == {1}


@schedulers
def test_the_end_of_a_trial_tells_its_best_epoch_also_where_it_is_not_the_last(scheduler: str) -> None:
    def best_at_three(trial: dict[str, Any], epoch: int) -> float:
        if len(simulation.events) > 40:
            simulation.conductor.halt("finished", "enough")
        return formula(trial, epoch) - 0.01 * (epoch - 3) ** 2

    simulation = Simulation(sweep(scheduler), value=best_at_three)
    simulation.run()
    simulation.conductor.interrupt("enough")
    ends = [event for event in simulation.events if event["event"] == "trial_end"]
    assert "interrupted" in {event["status"] for event in ends}
    for event in ends:
        values = simulation.conductor.trials[event["trial_id"]].values
        assert event.get("best_value") == max(values.values(), default=None)
        assert not values or values[event["best_epoch"]] == event["best_value"]


def test_a_share_of_failures_that_is_allowed_and_any_number_of_divergences_let_a_sweep_go_on() -> None:
    """2 of 10 may fail; all others diverge."""
    config = sweep(trials=9, failures={"max_failed_fraction": 0.2, "retries": 0})
    simulation = Simulation(config, fails=lambda trial_id, epoch, attempt: "failed" if trial_id < "t0002" else "diverged")
    simulation.run()
    assert simulation.conductor.over
    assert Counter(member.status for member in simulation.conductor.trials.values()) == {"failed": 2, "diverged": 8}


def test_a_sweep_that_is_halted_twice_says_the_first_reason() -> None:
    simulation = Simulation(sweep())
    simulation.run(crash_after=10)
    simulation.conductor.halt("finished", "the budget is used up")
    simulation.conductor.halt("interrupted", "the sweep was terminated")
    assert simulation.conductor.halted == ("finished", "the budget is used up")


def test_a_reference_is_a_rival_at_the_rungs_but_no_member_of_a_population() -> None:
    def value(trial: dict[str, Any], epoch: int) -> float:
        return 0.99 if trial["method"]["name"] == "cross_entropy" else formula(trial, epoch)

    two = trial_states_of(Simulation(sweep("asha", trials=1, deterministic=True), value=value).run())
    assert [member.status for member in two.values()] == ["finished", "stopped_early"]
    population = trial_states_of(Simulation(sweep("pbt"), value=value).run())
    assert any(member.parent for member in population.values())
    assert "t0000" not in {member.parent["trial_id"] for member in population.values() if member.parent}


def test_a_trial_that_diverges_after_its_promotion_keeps_its_rank() -> None:
    """Nine trials come to the first rung, at epoch 2, side by side. Four have a place there."""
    config = sweep("promotion", slots=9, deterministic=True, references={})

    def promoted(diverging: str = "") -> list[str]:
        def fails(trial_id: str, epoch: int, attempt: int) -> str | None:
            return "diverged" if (trial_id, epoch) == (diverging, 3) else None

        decisions = kinds(Simulation(config, fails=fails).run(), "decide", "trial_id", "epoch", "action")
        return [trial_id for trial_id, epoch, action in decisions if (epoch, action) == (2, "promote")]

    four = promoted()
    assert len(four) == 4
    for trial_id in four:
        assert promoted(trial_id) == four


def test_a_resumed_sweep_with_more_trials_promotes_none_that_is_worse_than_what_it_gave_up() -> None:
    """What is promoted is among the best third or half of all that have ever come to the rung, by true ranks."""
    simulation = Simulation(sweep("promotion", trials=12, references={}, deterministic=True))
    before = len(simulation.run())
    simulation.config = sweep("promotion", trials=36, references={}, deterministic=True)
    events = simulation.run()
    assert len(kinds(events, "suggest", "trial_id")) == 36
    reached: dict[int, dict[str, float]] = {}
    best: dict[str, float] = {}
    for number, event in enumerate(events):
        if event["event"] == "epoch":
            best[event["trial_id"]] = max(best.get(event["trial_id"], 0), event["metrics"]["val/acc"])
            reached.setdefault(event["epoch"], {})[event["trial_id"]] = best[event["trial_id"]]
        if event["event"] == "decide" and event["action"] == "promote" and number > before and event["cutoff"] is not None:
            rung = reached[event["epoch"]]
            ranked = sorted(rung, key=lambda trial_id: (-rung[trial_id], trial_id))
            rank = 1 + ranked.index(event["trial_id"])
            assert (rank, len(rung)) == (event["rank"], event["of"])
            assert rank <= len(rung) / 2


def test_a_reference_inside_the_space_teaches_the_sampler_also_after_a_crash() -> None:
    references = {"narrow": {"method.driver_weight": 0.5, "method.meta_lr": 0.05, "method.hidden_width": 8}}
    config = sweep(trials=16, sampler="tpe", deterministic=True, references=references)
    undisturbed, crashed = Simulation(config), Simulation(config)
    undisturbed.run()
    crashed.run(crash_after=len(undisturbed.events) // 2)
    assert decision_hash(crashed.run()) == decision_hash(undisturbed.events)


def test_a_wave_is_as_wide_as_the_sweep_says_on_however_many_slots() -> None:
    for slots, wave, width in ((1, 3, 3), (9, 3, 3), (1, None, 6), (9, None, 6)):  # three trials at a time, by default
        events = Simulation(sweep(deterministic=True, wave=wave), slots=slots).run()
        first = next(number for number, event in enumerate(events) if event["event"] == "trial_start")
        assert [event["event"] for event in events[:first]] == ["suggest"] * width


def test_too_many_failures_end_the_sweep() -> None:
    config = sweep(trials=8, failures={"max_failed_fraction": 0.3, "retries": 0})
    simulation = Simulation(config, fails=lambda trial_id, epoch, attempt: "failed" if trial_id > "t0001" else None)
    simulation.run()
    assert simulation.conductor.halted == ("failed", "3 trials failed; failures.max_failed_fraction is 0.3")
    failed = simulation.conductor.num_failed
    assert failed in (3, 4)  # one may have been running
    simulation.conductor.interrupt("too many failed")
    simulation.fails = lambda trial_id, epoch, attempt: None  # the reason has been removed
    simulation.run()
    assert simulation.conductor.over
    assert simulation.conductor.num_failed == failed


@schedulers
def test_a_halted_sweep_ends_within_an_epoch_and_can_go_on(scheduler: str) -> None:
    config = sweep(scheduler)
    simulation = Simulation(config)
    simulation.run(crash_after=40)
    simulation.value = lambda trial, epoch: (simulation.conductor.halt("finished", "enough"), formula(trial, epoch))[1]
    at = len(simulation.events)
    simulation.run()
    assert len(kinds(simulation.events[at:], "epoch", "trial_id")) <= 3
    simulation.conductor.interrupt("enough")
    assert "running" not in {member.status for member in trial_states_of(simulation.events).values()}
    simulation.value = formula
    check_whole(simulation.run(), config)


def test_trials_go_on_with_what_a_resumed_sweep_has_changed_and_nothing_else_is_decided() -> None:
    """A configuration that is proposed again after the change is still known by its settings."""
    space = {"method.meta_lr": {"type": "categorical", "choices": [0.01, 0.02]}}
    tree = sweep(trials=8, deterministic=True).model_dump() | {"space": space}

    def with_readers(readers: int) -> SweepConfig:
        changes = {"compute": {"readers": readers}, "device": "cpu" if readers else "auto", "epochs": EPOCHS}
        return check(SweepConfig, tree | {"trial": changes}, Origin("test"))

    def value(trial: dict[str, Any], epoch: int) -> float:
        return 0.1 * trial["seed"] + 0.01 * epoch + trial["method"].get("meta_lr", 0)

    def begun() -> Simulation:
        simulation = Simulation(with_readers(0), value=value)
        simulation.events = [{"event": "sweep_start", "config": with_readers(0).model_dump(), "time": 0.0}]
        return simulation

    undisturbed = begun().run()
    disturbed = begun()
    disturbed.run(crash_after=50)
    disturbed.events.append({"event": "sweep_resume", "config": with_readers(3).model_dump(), "time": 50.0})
    disturbed.config = with_readers(3)
    seen: list[tuple[int, str]] = []

    def watched(trial: dict[str, Any], epoch: int) -> float:
        seen.append((trial["compute"]["readers"], trial["device"]))
        return value(trial, epoch)

    disturbed.value = watched
    events = disturbed.run()
    assert set(seen) == {(3, "cpu")}
    assert decision_hash(events) == decision_hash(undisturbed)
    trials = trial_states_of(events).values()
    assert len({(trial.config["method"].get("meta_lr"), trial.seed) for trial in trials}) == 9
    assert {trial.config["compute"]["readers"] for trial in trials} == {3}


def test_what_is_proposed_twice_becomes_a_further_seed() -> None:
    tree = sweep(trials=8).model_dump() | {"space": {"method.meta_lr": {"type": "categorical", "choices": [0.01, 0.02]}}}
    config = check(SweepConfig, tree, Origin("test"))
    members = trial_states_of(Simulation(config).run()).values()
    tried = Counter(
        (member.config["method"]["meta_lr"], member.config["seed"]) for member in members if member.role == Role.SEARCH
    )
    assert len(tried) == 8
    for value in (0.01, 0.02):
        seeds = sorted(seed for meta_lr, seed in tried if meta_lr == value)
        assert seeds == list(range(len(seeds)))


def test_the_best_are_confirmed_on_seeds_that_nothing_has_used() -> None:
    config = sweep("asha", trials=12, confirm={"top": 2, "seeds": 3})
    members = trial_states_of(Simulation(config).run())
    searched = {trial_id: member for trial_id, member in members.items() if member.role != Role.CONFIRM}
    finished = sorted((-member.best_value, trial_id) for trial_id, member in searched.items() if member.status == "finished")
    confirming = [member for member in members.values() if member.role == Role.CONFIRM]
    best = [trial_id for _, trial_id in finished if searched[trial_id].role == Role.SEARCH][:2]
    (plain,) = (trial_id for trial_id, member in searched.items() if member.role == Role.REFERENCE)  # whatever it reached
    assert Counter(member.confirms for member in confirming) == dict.fromkeys([*best, plain], 3)
    assert len(confirming) == config.num_confirmations()
    assert {member.config["seed"] for member in confirming} == {1, 2, 3}
    for member in confirming:
        assert member.status == "finished"
        assert {**member.config, "seed": 0} == searched[member.confirms].config


def test_a_trial_that_diverged_in_its_last_epoch_is_not_confirmed_however_good_it_was() -> None:
    def confirmed(diverging: str = "") -> set[str | None]:
        def fails(trial_id: str, epoch: int, attempt: int) -> str | None:
            return "diverged" if (trial_id, epoch) == (diverging, EPOCHS) else None

        config = sweep("none", trials=5, confirm={"top": 1, "seeds": 2})
        simulation = Simulation(config, value=lambda trial, epoch: formula(trial, EPOCHS), fails=fails)
        members = trial_states_of(simulation.run())
        confirms = {member.confirms for member in members.values() if member.role == Role.CONFIRM}
        return {trial_id for trial_id in confirms if members[trial_id or ""].role == Role.SEARCH}

    (best,) = confirmed()
    (second,) = confirmed(best)
    assert second != best


def test_confirmation_is_extended_when_the_search_is() -> None:
    """In a space of two points, where further trials are further seeds and one configuration has many trials."""
    tree = sweep("none", trials=5, confirm={"top": 2, "seeds": 2}).model_dump()
    tree["space"] = {"method.meta_lr": {"type": "categorical", "choices": [0.01, 0.02]}}
    config = check(SweepConfig, tree, Origin("test"))
    simulation = Simulation(config)
    before = [member for member in trial_states_of(simulation.run()).values() if member.role == Role.CONFIRM]
    simulation.config = config.model_copy(update={"search": config.search.model_copy(update={"trials": 9})})
    after = [member for member in trial_states_of(simulation.run()).values() if member.role == Role.CONFIRM]
    assert after[: len(before)] == before
    assert {member.config["seed"] for member in after} == {member.config["seed"] for member in before}
    configurations = {(member.confirms, member.config["method"].get("meta_lr")) for member in after}
    assert len({meta_lr for _, meta_lr in configurations}) == len(configurations)  # each known by one trial only


def test_a_ledger_of_a_version_that_confirmed_no_reference_goes_on_with_what_it_has() -> None:
    config = sweep("none", trials=5, confirm={"top": 2, "seeds": 2})
    newer = Simulation(config)
    events = newer.run()
    (plain,) = (trial.trial_id for trial in newer.conductor.trials.values() if trial.role == Role.REFERENCE)
    missing = {event["trial_id"] for event in events if event.get("confirms") == plain}
    resumed = Simulation(config)
    resumed.events = renumbered([event for event in events if event.get("trial_id") not in missing])
    before = confirmed_in(resumed.events)
    after = confirmed_in(resumed.run())
    assert len(missing) == 2
    assert len(before) == 4
    assert after == [*before, (plain, 1), (plain, 2)]
    assert resumed.conductor.over


def confirmed_in(events: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """The trial and the seed of each confirmation, in order."""
    return [(event["confirms"], event["seed"]) for event in events if event["event"] == "suggest" and event.get("confirms")]


def renumbered(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same trials without a gap in their numbers."""
    names = dict.fromkeys(event["trial_id"] for event in events if event.get("trial_id"))
    new = {name: f"t{number:04d}" for number, name in enumerate(names)}
    return [event | {key: new[event[key]] for key in ("trial_id", "confirms") if event.get(key)} for event in events]


def test_a_sweep_that_is_halted_before_its_confirmation_is_not_over() -> None:
    config = sweep("none", trials=2, confirm={"top": 1, "seeds": 2})
    simulation = Simulation(config)

    def halt_at_the_last_epoch(trial: dict[str, Any], epoch: int) -> float:
        ended = sum(member.state == "ended" for member in simulation.conductor.trials.values())
        if ended == 2 and epoch == EPOCHS:
            simulation.conductor.halt("finished", "the budget is used up")
        return formula(trial, epoch)

    simulation.value = halt_at_the_last_epoch
    simulation.run()
    assert not simulation.conductor.over
    simulation.value = formula
    simulation.run()
    assert simulation.conductor.over
    assert len(simulation.conductor.trials) == 3 + 2 * 2


@pytest.mark.parametrize("trials", [2, 3, 4, 6])
def test_promotion_brings_one_trial_to_the_end_however_few_there_are(trials: int) -> None:
    members = trial_states_of(Simulation(sweep("promotion", trials=trials)).run()).values()
    assert any(member.status == "finished" and member.role == Role.SEARCH for member in members)


def test_offspring_keep_the_constraints_of_the_search() -> None:
    config = sweep("pbt", trials=8, constraints=["method.driver_weight <= 20 * method.meta_lr"])
    for order in range(5):
        for member in trial_states_of(Simulation(config, order).run()).values():
            method = member.config["method"]
            assert method.get("driver_weight", 0) <= 20 * method.get("meta_lr", 1)


@given(slots=st.integers(1, 9), crash=st.integers(0, 120))
@settings(max_examples=20)
def test_an_offspring_finds_its_donors_state_with_as_many_slots_as_there_are(slots: int, crash: int) -> None:
    simulation = Simulation(sweep("pbt", trials=7, deterministic=True), slots=slots)
    simulation.run(crash_after=crash)
    check_whole(simulation.run(), simulation.config)


def test_an_offspring_goes_on_from_its_donor_with_other_mutable_settings() -> None:
    members = trial_states_of(Simulation(sweep("pbt", trials=7)).run())
    offspring = [member for member in members.values() if member.parent]
    assert offspring
    for member in offspring:
        donor, replaced = members[member.parent["trial_id"]], members[member.replaces]
        assert replaced.status == "stopped_early"
        assert replaced.epoch == member.parent["epoch"]
        assert donor.values[replaced.epoch] > replaced.values[replaced.epoch]
        different = {key for key in member.config["method"] if member.config["method"][key] != donor.config["method"][key]}
        assert different <= {"driver_weight", "meta_lr"}


def test_paused_trials_that_nobody_promotes_are_stopped_in_the_end() -> None:
    events = Simulation(sweep("promotion")).run()
    stopped = [event for event in events if event["event"] == "trial_end" and event["status"] == "stopped_early"]
    assert stopped
    assert all(event["stop_reason"].startswith("not among the best at the rung of epoch") for event in stopped)


def test_of_few_trials_that_wait_the_one_that_came_farthest_goes_on_and_among_those_the_best() -> None:
    """Nothing is ever among the best third of so few."""
    tree = sweep("promotion", trials=4).model_dump()
    config = check(
        SweepConfig, tree | {"scheduler": {"name": "promotion", "grace_epochs": 2, "reduction_factor": 5}}, Origin("test")
    )
    simulation = Simulation(config)
    simulation.run()
    searched = [member for member in simulation.conductor.trials.values() if member.role == Role.SEARCH]
    best = max(searched, key=lambda member: member.values[2] or 0)
    assert [member for member in searched if member.status == "finished"] == [best]


def test_of_a_trial_the_last_two_states_are_kept_and_those_that_others_go_on_from() -> None:
    simulation = Simulation(sweep("pbt", trials=8, slots=1, keep="all"))
    simulation.run()
    assert all(len(member.checkpoints) <= 2 + EPOCHS // 3 for member in simulation.conductor.trials.values())
    for falls, states in ((False, 1), (True, 2)):  # a trial that has ended needs the one before where both hold the best epoch
        plain = Simulation(
            sweep("none", keep="all"), value=lambda settings, epoch, falls=falls: formula(settings, epoch) - falls * epoch
        )
        plain.run()
        assert {len(member.checkpoints) for member in plain.conductor.trials.values()} == {states}


def test_a_state_is_kept_for_an_offspring_until_that_has_two_of_its_own() -> None:
    kept: list[int] = []

    class Watched(Simulation):
        def _step(self, stint: Stint, epoch: int) -> bool:
            leaves = super()._step(stint, epoch)
            members = self.conductor.trials
            offspring = [heir for heir in members.values() if heir.parent and heir.parent["trial_id"] == stint.trial_id]
            origins = {heir.parent["epoch"] for heir in offspring if len(heir.checkpoints) < 2 and heir.state != "ended"}
            more = {checkpoint.epoch for checkpoint in members[stint.trial_id].checkpoints[:-2]}
            assert more <= origins
            kept.extend(more)
            return leaves

    for order in range(5):
        Watched(sweep("pbt", trials=16, slots=2), order).run()
    assert kept


@pytest.mark.parametrize("interval_epochs", [1, 3])
def test_when_all_have_ended_nobody_needs_more_of_a_trial_than_its_last_states(interval_epochs: int) -> None:
    tree = sweep("pbt", trials=8, slots=1).model_dump() | {"scheduler": {"name": "pbt", "interval_epochs": interval_epochs}}
    simulation = Simulation(check(SweepConfig, tree, Origin("test")))
    simulation.run()
    for member in simulation.conductor.trials.values():
        simulation.conductor.drop_checkpoints(member.trial_id)
        assert len(member.checkpoints) <= (2 if member.status == "finished" else 1)


def test_members_of_a_population_that_diverge_get_successors_from_the_best() -> None:
    """Also when the process is killed in between: the decisions are those of the undisturbed sweep."""

    def fails(trial_id: str, epoch: int, attempt: int) -> str | None:
        return "diverged" if (trial_id, epoch) in (("t0002", 2), ("t0004", 5)) else None

    config = sweep("pbt", trials=7)
    undisturbed = Simulation(config, fails=fails)
    events = undisturbed.run()
    heirs = {event["replaces"]: event for event in events if event["event"] == "suggest" and event["replaces"]}
    assert {"t0002", "t0004"} <= heirs.keys()
    assert [heirs[trial_id]["parent"]["epoch"] for trial_id in ("t0002", "t0004")] == [3, 6]
    finished = [trial for trial in undisturbed.conductor.trials.values() if trial.status == "finished"]
    assert len(finished) == 8
    for crash in range(0, len(events), 11):
        crashing = Simulation(config, order=crash, fails=fails)
        crashing.run(crash_after=crash)
        assert decision_hash(crashing.run()) == decision_hash(events), crash


def test_a_paused_trial_teaches_the_sampler_at_once_and_a_diverged_one_that_its_point_is_bad() -> None:
    def fails(trial_id: str, epoch: int, attempt: int) -> str | None:
        return "diverged" if (trial_id, epoch) == ("t0003", 1) else None

    simulation = Simulation(sweep("promotion", trials=12, sampler="tpe", references={}), fails=fails)
    simulation.run()
    simulation.conductor.close()
    trials = simulation.conductor._proposals._searches[""].study._optuna.trials
    told = {trial.user_attrs["number"]: trial for trial in trials if "number" in trial.user_attrs}
    assert {trial.state.name for trial in told.values()} == {"COMPLETE", "PRUNED"}
    assert (told[3].state.name, told[3].intermediate_values) == ("PRUNED", {})  # without a report: ranked below all others
    assert all(trial.intermediate_values for number, trial in told.items() if number != 3 and trial.state.name == "PRUNED")


@pytest.mark.parametrize("scheduler", ["none", "asha", "promotion"])
def test_an_epoch_is_taken_without_a_look_at_all_the_trials(scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep of thousands of trials would spend its time on looking through them."""
    scans = 0

    def counted(of: Callable[[TrialStates], Any]) -> Callable[[TrialStates], Any]:
        def scan(trials: TrialStates) -> Any:
            nonlocal scans
            scans += 1
            return of(trials)

        return scan

    for name in ("values", "items", "keys", "__iter__"):
        monkeypatch.setattr(TrialStates, name, counted(getattr(dict, name)), raising=False)
    epochs = sum(event["event"] == "epoch" for event in Simulation(sweep(scheduler, trials=40)).run())
    assert epochs > 100
    assert scans < 10


fused_sweeps = given(order=st.integers(0, 1000), slots=st.integers(1, 3), fused=st.integers(2, 8))


@functools.cache
def trained_alone(scheduler: str) -> list[Event]:
    """A deterministic sweep of trials that could be fused, and are not."""
    return Simulation(sweep(scheduler, deterministic=True, wave=6, fused=1, sampler="tpe")).run()


@schedulers
@fused_sweeps
@settings(max_examples=15)
def test_fused_trials_change_no_decision(scheduler: str, order: int, slots: int, fused: int) -> None:
    config = sweep(scheduler, deterministic=True, wave=6, fused=fused, sampler="tpe")
    simulation = Simulation(config, order, slots)
    assert list(decisions(simulation.run())) == list(decisions(trained_alone(scheduler)))
    assert simulation.most_running <= slots
    assert max(map(len, simulation.bundles)) <= fused


@schedulers
@fused_sweeps
@settings(max_examples=15)
def test_a_sweep_of_fused_trials_comes_to_its_end_also_without_waves(scheduler: str, order: int, slots: int, fused: int) -> None:
    config = sweep(scheduler, fused=fused)
    simulation = Simulation(config, order, slots)
    check_whole(simulation.run(), config)
    assert simulation.most_running <= slots
    assert max(map(len, simulation.bundles)) <= fused


@schedulers
@given(order=st.integers(0, 1000), crash=st.integers(1, 200))
@settings(max_examples=15)
def test_fused_trials_change_no_decision_with_a_crash_at_any_event(scheduler: str, order: int, crash: int) -> None:
    simulation = Simulation(sweep(scheduler, deterministic=True, wave=6, fused=4, sampler="tpe"), order, slots=2)
    simulation.run(crash_after=crash)
    assert list(decisions(simulation.run())) == list(decisions(trained_alone(scheduler)))


def test_processes_that_are_free_share_what_there_is_to_run() -> None:
    waves = Simulation(sweep("none", trials=9, slots=2, deterministic=True, wave=6, fused=8))
    waves.run()
    assert [len(bundle) for bundle in waves.bundles] == [3, 3, 2, 2]  # nine trials and a reference
    no_waves = Simulation(sweep("none", trials=9, slots=2, fused=4))
    no_waves.run()
    assert [len(bundle) for bundle in no_waves.bundles] == [4, 4, 2]


@pytest.mark.parametrize(
    ("waves", "expected"),
    [
        ({"deterministic": True, "wave": 6}, [0, 2, 2]),  # in a wave, three trials and three: two machines are of use
        ({}, [10, 8, 6]),  # ten trials, each of which could have a machine of its own
    ],
)
def test_as_many_machines_are_of_use_as_there_are_bundles_that_could_run(waves: dict[str, Any], expected: list[int]) -> None:
    config = sweep("none", trials=9, slots=2, fused=3, **waves)
    simulation = Simulation(config)
    simulation._crash_after = None
    conductor = simulation.conductor = Conductor(config, 2, simulation._append, 3)
    conductor.restore([])
    found = [conductor.could_run]
    for _ in range(2):
        conductor.next_stints()
        found.append(conductor.could_run)
    assert found == expected
    conductor.halt("interrupted", "enough")
    assert (conductor.running, conductor.could_run) == (2, 2)


@schedulers
@given(order=st.integers(0, 1000), slots=st.integers(1, 5))
@settings(max_examples=10)
def test_in_waves_the_same_trials_are_trained_together_on_any_machine(scheduler: str, order: int, slots: int) -> None:
    """So their numbers are rounded in the same way: fused training rounds otherwise than training alone."""
    config = sweep(scheduler, trials=12, deterministic=True, wave=7, fused=4, slots=2, sampler="tpe")
    here, there = Simulation(config, order, slots), Simulation(config)
    here.run()
    there.run()
    assert sorted(here.bundles) == sorted(there.bundles)
    assert max(map(len, here.bundles)) == 4


def test_trials_on_different_seeds_are_not_trained_together() -> None:
    simulation = Simulation(sweep("none", trials=4, deterministic=True, slots=1, fused=8, confirm={"top": 2, "seeds": 2}))
    simulation.run()
    seeds = {trial.trial_id: trial.seed for trial in simulation.conductor.trials.values()}
    assert [len(bundle) for bundle in simulation.bundles] == [5, 3, 3]  # two of the best and the reference on two fresh seeds
    assert all(len({seeds[trial_id] for trial_id in bundle}) == 1 for bundle in simulation.bundles)


def test_a_process_that_was_shared_uses_up_no_retry_of_its_trials() -> None:
    def fails(trial_id: str, epoch: int, attempt: int) -> str | None:
        return "crash" if trial_id == "t0003" and epoch == 2 and attempt <= 2 else None

    simulation = Simulation(sweep("none", trials=6, failures={"retries": 1}, slots=1, fused=4), fails=fails)
    simulation.run()
    assert {trial.status for trial in simulation.conductor.trials.values()} == {"finished"}


def test_a_trial_that_takes_its_process_with_it_harms_no_other_trial() -> None:
    """Nobody can know which of the trials in a process is at fault until each has trained alone."""

    def fails(trial_id: str, epoch: int, attempt: int) -> str | None:
        return "crash" if trial_id == "t0003" and epoch == 2 else None

    simulation = Simulation(sweep("none", trials=6, failures={"retries": 0}, slots=1, fused=4), fails=fails)
    events = simulation.run()
    statuses = {trial.trial_id: trial.status for trial in simulation.conductor.trials.values()}
    assert [trial_id for trial_id, status in statuses.items() if status == "failed"] == ["t0003"]
    lost = next(bundle for bundle in simulation.bundles if "t0003" in bundle)
    assert len(lost) == 4
    assert sorted(kinds(events, "retry", "trial_id", "shared_by")) == [(trial_id, 4) for trial_id in sorted(lost)]
    for trial_id in lost:
        later = [bundle for bundle in simulation.bundles if trial_id in bundle][1:]
        assert later == [[trial_id]]
