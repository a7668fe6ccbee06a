"""Stages after the first: heads that are trained on frozen features."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import trainables.models
import trainables.trial_run
from orchestrator.config.sweep_config import SweepConfig
from trainables.checkpoint import pack, unpack
from trainables.classifier_config import SmallCNNConfig
from trainables.collectives import ALONE
from trainables.config import TrialConfig
from trainables.config_file import ConfigError, Origin, check, merge, read_settings
from trainables.data.features import FeatureSet
from trainables.data.loader import Request
from trainables.export_model import read_model, read_test, write_model
from trainables.models.classifier import Classifier
from trainables.models.stage_heads import normalise
from trainables.stage import choose_tau
from trainables.stage_config import STAGE_SETTINGS, TauNormConfig
from trainables.trial_run import TrialRun

LATER = sorted(set(STAGE_SETTINGS) - {"representation"})


def trial(stage: str, epochs: int = 5, **settings: Any) -> TrialConfig:
    """Three epochs of the whole classifier, then the stage."""
    later = {"name": stage, **({} if stage == "tau_norm" else {"epochs": 2}), **settings}
    later |= {"epochs": epochs - 3} if stage != "tau_norm" else {}
    tree = {"epochs": 4 if stage == "tau_norm" else epochs, "method": {"name": "cross_entropy"}}
    return TrialConfig.model_validate(tree | {"stages": [{"name": "representation"}, later]})


def after(config: TrialConfig, epochs: int) -> TrialRun:
    run = TrialRun()
    run.start(config)
    for _ in range(epochs):
        run.run_epoch()
    return run


def logits_of(run: TrialRun) -> Tensor:
    images = next(run.loaded.val.batches([Request(torch.arange(len(run.loaded.val)))])).images
    with torch.no_grad():
        return copy.deepcopy(run.classifier).eval()(images)


def numbers(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("time/") and not math.isnan(value)}


@pytest.mark.parametrize("stage", LATER)
def test_the_backbone_stays_as_it_is_bit_for_bit_and_the_head_does_not(stage: str) -> None:
    config = trial(stage)
    first = after(config, 3)
    whole = after(config, config.epochs)
    for name, value in first.classifier.backbone.state_dict().items():
        assert torch.equal(whole.classifier.backbone.state_dict()[name], value), name
    assert not torch.equal(logits_of(whole), logits_of(first))


@pytest.mark.parametrize("stage", LATER)
def test_the_first_stage_is_that_of_a_trial_without_others(stage: str) -> None:
    config = trial(stage)
    alone = TrialConfig(epochs=3, method=config.method)
    assert torch.equal(logits_of(after(config, 3)), logits_of(after(alone, 3)))


@pytest.mark.parametrize("stage", LATER)
@pytest.mark.parametrize("saved_after", [2, 3, 4])
def test_a_trial_that_is_resumed_in_any_stage_equals_an_unbroken_one_bit_for_bit(stage: str, saved_after: int) -> None:
    config = trial(stage, batch_norm="shift")
    saved_after = min(saved_after, config.epochs - 1)
    run = after(config, saved_after)
    resumed = TrialRun()
    resumed.resume(unpack(pack(run.state())), config, "the state")
    for _ in range(config.epochs - saved_after):
        assert numbers(run.run_epoch()) == numbers(resumed.run_epoch())
    for ours, theirs in ((run.classifier, resumed.classifier), (run.method, resumed.method)):
        assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    assert run.best is not None
    assert resumed.best is not None
    assert all(torch.equal(value, resumed.best.phi[name]) for name, value in run.best.phi.items())


def test_a_trial_that_is_resumed_in_its_third_stage_equals_an_unbroken_one_bit_for_bit() -> None:
    stages = [{"name": "representation"}, {"name": "crt", "epochs": 1, "batch_norm": "shift"}, {"name": "las", "epochs": 2}]
    config = TrialConfig.model_validate({"epochs": 5, "method": {"name": "cross_entropy"}, "stages": stages})
    run = after(config, 4)
    resumed = TrialRun()
    resumed.resume(unpack(pack(run.state())), config, "the state")
    assert numbers(run.run_epoch()) == numbers(resumed.run_epoch())
    assert all(map(torch.equal, run.classifier.state_dict().values(), resumed.classifier.state_dict().values()))


@pytest.mark.parametrize("stage", LATER)
def test_the_model_of_each_stage_is_exported_with_its_head(stage: str, tmp_path: Path) -> None:
    config = trial(stage)
    for epochs in (3, config.epochs):
        run = after(config, epochs)
        file = tmp_path / f"{epochs}.safetensors"
        write_model(file, run.classifier.state_dict(), config, run.loaded.data, run.loaded.format, epochs)
        model = read_model(file)[0]
        images = next(run.loaded.val.batches([Request(torch.arange(50))])).images
        assert_close(model(images), logits_of(run)[:50])
        assert 0 < read_test(file)["test/acc"] <= 1


def test_with_no_steps_the_scaled_head_is_the_head_before() -> None:
    run = after(trial("lws"), 3)
    before = logits_of(run)
    run._enter(run._head_stage(1))
    assert torch.equal(logits_of(run), before)
    assert [name for name, p in run.stage.classifier.named_parameters() if p.requires_grad] == ["head.scales"]


def test_the_parts_of_the_smoothed_head_take_steps_of_two_sizes() -> None:
    run = after(trial("las", head_lr_factor=0.1), 4)
    sizes = {
        name: group["initial_lr"]
        for name, parameter in run.stage.classifier.named_parameters()
        for group in run.optimizer.param_groups
        if any(parameter is member for member in group["params"])
    }
    assert sizes == pytest.approx({"head.scales": 0.1, "head.inner.weight": 0.01, "head.inner.bias": 0.01})


def test_crt_begins_with_a_new_head_and_sees_all_classes_equally_often() -> None:
    run = after(trial("crt"), 3)
    before = run.classifier.head.weight.clone()
    run._enter(run._head_stage(1))
    new = run.classifier.head.weight
    assert torch.nn.functional.cosine_similarity(new.flatten(), before.flatten(), dim=0).abs() < 0.2
    labels = torch.cat([batch.labels for batch, _, _ in run.batches()])
    drawn = torch.bincount(labels, minlength=10) - len(labels) / 10
    assert drawn.abs().max() < 4 * math.sqrt(len(labels) * 0.1 * 0.9)  # four standard deviations; class 9 has a single image


def test_crt_learns_what_a_plain_loop_over_the_frozen_features_learns() -> None:
    config = trial("crt", 6, optim={"lr": 0.1, "weight_decay": 0.0, "momentum": 0.0, "schedule": "constant"})
    run = after(config, 3)
    run._enter(run._head_stage(1))
    head = copy.deepcopy(run.classifier.head)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    images = next(run.loaded.train.batches([Request(torch.arange(len(run.loaded.train)))])).images
    with torch.no_grad():
        features = copy.deepcopy(run.classifier.backbone).eval()(images)
    for batch, _, _ in run.batches():
        optimizer.zero_grad()
        assert batch.ids is not None
        F.cross_entropy(head(features[batch.ids]), batch.labels).backward()
        optimizer.step()
    run.run_epoch()
    assert_close(run.classifier.head.weight, head.weight, rtol=1e-4, atol=1e-6)


def test_tau_norm_takes_the_power_that_is_best_on_val() -> None:
    config = trial("tau_norm", max_tau=1.5, points=4)
    run = after(config, 3)
    weight = run.classifier.head.weight.detach().clone()
    assert run.classifier.head.bias.abs().min() > 0
    images, labels, *_ = next(run.loaded.val.batches([Request(torch.arange(len(run.loaded.val)))]))
    with torch.no_grad():
        features = copy.deepcopy(run.classifier.backbone).eval()(images)
    accuracies = []
    for tau in (0, 0.5, 1, 1.5):
        vectors = torch.stack([vector / vector.norm() ** tau for vector in weight])
        accuracies.append((F.linear(features, vectors).argmax(1) == labels).float().mean().item())
    metrics = run.run_epoch()
    assert metrics["val/acc"] == pytest.approx(max(accuracies))
    assert metrics["val/acc"] >= run.best.metrics["val/acc"] - 1e-9 if run.best else True
    best = (0, 0.5, 1, 1.5)[accuracies.index(max(accuracies))]
    assert_close(run.classifier.head.weight, normalise(weight, best))
    assert (run.classifier.head.bias == 0).all()


def test_tau_is_chosen_by_the_metric_that_selects_the_epoch() -> None:
    """A head whose class vectors favour the first class: many-shot accuracy wants it to stay, the mean over classes does not."""
    head = torch.nn.Linear(2, 2, bias=False)
    head.weight.data = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    val = FeatureSet(torch.tensor([[1.0, 2.0], [1.0, 2.5], [1.0, 2.8], [1.0, 4.0], [1.0, 0.5]]), torch.tensor([0, 1, 1, 1, 0]))
    config = TauNormConfig(max_tau=1.0, points=2)
    taus = [
        choose_tau(config, copy.deepcopy(head), val, selecting, 2, ALONE)
        for selecting in (lambda accuracy: float(accuracy[0]), lambda accuracy: float(accuracy.mean()))
    ]
    assert taus == [0, 1]


def test_a_vector_of_zeros_has_no_direction_and_stays() -> None:
    assert torch.equal(normalise(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), 1), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    assert torch.equal(normalise(torch.tensor([[3.0, 4.0]]), 0), torch.tensor([[3.0, 4.0]]))


def test_a_stage_may_start_from_the_best_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    run = after(trial("crt", start_from="best"), 3)
    assert run.best is not None
    run.best.epoch = 1
    run.best.phi = {name: value + 1 if name == "backbone.0.weight" else value for name, value in run.best.phi.items()}
    wanted = run.best.phi["backbone.0.weight"]
    run.run_epoch()
    assert torch.equal(run.classifier.backbone.state_dict()["0.weight"], wanted)


def test_shifted_statistics_are_those_of_balanced_batches() -> None:
    plain, shifted = after(trial("crt"), 4), after(trial("crt", batch_norm="shift"), 4)
    by_hand = after(trial("crt"), 3)
    backbone = by_hand.classifier.backbone.train()
    labels = torch.from_numpy(by_hand.loaded.data.train.labels)
    order = trainables.trial_run.training_order(labels, 32, 0, 4, "class_balanced")
    with torch.no_grad():
        for batch in by_hand.loaded.train.batches([Request(positions) for positions in order]):
            backbone(batch.images)
    for name, value in backbone.state_dict().items():
        assert_close(shifted.classifier.backbone.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    moved = [
        name
        for name, value in backbone.state_dict().items()
        if not torch.equal(value, plain.classifier.backbone.state_dict()[name])
    ]
    assert {name.split(".")[1] for name in moved} == {"running_mean", "running_var", "num_batches_tracked"}


def test_dropout_is_another_in_each_batch_that_shifts_the_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[Tensor] = []

    def record(dropout: nn.Module, given: tuple[Tensor], result: Tensor) -> None:
        if dropout.training:
            masks.append(result[:8] == 0)

    def build(config: SmallCNNConfig, shape: tuple[int, int, int], num_classes: int) -> Classifier:
        dropout = nn.Dropout(0.5)
        dropout.register_forward_hook(record)
        features = math.prod(shape)
        backbone = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(features), dropout, nn.BatchNorm1d(features))
        return Classifier(backbone, nn.Linear(features, num_classes), features)

    monkeypatch.setitem(trainables.models.CLASSIFIERS, "small_cnn", build)
    config = trial("crt", batch_norm="shift").model_copy(update={"classifier": SmallCNNConfig(widths=[7, 3])})
    seen = []
    for seed in (0, 1):
        run = after(config.model_copy(update={"seed": seed}), 3)
        masks.clear()
        run.run_epoch()
        assert len(masks) == math.ceil(len(run.loaded.train) / config.optim.batch_size)
        seen += [mask.numpy().tobytes() for mask in masks]
    assert len(set(seen)) == len(seen)


def test_features_are_computed_once_in_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    run = after(trial("crt", 7), 3)
    passes = []
    forward = nn.Sequential.forward
    monkeypatch.setattr(nn.Sequential, "forward", lambda self, x: (passes.append(x.shape[0]), forward(self, x))[1])
    run.run_epoch()
    first = len(passes)
    for _ in range(3):
        run.run_epoch()
    assert first > 0
    assert len(passes) == first


def test_stages_are_numbered_in_overrides_spaces_and_errors(tmp_path: Path) -> None:
    file = tmp_path / "trial.yaml"
    file.write_text("epochs: 9\nstages: [{name: representation}, {name: crt, epochs: 2, optim: {momentum: 0.5}}]\n")
    changed = read_settings(TrialConfig, file, ["stages.1.optim.lr=0.03", "stages.1.epochs=4"]).stages[1]
    assert (changed.epochs, changed.optim.lr, changed.optim.momentum, changed.optim.sampler) == (4, 0.03, 0.5, "class_balanced")
    other = read_settings(TrialConfig, file, ["stages.1.name=tau_norm", "stages.1.epochs=1"]).stages[1]
    assert (other.name, other.points) == ("tau_norm", 21)
    for override, message in (
        ("stages.1.epochs=9", "command line: stages: crt have 9 epochs, but epochs is 9, and the first stage needs one; allowed"),
        ("stages.1.name=crtt", "command line: stages.1.name is 'crtt'; allowed: representation, crt, lws, las, tau_norm, balms"),
        ("stages.1.optim.lr=-1", "command line: stages.1.optim.lr is -1; allowed: greater than 0"),
        ("stages.1.optim.lrr=1", "command line: stages.1.optim.lrr is not a setting (did you mean lr?)"),
        (
            "stages.2.epochs=1",
            "command line: stages is {'2': {'epochs': 1}}; allowed: a list, as [a, b]; a number, as in stages.1.epochs",
        ),
        (
            "stages.1.optim.head_lr=1",
            "command line: stages.1.optim: head_lr is 1, but a later stage trains the head alone",
        ),
    ):
        with pytest.raises(ConfigError) as error:
            read_settings(TrialConfig, file, [override])
        assert str(error.value).startswith(message), str(error.value)
    sweep = check(
        SweepConfig,
        merge(SweepConfig, {"trial": read_settings(TrialConfig, file).model_dump()}, {})
        | {
            "search": {"trials": 2},
            "space": {"stages.1.optim.lr": {"type": "float", "low": 0.01, "high": 1}},
        },
        Origin("a test"),
    )
    assert "stages.1.optim.lr" in sweep.space


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], r"stages is \[\]; allowed: representation first, and only first"),
        ([{"name": "crt"}], r"stages is \['crt'\]; allowed: representation first, and only first"),
        ([{"name": "representation"}] * 2, "allowed: representation first, and only first"),
        ([{"name": "representation"}, {"name": "lws", "epochs": 40}], "lws have 40 epochs, but epochs is 40"),
        ([{"name": "representation"}, {"name": "las"}, {"name": "tau_norm"}], "tau_norm needs a plain linear head"),
    ],
)
def test_stages_that_do_not_fit_are_refused(stages: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrialConfig.model_validate({"stages": stages})


def test_tau_norm_is_refused_where_lengths_do_not_count() -> None:
    stages = [{"name": "representation"}, {"name": "tau_norm"}]
    with pytest.raises(ValueError, match=r"tau_norm changes the lengths .* but classifier\.head is cosine"):
        TrialConfig.model_validate({"stages": stages, "classifier": {"name": "small_cnn", "head": "cosine"}})
