"""Arms: methods and references that are compared, each with the part of the space that it has."""

from typing import Any

import pytest

from orchestrator.config.arms import Arm
from orchestrator.config.search_config import FloatParameter
from orchestrator.config.sweep_config import SweepConfig
from trainables.config_file import ConfigError, Origin, check

LR = {"type": "float", "low": 0.01, "high": 0.1}
METHODS = {"type": "categorical", "choices": ["cross_entropy", "focal", "difficulty_net"]}
SPACE = {
    "method.name": METHODS,
    "optim.lr": LR,
    "method.gamma": {"type": "float", "low": 0.5, "high": 2.0},
    "method.meta_lr": {"type": "float", "low": 0.001, "high": 0.1},
}
CRT = {"tuned": True, "method": {"name": "cross_entropy"}, "stages": [{"name": "representation"}, {"name": "crt", "epochs": 2}]}


def sweep(space: dict[str, Any], trial: dict[str, Any] | None = None, **search: Any) -> SweepConfig:
    own = {"epochs": 9, "method": {"name": "cross_entropy"}, **(trial or {})}
    return check(SweepConfig, {"trial": own, "space": space, "search": search}, Origin("FILE"))


def error_of(space: dict[str, Any], trial: dict[str, Any] | None = None, **search: Any) -> str:
    with pytest.raises(ConfigError) as error:
        sweep(space, trial, **search)
    return str(error.value)


def test_each_method_is_an_arm_with_the_settings_that_it_has() -> None:
    config = sweep(SPACE, per_method=5)
    assert [(arm.name, arm.trial.method.name, list(arm.space), arm.trials) for arm in config.arms()] == [
        ("cross_entropy", "cross_entropy", ["optim.lr"], 5),
        ("focal", "focal", ["optim.lr", "method.gamma"], 5),
        ("difficulty_net", "difficulty_net", ["optim.lr", "method.meta_lr"], 5),
    ]


def test_a_sweep_that_compares_nothing_has_one_arm_without_a_name() -> None:
    config = sweep(SPACE, trials=7, references={"plain": {"tuned": False, "method": {"name": "focal"}}})
    assert config.arms() == [Arm("", config.trial, config.space, 7)]
    assert (config.num_trials(), config.num_confirmations()) == (8, 0)


def test_a_tuned_reference_is_an_arm_in_which_its_own_settings_are_fixed() -> None:
    space = {"optim.lr": LR, "stages.1.optim.lr": LR, "stages.1.epochs": {"type": "int", "low": 1, "high": 3}}
    lws = {"tuned": True, "stages": [{"name": "representation"}, {"name": "lws"}]}
    config = sweep(space, {"epochs": 20}, trials=4, references={"crt": CRT, "plain": {"method": {"name": "focal"}}, "lws": lws})
    own, crt, other = config.arms()
    assert (own.name, list(own.space), own.trials) == ("cross_entropy", ["optim.lr"], 4)
    assert (crt.name, list(crt.space), crt.trials) == ("crt", ["optim.lr", "stages.1.optim.lr"], 4)
    assert [stage.name for stage in crt.trial.stages] == ["representation", "crt"]
    assert (other.name, list(other.space), other.trials) == ("lws", list(space), 4)
    assert config.num_trials() == 13


def test_numbers_of_trials_count_arms_and_plain_references() -> None:
    references = {"crt": CRT, "plain": {"optim": {"lr": 0.5}}}
    config = sweep(SPACE, per_method=5, references=references, confirm={"top": 2, "seeds": 3})
    assert (config.num_searched(), config.num_trials(), config.num_confirmations()) == (
        20,
        21,
        27,
    )  # the plain reference is confirmed, too
    assert sweep(SPACE, trials=6, confirm={"top": 2, "seeds": 3}).num_confirmations() == 6


def test_conditions_are_resolved_where_an_arm_settles_them() -> None:
    space = {
        "method.name": METHODS,
        "optim.schedule": {"type": "categorical", "choices": ["cosine", "constant"]},
        "classifier.head": {"type": "categorical", "choices": ["linear", "cosine"]},
        "classifier.scale": {"type": "float", "low": 5, "high": 50, "when": {"classifier.head": ["cosine"]}},
        "optim.lr": LR | {"when": {"method.name": ["cross_entropy", "focal"]}},
        "optim.warmup_epochs": {"type": "float", "low": 0.0, "high": 2.0, "when": {"optim.schedule": ["cosine"]}},
    }
    cosine = {"tuned": True, "method": {"name": "focal"}, "classifier": {"head": "cosine"}}
    linear = {"tuned": True, "method": {"name": "focal"}, "classifier": {"head": "linear"}, "optim": {"schedule": "cosine"}}
    arms = {arm.name: arm.space for arm in sweep(space, per_method=3, references={"cosine": cosine, "linear": linear}).arms()}
    assert set(arms["focal"]) == space.keys() - {"method.name"}
    assert set(arms["difficulty_net"]) == space.keys() - {"method.name", "optim.lr"}
    assert arms["focal"]["classifier.scale"].when == {"classifier.head": ["cosine"]}
    assert arms["cosine"]["classifier.scale"] == FloatParameter(low=5, high=50)
    assert set(arms["linear"]) == {"optim.lr", "optim.warmup_epochs"}
    assert arms["linear"]["optim.warmup_epochs"].when == {}


