import itertools
import json
import math
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from orchestrator.config.search_config import CategoricalParameter, FloatParameter, IntParameter, Parameter, SearchConfig
from orchestrator.config.space import grid_size
from orchestrator.config.sweep_config import SweepConfig, apply_changes
from orchestrator.decide.study import (
    SAMPLERS,
    Result,
    Study,
    StudyError,
    always,
    build_sampler,
    near_priors,
    params_of,
    params_of_trial,
    seed_of_draw,
    suggest,
    values_of,
)
from orchestrator.ledger.events import Status
from trainables.config import TrialConfig
from trainables.method_config import METHOD_SETTINGS

PLAIN: dict[str, Parameter] = {
    "weight": FloatParameter(low=1e-4, high=1, log=True, or_exactly=0.0, points=3),
    "width": IntParameter(low=4, high=64, log=True, points=4),
    "kind": CategoricalParameter(choices=["a", "b"]),
}
CONDITIONAL = PLAIN | {
    "rate": FloatParameter(low=0, high=1, when={"kind": ["b"]}),
    "depth": IntParameter(low=1, high=9, when={"weight": [0.0], "kind": ["a"]}),
}
SPACES = dict.fromkeys(SAMPLERS, CONDITIONAL) | {"grid": PLAIN}
ROWS = [pytest.param(name, marks=pytest.mark.slow if name == "gp" else []) for name in SAMPLERS]
CASES = [
    pytest.param(name, objectives, marks=pytest.mark.slow if name == "gp" else [], id=f"{name}-{objectives}")
    for name, most in (dict.fromkeys(SAMPLERS, 2) | {"cmaes": 1}).items()
    for objectives in range(1, most + 1)
]
ENDINGS = ["finished", "stopped_early", "diverged", "failed", "interrupted"]
HISTORY = {1: 0.1, 2: math.nan, 3: 0.2}

Call = tuple[str, Any, Any]


def study_of(sampler: str, seed: int = 0, objectives: int = 1, **changes: Any) -> Study:
    arguments: dict[str, Any] = {"space": SPACES[sampler], "objectives": ["val/acc"] * objectives} | changes
    return Study(SearchConfig(sampler=sampler, seed=seed), **arguments)


def goodness(params: dict[str, Any]) -> float:
    return math.log(params["width"]) + params.get("rate", 0.5) - params.get("weight", 0.0)


def draw(study: Study, count: int) -> list[dict[str, Any]]:
    """The settings of some trials, one after another, each run to its end."""
    found = []
    for number in range(count):
        params = study.propose(number)
        assert params is not None
        found.append(values_of(SPACES["tpe"], params))
        study.tell(number, Result(Status.FINISHED, [goodness(params)]))
    return found


def trials_of(study: Study) -> list[optuna.trial.FrozenTrial]:
    """Optuna's trials that ran: those that were only drawn have no number of ours."""
    return [trial for trial in study._optuna.trials if "number" in trial.user_attrs]


def sweep(study: Study, point: dict[str, Any], endings: list[str], objectives: int) -> list[Call]:
    """All calls of a sweep in which three trials run at a time, after a trial of an earlier sweep and a reference."""
    finished = Result(Status.FINISHED, [0.5] * objectives)
    study.learn(point, finished)
    study.insert(0, point)
    calls: list[Call] = [("learn", point, finished), ("insert", 0, point)]
    for number, ending in enumerate(endings, 1):
        calls.append(("propose", number, json.dumps(study.propose(number))))
        if number >= 3:
            values = [number % 5 / 5 + axis for axis in range(objectives)]
            if number % 2:  # every second trial waits at a rung first
                rung = Result(Status.RUNNING, [value / 2 for value in values], {1: 0.1})
                study.pause(number - 2, rung)
                calls.append(("pause", number - 2, rung))
            end = Result(Status(ending), values, HISTORY)
            study.tell(number - 2, end)
            calls.append(("tell", number - 2, end))
    return calls


def test_the_table_and_the_settings_name_the_same_samplers() -> None:
    assert sorted(SAMPLERS) == sorted(SearchConfig.model_fields["sampler"].annotation.__args__)


