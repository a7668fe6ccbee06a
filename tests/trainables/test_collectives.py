"""A trial over 2 and 4 worker processes, which compute in one group on the CPU."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import workers
from workers import Workers

from trainables.checkpoint import unpack
from trainables.classifier_config import ResNetConfig, SmallCNNConfig, TorchvisionConfig
from trainables.collectives import ALONE, Collectives
from trainables.config import BilevelConfig, ComputeConfig, TrialConfig
from trainables.data_config import GeneratedConfig
from trainables.method_config import (
    METHOD_SETTINGS,
    CDBConfig,
    DifficultyNetConfig,
    MetaSamplerConfig,
    MetaWeightNetConfig,
    MethodConfig,
    MFRWConfig,
)
from trainables.methods import METHODS
from trainables.optim_config import OptimConfig
from trainables.stage_config import STAGE_SETTINGS
from trainables.trial_run import TrialRun

DATA = GeneratedConfig(
    num_classes=3,
    images_per_class=24,
    image_size=6,
    n_max=9,
    imbalance_factor=3.0,
    val_per_class=3,
    test_per_class=1,
    meta_per_class=4,
)
"""16 training images: batches of 5 and a last one of a single image, so that shares are uneven and some are empty."""
WITH_THETA: dict[str, MethodConfig] = {
    "difficulty_net": DifficultyNetConfig(hidden_width=5, refresh_interval=0.5, meta_lr=0.01),
    "meta_weight_net": MetaWeightNetConfig(hidden_width=5, weight_scale="mean_one", meta_lr=0.01),
    "mfrw": MFRWConfig(hidden_width=5, detach_inputs=False, meta_lr=0.01),
}
SGD = DifficultyNetConfig(hidden_width=5, refresh_interval=0.5, meta_lr=0.3, meta_optimizer="sgd")
MODES = ("exact", "double_backward", "finite_difference", "none")
VARIANTS: dict[str, tuple[MethodConfig, BilevelConfig]] = {
    **{
        f"{name}, {mode}": (method, BilevelConfig(meta_gradient=mode, meta_batch_size=3))
        for name, method in WITH_THETA.items()
        for mode in MODES
    },
    **{
        f"{name}, {mode}, lean, stale, compared": (
            method,
            BilevelConfig(meta_gradient=mode, meta_batch_size=3, memory="lean", actual_step="stale", check_interval=1),
        )
        for name, method in WITH_THETA.items()
        for mode in ("exact", "finite_difference")
    },
    **{
        name: (settings(), BilevelConfig(meta_batch_size=3))
        for name, settings in METHOD_SETTINGS.items()
        if name not in WITH_THETA
    },
    # Adam divides gradients by their size, those that are nothing but rounding, too: of a batch with a single class.
    "meta_sampler": (MetaSamplerConfig(meta_optimizer="sgd"), BilevelConfig(meta_batch_size=3)),
    "cdb_ce, train": (CDBConfig(accuracy_from="train"), BilevelConfig()),
    "difficulty_net, sgd": (SGD, BilevelConfig(meta_batch_size=3)),
    "difficulty_net, sgd, stale": (
        SGD,
        BilevelConfig(meta_gradient="finite_difference", meta_batch_size=3, actual_step="stale"),
    ),
    "meta_weight_net, lean, interval": (
        WITH_THETA["meta_weight_net"],
        BilevelConfig(meta_interval=2, memory="lean", meta_batch_size=5),
    ),
}


def trial(variant: str = "meta_weight_net, exact", lr: float = 0.05, **compute: Any) -> TrialConfig:
    method, bilevel = VARIANTS[variant]
    compute = {"precision": "float64", "batch_norm": "sync", **compute}
    return TrialConfig(
        epochs=20,
        device="cpu",
        data=DATA,
        classifier=SmallCNNConfig(widths=[3, 4]),
        method=method,
        optim=OptimConfig(batch_size=5, lr=lr, weight_decay=1e-3),
        bilevel=bilevel,
        compute=ComputeConfig.model_validate(compute),
    )


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    started = Workers(4, tmp_path_factory.mktemp("groups"))
    yield started
    started.stop()


def assert_near(ours: dict[str, Any], expected: dict[str, Any], atol: float = 1e-9, rel: float = 0) -> None:
    for name, value in expected["tensors"].items():
        np.testing.assert_allclose(ours["tensors"][name], value, rtol=0, atol=atol, err_msg=name)
    for mine, theirs in zip(ours["metrics"], expected["metrics"], strict=True):
        shown = {name: value for name, value in theirs.items() if not name.startswith("time/")}
        assert {name: mine[name] for name in shown} == pytest.approx(shown, rel=rel, abs=atol, nan_ok=True)


def assert_equal(results: list[dict[str, Any]]) -> None:
    """All workers have the same bits."""
    for other in results[1:]:
        for name, value in results[0]["tensors"].items():
            np.testing.assert_array_equal(other["tensors"][name], value, err_msg=name)
        np.testing.assert_equal(other["metrics"], results[0]["metrics"])
        assert other["table"] == results[0]["table"]
        assert other["best"] == results[0]["best"]


def test_the_variants_are_all_methods() -> None:
    assert {name.split(",")[0] for name in VARIANTS} == set(METHODS)


@pytest.mark.slow
@pytest.mark.parametrize("stage", sorted(set(STAGE_SETTINGS) - {"representation"}))
def test_nor_does_a_stage_on_frozen_features(group: Workers, stage: str) -> None:
    stages = [{"name": "representation"}, {"name": stage, "batch_norm": "shift"}]
    config = TrialConfig.model_validate(trial("cross_entropy").model_dump() | {"epochs": 12, "stages": stages})
    if stage != "tau_norm":
        config.stages[1].optim.__dict__["batch_size"] = 5
    epochs = config.stage_epochs()[0].stop + 1
    expected = workers.train(ALONE, config, epochs)
    found = group.run(2, workers.train, config, epochs)
    assert found[0]["metrics"][-1]["stage"] == 1
    assert_equal(found)
    assert_near(found[0], expected)


@pytest.mark.slow
@pytest.mark.parametrize("batch_norm", ["sync", "local"])
def test_all_workers_have_one_average_of_the_parameters(group: Workers, batch_norm: str) -> None:
    plain = trial("difficulty_net, exact", batch_norm=batch_norm)
    config = plain.model_copy(update={"optim": plain.optim.model_copy(update={"ema": 0.7})})
    found = group.run(2, workers.train, config, 2)
    assert_equal(found)
    states = [unpack(result["state"]) for result in found]
    for name, average in states[0]["average"].items():
        assert torch.equal(states[1]["average"][name], average), name
        assert not torch.equal(states[0]["phi"][name], average), name
    if batch_norm == "sync":
        expected = workers.train(ALONE, config, 2)
        assert_near(found[0], expected)
        for name, average in unpack(expected["state"])["average"].items():
            torch.testing.assert_close(states[0]["average"][name], average, rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("mix", ["mixup", "remix"])
def test_nor_do_mixed_images(group: Workers, mix: str) -> None:
    config = trial("difficulty_net, exact").model_copy(update={"data": DATA.model_copy(update={"mix": mix})})
    expected = workers.train(ALONE, config, 1)
    assert expected["metrics"] != workers.train(ALONE, trial("difficulty_net, exact"), 1)["metrics"]
    found = group.run(2, workers.train, config, 1)
    assert_equal(found)
    assert_near(found[0], expected)


@pytest.mark.slow
def test_nor_does_the_reading_of_the_test_set_nor_what_trials_share(group: Workers) -> None:
    config = trial("cross_entropy").model_copy(update={"epochs": 1, "read_test": True})
    expected = workers.train(ALONE, config, 1)
    assert {"test/acc", "test_last/acc"} <= expected["metrics"][-1].keys()
    found = group.run(2, workers.train, config, 1)
    assert_equal(found)
    assert_near(found[0], expected)
    assert found[0]["pairing"] == expected["pairing"]


@pytest.mark.slow
def test_nor_does_a_backbone_whose_first_part_is_frozen(group: Workers) -> None:
    """With dropout in the part that is trained, and BatchNorm in both."""
    changes = {"classifier": TorchvisionConfig(model="mobilenet_v3_small", train="last_blocks"), "epochs": 1}
    config = trial("difficulty_net, exact").model_copy(update=changes)
    expected = workers.train(ALONE, config, 1)
    found = group.run(2, workers.train, config, 1)
    assert_equal(found)
    assert_near(found[0], expected, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_with_statistics_of_the_whole_batch_a_trial_does_not_depend_on_its_workers(group: Workers, variant: str) -> None:
    expected = workers.train(ALONE, trial(variant), 1)
    for size in (2, 4):
        found = group.run(size, workers.train, trial(variant), 1)
        assert_equal(found)
        assert_near(found[0], expected)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("variant", ["difficulty_net, exact", "mfrw, double_backward"])
def test_with_statistics_of_shares_workers_agree_and_their_running_ones_are_averaged(
    group: Workers, variant: str, size: int
) -> None:
    config = trial(variant, batch_norm="local")
    assert_equal(group.run(size, workers.train, config, 2))
    found = group.run(size, workers.running_statistics, config)
    for name, after in found[0][1].items():
        before = [worker[0][name] for worker in found]
        assert np.isfinite(after).all()
        if name.endswith("num_batches_tracked"):
            assert [int(count) for count in (*before, after)] == [4] * (size + 1)
        else:
            assert not np.allclose(before[0], before[1])
            np.testing.assert_allclose(after, np.mean(before, 0), rtol=1e-12)
        assert all(np.array_equal(worker[1][name], after) for worker in found)


@pytest.mark.slow
@pytest.mark.parametrize("batch_norm", ["local", "sync"])
def test_a_resumed_trial_of_workers_equals_an_uninterrupted_one_bit_for_bit(group: Workers, batch_norm: str) -> None:
    config = trial("difficulty_net, exact", batch_norm=batch_norm)
    whole = group.run(2, workers.train, config, 2)
    first = group.run(2, workers.train, config, 1)
    rest = group.run(2, workers.train, config, 1, first[0]["state"])
    for ours, theirs in zip(rest, whole, strict=True):
        for name, value in theirs["tensors"].items():
            np.testing.assert_array_equal(ours["tensors"][name], value, err_msg=name)


def with_maps_of_one_pixel(batch_norm: str) -> TrialConfig:
    """The last batch of two images gives each of two workers one, and the network's last maps are 1x1."""
    changes = {"classifier": ResNetConfig(depth=10), "optim": OptimConfig(batch_size=7)}
    return trial("difficulty_net, exact", batch_norm=batch_norm).model_copy(update=changes)


