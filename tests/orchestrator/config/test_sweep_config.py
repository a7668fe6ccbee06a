from pathlib import Path

import pytest

from orchestrator.config.search_config import FloatParameter
from orchestrator.config.sweep_config import SweepConfig, apply_changes, read_sweep
from trainables.config import TrialConfig
from trainables.config_file import ConfigError, dump_yaml
from trainables.method_config import CrossEntropyConfig, DifficultyNetConfig
from trainables.settings import flatten

DEFAULT = Path(__file__).parents[3] / "search_spaces" / "digits_lt.yaml"


def error_of(*overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        read_sweep(DEFAULT, overrides)
    return str(error.value).replace(str(DEFAULT), "FILE")


def test_the_default_sweep_searches_the_four_settings_of_difficulty_net(config: SweepConfig) -> None:
    assert list(config.space) == ["method.driver_weight", "method.meta_lr", "method.hidden_width", "method.refresh_interval"]
    weight = config.space["method.driver_weight"]
    assert weight == FloatParameter(low=1e-4, high=1, log=True, or_exactly=0)
    assert list(config.search.references) == ["cross_entropy", "paper"]
    assert config.trial.data.imbalance_factor == 50


def test_the_references_are_plain_cross_entropy_and_the_papers_setting(config: SweepConfig) -> None:
    plain, paper = (apply_changes(config.trial, changes, "x").method for changes in config.search.references.values())
    assert plain == CrossEntropyConfig()
    assert isinstance(paper, DifficultyNetConfig)
    assert (paper.driver_weight, paper.refresh_interval, paper.hidden_width) == (0.3, 1.0, 16)  # 2^3 <= 10 classes < 2^4
    assert paper.meta_optimizer == "sgd"  # Eq. 10


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "search.sampler=tpee",
            "command line: search.sampler is 'tpee'; allowed: 'tpe', 'gp', 'cmaes', 'random', 'qmc', 'grid' or 'nsga2'",
        ),
        ("search.trials=-1", "command line: search.trials is -1; allowed: greater than or equal to 0"),
        (
            "trial.data.imbalance_factor=-50",
            "command line: trial.data.imbalance_factor is -50; allowed: greater than or equal to 1",
        ),
        (
            "space.method.foo={type: float, low: 1, high: 2}",
            "space.method.foo is not a setting of this trial that can be searched",
        ),
        ("space.seed={type: int, low: 1, high: 2}", "space.seed is not a setting of this trial that can be searched"),
        ("space.data.n_max={type: int, low: 1, high: 2}", "space.data.n_max is not a setting of this trial that can be searched"),
        ("space.method.meta_lr.low=0", "space.method.meta_lr: low is 0.0; with log: true it must be above 0"),
        ("space.method.meta_lr.low=5", "space.method.meta_lr: low is 5.0 and high is 0.1; low must be below high"),
        (
            "space.method.meta_lr.kind=5",
            "space.method.meta_lr.kind is not a setting; allowed here: exactly_probability, high, log, low, or_exactly, points, "
            "prior, type",
        ),
        (
            "space.method.hidden_width={log: false, low: 0, high: 4}",
            "space.method.hidden_width: method.hidden_width is 0; allowed: ",
        ),
        (
            "space.method.hidden_width.type=integer",
            "space.method.hidden_width.type is 'integer'; allowed: float, int, categorical",
        ),
        (
            "space.optim.momentum={type: float, low: 0, high: 1}",
            "space.optim.momentum: optim.momentum is 1.0; allowed: less than 1",
        ),
        (
            "search.references.paper.method.hidden_widht=3",
            "search.references.paper: method.hidden_widht is not a setting (did you",
        ),
        ("search.references.x=3", "search.references.x is 3; allowed: settings, as `key: value`"),
        ("scheduler.name=ahsa", "scheduler.name is 'ahsa'; allowed: asha, promotion, hyperband, median, pbt, none"),
        ("scheduler.grace_epochs=41", "scheduler.grace_epochs is 41, but trial.epochs is 40; allowed: 1 to 40"),
        ("trial.method.name=cross_entropy", "space.method.driver_weight is not a setting of this trial that can be searched"),
        ("search.references.search={}", "search.references: 'search' cannot be a name"),
        ("search.references={a=b: {}}", "search.references: 'a=b' cannot be a name; allowed: letters, digits"),
        ("search.references.paper.seed=5", "search.references.paper: seed must be the same for all trials of a sweep"),
        ("search.references.paper.data.n_max=80", "search.references.paper: data must be the same for all trials"),
        ("resources.gpus_per_worker=1.5", "resources.gpus_per_worker is 1.5; allowed: less than or equal to 1"),
        ("resources.gpus_per_worker=0.3", "resources.gpus_per_worker: 0.3 of a GPU does not divide it; allowed: 0, 1, 0.5, 0.33"),
        (
            "resources={gpus_per_worker: 0.5, workers: 2}",
            "resources: gpus_per_worker is 0.5 with several workers; allowed: 0 or 1",
        ),
        (
            "resources.fused=8",
            "resources.fused is 8, but no trial can be fused: classifier.name is small_cnn; allowed: linear, mlp_adapter; or "
            "resources.fused: 1",
        ),
        ("resources={fused: 4, workers: 2}", "resources: fused is 4 with workers 2; allowed: fused 1, or workers 1"),
        ("resources.workers=0", "resources.workers: 0 is no number of workers; allowed: a whole number from 1 on, or [min, max]"),
        ("resources.workers=[2, 2]", "resources.workers: [2, 2] is no number of workers"),
        ("resources.workers=true", "resources.workers: True is no number of workers"),
        (
            "resources.workers=[1, 33]",
            "resources.workers is [1, 33], but the smallest optim.batch_size is 32, so some would have no image",
        ),
        ("resources.slots=25", "resources.slots is 25, but search.trials is 22 and search.references holds 2; allowed: 1 to 24"),
        ("resources.cpus_per_worker=0.00001", "resources.cpus_per_worker is 1e-05; allowed: greater than or equal to 0.01"),
        ("tracking.uri=foo", "tracking.uri is 'foo'; allowed: String should match pattern"),
        ("space={}", "space is empty and search.trials is 22: all searched trials would be the same; allowed: a space, or"),
        ("space.method.driver_weight=3", "space.method.driver_weight is 3; allowed: settings, as `key: value`"),
        (
            "space.optim.lr={type: categorical, choices: [0.1, null]}",
            "space.optim.lr.choices: holds None; allowed: numbers, words",
        ),
        ("scheduler={}", "scheduler.name is missing; allowed: asha, promotion, hyperband, median, pbt, none"),
        (
            "space.method.meta_lr.when={optim.lr: 0.1}",
            "space.method.meta_lr.when: optim.lr is not another searched setting; allowed: ",
        ),
        ("space.method.meta_lr.when={method.meta_lr: 0.1}", "space.method.meta_lr.when: method.meta_lr is not another searched"),
        ("space.method.meta_lr.when={method.hidden_width: 65}", "when: method.hidden_width is 65; allowed: 4 to 64"),
        ("space.method.meta_lr.when={method.hidden_width: 5.5}", "when: method.hidden_width is 5.5; allowed: 4 to 64"),
        (
            "space.method.meta_lr.when={method.driver_weight: 0.1}",
            "when: method.driver_weight is 0.1; allowed: its or_exactly value 0.0",
        ),
        (
            "space.method.meta_lr.when={method.refresh_interval: 1}",
            "when: method.refresh_interval is 1; allowed: its or_exactly value, because",
        ),
        (
            "space.method.meta_lr.when={method.driver_weight: []}",
            "space.method.meta_lr.when.method.driver_weight is []; allowed: ",
        ),
        ("space.method.meta_lr.when=3", "space.method.meta_lr.when is 3; allowed: settings, as `key: value`"),
        ("space.method.meta_lr.points=1", "space.method.meta_lr.points is 1; allowed: greater than or equal to 2"),
        (
            "space.method.name={type: categorical, choices: [mfwr]}",
            "space.method.name: method.name is 'mfwr'; allowed: cross_entropy",
        ),
        ("space.method.name={type: int, low: 1, high: 2}", "space.method.name: method.name is 1; allowed: cross_entropy"),
        (
            "space.method.name={type: categorical, choices: [cross_entropy, mfrw]}",
            "space.method.driver_weight is not a setting of this trial that can be searched; allowed: ",
        ),
        (
            "space.classifier.name={type: categorical, choices: [small_cnn]}",
            "space.classifier.name is not a setting of this trial that can be searched",
        ),
        (
            "search.constraints=[method.hidden_widht < 4]",
            "search.constraints: 'method.hidden_widht < 4' mentions method.hidden_widht,",
        ),
        ("search.constraints=[method.weight_scale < 4]", "mentions method.weight_scale, which is no number among the settings"),
        ("search.constraints=[method.detach_inputs < 4]", "mentions method.detach_inputs, which is no number among the settings"),
        (
            "search.constraints=[max(optim.lr) < 4]",
            "search.constraints: 'max(optim.lr) < 4' holds 'max(optim.lr)'; allowed: settings",
        ),
        ("search.objectives=[val/acc, test/acc]", "search.objectives.1 is 'test/acc'; allowed: 'val/acc'"),
        ("search.objectives=[val/acc]", "search.objectives is ['val/acc']; allowed: 2 values"),
        ("search.confirm={seeds: 1}", "search.confirm.seeds is 1; allowed: greater than or equal to 2"),
        ("search.sampler=grid", "space.method.driver_weight.points is missing, but search.sampler is 'grid'; allowed: 2 or more"),
        ("budget.wall_hours=0", "budget.wall_hours is 0; allowed: greater than 0"),
        ("budget.gpu_hours=0", "budget.gpu_hours is 0; allowed: greater than 0"),
        ("budget={cost: 0, cost_per_gpu_hour: 1}", "budget.cost is 0; allowed: greater than 0"),
        ("budget.cost_per_gpu_hour=0", "budget.cost_per_gpu_hour is 0; allowed: greater than 0"),
        ("budget.cost=5", "budget.cost is set, but budget.cost_per_gpu_hour is not; allowed: both, or no cost"),
        ("failures.retries=-1", "failures.retries is -1; allowed: greater than or equal to 0"),
        ("failures.max_failed_fraction=0", "failures.max_failed_fraction is 0; allowed: greater than 0"),
        ("failures.max_failed_fraction=1.5", "failures.max_failed_fraction is 1.5; allowed: less than or equal to 1"),
        ("scheduler.grace_epochs=0", "scheduler.grace_epochs is 0; allowed: greater than or equal to 1"),
        ("scheduler.reduction_factor=1", "scheduler.reduction_factor is 1; allowed: greater than 1"),
        ("scheduler={name: median, grace_epochs: 0}", "scheduler.grace_epochs is 0; allowed: greater than or equal to 1"),
        ("scheduler={name: median, interval_epochs: 0}", "scheduler.interval_epochs is 0; allowed: greater than or equal to 1"),
        ("scheduler={name: median, min_trials: 0}", "scheduler.min_trials is 0; allowed: greater than or equal to 1"),
        ("scheduler={name: pbt, interval_epochs: 0}", "scheduler.interval_epochs is 0; allowed: greater than or equal to 1"),
        ("scheduler={name: pbt, quantile: 0}", "scheduler.quantile is 0; allowed: greater than 0"),
        ("scheduler={name: pbt, quantile: 0.6}", "scheduler.quantile is 0.6; allowed: less than or equal to 0.5"),
        ("scheduler={name: pbt, resample_probability: 0}", "scheduler.resample_probability is 0; allowed: greater than 0"),
        ("scheduler={name: pbt, resample_probability: 2}", "scheduler.resample_probability is 2; allowed: less than or equal"),
        ("trial.select_by=test/acc", "trial.select_by is 'test/acc'; allowed: 'val/acc'"),
    ],
)
def test_wrong_values_are_answered_with_field_given_and_allowed(override: str, message: str) -> None:
    assert message in error_of(override), error_of(override)
    assert len(error_of(override).splitlines()) == 1