@pytest.mark.parametrize(("sampler", "objectives"), [case for case in CASES if case.values[0] != "gp"])
@settings(max_examples=5)
@given(data=st.data())
def test_a_rebuilt_study_goes_on_as_the_uninterrupted_one_would(sampler: str, objectives: int, data: st.DataObject) -> None:
    check_a_rebuilt_study(sampler, objectives, data)


@pytest.mark.parametrize(("sampler", "objectives"), [case for case in CASES if case.values[0] == "gp"])
@settings(max_examples=2)
@given(data=st.data())
def test_so_does_one_whose_sampler_is_slow(sampler: str, objectives: int, data: st.DataObject) -> None:
    check_a_rebuilt_study(sampler, objectives, data, trials=12)  # a proposal from a model takes seconds, from the 11th on


def check_a_rebuilt_study(sampler: str, objectives: int, data: st.DataObject, trials: int = 15) -> None:
    # Most trials finish, so that models come in; how the others end is drawn.
    endings = [data.draw(st.sampled_from(["finished"] * 4 + ENDINGS)) for _ in range(trials)]
    point = params_of(SPACES[sampler], {"weight": 0.0, "width": 8, "kind": "b", "rate": 0.25})
    assert point is not None
    calls = sweep(study_of(sampler, objectives=objectives), point, endings, objectives)
    killed_after = data.draw(st.integers(2, len(calls) - 1))
    rebuilt = study_of(sampler, objectives=objectives)
    for position, (call, subject, rest) in enumerate(calls):
        if call == "propose" and position < killed_after:
            rebuilt.replay(subject, json.loads(rest))
        elif call == "propose":
            assert json.dumps(rebuilt.propose(subject)) == rest
        elif call == "insert":
            rebuilt.insert(subject, rest)
        else:
            getattr(rebuilt, call)(subject, rest)


@pytest.mark.parametrize("sampler", ROWS)
def test_a_replay_refuses_the_draws_that_were_refused(sampler: str) -> None:
    study, rebuilt = (study_of(sampler, accept=lambda values: values["width"] <= 16) for _ in range(2))
    for number in range(10):
        params = study.propose(number)
        assert params is not None
        if number < 9:
            rebuilt.replay(number, params)
        else:
            assert rebuilt.propose(number) == params
        for one in (study, rebuilt):
            one.tell(number, Result(Status.FINISHED, [goodness(params)]))


@pytest.mark.parametrize("sampler", [name for name, row in SAMPLERS.items() if row.remembers])
def test_a_sampler_that_remembers_sees_that_the_ledger_holds_other_values(sampler: str) -> None:
    params = study_of(sampler).propose(0)
    with pytest.raises(StudyError, match=f"'{sampler}' now proposes .* other values than the ledger holds; use the versions"):
        study_of(sampler, seed=1).replay(0, params or {})


def test_replaying_asks_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of("tpe")
    draw(study, 10)
    monkeypatch.setattr(optuna.samplers.TPESampler, "_sample", None)
    study.replay(10, {"weight exactly": 0.1, "width": 8, "kind": "b", "rate": 0.5})
    with pytest.raises(TypeError):
        study.propose(11)


@pytest.mark.parametrize("sampler", ROWS)
def test_proposals_lie_in_the_space_and_at_its_exact_value(sampler: str) -> None:
    values = draw(study_of(sampler), 24)
    exact = [value["weight"] == 0 for value in values]
    assert 0 < sum(exact) < 24
    assert all(value["weight"] == 0 or 1e-4 <= value["weight"] <= 1 for value in values)
    assert all(4 <= value["width"] <= 64 and value["kind"] in "ab" for value in values)


