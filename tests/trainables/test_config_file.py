from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainables.classifier_config import SmallCNNConfig
from trainables.config import TrialConfig
from trainables.config_file import ConfigError, dump_yaml, merge, nest_dotted, parse_override, read_settings, read_yaml
from trainables.method_config import METHOD_SETTINGS, CrossEntropyConfig, DifficultyNetConfig

MINIMAL = "method: {name: difficulty_net, driver_weight: 0.1, meta_lr: 1e-2}\noptim.lr: 0.2\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "trial.yaml"
    path.write_text(MINIMAL)
    return path


def error_of(file: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        read_settings(TrialConfig, file, overrides)
    return str(error.value).replace(str(file), "FILE")


def test_a_file_and_overrides_make_settings(file: Path) -> None:
    config = read_settings(TrialConfig, file, ["method.hidden_width=16", "seed=7"])
    assert config.method == DifficultyNetConfig(driver_weight=0.1, meta_lr=0.01, hidden_width=16)
    assert (config.seed, config.optim.lr) == (7, 0.2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds: 3", "FILE: seeds is not a setting (did you mean seed?); allowed here: "),
        ("optim: {lrr: 3}", "FILE: optim.lrr is not a setting (did you mean lr?); allowed here: batch_size, clip_norm, "),
        (
            "data: {source: digits, imbalance_factor: -5}",
            "FILE: data.imbalance_factor is -5; allowed: greater than or equal to 1",
        ),
        ("data: {source: digits, meta_per_class: 0}", "FILE: data.meta_per_class is 0; allowed: greater than or equal to 1"),
        ("epochs: 2.5", "FILE: epochs is 2.5; allowed: a valid integer"),
        ("epochs: 'three'", "FILE: epochs is 'three'; allowed: a valid integer"),
        ("epochs: '3'", "FILE: epochs is '3'; allowed: a valid integer"),
        ("epochs: true", "FILE: epochs is True; allowed: a valid integer"),
        ("optim: {lr: .nan}", "FILE: optim.lr is nan; allowed: a finite number"),
        ("optim: 3", "FILE: optim is 3; allowed: settings, as `key: value`"),
        ("method: {name: focl}", "FILE: method.name is 'focl'; allowed: cross_entropy, focal, ldam, "),
        ("method: {driver_weight: 1}", "FILE: method.name is missing; allowed: cross_entropy, focal, ldam, "),
        ("method: {name: cross_entropy, meta_lr: 1}", "FILE: method.meta_lr is not a setting; allowed here: name"),
        (
            "method: {name: difficulty_net, driver_weight: -1}",
            "FILE: method.driver_weight is -1; allowed: greater than or equal to 0",
        ),
        (
            "data: {source: cifar}",
            "FILE: data.source is 'cifar'; allowed: digits, generated, cifar10, cifar100, parquet, image_lists, ",
        ),
        ("lr: 0.1", "FILE: lr is not a setting (did you mean optim.lr?)"),
        (
            "data: {source: cifar10, augment: [crop_flp]}",
            "FILE: data.augment.0 is 'crop_flp'; allowed: 'crop_flip', 'autoaugment', ",
        ),
        ("data: {source: cifar10, augment: crop_flip}", "FILE: data.augment is 'crop_flip'; allowed: a list, as [a, b]"),
        ("data: {source: digits, noise: {pairs: [cat]}}", "FILE: data.noise.pairs.0 is 'cat'; allowed: text of the form old=new"),
        ("select_by: test/acc", "FILE: select_by is 'test/acc'; allowed: 'val/acc', "),
        ("classifier: {name: small_cnn, widths: [3]}", "FILE: classifier.widths is [3]; allowed: 2 values"),
        ("classifier: {name: alexnet}", "FILE: classifier.name is 'alexnet'; allowed: small_cnn, resnet_cifar, resnet"),
        ("classifier: {name: resnet, depth: 20}", "FILE: classifier.depth is 20; allowed: 10, 18, 34, 50, 101 or 152"),
        (
            "classifier: {name: small_cnn, depth: 9}",
            "FILE: classifier.depth is not a setting; allowed here: head, name, scale, widths",
        ),
        ("classifier: {name: resnet, head: round}", "FILE: classifier.head is 'round'; allowed: 'linear' or 'cosine'"),
        ("classifier: {name: resnet, scale: 0}", "FILE: classifier.scale is 0; allowed: greater than 0"),
        ("seed: 1\nseed: 2", "FILE: not valid YAML: line 2: seed is set twice"),
        ("optim.lr: 1\noptim: {lr: 2}", "FILE: optim.lr is set twice"),
        ("optim: {lr: 1", "FILE: not valid YAML: "),
        ("- a", "FILE: expected a mapping of settings, found list"),
        ("3: a", "FILE: not valid YAML: line 1: the key 3 is not a word"),
        ("optim.lr: 0.1\noptim: {lr: 0.2}", "FILE: optim.lr is set twice"),
        ("optim: &a {b: *a}", "FILE: a setting contains itself"),
        ("seed: !!int x", "FILE: not valid YAML"),
        ("epochs: 010", "FILE: epochs is '010'; allowed: a valid integer"),
        ("a..b: 3", "FILE: 'a..b' is not a setting's name"),
    ],
)
def test_wrong_files_are_answered_with_file_field_given_and_allowed(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    assert error_of(file).startswith(message), error_of(file)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr=-1", "command line: optim.lr is -1; allowed: greater than 0"),
        ("optim.learning_rate=1", "command line: optim.learning_rate is not a setting; allowed here: "),
        ("optim.lr", "command line: 'optim.lr' is not of the form key=value"),
        ("=3", "command line: '=3' is not of the form key=value"),
        ("optim.lr=[", "command line: optim.lr is '[', which is not a YAML value"),
        ("method.name=nothing", "command line: method.name is 'nothing'; allowed: cross_entropy, focal, ldam, "),
        ("seed.x=3", "command line: seed is {'x': 3}; allowed: a valid integer"),
    ],
)
def test_wrong_overrides_are_blamed_on_the_command_line(file: Path, override: str, message: str) -> None:
    assert error_of(file, override).startswith(message), error_of(file, override)


