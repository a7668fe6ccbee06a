"""Methods, losses, classifiers and data sources from outside the package; those of examples/ stand for all."""

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from tasks import context, loss_of, task
from torch.nn import functional as F

import orchestrator.sweep
import trainables.train
from orchestrator.config.space import conditions
from orchestrator.config.sweep_config import read_sweep
from trainables.classifier_config import CLASSIFIER_SETTINGS, ClassifierSettings, SmallCNNConfig
from trainables.config import TrialConfig
from trainables.config_file import ConfigError, dump_yaml, read_settings
from trainables.data import DATASETS, build_data
from trainables.data_config import DATA_SETTINGS, DigitsConfig, LongTailConfig
from trainables.export_model import read_model, write_model
from trainables.loss_config import LOSS_SETTINGS, FocalConfig, LossSettings, MethodSettings
from trainables.method_config import METHOD_SETTINGS, DifficultyNetConfig
from trainables.methods import LOSSES, METHODS, Loss, LossAlone, Method, Task, build_method
from trainables.models import CLASSIFIERS, build_classifier
from trainables.plugins import register_classifier, register_dataset, register_loss, register_method
from trainables.registry import load_installed_plugins, load_plugins
from trainables.settings import Settings
from trainables.trial_run import TrialRun

ROOT = Path(__file__).parents[2]
TABLES: list[dict[str, Any]] = [
    METHOD_SETTINGS,
    METHODS,
    CLASSIFIER_SETTINGS,
    CLASSIFIERS,
    DATA_SETTINGS,
    DATASETS,
    LOSS_SETTINGS,
    LOSSES,
]
BUILT_IN = [list(table) for table in TABLES]