@pytest.mark.slow
def test_a_share_of_a_single_value_in_each_channel_takes_part_in_the_statistics_of_the_whole_batch(group: Workers) -> None:
    # The variance of two values can be next to nothing: the meta-gradient of such a batch magnifies every rounding, on some
    # processors above 1e-9. With this seed no variance is that small: the roundings stay below 1e-12.
    config = with_maps_of_one_pixel("sync").model_copy(update={"seed": 4})
    assert_near(group.run(2, workers.train, config, 1)[0], workers.train(ALONE, config, 1), rel=1e-6)


@pytest.mark.slow
def test_a_share_of_a_single_value_in_each_channel_has_no_statistics_of_its_own(group: Workers) -> None:
    found = group.run(2, workers.train, with_maps_of_one_pixel("local"), 2)
    assert_equal(found)
    assert all(np.isfinite(value).all() for value in found[0]["tensors"].values())


@pytest.mark.slow
def test_another_number_of_workers_can_go_on_with_a_trial(group: Workers) -> None:
    config = trial("difficulty_net, exact")
    first = group.run(2, workers.train, config, 1)[0]
    expected = workers.train(ALONE, config, 2)
    assert_near(workers.train(ALONE, config, 1, first["state"]), {**expected, "metrics": expected["metrics"][1:]})