@pytest.mark.parametrize("sampler", ROWS)
def test_the_same_seed_gives_the_same_proposals(sampler: str) -> None:
    first, again, other = (draw(study_of(sampler, seed=seed), 12) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("sampler", [row for row, name in zip(ROWS, SAMPLERS, strict=True) if SPACES[name] is CONDITIONAL])
def test_parameters_with_conditions_are_drawn_exactly_where_these_are_met(sampler: str) -> None:
    values = draw(study_of(sampler), 24)
    assert [("rate" in value) for value in values] == [value["kind"] == "b" for value in values]
    assert [("depth" in value) for value in values] == [value["kind"] == "a" and value["weight"] == 0 for value in values]
    assert {value["kind"] for value in values} == {"a", "b"}


def test_a_method_s_settings_are_drawn_exactly_with_the_methods_that_have_them() -> None:
    space = {
        "method.driver_weight": FloatParameter(low=0.1, high=1),
        "method.hidden_width": IntParameter(low=4, high=64),
        "method.name": CategoricalParameter(choices=["cross_entropy", "difficulty_net", "meta_weight_net"]),
    }
    study = study_of("random", space=space)
    drawn = [values_of(space, study.propose(number) or {}) for number in range(40)]
    for values in drawn:
        fields = METHOD_SETTINGS[values["method.name"]].model_fields
        assert values.keys() == {"method.name"} | {
            name for name in space if name.removeprefix("method.") in fields.keys() - {"name"}
        }
    assert {values["method.name"] for values in drawn} == set(space["method.name"].choices)


def test_the_grid_visits_each_point_once_and_is_used_up() -> None:
    study = study_of("grid")
    study.insert(0, {"weight exactly": 0.1, "width": 8, "kind": "b"})
    size = grid_size(PLAIN)
    assert size == 4 * 4 * 2
    points = [values_of(PLAIN, study.propose(number) or {}) for number in range(1, size + 1)]
    expected = itertools.product([0.0, 1e-4, 0.01, 1.0], [4, 10, 25, 64], "ab")
    assert sorted((round(point["weight"], 9), point["width"], point["kind"]) for point in points) == list(expected)
    assert study.propose(size + 1) is None
    assert study.propose(size + 2) is None


def test_a_grid_leaves_out_what_is_not_accepted() -> None:
    study = study_of("grid", accept=lambda values: values["width"] == 10 and values["kind"] == "a")
    points = [values_of(PLAIN, study.propose(number) or {}) for number in range(4)]
    assert sorted(point["weight"] for point in points) == pytest.approx([0, 1e-4, 0.01, 1])
    assert study.propose(4) is None


def test_a_grid_finds_the_one_point_that_is_accepted() -> None:
    study = study_of("grid", space={"width": IntParameter(low=1, high=5000)}, accept=lambda values: values["width"] == 7)
    assert study.propose(0) == {"width": 7}
    assert study.propose(1) is None


def test_qmc_fills_every_axis_evenly_from_the_first_trial_on() -> None:
    study = study_of("qmc", space={"a": FloatParameter(low=0, high=1), "b": FloatParameter(low=0, high=1, or_exactly=-1.0)})
    points = [study.propose(number) or {} for number in range(16)]
    assert sorted(int(point["a"] * 16) for point in points) == list(range(16))
    assert sum(point["b exactly"] < 0.25 for point in points) == 4


def test_cmaes_goes_on_when_the_exact_value_comes_late() -> None:
    proposed: list[float] = []
    study = study_of("cmaes", accept=lambda values: values["weight"] > 0 or len(proposed) >= 20)
    for number in range(40):
        params = study.propose(number) or {}
        proposed.append(params.get("weight", 0.0))
        study.tell(number, Result(Status.FINISHED, [goodness(params)]))
    assert 0 in proposed[20:]
    assert all("cma:generation" in trial.system_attrs for trial in trials_of(study)[1:])


@pytest.mark.parametrize("sampler", ROWS)
def test_every_proposal_is_accepted_though_the_best_lies_outside(sampler: str) -> None:
    values = draw(study_of(sampler, accept=lambda values: values["width"] <= 16), 10)
    assert all(value["width"] <= 16 for value in values)


def test_a_model_that_insists_on_what_is_refused_gives_way_to_random_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of("tpe", accept=lambda values: values["width"] <= 16)
    draw(study, 8)
    monkeypatch.setattr(optuna.samplers.TPESampler, "sample_relative", lambda *_: {"width": 64})
    assert values_of(CONDITIONAL, study.propose(8) or {})["width"] <= 16


def test_draws_that_are_never_accepted_end_with_the_constraints_named() -> None:
    search = SearchConfig(sampler="random", constraints=["width > 100"])
    with pytest.raises(StudyError, match=r"1000 draws in a row break one of search\.constraints: width > 100; allowed:"):
        Study(search, PLAIN, ["val/acc"], lambda values: False).propose(0)


@pytest.mark.parametrize(("sampler", "objectives"), CASES)
def test_no_trial_is_running_after_close(sampler: str, objectives: int) -> None:
    study = study_of(sampler, objectives=objectives, accept=lambda values: values["kind"] == "a")
    for number, ending in enumerate(["", *ENDINGS, ""]):
        study.propose(number)
        if ending:
            study.tell(number, Result(Status(ending), [0.5] * objectives, HISTORY))
    study.close()
    states = [trial.state.name for trial in trials_of(study)]
    prunes = sampler == "tpe"
    early = "PRUNED" if prunes and objectives == 1 else "COMPLETE"
    assert states == ["FAIL", "COMPLETE", early, "PRUNED" if prunes else "COMPLETE", "FAIL", "FAIL", "FAIL"]
    assert all(trial.state.is_finished() for trial in study._optuna.trials)
    study.close()


def test_a_trial_keeps_our_number_and_a_pruned_one_its_finite_epochs() -> None:
    study = study_of("tpe")
    study.propose(7)
    study.tell(7, Result(Status.STOPPED_EARLY, [0.2], HISTORY))
    study.tell(8, Result(Status.FINISHED, [0.9]))  # not in the space: no business of the study
    (trial,) = trials_of(study)
    assert (trial.user_attrs, trial.value, trial.intermediate_values) == ({"number": 7}, 0.2, {1: 0.1, 3: 0.2})


def test_a_trial_of_an_earlier_sweep_is_learned_from() -> None:
    study = study_of("tpe")
    study.learn({"weight exactly": 0.1, "width": 8, "kind": "b", "rate": 0.5}, Result(Status.FINISHED, [0.75], HISTORY))
    assert [(trial.state, trial.value) for trial in study._optuna.trials] == [(TrialState.COMPLETE, 0.75)]


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "nsga2"])
def test_a_sampler_that_learns_comes_closer_to_the_best(sampler: str) -> None:
    widths = [value["width"] for value in draw(study_of(sampler), 60)]
    assert sum(widths[-20:]) > 1.3 * sum(widths[:20])