MODULE = """
from typing import Literal
from trainables.method_config import MethodSettings
from trainables.methods import LossAlone
from trainables.plugins import register_method

class PlainConfig(MethodSettings):
    name: Literal["plain"] = "plain"
    meta_lr: float = 0.5
    width: int = 3

register_method(PlainConfig, LossAlone)
"""

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def no_traces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Takes registrations and imports back, so that no test sees those of another."""
    assert [list(table) for table in TABLES] == BUILT_IN
    rows, modules = [dict(table) for table in TABLES], set(sys.modules)
    monkeypatch.syspath_prepend(ROOT)  # for examples/
    yield
    for table, before in zip(TABLES, rows, strict=True):
        table.clear()
        table.update(before)
    for name in set(sys.modules) - modules:
        if name.startswith(("examples", "plugin")):
            del sys.modules[name]
    load_installed_plugins.cache_clear()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a module that can be imported; names begin with `plugin`."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, text: str = MODULE) -> Path:
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        importlib.invalidate_caches()
        return path

    return write


def trial_file(tmp_path: Path, text: str = "") -> Path:
    path = tmp_path / "trial.yaml"
    path.write_text(text or "seed: 0\n")
    return path


def trained(config: dict[str, Any], epochs: int = 1) -> tuple[TrialRun, dict[str, float]]:
    """A run on the digits after `epochs`, and the metrics of the last one."""
    run = TrialRun()
    run.start(TrialConfig.model_validate({"epochs": epochs, **config}))
    return run, [run.run_epoch() for _ in range(epochs)][-1]


# A method


INVERSE = {"plugins": ["examples.inverse_frequency"]}


def test_the_settings_of_a_loss_are_no_method() -> None:
    with pytest.raises(ValueError, match=r"FocalConfig has the settings of a loss .*; allowed: register_loss"):
        register_method(FocalConfig, LossAlone)


def test_a_method_from_a_plugin_trains_and_its_weights_are_those_of_the_class_counts() -> None:
    run, metrics = trained({**INVERSE, "method": {"name": "inverse_frequency", "strength": 0.5}})
    wanted = run.loaded.data.class_counts.astype(float) ** -0.5
    assert run.class_table()["weight"] == pytest.approx((wanted / wanted.mean()).tolist())
    assert metrics["val/acc"] > 0.3  # guessing gives 0.1


def test_the_loss_of_inverse_frequency_weighs_each_image_by_its_class() -> None:
    load_plugins(["examples.inverse_frequency"])
    method = build_method(METHOD_SETTINGS["inverse_frequency"](name="inverse_frequency"), task([3, 1, 0]), seed=0)
    logits, labels = torch.tensor([[2.0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 3, 0]]), torch.tensor([0, 0, 0, 1])
    losses = F.cross_entropy(logits, labels, reduction="none")
    # Counts 3, 1 and none, which counts as 1: weights 1/3, 1, 1 over their mean 7/9.
    expected = (torch.tensor([3, 3, 3, 9]).double() / 7 * losses).mean()
    torch.testing.assert_close(loss_of(method, context(method, logits, labels)), expected)


def test_inverse_frequency_without_strength_is_the_loss_that_it_weighs() -> None:
    for loss in ({"name": "cross_entropy"}, {"name": "focal", "gamma": 2.0}):
        weighs_nothing = {"name": "inverse_frequency", "strength": 0.0, "base_loss": loss}
        ours, plain = trained({**INVERSE, "method": weighs_nothing})[1], trained({"method": loss})[1]
        assert ours["train/loss"] == pytest.approx(plain["train/loss"], rel=1e-5)
        assert ours["val/acc"] == plain["val/acc"]


def test_a_saved_trial_of_a_plugins_method_goes_on(tmp_path: Path) -> None:
    run, _ = trained({**INVERSE, "method": {"name": "inverse_frequency"}, "epochs": 2})
    sha256 = run.save(tmp_path / "state")
    resumed = TrialRun()
    resumed.load(tmp_path / "state", run.config, sha256)
    assert resumed.run_epoch()["val/acc"] == run.run_epoch()["val/acc"]


# A loss


GENERALIZED: dict[str, Any] = {"plugins": ["examples.generalized_cross_entropy"]}


def generalized(q: float) -> LossSettings:
    load_plugins(GENERALIZED["plugins"])
    return LOSS_SETTINGS["generalized_cross_entropy"].model_validate({"name": "generalized_cross_entropy", "q": q})


@pytest.mark.parametrize("q", [0.01, 0.7, 1.0])
def test_generalized_cross_entropy_is_its_formula(q: float) -> None:
    method = build_method(generalized(q), task([3, 1, 2]), seed=0)
    logits = torch.tensor([[2.0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 30.0]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 0, 2, 0])
    losses = method.sample_losses(logits, context(method, logits, labels))
    p = logits.softmax(1)[torch.arange(4), labels]
    torch.testing.assert_close(losses, (1 - p**q) / q)
    ours, plain = (torch.autograd.grad(one.sum(), logits, retain_graph=True)[0] for one in (losses, -p.log()))
    torch.testing.assert_close(ours, p[:, None].detach() ** q * plain)


@pytest.mark.parametrize(
    "method",
    [
        {"name": "generalized_cross_entropy", "q": 0.5},
        {"name": "class_balanced", "base_loss": {"name": "generalized_cross_entropy", "q": 0.5}},
        {"name": "difficulty_net", "hidden_width": 8, "meta_loss": {"name": "generalized_cross_entropy", "q": 0.5}},
        {"name": "inverse_frequency", "base_loss": {"name": "generalized_cross_entropy", "q": 0.5}},
    ],
    ids=["method", "base_loss", "meta_loss", "base_loss of a plug-in"],
)
def test_a_loss_from_a_plugin_trains_wherever_a_loss_stands(method: dict[str, Any]) -> None:
    config = {"plugins": [*INVERSE["plugins"], *GENERALIZED["plugins"]], "method": method, "bilevel": {"check_interval": 4}}
    run, metrics = trained(config, epochs=2)
    assert metrics["val/acc"] > 0.3
    assert metrics.get("meta/grad_cosine", 1) > 1 - 1e-5
    used = run.method.meta_loss if "meta_loss" in method else run.method.base_loss
    assert used.q == 0.5
    assert TrialConfig.model_validate(run.config.model_dump()) == run.config
    assert "generalized_cross_entropy" in run.config.model_dump_json()


@pytest.mark.slow
def test_generalized_cross_entropy_stands_wrong_labels_better_than_cross_entropy() -> None:
    noisy = {"source": "digits", "imbalance_factor": 1.0, "noise": {"kind": "symmetric", "rate": 0.5}}
    config = {**GENERALIZED, "data": noisy, "optim": {"schedule": "constant"}}
    ours, plain = (
        trained({**config, "method": {"name": name}}, 20)[1] for name in ("generalized_cross_entropy", "cross_entropy")
    )
    assert ours["val/acc"] > plain["val/acc"] + 0.1


def test_a_loss_from_a_plugin_adjusts_the_predictions_of_an_exported_model(tmp_path: Path) -> None:
    class Upside(Loss):
        """Predicts the least likely class."""

        def forward(self, logits: torch.Tensor, labels: torch.Tensor, context: Any) -> torch.Tensor:
            return F.cross_entropy(logits, labels, reduction="none")

        def predict(self, logits: torch.Tensor) -> torch.Tensor:
            return -logits

    register_loss(UpsideConfig, Upside)
    run, metrics = trained({"method": {"name": "upside"}}, 5)
    assert metrics["val/acc"] < 0.1
    write_model(tmp_path / "model", run.best.phi, run.config, run.loaded.data, run.loaded.format)
    exported = read_model(tmp_path / "model")[0]
    run.classifier.load_state_dict(run.best.phi)
    images = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(exported(images), -run.classifier.eval()(images))


def test_wrong_settings_of_a_plugins_loss_are_named_where_they_stand(tmp_path: Path) -> None:
    text = (
        "plugins: [examples.generalized_cross_entropy]\n"
        "method: {name: class_balanced, base_loss: {name: generalized_cross_entropy, q: 2}}"
    )
    with pytest.raises(ConfigError, match=r"method\.base_loss\.q is 2; allowed: less than or equal to 1"):
        read_settings(TrialConfig, trial_file(tmp_path, text))


def test_the_settings_of_a_plugins_loss_can_be_searched(tmp_path: Path) -> None:
    config = read_sweep(ROOT / "examples" / "generalized_cross_entropy.yaml")
    assert list(config.space) == ["method.q"]
    inside = (
        "trial: {plugins: [examples.generalized_cross_entropy]}\n"
        "trial.method: {name: class_balanced, base_loss: {name: generalized_cross_entropy}}\n"
        "space.method.base_loss.q: {type: float, low: 0.1, high: 1.0}\n"
    )
    assert list(read_sweep(trial_file(tmp_path, inside)).space) == ["method.base_loss.q"]


# A classifier and a data source


def test_a_classifier_from_a_plugin_trains_and_computes_one_hidden_layer() -> None:
    plain = {"plugins": ["examples.mlp"], "method": {"name": "cross_entropy"}, "classifier": {"name": "mlp"}}
    assert trained(plain, epochs=10)[1]["val/acc"] > 0.5  # guessing gives 0.1
    config = CLASSIFIER_SETTINGS["mlp"](name="mlp", hidden_width=5)
    network = build_classifier(config, (1, 2, 2), 3, seed=0)
    first, head = network.backbone[1], network.head
    images = torch.arange(8.0).reshape(2, 1, 2, 2)
    hidden = (images.reshape(2, 4) @ first.weight.T + first.bias).clamp_min(0)
    torch.testing.assert_close(network(images), hidden @ head.weight.T + head.bias)
    assert network.num_features == 5


def digits_file(tmp_path: Path) -> dict[str, Any]:
    """The digits in a NumPy file, as settings of `array_file` that give the split of `digits`."""
    digits = load_digits()
    np.savez(tmp_path / "digits.npz", images=digits.images[:, None].astype(np.uint8), labels=digits.target)
    split = DigitsConfig().model_dump(include={"imbalance_factor", "n_max", "val_per_class", "test_per_class"})
    return {"source": "array_file", "file": str(tmp_path / "digits.npz"), **split}


def test_a_data_source_from_a_plugin_gives_the_same_images_and_the_same_epoch(tmp_path: Path) -> None:
    config = {"plugins": ["examples.array_file"], "data": digits_file(tmp_path)}
    run, metrics = trained(config)
    assert run.loaded.data.sha256 == build_data(DigitsConfig(), seed=0).sha256
    plain = trained({})[1]
    assert {key: metrics[key] for key in ("train/loss", "val/acc")} == {key: plain[key] for key in ("train/loss", "val/acc")}


@pytest.mark.parametrize(
    "arrays",
    [
        {"images": np.zeros((2, 1, 2, 2), np.uint8)},
        {"images": np.zeros((2, 1, 2, 2)), "labels": np.arange(2)},
        {"images": np.zeros((2, 2, 2), np.uint8), "labels": np.arange(2)},
        {"images": np.zeros((2, 1, 2, 2), np.uint8), "labels": np.arange(3)},
        {"images": np.zeros((2, 1, 2, 2), np.uint8), "labels": np.array([0, -1])},
        {"images": np.zeros((2, 1, 2, 2), np.uint8), "labels": np.array([0.0, 1.0])},
        None,
    ],
)
def test_a_file_without_such_arrays_is_refused(tmp_path: Path, arrays: dict[str, Any] | None) -> None:
    path = tmp_path / "images.npz"
    path.write_text("no arrays") if arrays is None else np.savez(path, **arrays)
    load_plugins(["examples.array_file"])
    config = DATA_SETTINGS["array_file"](source="array_file", file=str(path))
    with pytest.raises(ValueError, match=r"data\.file is .*images\.npz, which .*; allowed: an \.npz file with images"):
        DATASETS["array_file"](config)


# Names from plug-ins in files and on the command line


def test_a_name_is_known_whichever_override_comes_first(tmp_path: Path) -> None:
    chosen, plugin = "method.name=inverse_frequency", "plugins=[examples.inverse_frequency]"
    for overrides in ([chosen, plugin, "method.strength=2.0"], [plugin, "method.strength=2.0", chosen]):
        config = read_settings(TrialConfig, trial_file(tmp_path, "method: {name: cross_entropy}"), overrides)
        assert config.method == METHOD_SETTINGS["inverse_frequency"].model_validate(
            {"name": "inverse_frequency", "strength": 2.0}
        )


def test_another_method_leaves_behind_what_a_plugins_method_lacks(tmp_path: Path, write: Write) -> None:
    write("plugin_plain")
    file = trial_file(tmp_path, "plugins: [plugin_plain]\nmethod: {name: difficulty_net, meta_lr: 0.25, driver_weight: 0.0}")
    changed = read_settings(TrialConfig, file, ["method.name=plain"])
    assert changed.method.model_dump() == {"name": "plain", "meta_lr": 0.25, "width": 3}


def test_only_the_plugins_that_are_left_are_imported(tmp_path: Path, write: Write) -> None:
    write("plugin_plain")
    file = trial_file(tmp_path, "plugins: [plugin_that_is_gone]\nmethod.name: plain")
    assert read_settings(TrialConfig, file, ["plugins=[plugin_plain]"]).method.name == "plain"


def test_wrong_settings_of_a_plugins_method_are_answered_as_those_of_others(tmp_path: Path, write: Write) -> None:
    write("plugin_plain")
    file = trial_file(tmp_path, "plugins: [plugin_plain]\nmethod: {name: plain, widht: 3, meta_lr: x}\nwidth: 3")
    with pytest.raises(ConfigError) as error:
        read_settings(TrialConfig, file)
    fields = [line.removeprefix(f"{file}: ").split("; allowed here: ")[0] for line in str(error.value).splitlines()]
    assert fields == [
        "method.meta_lr is 'x'; allowed: a valid number",
        "method.widht is not a setting (did you mean width?)",
        "width is not a setting (did you mean method.width?)",
    ]
    file.write_text("plugins: [plugin_plain]\nmethod.name: plane")
    with pytest.raises(ConfigError, match=r"method\.name is 'plane'; allowed: cross_entropy, .*, mfrw.*, plain$"):
        read_settings(TrialConfig, file)


def test_a_setting_may_have_the_name_of_its_method(tmp_path: Path, write: Write) -> None:
    write("plugin_plain", MODULE.replace("width: int = 3", "plain: int"))
    with pytest.raises(ConfigError, match=r"method\.plain is missing; it has no default$"):
        read_settings(TrialConfig, trial_file(tmp_path, "plugins: [plugin_plain]\nmethod.name: plain"))


SWEEP = """
trial: {plugins: [examples.inverse_frequency], method: {name: inverse_frequency}}
space.method.strength: {type: float, low: 0.0, high: 2.0}
search.references: {plain: {method.name: cross_entropy}}
"""


def test_the_settings_of_a_plugins_method_can_be_searched(tmp_path: Path) -> None:
    config = read_sweep(trial_file(tmp_path, SWEEP))
    assert [trial.method.name for trial in config.kinds_of_trials()] == ["inverse_frequency", "cross_entropy"]
    assert config.model_validate(config.model_dump()) == config
    methods = ["space.method.name={type: categorical, choices: [cross_entropy, inverse_frequency]}"]
    both = read_sweep(trial_file(tmp_path, SWEEP), methods)
    assert len(both.kinds_of_trials()) == 4
    assert conditions(both.space, "method.strength") == {"method.name": ["inverse_frequency"]}


def test_the_sweep_of_the_example_is_valid() -> None:
    assert list(read_sweep(ROOT / "examples" / "inverse_frequency.yaml").space) == ["method.strength"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("space.method.strenght={type: int, low: 0, high: 1}", r"space\.method\.strenght is not a setting.*method\.strength"),
        ("space.method.strength.low=-1.0", r"space\.method\.strength: method\.strength is -1\.0; allowed: greater than or equal"),
        (
            "search.references.other={plugins: [examples.mlp, examples.inverse_frequency], classifier.name: mlp}",
            r"search\.references\.other: plugins must be the same for all trials of a sweep; set trial\.plugins instead",
        ),
        ("space.plugins={type: categorical, choices: [a, b]}", r"space\.plugins is not a setting of this trial that can be"),
    ],
)
def test_what_a_sweep_cannot_do_with_plugins_is_said(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_sweep(trial_file(tmp_path, SWEEP), [override])


# What is written, and read elsewhere


def test_settings_without_plugins_are_written_as_before_there_were_any() -> None:
    assert "plugins" not in TrialConfig().model_dump()
    assert "plugins" not in TrialConfig().model_dump_json()
    assert TrialConfig(plugins=["examples.mlp"]).model_dump()["plugins"] == ["examples.mlp"]


@pytest.mark.slow
def test_another_process_knows_the_names_from_the_settings_alone(tmp_path: Path, write: Write) -> None:
    write("plugin_plain")
    config = TrialConfig.model_validate({"plugins": ["plugin_plain"], "method": {"name": "plain", "width": 7}})
    (tmp_path / "config.yaml").write_text(dump_yaml(config.model_dump()))
    code = (
        "import sys, pathlib; from trainables.config import TrialConfig; from trainables.config_file import read_settings;"
        "config = TrialConfig.model_validate_json(sys.argv[1]);"
        "assert config == read_settings(TrialConfig, pathlib.Path('config.yaml'));"
        "print(config.method.width, type(config.method).__module__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, config.model_dump_json()], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["7", "plugin_plain"]


@pytest.mark.slow
def test_a_sweep_finds_a_plugin_in_the_folder_that_it_is_started_from(tmp_path: Path, write: Write) -> None:
    write("plugin_plain")
    (tmp_path / "sweep.yaml").write_text(
        "trial: {plugins: [plugin_plain], method: {name: plain}, epochs: 1}\n"
        "space.method.width: {type: int, low: 1, high: 9}\n"
        "search.trials: 2\nscheduler.name: none\nresources.max_concurrent: 1\ntracking.mlflow: false\n"
    )
    sweep = [sys.executable, "-m", "orchestrator.sweep", "sweep.yaml"]
    done = subprocess.run(sweep, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    exported = read_settings(TrialConfig, tmp_path / "results" / "sweep" / "best" / "config.yaml")
    assert (exported.plugins, exported.method.name) == (["plugin_plain"], "plain")


def test_a_module_that_is_imported_again_replaces_its_rows(write: Write) -> None:
    path = write("plugin_plain")
    load_plugins(["plugin_plain"])
    before = METHOD_SETTINGS["plain"]
    path.write_text(MODULE.replace("width: int = 3", "widths: int = 45"))
    importlib.reload(sys.modules["plugin_plain"])
    assert METHOD_SETTINGS["plain"] is not before
    assert TrialConfig.model_validate({"method": {"name": "plain"}}).method.model_dump()["widths"] == 45


# Installed packages


def install(tmp_path: Path, module: str) -> None:
    """A package's metadata as pip leaves them."""
    info = tmp_path / "tail_extras-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tail-extras\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[tailtune.plugins]\nextras = {module}\n")
    importlib.invalidate_caches()
    load_installed_plugins.cache_clear()


