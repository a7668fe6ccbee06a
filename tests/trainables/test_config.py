import inspect
import subprocess
import sys

import pydantic
import pytest

import orchestrator.config
import trainables.config
from trainables.config import CrossEntropyConfig, TrialConfig
from trainables.settings import Settings, absolute, differences, flatten


def all_settings() -> list[type[Settings]]:
    members = [
        value for module in (trainables.config, orchestrator.config) for _, value in inspect.getmembers(module, inspect.isclass)
    ]
    return [member for member in dict.fromkeys(members) if issubclass(member, Settings) and member is not Settings]


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


@pytest.mark.slow
def test_settings_load_without_torch_ray_optuna_or_mlflow() -> None:
    code = (
        "import sys, orchestrator.config; print([m for m in ('torch', 'ray', 'optuna', 'mlflow', 'sklearn') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_settings_differ_where_their_values_do_and_none_is_as_good_as_absent() -> None:
    first, second = {"a": {"b": 1, "c": 2}, "d": None}, {"a": {"b": 1, "c": 3}, "e": 4}
    assert differences(first, second, absent="absent") == {"a.c": (2, 3), "e": ("absent", 4)}


def test_an_address_is_a_place_as_it_stands() -> None:
    assert absolute("s3://bucket/folder") == "s3://bucket/folder"