@given(
    weight=st.just(0.0) | st.floats(1e-4, 1),
    width=st.integers(4, 64),
    kind=st.sampled_from(["a", "b"]),
    rate=st.floats(0, 1),
    depth=st.integers(1, 9),
)
def test_a_point_becomes_parameters_and_comes_back(weight: float, width: int, kind: str, rate: float, depth: int) -> None:
    values = {"weight": weight, "width": width, "kind": kind, "rate": rate, "depth": depth}
    params = params_of(CONDITIONAL, values)
    assert params is not None
    study = study_of("random")
    study.insert(0, params)
    waiting = ({"rate"} if kind == "a" else set()) | (set() if kind == "a" and weight == 0 else {"depth"})
    assert values_of(CONDITIONAL, trials_of(study)[0].params) == {name: values[name] for name in values.keys() - waiting}


@pytest.mark.parametrize(
    "change",
    [
        {"weight": 2.0},
        {"width": 3},
        {"width": 8.5},
        {"kind": "c"},
        {"weight": None},
        {"weight": 1e-5},
        {"kind": "b", "rate": 2.0},
        {"weight": 0.0, "depth": 10},
    ],
)
def test_a_point_outside_the_space_has_no_parameters(change: dict[str, object]) -> None:
    values = {"weight": 0.1, "width": 8, "kind": "a"}
    assert params_of(CONDITIONAL, values) == {"weight exactly": 0.6, **values}
    assert params_of(CONDITIONAL, values | change) is None