@pytest.mark.parametrize(
    ("workers", "other", "message"),
    [
        (
            3,
            "space.optim.batch_size={type: int, low: 2, high: 8}",
            "resources.workers is 3, but the smallest optim.batch_size is 2",
        ),
        (3, "search.references.tiny={optim.batch_size: 2}", "resources.workers is 3, but the smallest optim.batch_size is 2"),
        (2, "trial.device=cuda", "resources.gpus_per_worker is 0, but trial.device is cuda with several workers; allowed: 1"),
    ],
)
def test_several_workers_need_images_and_gpus(workers: int, other: str, message: str) -> None:
    assert message in error_of(f"resources.workers={workers}", other)


@pytest.mark.parametrize(
    "override",
    [
        "trial.epochs=3",
        "search.trials=-1",
        "search.references.paper.method.driver_weight=-1",
        "space.method.driver_weight.or_exactly=-1",
        "space.method.driver_weight=3",
    ],
)
def test_what_was_typed_on_the_command_line_is_blamed_on_it(override: str) -> None:
    assert error_of(override).startswith("command line: "), error_of(override)


def test_a_parameter_leaves_the_space_and_another_comes_in() -> None:
    config = read_sweep(DEFAULT, ["space.method.meta_lr=null", "space.optim.lr={type: float, low: 0.01, high: 0.1}"])
    assert "method.meta_lr" not in config.space
    assert config.space["optim.lr"] == FloatParameter(low=0.01, high=0.1)