@pytest.mark.slow
def test_workers_that_look_at_a_share_of_the_images_find_the_predictions_of_all(group: Workers) -> None:
    for size in (2, 4):
        for pairs in group.run(size, workers.predictions, trial()):
            assert all(ours == theirs for ours, theirs in pairs)


@pytest.mark.slow
def test_a_step_says_what_it_has_to_say_in_few_messages(group: Workers) -> None:
    gather, reduce = "all_gather_into_tensor", "all_reduce"
    exact = [gather, reduce, gather, reduce, gather, reduce, reduce]  # the last but one is theta's gradient
    by_variant = {
        "cross_entropy": [[gather, reduce]] * 4,
        "meta_weight_net, exact": [exact] * 4,
        "meta_weight_net, lean, interval": [exact, [gather, reduce]] * 2,
    }
    for variant, expected in by_variant.items():
        assert group.run(2, workers.messages_per_step, trial(variant, batch_norm="local")) == [expected] * 2
    synchronised = group.run(2, workers.messages_per_step, trial())[0]
    passes, layers = (
        6,
        2,
    )  # forward, pullback and pushforward of one batch, forward and pullback of the other, and the actual step
    assert [len(step) for step in synchronised] == [len(exact) + passes * layers] * 4


@pytest.mark.slow
def test_a_trial_that_diverges_ends_on_every_worker_alike(group: Workers) -> None:
    found = group.run(2, workers.ending, trial("cross_entropy", lr=1e200))
    assert found[0].startswith("Diverged: train/")
    assert found[1] == found[0]


