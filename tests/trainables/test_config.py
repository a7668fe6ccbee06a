import subprocess
import sys
from typing import Any

import pydantic
import pytest

from orchestrator.config.limits_config import BudgetConfig
from orchestrator.config.scheduler_config import PbtConfig
from orchestrator.config.search_config import FloatParameter
from orchestrator.config.sweep_config import SweepConfig
from trainables.classifier_config import CLASSIFIER_SETTINGS
from trainables.config import (
    ROUNDING,
    UNDECIDING,
    OptimConfig,
    TrialConfig,
    deciding_differences,
    followed,
)
from trainables.data_config import DATA_SETTINGS, Cifar10Config, NoiseConfig
from trainables.method_config import METHOD_SETTINGS, CrossEntropyConfig, DifficultyNetConfig
from trainables.settings import Settings, absolute, differences, flatten

CHOICES: dict[str, tuple[dict[str, Any], str]] = {
    "method": (METHOD_SETTINGS, "name"),
    "classifier": (CLASSIFIER_SETTINGS, "name"),
    "data": (DATA_SETTINGS, "source"),
}


def all_settings() -> list[type[Settings]]:
    """Every settings class that the two trees of settings are made of, their bases included."""
    found: list[type[Settings]] = []
    waiting = [Settings]
    while waiting:
        inner = [kind for kind in waiting.pop().__subclasses__() if kind.__module__.startswith(("trainables.", "orchestrator."))]
        found += inner
        waiting += inner
    assert {TrialConfig, SweepConfig, NoiseConfig, FloatParameter, PbtConfig, BudgetConfig} <= set(found)
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("settings", all_settings(), ids=lambda settings: settings.__name__)
def test_every_field_is_explained(settings: type[Settings]) -> None:
    unexplained = [name for name, field in settings.model_fields.items() if not field.description]
    assert not unexplained
    assert settings.__doc__


def test_settings_are_frozen() -> None:
    with pytest.raises(pydantic.ValidationError):
        TrialConfig().seed = 3


def test_flatten_joins_keys_with_dots() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": {}}) == {"a.b": 1, "a.c.d": [2], "e": {}}


def test_a_configuration_survives_its_own_dump() -> None:
    config = TrialConfig(seed=3, method=CrossEntropyConfig())
    assert TrialConfig.model_validate(config.model_dump()) == config
    assert TrialConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("part", "name"),
    [(part, name) for part, (table, _) in CHOICES.items() for name in table],
)
def test_a_choice_by_name_is_dumped_as_its_own_settings_are(part: str, name: str) -> None:
    table, selector = CHOICES[part]
    needed = {"root": "/images", "train_list": "train.txt"}
    given = {key: needed[key] for key in needed.keys() & table[name].model_fields.keys()}
    settings = table[name].model_validate({selector: name, **given})
    assert next(iter(settings.model_dump())) == selector
    head = {"classifier": {"name": "linear"}} if name == "features" else {}  # all that vectors can have
    config = TrialConfig.model_validate({part: {selector: name, **given}, **head})
    assert getattr(config, part) == settings
    assert type(getattr(config, part)) is table[name]
    assert config.model_dump() == TrialConfig.model_validate(head).model_dump() | {part: settings.model_dump()}
    assert TrialConfig.model_validate(config.model_dump()) == TrialConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.slow
def test_settings_load_without_torch_ray_optuna_or_mlflow() -> None:
    heavy = ("torch", "ray", "optuna", "mlflow", "sklearn")
    code = f"import sys, orchestrator.config.sweep_config, trainables.plugins; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_settings_differ_where_their_values_do_and_none_is_as_good_as_absent() -> None:
    first, second = {"a": {"b": 1, "c": 2}, "d": None}, {"a": {"b": 1, "c": 3}, "e": 4}
    assert differences(first, second, absent="absent") == {"a.c": (2, 3), "e": ("absent", 4)}


def test_an_address_is_a_place_as_it_stands() -> None:
    assert absolute("s3://bucket/folder") == "s3://bucket/folder"


CIFAR = TrialConfig(data=Cifar10Config(root="/old"))
"""A trial that has every setting that a resumed sweep may change."""


def test_what_a_resumed_sweep_may_change_are_settings_of_trials() -> None:
    # Defaults are left out of a dump.
    moved = CIFAR.compute.model_copy(update={"augment_on": "device", "decode_on": "device"})
    full = CIFAR.model_copy(update={"read_test": True, "compute": moved})
    assert flatten(full.model_dump()).keys() >= UNDECIDING | ROUNDING
    assert not UNDECIDING & ROUNDING


