import math

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState

from orchestrator.config import CategoricalParameter, FloatParameter, IntParameter, SearchConfig, SweepConfig
from orchestrator.study import SAMPLERS, build_sampler, outcome, params_of, suggest, values_of

SPACE = {
    "weight": FloatParameter(low=1e-4, high=1, log=True, atom=0.0),
    "width": IntParameter(low=4, high=64, log=True),
    "kind": CategoricalParameter(choices=["a", "b"]),
}


def draw(seed: int, count: int = 40, sampler: str = "random") -> list[dict[str, object]]:
    study = optuna.create_study(sampler=build_sampler(sampler, seed), direction="maximize")
    values = []
    for _ in range(count):
        trial = study.ask()
        suggest(SPACE, trial)
        values.append(values_of(SPACE, trial.params))
        study.tell(trial, float(values[-1]["width"]))
    return values


def test_the_table_and_the_settings_name_the_same_samplers() -> None:
    assert sorted(SAMPLERS) == sorted(SearchConfig.model_fields["sampler"].annotation.__args__)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_suggestions_lie_in_the_space_and_at_its_atom(sampler: str) -> None:
    values = draw(0, sampler=sampler)
    at_atom = [value["weight"] == 0 for value in values]
    assert 5 < sum(at_atom) < 35
    assert all(value["weight"] == 0 or 1e-4 <= value["weight"] <= 1 for value in values)
    assert all(4 <= value["width"] <= 64 and value["kind"] in "ab" for value in values)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_seed_gives_the_same_suggestions(sampler: str) -> None:
    assert draw(1, 12, sampler) == draw(1, 12, sampler) != draw(2, 12, sampler)


@given(
    weight=st.just(0.0) | st.floats(1e-4, 1),
    width=st.integers(4, 64),
    kind=st.sampled_from(["a", "b"]),
)
def test_a_point_becomes_parameters_and_comes_back(weight: float, width: int, kind: str) -> None:
    values = {"weight": weight, "width": width, "kind": kind}
    study = optuna.create_study()
    study.enqueue_trial(params_of(SPACE, values))
    trial = study.ask()
    suggest(SPACE, trial)
    assert values_of(SPACE, trial.params) == values


@pytest.mark.parametrize("change", [{"weight": 2.0}, {"width": 3}, {"kind": "c"}, {"weight": None}, {"weight": 1e-5}])
def test_a_point_outside_the_space_has_no_parameters(change: dict[str, object]) -> None:
    assert params_of(SPACE, {"weight": 0.1, "width": 8, "kind": "a"} | change) is None


@pytest.mark.parametrize(
    ("status", "value", "told"),
    [
        ("finished", 0.8, (TrialState.COMPLETE, 0.8)),
        ("stopped_early", 0.8, (TrialState.PRUNED, None)),
        ("diverged", 0.8, (TrialState.FAIL, None)),
        ("failed", None, (TrialState.FAIL, None)),
        ("finished", math.nan, (TrialState.FAIL, None)),
        ("finished", None, (TrialState.FAIL, None)),
    ],
)
def test_every_ending_is_told_so_that_no_trial_stays_running(
    status: str, value: float | None, told: tuple[TrialState, float | None]
) -> None:
    assert outcome(status, value) == told
    study = optuna.create_study(direction="maximize")
    trial = study.ask()
    trial.report(0.5, 1)
    state, value = outcome(status, value)
    study.tell(trial, value, state=state)
    assert study.trials[0].state == told[0]


def test_the_default_space_is_understood(config: SweepConfig) -> None:
    study = optuna.create_study(sampler=build_sampler("tpe", 0))
    trial = study.ask()
    suggest(config.space, trial)
    assert values_of(config.space, trial.params).keys() == config.space.keys()