@pytest.mark.parametrize(
    ("changes", "inside"),
    [
        ({"method.driver_weight": 0.0, "optim.schedule": "cosine", "optim.lr": 0.02}, True),
        ({"method.driver_weight": 0.0, "optim.schedule": "constant"}, True),
        ({"method.name": "cross_entropy"}, True),
        ({"optim.schedule": "constant", "optim.lr": 0.02}, False),  # lr is drawn with cosine only
        ({"optim.batch_size": 64}, False),
        ({"method.driver_weight": 3.0}, False),
        ({"method.name": "meta_weight_net"}, False),
    ],
)
def test_a_trial_is_inside_the_space_when_a_draw_gives_it(changes: dict[str, Any], inside: bool) -> None:
    space = {
        "optim.lr": FloatParameter(low=0.01, high=0.1, when={"optim.schedule": ["cosine"]}),
        "optim.schedule": CategoricalParameter(choices=["cosine", "constant"]),
        "method.name": CategoricalParameter(choices=["cross_entropy", "difficulty_net"]),
        "method.driver_weight": FloatParameter(low=0.1, high=1, or_exactly=0.0),
    }
    trial = apply_changes(TrialConfig(), changes, "here")
    params = params_of_trial(space, TrialConfig(), trial)
    assert (params is not None) == inside
    assert params is None or apply_changes(TrialConfig(), values_of(space, params), "here") == trial


