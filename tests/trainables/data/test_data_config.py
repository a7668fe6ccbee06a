from typing import Any

import pytest
from pydantic import ValidationError

from trainables.data_config import DATA_SETTINGS, Cifar10Config, DigitsConfig, ImageFolderConfig, LongTailConfig

PLACES = {"root": "/images", "train_list": "train.txt"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"noise": {"kind": "none", "rate": 0.2}},
            r"rate is 0.2, but kind is none; allowed: rate 0, or a kind, for example flip",
        ),
        ({"noise": {"pairs": ["1=7"]}}, r"pairs is \['1=7'\], but kind is none; allowed: kind pairs, or leave pairs out"),
        (
            {"noise": {"kind": "flip", "rate": 0.4, "pairs": ["1=7"]}},
            r"pairs is \['1=7'\], but kind is flip; allowed: kind pairs",
        ),
        (
            {"noise": {"kind": "symmetric", "rate": 0.4, "seed": 2}},
            r"seed is 2, but kind is symmetric, which draws no confused classes; allowed: kind flip or flip2, or leave seed out",
        ),
        (
            {"profile": "natural", "n_max": 30},
            r"n_max is 30, but profile is natural, which keeps all images; allowed: profile exponential, step or pareto, or",
        ),
        ({"profile": "natural", "imbalance_factor": 2.0}, r"imbalance_factor is 2, but profile is natural"),
        ({"profile": "natural", "rounding": "nearest"}, r"rounding is nearest, but profile is natural"),
        (
            {"selection": "first", "split_seed": 3},
            r"split_seed is 3, but selection is first, which draws no images; allowed: selection random, or leave split_seed out",
        ),
        ({"selection": "first", "fixed_sets": "held_out"}, r"fixed_sets is held_out, but selection is first"),
    ],
)
def test_settings_that_do_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DigitsConfig.model_validate(settings)


@pytest.mark.parametrize(
    "changes",
    [
        {"profile": "natural"},
        {"selection": "first"},
        {"meta": "from_train"},
        {"val": "meta"},
        {"mix": "mixup"},
        {"noise": {"kind": "symmetric", "rate": 0.4}},
    ],
)
@pytest.mark.parametrize("kind", DATA_SETTINGS.values())
def test_a_record_of_all_settings_holds_the_defaults_of_those_that_do_nothing(
    kind: type[LongTailConfig], changes: dict[str, Any]
) -> None:
    places = {name: place for name, place in PLACES.items() if name in kind.model_fields}
    everything = {name: field.get_default() for name, field in kind.model_fields.items() if not field.is_required()}
    everything["noise"] = everything["noise"].model_dump()
    noise = everything["noise"] | changes.get("noise", {})
    config = kind.model_validate(everything | places | changes | {"noise": noise})
    assert kind.model_validate(config.model_dump()) == config == kind.model_validate_json(config.model_dump_json())


def test_sizes_of_sets_that_are_not_taken_may_stay_in_a_search_space() -> None:
    assert Cifar10Config(val="meta", val_per_class=40).val_per_class == 40
    assert ImageFolderConfig(root="x", meta="from_train", meta_per_class=5).meta_per_class == 5
