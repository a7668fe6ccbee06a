"""A weighting that has collapsed is said, one that works is not. Most numbers are written out; some trials are run."""

import math
from pathlib import Path
from typing import Any

import pytest

from trainables.classifier_config import SmallCNNConfig
from trainables.collapse import (
    DEAD_LEVER,
    DEAD_OUTPUT,
    ENOUGH_IMAGES,
    NO_MOVE,
    PATIENCE,
    SAME_OUTPUT,
    SATURATED,
    STILL,
    ZERO_CLASSES,
    Watch,
    saturated,
    still,
    verdict,
    zero_weight,
)
from trainables.config import BilevelConfig, TrialConfig
from trainables.method_config import (
    CDBConfig,
    CrossEntropyConfig,
    DifficultyNetConfig,
    L2RWConfig,
    MetaSamplerConfig,
    MetaWeightNetConfig,
    MethodConfig,
    MFRWConfig,
)
from trainables.optim_config import OptimConfig
from trainables.trial_run import TrialRun

HEALTHY = {ZERO_CLASSES: 0.0, SATURATED: 0.0, STILL: 0.0}


# The signs


def test_a_weight_is_zero_next_to_the_mean_of_the_classes() -> None:
    assert zero_weight([1.1e-7, 1.0, 2.0]) == [False, False, False]  # the mean is 1
    assert zero_weight([0.9e-7, 1.0, 2.0]) == [True, False, False]
    assert zero_weight([0.9e-9, 0.01, 0.02]) == [True, False, False]
    assert zero_weight([0.0, 0.0, 0.0]) == [True] * 3


def test_a_class_without_images_and_a_negative_weight_are_not_zero() -> None:
    assert zero_weight([None, -0.5, 1.0]) == [False, False, False]
    assert zero_weight([None, None]) == [False, False]


def test_outputs_are_saturated_when_the_liveliest_is() -> None:
    assert saturated(0.9 * DEAD_OUTPUT)
    assert not saturated(1.1 * DEAD_OUTPUT)
    assert not saturated(4e-4)  # Difficulty-Net in the paper's setting, with 100 classes


def test_outputs_that_are_the_same_for_all_images_are_dead() -> None:
    assert saturated(0.5, widest=0.9 * SAME_OUTPUT)
    assert not saturated(0.5, widest=1.1 * SAME_OUTPUT)


def test_theta_is_still_next_to_its_step_size() -> None:
    assert still(0.9 * NO_MOVE, 1.0, 1.0)
    assert not still(1.1 * NO_MOVE, 1.0, 1.0)
    assert not still(0.02 * NO_MOVE, 0.01, 1.0)  # the end of a cosine
    assert not still(0.0, 0.0, 1.0)  # a schedule that has reached 0


def test_theta_is_still_when_the_meta_gradient_has_no_lever() -> None:
    assert still(0.1, 1.0, 0.9 * DEAD_LEVER)
    assert not still(0.1, 1.0, 1.1 * DEAD_LEVER)
    assert not still(0.1, 1.0, None)


# How long they must last


def test_a_verdict_takes_three_epochs_in_a_row() -> None:
    watch, found = Watch(), []
    for weights in ([0.0, 1.0], [0.0, 1.0], [1.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]):
        found.append(watch.take(weights, None, False, False)[ZERO_CLASSES])
    assert PATIENCE == 3
    assert found == [0, 0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize(("sign", "name"), [(0, SATURATED), (1, STILL)])
def test_so_do_the_other_signs(sign: int, name: str) -> None:
    watch, found = Watch(), []
    for there in (True, True, False, True, True, True, True, False):
        found.append(watch.take([1.0], None, there if sign == 0 else False, there if sign == 1 else False)[name])
    assert found == [0, 0, 0, 0, 0, 1, 1, 0]


def test_an_epoch_that_moves_nothing_leaves_the_count_as_it_is() -> None:
    watch = Watch()
    found = [watch.take(None, None, False, is_still)[STILL] for is_still in (True, True, None, True, None)]
    assert found == [0, 0, 0, 1, 1]


def test_a_class_of_few_images_gets_zeros_by_chance() -> None:
    """A single image with the weight 0 in each epoch needs as many epochs as are images enough."""
    watch = Watch()
    found = [watch.take([0.0, 1.0], [1, 9], False, False)[ZERO_CLASSES] for _ in range(ENOUGH_IMAGES)]
    assert found == [0] * (ENOUGH_IMAGES - 1) + [1]
    watch = Watch()
    assert [watch.take([0.0, 1.0], [50, 9], False, False)[ZERO_CLASSES] for _ in range(3)] == [0, 0, 1]


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"val/acc": 0.5}, ""),
        (HEALTHY, ""),
        ({ZERO_CLASSES: None, SATURATED: None}, ""),
        ({ZERO_CLASSES: 1.0}, "the weight of 1 class is 0"),
        ({ZERO_CLASSES: 3.0, STILL: 1.0}, "the weights of 3 classes are 0; the weighting network no longer learns"),
        ({SATURATED: 1.0}, "the weighting network's outputs are saturated"),
    ],
)
def test_the_verdict_is_in_words(metrics: dict[str, float | None], said: str) -> None:
    assert verdict(metrics) == said


# Trials on the digits, as in search_spaces/digits_lt.yaml


