"""What every row of METHODS has to do in a trial, and every row of LOSSES inside another method. No row is named here."""

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import workers
from tasks import Linear
from torch import Tensor
from torch.nn import functional as F
from workers import Workers

from trainables.classifier_config import SmallCNNConfig
from trainables.collectives import ALONE
from trainables.config import BilevelConfig, ComputeConfig, OptimConfig, TrialConfig
from trainables.data_config import GeneratedConfig
from trainables.evaluate import training_pass
from trainables.loss_config import LOSS_SETTINGS
from trainables.method_config import METHOD_SETTINGS, DifficultyNetConfig, MetaLossSettings, MethodConfig, WeightingSettings
from trainables.methods import LOSSES, METHODS, Method
from trainables.trial_run import TrialRun

EPOCHS = 8
TINY = GeneratedConfig(
    num_classes=3,
    images_per_class=24,
    image_size=6,
    n_max=9,
    imbalance_factor=3.0,
    val_per_class=3,
    test_per_class=1,
    meta_per_class=4,
)
"""16 training images."""
WEIGHING = [name for name, settings in METHOD_SETTINGS.items() if issubclass(settings, WeightingSettings)]
TAKES_META_LOSS = [name for name, settings in METHOD_SETTINGS.items() if issubclass(settings, MetaLossSettings)]


def settings_of(name: str, **more: Any) -> MethodConfig:
    """The defaults, with a small network that learns fast, where there is one."""
    fields = METHOD_SETTINGS[name].model_fields
    wanted = {"hidden_width": 8, "meta_lr": 0.01, **more}
    return METHOD_SETTINGS[name].model_validate({"name": name, **{key: value for key, value in wanted.items() if key in fields}})


def begins_at_once(name: str) -> MethodConfig:
    """As `settings_of`, from the first step on with all that a method may defer."""
    return settings_of(name, defer_until=0.0, meta_from=0.0)


def trial(method: MethodConfig, **changed: Any) -> TrialConfig:
    config: dict[str, Any] = {
        "epochs": EPOCHS,
        "device": "cpu",
        "classifier": SmallCNNConfig(widths=[4, 8]),
        "method": method,
        "optim": OptimConfig(schedule="constant"),
        "bilevel": BilevelConfig(meta_batch_size=30, check_interval=3),
        "compute": ComputeConfig(precision="float64"),
    }
    return TrialConfig(**{**config, **changed})


def tiny(method: MethodConfig, **changed: Any) -> TrialConfig:
    """Batches of 7, 7 and 2 images."""
    wanted: dict[str, Any] = {"data": TINY, "classifier": SmallCNNConfig(widths=[3, 4]), "optim": OptimConfig(batch_size=7)}
    return trial(method, **{"epochs": 2, **wanted, **changed})


SHARED, RESUMED = TrialRun(), TrialRun()
"""They keep data and programs from one test to the next."""


class Trained(NamedTuple):
    """A trial on the digits: what was measured in each step, and some numbers before and after."""

    steps: list[dict[str, float]]
    cross_entropy: tuple[float, float]
    """Of the whole training set. The loss that the method trains may rise, if the method moves its weights to hard images."""
    before: dict[str, Tensor]
    after: dict[str, Tensor]
    perturbs: bool
    metrics: dict[str, float]
    """Of the last epoch."""
    classes: dict[str, list[float | None]]
    """The values by class after the last epoch."""


@functools.cache
def trained(name: str) -> Trained:
    run = SHARED
    run.start(trial(settings_of(name)))
    steps, record = list[dict[str, float]](), run.health.record

    def watched(step: int, measured: dict[str, Tensor], alpha: float) -> None:
        steps.append({key: value.item() for key, value in measured.items()})
        record(step, measured, alpha)

    run.health.record = watched  # type: ignore[method-assign]
    before, first = theta(run.method), cross_entropy(run)
    metrics = [run.run_epoch() for _ in range(EPOCHS)][-1]
    perturbs, classes = run.method.perturbation_shape(1) is not None, run.class_table()
    return Trained(steps, (first, cross_entropy(run)), before, theta(run.method), perturbs, metrics, classes)


def cross_entropy(run: TrialRun) -> float:
    done = training_pass(run.classifier, run.loaded.train)
    return F.cross_entropy(done.logits, done.labels).item()