GRID = [
    "space={}",
    "space={optim.lr: {type: float, low: 0.01, high: 0.1, points: 2}, optim.batch_size: {type: int, low: 1, high: 4}}",
    "search.sampler=grid",
]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [*GRID, "search.trials=9"],
            "search.trials is 9, but the grid has 8 points; allowed: at most 8",
        ),
        (
            [*GRID, "space.optim.schedule={type: categorical, choices: [cosine], when: {optim.batch_size: 1}}"],
            "space.optim.schedule has conditions, but search.sampler is 'grid'; allowed: none, or another sampler",
        ),
        (
            [*GRID, "space.optim.batch_size.high=60000"],
            "space gives a grid of 120000 points; allowed: at most 100000, with fewer points for each parameter",
        ),
        (
            ["space={}", "space.optim.lr={type: float, low: 0.01, high: 0.1, or_exactly: 1}", "search.sampler=cmaes"],
            "search.sampler is 'cmaes', but space has no float or int that every trial draws; allowed: one without or_exactly",
        ),
        (
            ["search.sampler=cmaes", "search.objectives=[val/acc, val/acc_few]"],
            "search: sampler is 'cmaes' with several objectives; allowed: 'tpe', 'gp', 'random', 'qmc', 'grid' or 'nsga2'",
        ),
        (
            [
                "space.optim.schedule={type: categorical, choices: [cosine, constant], when: {optim.sampler: instance}}",
                "space.optim.sampler={type: categorical, choices: [instance], when: {optim.schedule: cosine}}",
            ],
            "space.optim.schedule.when: optim.schedule, optim.sampler wait for each other; allowed: no circles",
        ),
        (
            [
                "space.method.name={type: categorical, choices: [difficulty_net, mfrw]}",
                "space.method.driver_weight.when={method.name: mfrw}",
            ],
            "space.method.driver_weight is never drawn: its conditions exclude each other",
        ),
        (
            [
                "space.method.name={type: categorical, choices: [cross_entropy, mfrw]}",
                "space.method.driver_weight=null",
                "space.method.refresh_interval=null",
                "space.method.hidden_width={log: false, low: 0, high: 4}",
            ],
            "space.method.hidden_width: method.hidden_width is 0; allowed: ",
        ),
    ],
)
def test_samplers_and_conditions_that_cannot_work_are_refused(overrides: list[str], message: str) -> None:
    assert message in error_of(*overrides), error_of(*overrides)