def test_a_trial_follows_its_sweep_in_what_decides_no_result_and_keeps_what_is_its_own() -> None:
    before = CIFAR.model_dump()
    now = CIFAR.model_copy(
        update={
            "data": Cifar10Config(root="/new"),
            "epochs": 99,
            "compute": CIFAR.compute.model_copy(update={"readers": 7, "compile": True}),
        }
    ).model_dump()
    own = CIFAR.model_copy(update={"compute": CIFAR.compute.model_copy(update={"readers": 4})}).model_dump()
    found = followed(own, before, now)
    changed = {"data.root": ("/old", "/new"), "compute.compile": (False, True)}
    assert differences(own, found) == changed  # neither its own number of readers nor the epochs
    assert differences(own, CIFAR.model_dump()) == {"compute.readers": (4, 2)}  # not modified
    assert not deciding_differences(own, found)
    assert deciding_differences(own, now) == {"epochs": (40, 99)}


def test_a_trial_follows_its_sweep_in_settings_that_are_not_written_while_they_have_their_defaults() -> None:
    def written(**compute: Any) -> dict[str, Any]:
        return CIFAR.model_copy(update={"compute": CIFAR.compute.model_copy(update=compute)}).model_dump()

    plain, moved = written(), written(augment_on="device")
    assert "augment_on" not in plain["compute"]
    assert followed(plain, plain, moved) == moved
    assert followed(moved, moved, plain) == plain
    own = written(keep_gib=2.0)
    assert followed(own, plain, moved) == written(keep_gib=2.0, augment_on="device")
    assert followed(moved, plain, written(keep_gib=3.0)) == written(keep_gib=3.0, augment_on="device")
    assert TrialConfig.model_validate(followed(own, own, plain) | {"data": {"source": "digits"}}).compute.keep_gib is None
    assert "augment_on" not in plain["compute"]  # not modified
    assert followed({"compute": None}, plain, moved) == {"compute": None}


MULTISTEP = {"schedule": "multistep", "milestones": [2.0]}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"optimizer": "adamw", "momentum": 0.8},
            "momentum is 0.8, but optimizer is adamw, which has averages of its own; "
            "allowed: optimizer sgd, or leave momentum out",
        ),
        (
            {"optimizer": "adamw", "nesterov": True},
            "nesterov is True, but optimizer is adamw; allowed: nesterov False, or optimizer sgd with a momentum greater than 0",
        ),
        ({"momentum": 0.0, "nesterov": True}, "nesterov is True, but momentum is 0; allowed: nesterov False, or "),
        (
            {"weight_decay_biases": False},
            "weight_decay_biases is False, but weight_decay is 0, so that nothing decays; allowed: ",
        ),
        (
            {"milestones": [2.0]},
            "milestones is [2.0], but schedule is cosine, which has no milestones; allowed: schedule multistep",
        ),
        ({"schedule": "constant", "decay": 0.5}, "decay is 0.5, but schedule is constant, which has no milestones; allowed: "),
        ({"schedule": "multistep"}, "milestones is [], but schedule is multistep; allowed: one or more epochs, as [160, 180]"),
        (MULTISTEP | {"milestones": [3.0, 2.0]}, "milestones is [3.0, 2.0]; allowed: epochs in increasing order, each once"),
        (MULTISTEP | {"milestones": [2.0, 2.0]}, "milestones is [2.0, 2.0]; allowed: epochs in increasing order, each once"),
        (MULTISTEP | {"warmup_epochs": 3.0}, "milestones begins with 2, but warmup_epochs is 3; allowed: milestones after the "),
        (MULTISTEP | {"milestones": [0.0]}, "greater than 0"),
        (MULTISTEP | {"decay": 1.0}, "less than 1"),
        ({"clip_norm": 0.0}, "greater than 0"),
        ({"head_lr": 0.0}, "greater than 0"),
    ],
)
def test_settings_of_phi_without_effect_or_meaning_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(pydantic.ValidationError) as error:
        OptimConfig(**given)
    assert message in str(error.value)


def test_momentum_of_theta_is_for_sgd_only() -> None:
    with pytest.raises(pydantic.ValidationError) as error:
        DifficultyNetConfig(meta_momentum=0.9)
    message = "meta_momentum is 0.9, but meta_optimizer is adam, which has averages of its own; allowed: meta_momentum 0, or"
    assert message in str(error.value)
    assert DifficultyNetConfig(meta_momentum=0.9, meta_optimizer="sgd").meta_momentum == 0.9
