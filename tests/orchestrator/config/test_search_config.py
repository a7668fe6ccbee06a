import pytest
from pydantic import ValidationError

from orchestrator.config.search_config import (
    CategoricalParameter,
    ConfirmConfig,
    FloatParameter,
    IntParameter,
    SearchConfig,
    extreme_values,
)
from trainables.config import TrialConfig


def test_a_sweep_searches_with_tpe_for_one_objective_unless_told_otherwise() -> None:
    search = SearchConfig()
    assert (search.sampler, search.deterministic, search.objectives, search.constraints, search.confirm) == (
        "tpe",
        False,
        None,
        [],
        None,
    )
    assert ConfirmConfig() == ConfirmConfig(top=3, seeds=5)


def test_a_condition_may_be_one_value_or_several_dotted_or_nested() -> None:
    one, several, nested = (
        IntParameter(low=1, high=2, when=when)
        for when in ({"optim.schedule": "cosine"}, {"optim.schedule": ["cosine"]}, {"optim": {"schedule": "cosine"}})
    )
    assert one == several == nested
    assert one.when == {"optim.schedule": ["cosine"]}


def test_the_values_that_are_valid_only_if_all_are() -> None:
    assert extreme_values(FloatParameter(low=1, high=2, or_exactly=0)) == [1, 2, 0]
    assert extreme_values(IntParameter(low=1, high=5)) == [1, 5]
    assert extreme_values(CategoricalParameter(choices=["a", "b", "c"])) == ["a", "b", "c"]


def test_whatever_epochs_are_selected_by_may_be_an_objective() -> None:
    metrics = TrialConfig.model_fields["select_by"].annotation.__args__
    assert SearchConfig(sampler="nsga2", objectives=list(metrics)).objectives == list(metrics)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "cmaes", "objectives": ["val/acc", "val/acc_few"]}, "sampler is 'cmaes' with several objectives; allowed: "),
        ({"objectives": ["val/acc", "val/acc"]}, r"objectives is \['val/acc', 'val/acc'\]; allowed: each metric once"),
        ({"objectives": ["val/acc"]}, "at least 2 items"),
        ({"objectives": ["val/acc", "test/acc"]}, "Input should be 'val/acc'"),
        ({"constraints": ["f(optim.lr) < 1"]}, "'f.optim.lr. < 1' holds 'f.optim.lr.'; allowed: settings and numbers"),
        ({"confirm": {"top": 0}}, "greater than or equal to 1"),
        ({"confirm": {"seeds": 1}}, "greater than or equal to 2"),
    ],
)
def test_a_search_that_cannot_be_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SearchConfig.model_validate(changes)