def test_methods_are_searched_together_with_their_own_settings() -> None:
    methods = "{type: categorical, choices: [difficulty_net, mfrw, cross_entropy]}"
    config = read_sweep(
        DEFAULT,
        [
            "trial.method.name=cross_entropy",
            "search.references={}",
            f"space.method.name={methods}",
            "space.method.detach_inputs={type: categorical, choices: [true, false]}",
            "search.constraints=[method.hidden_width <= optim.batch_size]",
        ],
    )
    assert config.accepts({"method.name": "mfrw", "method.hidden_width": 32})
    assert not config.accepts({"method.name": "mfrw", "method.hidden_width": 33})
    assert config.accepts({"method.name": "cross_entropy"})
    assert [trial.method.name for trial in config.kinds_of_trials()][-3:] == ["difficulty_net", "mfrw", "cross_entropy"]


def test_a_grid_may_have_a_trial_for_every_point() -> None:
    assert read_sweep(DEFAULT, [*GRID, "search.trials=8"]).search.sampler == "grid"


def test_the_objective_is_what_trials_are_selected_by_unless_there_are_several() -> None:
    assert read_sweep(DEFAULT, ["trial.select_by=val/acc_few"]).objectives() == ["val/acc_few"]
    several = ["val/acc_few", "val/acc_many"]
    assert read_sweep(DEFAULT, [f"search.objectives=[{', '.join(several)}]"]).objectives() == several


