"""Fused trials against the same trials alone, in double precision: the arithmetic of bilevel.py is the independent reference."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fused_trials import ADAPTERS, ALONE, CLASSIFIERS, METHODS, TIMES, assert_close, compared, members_of, started

from trainables.classifier_config import LinearConfig, SmallCNNConfig
from trainables.config import BilevelConfig, ComputeConfig, TrialConfig
from trainables.data_config import DigitsConfig, GeneratedConfig
from trainables.engine.health import DeadMetaGradient, Diverged, TrialEnded
from trainables.fused_run import FusedRun
from trainables.fusion import FUSED_METHODS, fusion_key, why_alone
from trainables.loss_config import (
    LDAMConfig,
)
from trainables.method_config import DifficultyNetConfig, MetaWeightNetConfig
from trainables.optim_config import OptimConfig
from trainables.trial_run import TrialRun

OTHERS = [name for name in CLASSIFIERS if name != "linear"]


def assert_equal_to_alone(configs: list[TrialConfig], epochs: int) -> None:
    members, alone = started(configs), started(configs)
    fused = FusedRun(members)
    for _ in range(epochs):
        for member, solo, metrics in zip(members, alone, fused.run_epoch(), strict=True):
            assert isinstance(metrics, dict), metrics
            assert_close(compared(member, metrics), compared(solo, solo.run_epoch()), solo.config.method.name)


@pytest.mark.parametrize("classifier", ["linear", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"optim": {"nesterov": True, "clip_norm": 0.5, "schedule": "multistep", "milestones": [1.0], "warmup_epochs": 0.5}},
        {"optim": {"optimizer": "adamw"}, "bilevel": {"actual_step": "stale", "meta_interval": 2}},
        {"bilevel": {"meta_gradient": "none"}, "data": {"val": "meta", "val_per_class": None}},
        {"optim": {"ema": 0.8}, "data": {"val": "meta", "val_per_class": None}},
    ],
    ids=["sgd", "nesterov", "adamw-stale", "no-meta-gradient", "averages"],
)
def test_fused_trials_equal_the_same_trials_alone(changed: dict[str, dict[str, Any]], classifier: str) -> None:
    parts = {name: getattr(ALONE, name).model_copy(update=values) for name, values in changed.items()}
    base = ALONE.model_copy(update=parts | {"classifier": CLASSIFIERS[classifier]})
    assert_equal_to_alone(members_of(base, METHODS), 2)


def test_all_methods_that_may_be_fused_are_compared() -> None:
    assert {method.name for method in METHODS} == FUSED_METHODS


def test_batches_with_augmentation_from_the_training_set_and_with_another_order() -> None:
    data = DigitsConfig(n_max=50, meta="from_train", augment=["crop_flip"])
    base = ALONE.model_copy(update={"data": data, "optim": OptimConfig(batch_size=48, sampler="square_root")})
    assert_equal_to_alone(members_of(base, METHODS[:3]), 1)


@pytest.mark.parametrize("base", [ALONE, ADAPTERS], ids=["linear", "adapters"])
def test_a_member_that_leaves_goes_on_alone_and_so_do_the_others_without_it(base: TrialConfig) -> None:
    configs = members_of(base.model_copy(update={"epochs": 4}), [METHODS[n] for n in (0, 1, 6, 8)])
    members, alone = started(configs), started(configs)
    fused = FusedRun(members)
    for _ in range(2):
        fused.run_epoch()
        expected = [run.run_epoch() for run in alone]
    fused.leave(members[0])
    average = members[0].stage.average
    for parameter in (*members[0].classifier.parameters(), *(average.classifier.parameters() if average else ())):
        assert parameter.untyped_storage().nbytes() == 8 * parameter.numel()  # no part of the stacks is kept in memory
    expected = [run.run_epoch() for run in alone]
    rest = fused.run_epoch()
    for member, solo, metrics, wanted in zip(members, alone, [members[0].run_epoch(), *rest], expected, strict=True):
        assert_close(compared(member, metrics), compared(solo, wanted), solo.config.method.name)


@pytest.mark.parametrize("base", [ALONE, ADAPTERS], ids=["linear", "adapters"])
def test_a_saved_member_is_no_larger_than_alone_and_goes_on_fused_with_others(base: TrialConfig, tmp_path: Path) -> None:
    configs = members_of(base, [METHODS[n] for n in (0, 2, 7, 8)])
    members, alone = started(configs), started(configs)
    FusedRun(members).run_epoch()
    for number, (member, solo) in enumerate(zip(members, alone, strict=True)):
        solo.run_epoch()
        member.save(tmp_path / f"fused{number}")
        solo.save(tmp_path / f"alone{number}")
        sizes = [(tmp_path / f"{kind}{number}" / "state.pt").stat().st_size for kind in ("fused", "alone")]
        assert sizes[0] < 1.1 * sizes[1]
    resumed = [TrialRun() for _ in configs]
    for number, (run, config) in enumerate(zip(resumed, configs, strict=True)):
        kind = "fused" if number % 2 else "alone"
        run.load(tmp_path / f"{kind}{number}", config, loaded=resumed[0].loaded if number else None)
    for run, solo, metrics in zip(resumed, alone, FusedRun(resumed).run_epoch(), strict=True):
        assert_close(compared(run, metrics), compared(solo, solo.run_epoch()), solo.config.method.name)


@pytest.mark.parametrize("base", [ALONE, ADAPTERS], ids=["linear", "adapters"])
def test_a_member_whose_numbers_are_not_finite_ends_alone_for_the_reason_that_it_has_alone(base: TrialConfig) -> None:
    configs = members_of(base, [METHODS[n] for n in (0, 2, 6, 8)])
    members, alone = started(configs), started(configs)
    for run in (members[1], alone[1], members[3], alone[3]):
        with torch.no_grad():
            run.classifier.head.bias[0] = torch.nan
    fused = FusedRun(members)
    endings = fused.run_epoch()
    for number in (1, 3):
        with pytest.raises(Diverged) as reason:
            alone[number].run_epoch()
        assert isinstance(endings[number], Diverged)
        assert str(endings[number]) == str(reason.value)
    assert fused.members == [members[0], members[2]]
    for metrics in ([endings[0], endings[2]], fused.run_epoch()):
        wanted = [alone[number].run_epoch() for number in (0, 2)]
        for ours, theirs in zip(metrics, wanted, strict=True):
            assert isinstance(ours, dict)
            assert_close(ours | dict.fromkeys(TIMES, 0.0), theirs | dict.fromkeys(TIMES, 0.0))
    for member, solo in zip(fused.members, (alone[0], alone[2]), strict=True):
        assert_close(compared(member, {}), compared(solo, {}))


def test_a_dead_meta_gradient_ends_a_member_alone() -> None:
    dead = DifficultyNetConfig(hidden_width=4, driver_weight=0.0)
    members = started(members_of(ALONE.model_copy(update={"epochs": 9}), [dead, METHODS[0]]))
    with torch.no_grad():
        members[0].method.network[4].bias.fill_(1000.0)  # saturates the sigmoid
    fused = FusedRun(members)
    endings = [ending for _ in range(8) for ending in fused.run_epoch()]
    assert [type(ending) for ending in endings if isinstance(ending, TrialEnded)] == [DeadMetaGradient]
    assert fused.members == [members[1]]
    assert members[1].epoch == 8


@pytest.mark.parametrize(
    ("part", "changed", "name"),
    [
        ("classifier", SmallCNNConfig(), "classifier.name"),
        ("method", DifficultyNetConfig(difficulty="sample"), "method.difficulty"),
        ("method", LDAMConfig(), "method.name"),
        ("method", MetaWeightNetConfig(base_loss=LDAMConfig()), "method.base_loss.name"),
        ("method", MetaWeightNetConfig(meta_loss=LDAMConfig()), "method.meta_loss.name"),
        ("data", GeneratedConfig(mix="mixup"), "data.mix"),
        ("bilevel", BilevelConfig(meta_gradient="double_backward"), "bilevel.meta_gradient"),
        ("bilevel", BilevelConfig(check_interval=3), "bilevel.check_interval"),
        ("compute", ComputeConfig(precision="bf16"), "compute.precision"),
        ("compute", ComputeConfig(cuda_graphs=True), "compute.cuda_graphs"),
    ],
)
def test_what_cannot_be_fused_trains_alone_and_says_why(part: str, changed: Any, name: str) -> None:
    assert fusion_key(ALONE) is not None
    assert why_alone(ALONE) == ""
    config = ALONE.model_copy(update={part: changed})
    assert fusion_key(config) is None
    assert why_alone(config).startswith(f"{name} is ")
    assert "; allowed: " in why_alone(config)
    # Only the settings count, so the data need not be loaded.
    run = TrialRun()
    run.config = config
    with pytest.raises(ValueError, match=name):
        FusedRun([run])


def test_trials_that_share_no_batches_are_refused() -> None:
    first, second = (started([config])[0] for config in members_of(ALONE, METHODS[:2]))
    with pytest.raises(ValueError, match=r"pass `loaded` of the first"):
        FusedRun([first, second])
    other = started([ALONE.model_copy(update={"optim": OptimConfig(batch_size=15), "epochs": 3})])[0]
    with pytest.raises(ValueError, match=r"differ in epochs, optim\.batch_size;"):
        FusedRun([first, other])
    cosine = started([ALONE.model_copy(update={"classifier": LinearConfig(head="cosine")})])[0]
    with pytest.raises(ValueError, match=r"differ in classifier\.head;"):
        FusedRun([first, cosine])
    second = started(members_of(ALONE, METHODS[:1]))[0]
    second.run_epoch()
    with pytest.raises(ValueError, match=r"at the epochs \[0, 1\]"):
        FusedRun([first, second])