def test_an_installed_package_needs_no_line_in_the_file(tmp_path: Path, write: Write) -> None:
    write("plugin_installed")
    install(tmp_path, "plugin_installed")
    assert TrialConfig.model_validate({"method": {"name": "plain"}}).method.model_dump()["width"] == 3
    assert (
        read_settings(TrialConfig, trial_file(tmp_path), ["method.name=plain"]).model_dump().keys()
        == TrialConfig().model_dump().keys()
    )


def test_an_installed_package_that_is_broken_is_named(tmp_path: Path, write: Write) -> None:
    write("plugin_broken", "1 / 0")
    install(tmp_path, "plugin_broken")
    message = (
        r"^entry point 'extras' in the group tailtune\.plugins of the installed package tail-extras: 'plugin_broken' cannot be "
        r"imported: plugin_broken\.py, line 1: ZeroDivisionError: division by zero; repair the module, or leave it out$"
    )
    with pytest.raises(ConfigError, match=message):
        read_settings(TrialConfig, trial_file(tmp_path))


# Errors


REFUSED = {
    "absent": ("", "No module named 'plugin_absent'; allowed: modules that Python finds from the folder you start in, or inst"),
    "needs": ("import plugin_missing", "plugin_needs.py, line 1: ModuleNotFoundError: No module named 'plugin_missing'; repair"),
    "raises": ("\nraise RuntimeError('no licence')", "plugin_raises.py, line 2: RuntimeError: no licence; repair the module, or"),
    "exits": ("raise SystemExit(3)", "plugin_exits.py, line 1: SystemExit: 3; repair the module, or leave it out"),
    "syntax": ("x = = 3", "SyntaxError: invalid syntax (plugin_syntax.py, line 1); repair the module, or leave it out"),
    "nameless": (MODULE.replace('Literal["plain"]', "str"), "plugin_nameless.py, line 12: ValueError: PlainConfig.name does not"),
    "taken": (MODULE.replace('"plain"', '"mfrw"'), "PlainConfig.name is 'mfrw', which is the name of trainables.method_config."),
    "base": (MODULE.replace("(MethodSettings)", ""), "plugin_base.PlainConfig cannot be registered here; allowed: a class deri"),
}
"""What a module holds, and a part of what is said about it."""