def test_a_sweep_without_a_space_is_one_trial_and_a_list_of_references() -> None:
    config = read_sweep(DEFAULT, ["space={}", "trial.method.name=cross_entropy", "search.references={}", "search.trials=1"])
    assert config.space == {}
    assert config.trial.method == CrossEntropyConfig()
    assert config.num_trials() == 1
    assert read_sweep(DEFAULT, ["space={}", "search.trials=0"]).num_trials() == 2  # the references alone


def test_references_come_on_top_of_the_searched_trials() -> None:
    config = read_sweep(DEFAULT, ["search.trials=3", "search.references.plain={method.driver_weight: 0}", "resources.slots=6"])
    assert (config.search.trials, config.num_trials()) == (3, 6)
    message = "search.trials is 0, and search.references is empty; allowed: search.trials from 1 on, or a reference"
    assert message in error_of("search.trials=0", "search.references={}")


def test_a_resolved_sweep_is_read_back_as_the_same(tmp_path: Path) -> None:
    config = read_sweep(
        DEFAULT,
        [
            "space.optim.lr={type: float, low: 0.01, high: 0.1, points: 3, when: {method.hidden_width: [4, 5]}}",
            "search={sampler: nsga2, constraints: [optim.lr < 1], confirm: {top: 2}, objectives: [val/acc, val/acc_few]}",
        ],
    )
    (tmp_path / "sweep.yaml").write_text(dump_yaml(config.model_dump()))
    assert read_sweep(tmp_path / "sweep.yaml") == config


def test_changes_may_be_dotted_and_are_checked() -> None:
    changed = apply_changes(TrialConfig(), {"method.driver_weight": 0.0, "optim": {"lr": 1}}, "here")
    assert (changed.method.driver_weight, changed.optim.lr) == (0.0, 1.0)
    assert flatten(changed.model_dump()).keys() == flatten(TrialConfig().model_dump()).keys()
    with pytest.raises(ConfigError, match=r"here: optim.lr is 0; allowed: greater than 0"):
        apply_changes(TrialConfig(), {"optim.lr": 0}, "here")