def theta(method: Method) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in method.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_the_figures_of_the_paper_can_be_drawn_of_every_method_that_has_their_numbers(name: str) -> None:
    """Difficulty-Net's Fig. 2, difficulties beside accuracies; Fig. 3, their divergence from uniform; Fig. 4, class weights."""
    metrics, classes = trained(name).metrics, trained(name).classes
    assert all(0 <= accuracy <= 1 for accuracy in classes["accuracy"])  # type: ignore[operator]
    assert all(weight >= 0 for weight in classes["weight"])  # type: ignore[operator]
    if classes["difficulty"] == [None] * 10:
        assert "difficulty/kl_uniform" not in metrics
        return
    of_all = np.array(classes["difficulty"], dtype=float)
    with np.errstate(divide="ignore"):
        divergence = -np.log(of_all / of_all.sum() * 10).mean()
    assert metrics.get("difficulty/kl_uniform", math.inf) == pytest.approx(divergence)
    seen = np.array(classes["meta_accuracy"], dtype=float)
    assert np.corrcoef(of_all, seen)[0, 1] < 0


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_the_classifier_learns_the_training_images(name: str) -> None:
    before, after = trained(name).cross_entropy
    assert len(trained(name).steps) == 64
    assert before > 2
    assert after < 1


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_the_meta_loss_trains_theta_and_its_gradient_is_the_exact_one(name: str) -> None:
    found = trained(name)
    updates = [step for step in found.steps if "meta/grad_norm" in step]
    compared = [step for step in updates if "meta/grad_cosine" in step]
    assert bool(updates) is (bool(found.before) or found.perturbs)
    assert all(step["meta/grad_norm"] > 0 for step in updates)
    assert all(step["meta/grad_cosine"] > 1 - 1e-9 for step in compared)
    assert len(compared) >= len(updates) // 4
    assert all(not torch.equal(before, found.after[name]) for name, before in found.before.items())