@pytest.mark.parametrize("name", REFUSED)
def test_both_programs_answer_a_bad_plugin_with_its_name_and_exit_code_2(
    name: str, tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, message = REFUSED[name]
    if text:
        write(f"plugin_{name}", text)
    file = trial_file(tmp_path, f"trial.plugins: [plugin_{name}]")
    monkeypatch.chdir(tmp_path)
    for main, prefix in ((orchestrator.sweep.main, "trial."), (trainables.train.main, "")):
        assert main([str(file)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {file}: {prefix}plugins: 'plugin_{name}' cannot be imported: ")
        assert message in error
        assert len(error.splitlines()) == 1
    assert main([str(file), f"plugins=[plugin_{name}]"]) == 2
    assert capsys.readouterr().err.startswith("error: command line: plugins: ")


@pytest.mark.parametrize("name", ["", ".plain", "my-methods", "a..b", "3"])
def test_what_cannot_be_a_modules_name_is_not_looked_for(name: str) -> None:
    with pytest.raises(ValueError, match="is not a module's name; allowed: words joined by dots"):
        load_plugins([name])


def test_settings_that_do_not_come_from_a_file_refuse_a_missing_plugin_too() -> None:
    with pytest.raises(ValueError, match=r"plugins\n.*'plugin_absent' cannot be imported: No module named 'plugin_absent'"):
        TrialConfig(plugins=["plugin_absent"])


class NamedConfig(MethodSettings):
    name: Literal["named"] = "named"


class UpsideConfig(LossSettings):
    name: Literal["upside"] = "upside"


class NetConfig(ClassifierSettings):
    name: Literal["net"] = "net"


class ImagesConfig(LongTailConfig):
    source: Literal["images"] = "images"


REGISTER: dict[str, tuple[Callable[..., None], type[Settings], str, type[Settings], int]] = {
    "method": (register_method, NamedConfig, "name", DifficultyNetConfig, 0),
    "classifier": (register_classifier, NetConfig, "name", SmallCNNConfig, 2),
    "dataset": (register_dataset, ImagesConfig, "source", DigitsConfig, 4),
}


def build(*_: Any) -> Any:
    """Stands for what makes a method, a classifier or a source."""


@pytest.mark.parametrize("kind", REGISTER)
def test_a_row_is_added_to_both_tables_or_refused(kind: str) -> None:
    register, settings, selector, known, at = REGISTER[kind]
    own = TABLES[at : at + 2]
    word = settings.model_fields[selector].default

    class Twice(known):  # type: ignore[valid-type,misc]
        """Has the name of its base."""

    class Nameless(settings.__base__):  # type: ignore[name-defined,misc]
        """Does not say which name it has."""

    words = {"__module__": __name__, "__annotations__": {selector: Literal["one", "two"]}}
    ambiguous = type("Ambiguous", (settings.__base__,), words)
    refused: list[tuple[Any, Any, str]] = [
        (Twice, build, f"Twice.{selector} is {known.model_fields[selector].default!r}, which is the name of {known.__module__}"),
        (Nameless, build, f"Nameless.{selector} does not say which name selects these settings; allowed: a Literal of one word"),
        (ambiguous, build, f"Ambiguous.{selector} does not say which name"),
        (Settings, build, "trainables.settings.Settings cannot be registered here; allowed: a class derived from trainables."),
        (settings(), build, "cannot be registered here; allowed: a class derived from trainables."),
        (settings, Task, "trainables.methods.context.Task cannot be registered here; allowed: a class derived from trainables."),
    ]
    for wrong, builder, message in refused:
        with pytest.raises(ValueError, match=message.replace(".", r"\.")):
            register(wrong, builder)
        assert [list(table) for table in TABLES] == BUILT_IN
    register(settings, build)
    assert [table[word] for table in own] == [settings, build]
    assert [list(table)[:-1] for table in own] == BUILT_IN[at : at + 2]
    register(settings, build)  # the same once more is no contradiction


def test_a_loss_is_added_to_the_tables_of_losses_and_of_methods_or_to_none() -> None:
    class Twice(FocalConfig):
        """Has the name of its base."""

    class Nameless(LossSettings):
        """Does not say which name it has."""

    class LikeAMethod(LossSettings):
        name: Literal["l2rw"] = "l2rw"

    refused: list[tuple[Any, Any, str]] = [
        (Twice, build, "Twice.name is 'focal', which is the name of trainables.loss_config.FocalConfig"),
        (LikeAMethod, build, "LikeAMethod.name is 'l2rw', which is the name of trainables.method_config.L2RWConfig"),
        (Nameless, build, "Nameless.name does not say which name selects these settings; allowed: a Literal of one word"),
        (NamedConfig, build, "NamedConfig cannot be registered here; allowed: a class derived from trainables.loss_config.Loss"),
        (UpsideConfig(), build, "cannot be registered here; allowed: a class derived from trainables.loss_config.LossSettings"),
        (
            UpsideConfig,
            LossAlone,
            "LossAlone cannot be registered here; allowed: a class derived from trainables.methods.losses.",
        ),
    ]
    for wrong, builder, message in refused:
        with pytest.raises(ValueError, match=message.replace(".", r"\.")):
            register_loss(wrong, builder)
        assert [list(table) for table in TABLES] == BUILT_IN
    for _ in range(2):  # the same once more is no contradiction
        register_loss(UpsideConfig, build)
    assert (LOSS_SETTINGS["upside"], LOSSES["upside"]) == (UpsideConfig, build)
    assert (METHOD_SETTINGS["upside"], METHODS["upside"]) == (UpsideConfig, LossAlone)
    assert [list(table)[:-1] for table in (LOSS_SETTINGS, METHOD_SETTINGS)] == [BUILT_IN[6], BUILT_IN[0]]


def test_a_method_may_not_take_the_name_of_a_plugins_loss() -> None:
    register_loss(UpsideConfig, build)

    class Same(MethodSettings):
        name: Literal["upside"] = "upside"

    with pytest.raises(ValueError, match=r"Same\.name is 'upside', which is the name of .*UpsideConfig"):
        register_method(Same, build)


def test_a_class_may_be_what_builds() -> None:
    class Plain(Method):
        """Its settings choose no loss, so it has cross-entropy."""

    register_method(NamedConfig, Plain)
    assert isinstance(build_method(NamedConfig(), task([2, 2]), seed=0), Plain)