@pytest.mark.slow
def test_workers_time_an_epoch_together(group: Workers) -> None:
    first, second = group.run(2, workers.epoch_time, trial())
    assert first == second > 0


@pytest.mark.slow
def test_workers_agree_in_bf16_with_channels_last(group: Workers) -> None:
    assert_equal(group.run(2, workers.train, trial(precision="bf16", channels_last=True), 1))


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_without_batch_norm_a_trial_does_not_depend_on_its_workers(group: Workers, variant: str) -> None:
    config = trial(variant, batch_norm="local").model_copy(update={"classifier": SmallCNNConfig(widths=[2, 3])})
    expected = workers.train_as(ALONE, config, 1, workers.without_batch_norm)
    found = group.run(4, workers.train_as, config, 1, workers.without_batch_norm)
    assert_equal(found)
    assert_near(found[0], expected)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "none"])
@pytest.mark.parametrize("variant", ["difficulty_net", "mfrw"])
def test_with_dropout_a_trial_does_not_depend_on_its_workers_either(group: Workers, variant: str, mode: str) -> None:
    config = trial(f"{variant}, {mode}", batch_norm="local").model_copy(update={"classifier": SmallCNNConfig(widths=[4, 3])})
    expected = workers.train_as(ALONE, config, 1, workers.with_dropout)
    found = group.run(2, workers.train_as, config, 1, workers.with_dropout)
    assert_equal(found)
    assert_near(found[0], expected)
    whole = workers.train_as(ALONE, config, 2, workers.with_dropout)
    resumed = workers.train_as(ALONE, config, 1, workers.with_dropout, expected["state"])
    assert_near(resumed, whole | {"metrics": whole["metrics"][1:]}, atol=0)
    other = workers.train_as(ALONE, config.model_copy(update={"seed": 1}), 1, workers.with_dropout)
    assert other["metrics"][0]["train/loss"] != pytest.approx(expected["metrics"][0]["train/loss"])


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["difficulty_net, exact", "mfrw, double_backward"])
def test_nor_does_it_on_micro_batches(group: Workers, variant: str) -> None:
    """With dropout; the first worker has parts of two images and of one, the second one part of two."""
    config = trial(variant, batch_norm="local").model_copy(update={"classifier": SmallCNNConfig(widths=[4, 3])})
    in_parts = config.model_copy(update={"compute": config.compute.model_copy(update={"micro_batch": 2})})
    found = group.run(2, workers.train_as, in_parts, 1, workers.with_dropout)
    assert_equal(found)
    assert_near(found[0], workers.train_as(ALONE, config, 1, workers.with_dropout))


@pytest.mark.slow
def test_a_worker_with_batch_norm_and_two_parts_equals_two_workers(group: Workers) -> None:
    """Parameters, metrics and running statistics: a part is normalised by itself, as a share is. All batches have two parts."""
    config = trial("meta_weight_net, lean, interval", batch_norm="local")
    config = config.model_copy(update={"optim": config.optim.model_copy(update={"batch_size": 6})})
    in_parts = config.model_copy(update={"compute": config.compute.model_copy(update={"micro_batch": 3})})
    ours, whole = (workers.train(ALONE, settings, 2) for settings in (in_parts, config))
    assert_near(ours, group.run(2, workers.train, config, 2)[0])
    assert ours["metrics"][0]["train/loss"] != pytest.approx(whole["metrics"][0]["train/loss"])


def test_shares_are_those_of_tensor_split() -> None:
    for number in range(9):
        for size in (1, 2, 4):
            rows = torch.arange(number)
            shares = [rows[Collectives(rank, size).share(number)] for rank in range(size)]
            assert all(map(torch.equal, shares, torch.tensor_split(rows, size)))
            assert [len(share) for share in shares] == Collectives(0, size).shares(number)


def test_a_worker_alone_gets_back_what_it_gave() -> None:
    x = torch.ones(3)
    assert ALONE.total([x])[0] is x
    assert ALONE.mean([x])[0] is x
    assert ALONE.gather(x, 3) is x
    assert ALONE.agreed(x) is x


def test_a_batch_with_fewer_images_than_workers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"optim\.batch_size is 5, but 6 workers share a batch; allowed: 6 or more"):
        TrialRun(Collectives(0, 6)).start(trial())