def test_a_setting_may_belong_to_a_tuned_reference_alone() -> None:
    focal = {"tuned": True, "method": {"name": "focal"}}
    own, other = sweep({"optim.lr": LR, "method.gamma": SPACE["method.gamma"]}, references={"focal_loss": focal}).arms()
    assert list(own.space) == ["optim.lr"]
    assert list(other.space) == ["optim.lr", "method.gamma"]


def test_beside_a_tuned_reference_the_search_itself_may_go_over_methods() -> None:
    own, crt = sweep(SPACE, references={"crt": CRT}).arms()
    assert (own.name, list(own.space)) == ("search", list(SPACE))
    assert (crt.name, list(crt.space)) == ("crt", ["optim.lr"])


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"per_method": 0}, "search.per_method is 0; allowed: greater than or equal to 1"),
        (
            {"per_method": 3, "trials": 4},
            "trials is 4, but per_method is 3, which is the number of trials of each method; allowed:",
        ),
        ({"references": {"x": {"tuned": 1}}}, "search.references: x.tuned is 1; allowed: true or false"),
        ({"references": {"x": {"tuned": True}}, "trials": 0}, "references: x.tuned is true, but trials is 0"),
        ({"references": {"x": {"tuned": True, "seed": 3}}}, "search.references.x: seed must be the same for all trials"),
        ({"references": {"x": {"tuned": True, "optim": {"rl": 3}}}}, "search.references.x: optim.rl is not a setting"),
        ({"per_method": 3, "references": {"focal": {"tuned": True}}}, "search.references: 'focal' is the name of an arm"),
        ({"per_method": 3, "sampler": "grid"}, "space.optim.lr.points is missing, but search.sampler is 'grid'"),
    ],
)
def test_wrong_values_are_answered_with_field_given_and_allowed(search: dict[str, Any], message: str) -> None:
    assert message in error_of(SPACE, **search)


def test_methods_are_compared_only_where_there_are_some() -> None:
    assert "search.per_method is 3, but space holds no method.name; allowed: null, or a" in error_of(
        {"optim.lr": LR}, per_method=3
    )
    conditional = {**SPACE, "method.name": METHODS | {"when": {"optim.lr": [0.01]}}}
    assert "space.method.name.when" in error_of(conditional, per_method=3)


def test_an_arm_without_anything_to_search_is_refused() -> None:
    space = {"method.name": METHODS, "method.gamma": SPACE["method.gamma"], "method.meta_lr": SPACE["method.meta_lr"]}
    message = error_of(space, per_method=3)
    assert "space holds no setting for the arm cross_entropy, so that its 3 trials would be the same; allowed: " in message
    assert sweep(space, per_method=1).num_trials() == 3


def test_settings_that_no_arm_has_are_refused() -> None:
    assert "space.stages.1.optim.lr is not a setting of this trial" in error_of(SPACE | {"stages.1.optim.lr": LR}, per_method=3)
    fixed = {"tuned": True, "method": {"name": "focal", "gamma": 1.0}}
    gamma = {"optim.lr": LR, "method.gamma": SPACE["method.gamma"]}
    assert "space.method.gamma is never drawn" in error_of(gamma, references={"x": fixed})


def test_a_population_has_one_arm() -> None:
    tree = {
        "trial": {"epochs": 9},
        "space": {"method.meta_lr": SPACE["method.meta_lr"]},
        "search": {"references": {"slow": {"tuned": True, "optim": {"lr": 0.01}}}},
        "scheduler": {"name": "pbt"},
    }
    with pytest.raises(ConfigError, match=r"search.references: slow.tuned is true, but scheduler.name is 'pbt'"):
        check(SweepConfig, tree, Origin("FILE"))


def test_a_value_that_an_arm_cannot_have_is_refused_with_the_arms_name() -> None:
    space = {"optim.lr": LR, "stages.1.optim.momentum": {"type": "float", "low": 0.1, "high": 0.9}}
    adam = CRT | {"stages": [{"name": "representation"}, {"name": "crt", "epochs": 2, "optim": {"optimizer": "adamw"}}]}
    message = error_of(space, references={"crt_adam": adam})
    assert "arm crt_adam, space.stages.1.optim.momentum: stages.1.optim: momentum is 0.1, but optimizer is adamw" in message