def test_all_wrong_fields_are_named_at_once(file: Path) -> None:
    assert len(error_of(file, "seed=-1", "epochs=0").splitlines()) == 2


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_yaml(path)


def test_another_method_leaves_the_settings_of_the_first_behind(file: Path) -> None:
    assert read_settings(TrialConfig, file, ["method.name=cross_entropy"]).method == CrossEntropyConfig()
    back = read_settings(TrialConfig, file, ["method.name=cross_entropy", "method.name=difficulty_net"])
    assert back.method == DifficultyNetConfig()


def test_another_method_has_its_own_defaults_also_in_complete_settings() -> None:
    """Settings that were dumped hold all defaults: `difficulty: relative` of Difficulty-Net is no value for CDB-CE."""
    dumped = TrialConfig(method=DifficultyNetConfig(hidden_width=20)).model_dump()
    for name in ("cdb_ce", "mes", "cross_entropy"):
        changed = TrialConfig.model_validate(merge(TrialConfig, dumped, {"method": {"name": name}})).method
        wanted = METHOD_SETTINGS[name].model_validate({"name": name, **({"hidden_width": 20} if name == "mes" else {})})
        assert changed == wanted


def test_another_classifier_keeps_the_head(file: Path) -> None:
    overrides = ["classifier={name: resnet_cifar, head: cosine, scale: 16.0}", "classifier.name=small_cnn"]
    assert read_settings(TrialConfig, file, overrides).classifier == SmallCNNConfig(head="cosine", scale=16.0)


def test_the_same_name_again_keeps_the_settings(file: Path) -> None:
    assert read_settings(TrialConfig, file, ["method.name=difficulty_net"]).method.driver_weight == 0.1


def test_dotted_and_nested_keys_are_the_same() -> None:
    assert nest_dotted({"a.b": 1, "a": {"c.d": 2}}, "x") == {"a": {"b": 1, "c": {"d": 2}}}


def test_merging_keeps_what_is_not_changed() -> None:
    assert merge(None, {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 5}}) == {"a": {"b": 5, "c": 2}, "d": 3}


def test_an_empty_mapping_replaces_a_whole_part() -> None:
    assert merge(None, {"a": {"b": 1}}, {"a": {}}) == {"a": {}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.0e-4", 1e-4),
        ("-2E3", -2000.0),
        ("5", 5),
        ("0.5", 0.5),
        ("true", True),
        ("yes", "yes"),
        ("010", "010"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("[1, 2]", [1, 2]),
        ("null", None),
    ],
)
def test_values_are_read_as_people_mean_them(text: str, value: object) -> None:
    keys, parsed = parse_override(f"a.b={text}")
    assert keys == ["a", "b"]
    assert parsed == value
    assert type(parsed) is type(value)


numbers = st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False)
leaves = st.none() | st.booleans() | numbers | numbers.map(str) | st.sampled_from(["1e5", "-1e-3"]) | st.text(max_size=8)
names = st.from_regex(r"[a-z_][a-z0-9_]{0,3}", fullmatch=True)
inner = st.recursive(
    leaves, lambda deeper: st.lists(deeper, max_size=2) | st.dictionaries(names, deeper, min_size=1, max_size=2), max_leaves=4
)


@pytest.mark.slow
@given(tree=st.dictionaries(names, inner, max_size=3))
def test_what_is_dumped_is_read_back(tmp_path_factory: pytest.TempPathFactory, tree: dict[str, object]) -> None:
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(dump_yaml(tree), encoding="utf-8")
    assert read_yaml(path) == tree