def trial(method: MethodConfig, epochs: int = 12, lr: float = 0.05, **bilevel: Any) -> TrialConfig:
    return TrialConfig(
        epochs=epochs,
        device="cpu",
        classifier=SmallCNNConfig(widths=[4, 8]),
        method=method,
        optim=OptimConfig(lr=lr, batch_size=32),
        bilevel=BilevelConfig(meta_batch_size=50, **bilevel),
    )


def trained(config: TrialConfig) -> tuple[TrialRun, list[str]]:
    """The verdicts of all epochs."""
    run = TrialRun()
    run.start(config)
    return run, [verdict(run.run_epoch()) for _ in range(config.epochs)]


def network(driver_weight: float, meta_lr: float, **more: Any) -> DifficultyNetConfig:
    return DifficultyNetConfig(driver_weight=driver_weight, meta_lr=meta_lr, hidden_width=32, **more)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        *(network(driver_weight, meta_lr) for driver_weight in (0.0, 0.3) for meta_lr in (1e-4, 1e-2)),
        network(0.3, 0.3, meta_optimizer="sgd"),
        network(0.0, 0.3, meta_optimizer="sgd"),
        network(0.0, 1e-3, difficulty="sample"),
        MetaWeightNetConfig(weight_scale="mean_one"),
        MetaSamplerConfig(),
        MFRWConfig(),
    ],
    ids=str,
)
def test_a_weighting_that_works_is_no_collapse(method: MethodConfig) -> None:
    run, said = trained(trial(method))
    assert set(said) == {""}
    assert run.report is not None
    assert {name: run.report["metrics"][name] for name in HEALTHY} == HEALTHY


@pytest.mark.slow
def test_a_huge_step_without_a_driver_loss_collapses_the_weights() -> None:
    run, said = trained(trial(network(0.0, 0.1)))
    number = sum(weight < 1e-7 for weight in run.class_table()["weight"] if weight is not None)
    assert number > 1
    assert f"the weights of {number} classes are 0; " in said[-1]
    assert "the weighting network no longer learns" in said[-1]


@pytest.mark.slow
def test_a_network_of_images_that_is_saturated_is_found() -> None:
    run = TrialRun()
    run.start(trial(MetaWeightNetConfig(weight_scale="mean_one")))
    run.method.network[2].bias.data.fill_(-15.0)
    assert [SATURATED in name and value for name, value in run.run_epoch().items() if name == SATURATED] == [0]
    run.run_epoch()
    assert "saturated" in verdict(run.run_epoch())


@pytest.mark.slow
def test_a_network_whose_units_are_dead_does_not_tell_images_apart() -> None:
    run = TrialRun()
    run.start(trial(MetaWeightNetConfig()))
    first = run.method.network[0]
    first.weight.data.fill_(-1.0)
    first.bias.data.fill_(-1.0)  # a loss is at least 0, so every hidden unit is
    said = [verdict(run.run_epoch()) for _ in range(3)]
    assert said[1:] == ["", "the weighting network's outputs are saturated"]


@pytest.mark.slow
def test_theta_that_hardly_may_move_is_still() -> None:
    _, said = trained(trial(network(0.0, 1e-12, meta_optimizer="sgd"), epochs=4))
    assert said == ["", ""] + ["the weighting network no longer learns"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("method", [CrossEntropyConfig(), CDBConfig(), network(0.3, 1e-3, difficulty="fixed")], ids=str)
def test_a_formula_has_no_verdict(method: MethodConfig) -> None:
    run = TrialRun()
    run.start(trial(method))
    assert not set(run.run_epoch()) & set(HEALTHY)


@pytest.mark.slow
def test_a_perturbation_has_one() -> None:
    run = TrialRun()
    run.start(trial(L2RWConfig()))
    assert {name: run.run_epoch()[name] for name in HEALTHY} == HEALTHY


@pytest.mark.slow
def test_a_trial_without_a_meta_gradient_has_no_dead_one() -> None:
    _, said = trained(trial(network(0.3, 1e-3), epochs=4, meta_gradient="none"))
    assert set(said) == {""}


@pytest.mark.slow
def test_a_resumed_trial_gives_the_verdict_in_the_same_epoch(tmp_path: Path) -> None:
    config = trial(network(0.0, 1e-12, meta_optimizer="sgd"), epochs=3)
    run = TrialRun()
    run.start(config)
    assert [verdict(run.run_epoch()) for _ in range(2)] == ["", ""]
    digest = run.save(tmp_path / "state")
    other = TrialRun()
    other.load(tmp_path / "state", config, digest)
    assert verdict(other.run_epoch()) == verdict(run.run_epoch()) == "the weighting network no longer learns"


@pytest.mark.slow
def test_a_state_from_before_there_were_verdicts_can_be_continued() -> None:
    config = trial(MetaWeightNetConfig(), epochs=2)
    run = TrialRun()
    run.start(config)
    run.run_epoch()
    state = run.state()
    del state["watch"]
    other = TrialRun()
    other.resume(state, config, "state")
    found, expected = other.run_epoch(), run.run_epoch()
    times = {"time/step_ms", "time/epoch_s"}
    assert {k: v for k, v in found.items() if k not in times and not math.isnan(v)} == {
        k: v for k, v in expected.items() if k not in times and not math.isnan(v)
    }