def comparable(metrics: dict[str, float]) -> dict[str, str]:
    """Without times; as text, so that NaN equals NaN."""
    return {key: repr(value) for key, value in metrics.items() if not key.startswith("time/")}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_trial_goes_on_from_its_saved_state_bit_for_bit(name: str, tmp_path: Path) -> None:
    """What is deferred begins in the middle of the second epoch, and accuracies are measured before the first one only."""
    config = trial(settings_of(name, defer_until=0.75, meta_from=0.75, refresh_interval=2.0), epochs=2)
    run = SHARED
    run.start(config)
    run.run_epoch()
    digest = run.save(tmp_path / "state")
    expected = comparable(run.run_epoch()), run.class_table()
    phi, of_theta = run.classifier.state_dict(), run.method.state_dict()
    resumed = RESUMED
    resumed.load(tmp_path / "state", config, digest)
    assert (comparable(resumed.run_epoch()), resumed.class_table()) == expected
    for mine, theirs in ((resumed.classifier.state_dict(), phi), (resumed.method.state_dict(), of_theta)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


OTHER_KEYS = 3 + 4 + 5
"""What a run in MLflow has beside: three of the machine, `best/` and `last/` of two objectives, five over fresh seeds."""


def gaps(metrics: dict[str, float]) -> set[str]:
    """The metrics that are not finite. Accuracies of empty bands are NaN by definition, and so is the time of no step."""
    return {key for key, value in metrics.items() if not math.isfinite(value) and not key.startswith(("val/acc_", "time/"))}


@pytest.mark.parametrize("name", METHODS)
def test_three_classes_and_a_smaller_last_batch(name: str) -> None:
    run = SHARED
    run.start(tiny(begins_at_once(name)))
    for _ in range(2):
        metrics = run.run_epoch()
        assert not gaps(metrics)
        assert metrics.get("meta/grad_cosine", 1) > 1 - 1e-9
    assert len(metrics) + OTHER_KEYS <= 30
    for column in run.class_table().values():
        assert len(column) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_thousand_classes(name: str) -> None:
    data = GeneratedConfig(
        num_classes=1000,
        images_per_class=4,
        image_size=4,
        n_max=1,
        imbalance_factor=1.0,
        val_per_class=1,
        test_per_class=1,
        meta_per_class=1,
    )
    run = SHARED
    optim = OptimConfig(batch_size=250)
    run.start(trial(begins_at_once(name), epochs=1, data=data, classifier=SmallCNNConfig(widths=[2, 2]), optim=optim))
    metrics = run.run_epoch()
    assert not gaps(metrics)
    assert metrics.get("meta/grad_cosine", 1) > 1 - 1e-9


@pytest.mark.parametrize("labels", [[0, 1, 0, 1, 1], [0]], ids=["absent class", "batch of one"])
@pytest.mark.parametrize("name", METHODS)
def test_a_class_without_training_images_and_a_batch_of_one(name: str, labels: list[int]) -> None:
    """The meta batch has all classes."""
    problem = Linear(begins_at_once(name), [6, 3, 0], labels, meta_labels=[0, 1, 2])
    problem.method.refresh(torch.tensor([0.9, 0.2, 0.0]).double())
    before = problem.phi()
    for step in range(3):
        measured = problem.run(step=90 + step, check_interval=1)
        assert all(value.isfinite() for value in measured.values())
        # The gradient of weights with mean 1 over one image is 0, and what is left of it is rounding without a direction.
        assert len(labels) == 1 or measured.get("meta/grad_cosine", 1) > 1 - 1e-9
    assert (problem.phi() != before).any()
    assert all(parameter.isfinite().all() for parameter in (*problem.method.parameters(), *problem.classifier.parameters()))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_the_tables_ask(name: str) -> None:
    problem = Linear(begins_at_once(name), [6, 3, 2], [0, 1, 2, 0], meta_labels=[0, 1, 2])
    method = problem.method
    method.refresh(torch.tensor([0.9, 0.5, 0.1]).double())
    difficulty = method.difficulty()
    assert difficulty is None or difficulty.shape == (3,)
    assert all(isinstance(value, float) and math.isfinite(value) for value in method.metrics().values())
    assert method.predict(torch.zeros(2, 3).double()).shape == (2, 3)


# Several workers


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    started = Workers(2, tmp_path_factory.mktemp("groups"))
    yield started
    started.stop()


@pytest.mark.slow
def test_two_workers_equal_one(pair: Workers) -> None:
    """All methods in one test, because one group of processes serves them all. The last training batch has one image."""
    settings: dict[str, Any] = {
        "compute": ComputeConfig(precision="float64", batch_norm="sync"),
        "optim": OptimConfig(batch_size=5),
        "bilevel": BilevelConfig(meta_batch_size=5),
    }
    for name in METHODS:
        config = tiny(begins_at_once(name), **settings)
        alone, (first, second) = workers.train(ALONE, config, 1), pair.run(2, workers.train, config, 1)
        assert alone["tensors"].keys() == first["tensors"].keys()
        for key, value in alone["tensors"].items():
            assert (first["tensors"][key] == second["tensors"][key]).all(), (name, key)
            assert first["tensors"][key] == pytest.approx(value, abs=1e-9), (name, key)
        for ours, expected in zip(first["metrics"], alone["metrics"], strict=True):
            shown = {key: value for key, value in expected.items() if not key.startswith("time/")}
            assert {key: ours[key] for key in shown} == pytest.approx(shown, abs=1e-9, nan_ok=True), name
        assert first["table"] == second["table"]


# Losses inside methods


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", WEIGHING)
def test_every_method_that_weighs_takes_every_loss_as_its_base(name: str, loss: str) -> None:
    run = SHARED
    base = LOSS_SETTINGS[loss](name=loss)
    run.start(tiny(begins_at_once(name).model_copy(update={"base_loss": base})))
    metrics = run.run_epoch()
    assert not gaps(metrics)
    assert metrics.get("meta/grad_cosine", 1) > 1 - 1e-9
    assert type(run.method.base_loss) is LOSSES[loss]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", TAKES_META_LOSS)
def test_every_method_that_learns_from_the_meta_set_takes_every_meta_loss(name: str, loss: str) -> None:
    run = SHARED
    run.start(tiny(begins_at_once(name).model_copy(update={"meta_loss": LOSS_SETTINGS[loss](name=loss)})))
    metrics = run.run_epoch()
    assert not gaps(metrics)
    assert metrics.get("meta/grad_cosine", 1) > 1 - 1e-9
    assert type(run.method.meta_loss) is LOSSES[loss]


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("place", ["base_loss", "meta_loss"])
def test_difficulty_net_trains_with_every_loss(place: str, loss: str) -> None:
    run = SHARED
    method = DifficultyNetConfig.model_validate({"name": "difficulty_net", "hidden_width": 8, place: {"name": loss}})
    run.start(trial(method, epochs=3, compute=ComputeConfig(), bilevel=BilevelConfig(meta_batch_size=30, check_interval=4)))
    epochs = [run.run_epoch() for _ in range(3)]
    assert not any(map(gaps, epochs))
    assert all(metrics["meta/grad_cosine"] > 1 - 1e-5 for metrics in epochs)
    assert epochs[-1]["train/loss"] < epochs[0]["train/loss"]