def test_every_draw_has_a_seed_of_its_own() -> None:
    seeds = {seed_of_draw(*place) for place in itertools.product(range(10), repeat=3)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize(
    ("sampler", "result", "told"),
    [
        ("tpe", Result(Status.FINISHED, [0.8]), (TrialState.COMPLETE, [0.8])),
        ("tpe", Result(Status.FINISHED, [0.8, 0.1]), (TrialState.COMPLETE, [0.8, 0.1])),
        ("tpe", Result(Status.STOPPED_EARLY, [0.8], {1: 0.5}), (TrialState.PRUNED, [0.5])),
        ("gp", Result(Status.STOPPED_EARLY, [0.8], {1: 0.5}), (TrialState.COMPLETE, [0.8])),
        ("nsga2", Result(Status.STOPPED_EARLY, [0.8, 0.1]), (TrialState.COMPLETE, [0.8, 0.1])),
        ("tpe", Result(Status.DIVERGED, [0.8], {1: 0.5}), (TrialState.PRUNED, None)),
        ("cmaes", Result(Status.DIVERGED, [0.8]), (TrialState.COMPLETE, [0.25])),
        ("gp", Result(Status.FAILED, None, own_fault=True), (TrialState.COMPLETE, [0.25])),
        ("gp", Result(Status.FAILED, [0.8]), (TrialState.FAIL, None)),
        ("tpe", Result(Status.INTERRUPTED, [0.8]), (TrialState.FAIL, None)),
        ("tpe", Result(Status.FINISHED, [0.8, math.nan]), (TrialState.FAIL, None)),
        ("tpe", Result(Status.STOPPED_EARLY, [math.nan]), (TrialState.FAIL, None)),
        ("tpe", Result(Status.FINISHED, [-math.inf]), (TrialState.FAIL, None)),
        ("tpe", Result(Status.FINISHED, None), (TrialState.FAIL, None)),
    ],
)
def test_every_ending_is_told_so_that_no_trial_stays_running_and_bad_numbers_are_bad_points(
    sampler: str, result: Result, told: tuple[TrialState, list[float] | None]
) -> None:
    """After a trial that reached 0.25 and one that reached 0.5: the worst so far is 0.25."""
    objectives = len(result.values or [0])
    study = study_of(sampler, objectives=objectives)
    for number, value in enumerate((0.5, 0.25)):
        study.propose(number)
        study.tell(number, Result(Status.FINISHED, [value] * objectives))
    study.propose(2)
    study.tell(2, result)
    assert (trials_of(study)[2].state, trials_of(study)[2].values) == told


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_what_a_paused_trial_has_reached_is_known_at_once_and_replaced_later(sampler: str) -> None:
    study = study_of(sampler)
    study.propose(0)
    seen = []
    for result in (
        Result(Status.RUNNING, [0.25], {1: 0.25}),
        Result(Status.RUNNING, [0.5], {1: 0.25, 3: 0.5}),
        Result(Status.FINISHED, [0.75], {1: 0.25, 3: 0.5, 9: 0.75}),
    ):
        (study.tell if result.status == Status.FINISHED else study.pause)(0, result)
        seen.append((trials_of(study)[0].state.name, trials_of(study)[0].value))
    waiting = "PRUNED" if sampler == "tpe" else "COMPLETE"
    assert seen == [(waiting, 0.25), (waiting, 0.5), ("COMPLETE", 0.75)]
    study.tell(0, Result(Status.FINISHED, [0.9]))  # it has ended: nothing changes any more
    assert trials_of(study)[0].value == 0.75


def test_a_prior_draws_early_trials_near_it_and_fades() -> None:
    space: dict[str, Parameter] = {
        "rate": FloatParameter(low=1e-4, high=1, log=True, prior=0.01),
        "width": IntParameter(low=1, high=101, prior=51),
        "weight": FloatParameter(low=1, high=2, or_exactly=0.0, prior=0.0),
    }
    near = {"rate": 0, "width": 0, "weight": 0}
    for seed in range(100):
        for number in (0, 400):
            found = values_of(space, near_priors(space, 4, number, seed_of_draw(0, number, seed)))
            if number == 0:
                assert found.keys() == space.keys()
            near = {name: near[name] + (number == 400 and name in found) for name in near}
            assert found.get("weight", 0.0) == 0
    assert all(count <= 5 for count in near.values())  # 4 / 404 of 100
    drawn = [values_of(space, near_priors(space, 4, 0, seed)) for seed in range(300)]
    assert sum(abs(math.log10(values["rate"]) + 2) < 0.4 for values in drawn) / 300 == pytest.approx(0.68, abs=0.08)
    assert sum(abs(values["width"] - 51) <= 10 for values in drawn) / 300 == pytest.approx(0.7, abs=0.08)
    study = study_of("tpe", space=space)
    assert all(params_of(space, values_of(space, study.propose(number) or {})) for number in range(12))


def test_an_exact_value_is_drawn_as_often_as_its_probability_says() -> None:
    space: dict[str, Parameter] = {"a": FloatParameter(low=1, high=2, or_exactly=0.0, exactly_probability=0.1)}
    study = study_of("random", space=space)
    exact = sum(values_of(space, study.propose(number) or {})["a"] == 0 for number in range(300))
    assert exact / 300 == pytest.approx(0.1, abs=0.06)


def test_the_default_space_is_understood(config: SweepConfig) -> None:
    study = optuna.create_study(sampler=build_sampler("tpe", 0, config.space, always))
    trial = study.ask()
    suggest(config.space, trial)
    assert values_of(config.space, trial.params).keys() == config.space.keys()


NUMBERS: dict[str, Parameter] = {f"x{number}": FloatParameter(low=0, high=1) for number in range(3)}


def cmaes_draws(count: int) -> list[dict[str, Any]]:
    drawn = []
    study = Study(SearchConfig(sampler="cmaes"), NUMBERS, ["val/acc"])
    for number in range(count):
        params = study.propose(number)
        assert params is not None
        drawn.append(params)
        study.tell(number, Result(Status.FINISHED, [-sum((value - 0.3) ** 2 for value in params.values())]))
    return drawn


def test_cmaes_proposes_the_same_from_its_last_generations_as_from_all_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.decide.study.RECENT_TRIALS", 10**9)
    from_all = cmaes_draws(120)
    monkeypatch.setattr("orchestrator.decide.study.RECENT_TRIALS", 30)
    assert cmaes_draws(120) == from_all


def test_cmaes_takes_a_trial_of_a_long_sweep_in_as_many_looks_as_one_of_a_short_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed sweep asks for every proposal again: with a look at all trials each time, the time would grow quadratically."""
    monkeypatch.setattr("orchestrator.decide.study.RECENT_TRIALS", 30)
    looks = 0
    attributes = optuna.trial.FrozenTrial.system_attrs.fget
    assert attributes is not None

    def counted(trial: optuna.trial.FrozenTrial) -> Any:
        nonlocal looks
        looks += 1
        return attributes(trial)

    monkeypatch.setattr(optuna.trial.FrozenTrial, "system_attrs", property(counted, optuna.trial.FrozenTrial.system_attrs.fset))
    cmaes_draws(100)
    short, looks = looks, 0
    cmaes_draws(300)
    assert looks < 4 * short
