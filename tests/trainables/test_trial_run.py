import itertools
import math
import resource
import statistics
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from clock import Clock
from miniatures import own_images
from torch.nn import functional as F

import trainables.data.loaded
import trainables.engine.linearize
import trainables.trial_run
from trainables.checkpoint import pack, read_checkpoint, unpack
from trainables.classifier_config import SmallCNNConfig
from trainables.config import MUTABLE, BilevelConfig, ComputeConfig, TrialConfig
from trainables.data import build_data
from trainables.data.loader import ImageBatch, LoadedSet, Request, meta_order, training_order
from trainables.data_config import DigitsConfig, GeneratedConfig, ImageFolderConfig
from trainables.engine.health import Diverged, OutOfMemory
from trainables.loss_config import CrossEntropyConfig, FocalConfig
from trainables.machine import choose_device
from trainables.method_config import (
    METHOD_SETTINGS,
    DifficultyNetConfig,
    L2RWConfig,
    MetaWeightNetConfig,
    MethodConfig,
    MFRWConfig,
)
from trainables.methods.context import Context, Moment
from trainables.optim_config import OptimConfig
from trainables.settings import flatten
from trainables.trial_run import TrialRun, refresh_due

DIFFICULTY_NET = TrialConfig(epochs=3, method=DifficultyNetConfig(hidden_width=8, meta_lr=1e-2, refresh_interval=0.5))
TIMES = ("time/step_ms", "time/epoch_s")
FORKS = [
    (settings, key.removeprefix("method."))
    for settings in METHOD_SETTINGS.values()
    for key in sorted(MUTABLE & flatten({"method": settings().model_dump()}).keys())
]
"""Every method with each of its settings that a fork may change."""


def run_epochs(run: TrialRun, count: int) -> list[dict[str, float]]:
    """Metrics of some epochs without the times; NaN as text, so that equal means equal."""
    epochs = [run.run_epoch() for _ in range(count)]
    return [
        {key: value if math.isfinite(value) else str(value) for key, value in epoch.items() if key not in TIMES}
        for epoch in epochs
    ]


def images_of(loaded: LoadedSet, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first images of a set, with their labels."""
    return next(loaded.batches([Request(torch.arange(number))]))[:2]


def slow_down(loaded: LoadedSet, clock: Clock, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Makes each batch of a set take so long."""
    batches = loaded.batches

    def slowly(requests: list[Request]) -> Iterator[ImageBatch]:
        for batch in batches(requests):
            clock.now += seconds
            yield batch

    monkeypatch.setattr(loaded, "batches", slowly)


def started(config: TrialConfig) -> TrialRun:
    run = TrialRun()
    run.start(config)
    return run


def with_method(config: TrialConfig, **changed: Any) -> TrialConfig:
    return config.model_copy(update={"method": config.method.model_copy(update=changed)})


def taught(config: TrialConfig, teacher: TrialRun) -> TrialRun:
    """A trial of `config` that is given by hand what another one has learned, number by number."""
    run = started(config)
    with torch.no_grad():
        for mine, theirs in ((run.classifier, teacher.classifier), (run.method, teacher.method)):
            for to, given in zip(mine.parameters(), theirs.parameters(), strict=True):
                to.copy_(given)
        for to, given in zip(run.classifier.buffers(), teacher.classifier.buffers(), strict=True):
            to.copy_(given)  # running statistics; what a method has measured, it measures again as the epoch begins
    for mine, theirs in ((run.optimizer, teacher.optimizer), (run.meta_optimizer, teacher.meta_optimizer)):
        for to, given in zip(mine.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True):
            mine.state[to] = {name: value.clone() for name, value in theirs.state[given].items()}
    run.epoch = teacher.epoch
    return run


def tensors_of(run: TrialRun) -> list[torch.Tensor]:
    """All that a trial has learned."""
    optimizers = [optimizer for optimizer in (run.optimizer, run.meta_optimizer) if optimizer]
    moments = [value for optimizer in optimizers for state in optimizer.state.values() for value in state.values()]
    return [*run.classifier.state_dict().values(), *run.method.state_dict().values(), *moments]


@pytest.mark.parametrize("theta", [{}, {"meta_optimizer": "sgd", "meta_lr": 0.3}])
def test_a_resumed_trial_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path, theta: dict[str, Any]) -> None:
    config = with_method(DIFFICULTY_NET, **theta)
    whole = started(config)
    expected = run_epochs(whole, 3)
    first = started(config)
    run_epochs(first, 1)
    first.save(tmp_path)
    resumed = TrialRun()
    resumed.load(tmp_path, config)
    assert resumed.epoch == 1
    assert run_epochs(resumed, 2) == expected[1:]
    for ours, theirs in ((resumed.classifier, whole.classifier), (resumed.method, whole.method)):
        assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in theirs.state_dict().items())
    assert resumed.best.epoch == whole.best.epoch
    assert all(torch.equal(resumed.best.phi[name], tensor) for name, tensor in whole.best.phi.items())


def test_a_state_carries_the_report_of_its_epoch_and_an_older_one_without_can_be_read(tmp_path: Path) -> None:
    run = started(DIFFICULTY_NET)
    metrics = run.run_epoch()
    run.save(tmp_path)
    state = unpack(read_checkpoint(tmp_path))
    expected = {"metrics": metrics, "classes": run.class_table(), "pairing": run.pairing_digests()}
    assert repr(state["report"]) == repr(expected)  # as text, where NaN equals NaN
    del state["report"]
    resumed = TrialRun()
    resumed.resume(state, DIFFICULTY_NET, "an older state")
    assert resumed.epoch == 1
    assert resumed.report is None


def test_a_second_trial_in_the_same_run_equals_a_first_one() -> None:
    run = started(TrialConfig(epochs=2, method=CrossEntropyConfig()))
    run_epochs(run, 2)
    loaded = run.loaded
    run.start(DIFFICULTY_NET)
    assert run.loaded is loaded  # the data are kept
    assert run_epochs(run, 1) == run_epochs(started(DIFFICULTY_NET), 1)


def test_another_seed_gives_another_trial() -> None:
    assert run_epochs(started(DIFFICULTY_NET), 1) != run_epochs(started(DIFFICULTY_NET.model_copy(update={"seed": 1})), 1)


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    started(DIFFICULTY_NET).save(tmp_path)
    other = DIFFICULTY_NET.model_copy(update={"optim": OptimConfig(lr=0.2)})
    with pytest.raises(
        ValueError, match=r": optim.lr was 0.05, is 0.2; only method.driver_weight and method.meta_lr may differ$"
    ):
        TrialRun().load(tmp_path, with_method(other, meta_lr=0.5))


def test_a_trial_goes_on_bit_for_bit_with_other_settings_that_decide_no_result(tmp_path: Path) -> None:
    """Also from another folder with the same images."""
    counts = own_images(tmp_path / "old")
    data = ImageFolderConfig(root=str(tmp_path / "old"), image_size=8, loading="memory", augment=[], **counts)
    config = DIFFICULTY_NET.model_copy(update={"data": data, "optim": OptimConfig(batch_size=4)})
    whole = started(config)
    expected = run_epochs(whole, 2)
    first = started(config)
    run_epochs(first, 1)
    first.save(tmp_path / "state")
    (tmp_path / "old").rename(tmp_path / "new")
    moved = {
        "data": data.model_copy(update={"root": str(tmp_path / "new")}),
        "compute": ComputeConfig(readers=0, keep_gib=0.5),
        "bilevel": BilevelConfig(check_interval=2, memory="lean"),
    }
    resumed = TrialRun()
    resumed.load(tmp_path / "state", config.model_copy(update=moved))
    assert not (tmp_path / "old").exists()
    assert resumed.best.epoch == first.best.epoch
    (epoch,) = run_epochs(resumed, 1)
    assert epoch.pop("meta/grad_cosine") == pytest.approx(1)
    assert epoch == expected[1]
    assert all(torch.equal(mine, its) for mine, its in zip(tensors_of(resumed), tensors_of(whole), strict=True))


def test_a_trial_goes_on_with_other_settings_that_decide_only_how_numbers_are_rounded(tmp_path: Path) -> None:
    run = started(DIFFICULTY_NET)
    run_epochs(run, 1)
    run.save(tmp_path)
    other = {"device": "cpu", "threads": 2, "compute": ComputeConfig(channels_last=True, cuda_graphs=True)}
    resumed = TrialRun()
    resumed.load(tmp_path, DIFFICULTY_NET.model_copy(update=other))
    (mine,), (its,) = run_epochs(resumed, 1), run_epochs(run, 1)
    assert mine["train/loss"] == pytest.approx(its["train/loss"], rel=1e-3)


def test_what_a_fork_may_change_are_settings_of_methods() -> None:
    assert {f"method.{name}" for _, name in FORKS} == MUTABLE


@pytest.mark.parametrize(("settings", "name"), FORKS)
def test_a_fork_goes_on_from_what_another_trial_has_learned_with_settings_of_its_own(settings: type, name: str) -> None:
    narrow = {"hidden_width": 8} if "hidden_width" in settings.model_fields else {}
    config = TrialConfig(epochs=3, method=settings(**narrow))
    donor, fork = started(config), TrialRun()
    run_epochs(donor, 1)
    changed = with_method(config, **{name: 3 * getattr(config.method, name)})
    fork.resume(unpack(pack(donor.state())), changed, "the donor")
    by_hand = taught(changed, donor)
    assert run_epochs(fork, 1) == run_epochs(by_hand, 1)
    assert all(map(torch.equal, tensors_of(fork), tensors_of(by_hand)))
    run_epochs(donor, 1)
    assert not any(map(torch.equal, fork.method.parameters(), donor.method.parameters()))


def test_the_best_epoch_of_a_fork_is_one_of_its_own(tmp_path: Path) -> None:
    donor, fork = started(DIFFICULTY_NET), TrialRun()
    run_epochs(donor, 1)
    donor.best.metrics["val/acc"] = 1.0
    donor.save(tmp_path)
    fork.load(tmp_path, DIFFICULTY_NET)
    assert fork.best.epoch == 1  # the same settings: the trial itself
    changed = with_method(DIFFICULTY_NET, driver_weight=0.0)
    fork.load(tmp_path, changed)
    assert fork.best is None
    run_epochs(fork, 1)
    assert fork.best.epoch == 2
    fork.save(tmp_path)
    fork.load(tmp_path, changed)
    assert fork.best.epoch == 2


def test_a_fork_leaves_the_trial_that_it_comes_from_as_it_is() -> None:
    alone, donor, fork = started(DIFFICULTY_NET), started(DIFFICULTY_NET), TrialRun()
    run_epochs(donor, 1)
    fork.resume(donor.state(), with_method(DIFFICULTY_NET, meta_lr=0.1), "the donor")
    run_epochs(fork, 1)
    assert run_epochs(alone, 2)[1:] == run_epochs(donor, 1)
    assert all(map(torch.equal, tensors_of(alone), tensors_of(donor)))


def test_a_gpu_without_memory_ends_the_trial_and_the_next_one_finds_it_free(monkeypatch: pytest.MonkeyPatch) -> None:
    run, held, held_when_freed = started(DIFFICULTY_NET), [], []
    run_epochs(run, 1)

    def step(*_: Any) -> None:
        activations = torch.zeros(3)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(run, "_run_step", step)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 60 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(total_memory=80 * 2**30))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: held_when_freed.append(held[0]()))
    with pytest.raises(OutOfMemory) as caught:
        run.run_epoch()
    assert caught.value.status == "failed"
    assert str(caught.value) == (
        "out of memory in epoch 2: the trial took up to 60.0 of the GPU's 80.0 GiB; what helps: a smaller optim.batch_size, "
        "bilevel.meta_batch_size or compute.micro_batch, bilevel.memory=lean, compute.precision=bf16, or fewer trials per GPU"
    )
    assert held_when_freed == [None]
    run.start(DIFFICULTY_NET)
    assert run_epochs(run, 1) == run_epochs(started(DIFFICULTY_NET), 1)


def test_an_epoch_that_ends_without_memory_is_still_the_one_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The images of val are looked at when the steps of the epoch are done."""
    run = started(DIFFICULTY_NET)
    monkeypatch.setattr(run, "_measure", lambda *_: torch.empty(2**60))
    with pytest.raises(OutOfMemory, match=r"^out of memory in epoch 1: this process took"):
        run.run_epoch()


def test_a_trial_that_does_not_fit_ends_at_the_start() -> None:
    with pytest.raises(OutOfMemory, match=r"^out of memory at the start: this process took up to \d+\.\d GiB; what helps: "):
        TrialRun().start(with_method(DIFFICULTY_NET, hidden_width=1_600_000))  # ten terabytes


def test_the_peak_of_memory_is_that_of_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    run, resets = started(DIFFICULTY_NET), []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: resets.append(run.config.seed))
    run.start(DIFFICULTY_NET.model_copy(update={"seed": 1}))
    run.resume(run.state(), run.config, "the state")
    assert resets == [1, 1]


def test_the_mistakes_on_val_are_noted_in_epochs_that_are_the_best_so_far() -> None:
    run = started(DIFFICULTY_NET.model_copy(update={"epochs": 8}))
    images, labels = images_of(run.loaded.val, len(run.loaded.val))
    accuracies: list[float] = []
    for _ in range(8):
        accuracy, noted = run.run_epoch()["val/acc"], run.class_table()["mistaken_for"]
        if accuracy > max(accuracies, default=0):
            predicted = run.classifier.eval()(images).argmax(1)
            wrong = [sorted(predicted[(labels == c) & (predicted != c)].tolist()) for c in range(10)]
            assert noted == wrong
            run.classifier.train()
        else:
            assert noted == [None] * 10
        accuracies.append(accuracy)
    assert 1 < len(set(itertools.accumulate(accuracies, max))) < len(accuracies)


@pytest.mark.parametrize("val", ["separate", "meta"])
def test_class_accuracies_are_measured_before_the_first_step_of_an_epoch(val: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = started(DIFFICULTY_NET.model_copy(update={"data": DIFFICULTY_NET.data.model_copy(update={"val": val})}))
    images, labels = images_of(run.loaded.meta, 100)

    def accuracies() -> torch.Tensor:
        predicted = run.classifier.eval()(images).argmax(1)
        run.classifier.train()
        return torch.stack([(predicted[labels == c] == c).double().mean() for c in range(10)])

    expected, seen = accuracies(), []
    refresh = run.method.refresh
    monkeypatch.setattr(run.method, "refresh", lambda accuracy: (seen.append(accuracy.clone()), refresh(accuracy)))
    run.run_epoch()
    assert torch.equal(seen[0], expected)
    assert len(seen) == 2  # an interval of half an epoch
    expected = accuracies()
    run.run_epoch()
    assert torch.equal(seen[2], expected)


@pytest.mark.parametrize(
    ("interval", "due"),
    [
        (1.0, [0, 8, 16, 24]),
        (0.14, [0, 2, 3, 4, 5, 6, 7, 8, 9, 11]),
        (3.5, [0, 28]),
        (0.25, [0, 2, 4, 6, 8, 10, 12, 14, 16]),
        (2.0, [0, 16, 32]),
        (0.01, range(40)),
    ],
)
def test_refreshes_come_as_often_as_the_interval_says(interval: float, due: list[int]) -> None:
    steps = [step for step in range(40) if refresh_due(interval, step, steps_per_epoch=8)]
    assert steps[: len(due)] == list(due)


def test_a_refresh_that_is_due_exactly_is_not_late_by_rounding() -> None:
    assert refresh_due(0.14, step=28, steps_per_epoch=8)  # 25 periods of 1.12 steps
    count = sum(refresh_due(0.14, step, steps_per_epoch=8) for step in range(2800))
    assert count == 2500  # 2800 steps are 2500 periods


def test_a_method_that_does_not_look_is_never_refreshed() -> None:
    assert not any(refresh_due(None, step, 8) for step in range(20))


def test_a_step_size_that_blows_up_ends_as_diverged_with_the_quantity() -> None:
    run = started(TrialConfig(epochs=3, method=CrossEntropyConfig(), optim=OptimConfig(lr=1e30)))
    with pytest.raises(Diverged, match=r"train/(loss|grad_norm) became (nan|inf) in step \d"):
        run_epochs(run, 3)


def test_a_meta_set_with_a_broken_pixel_ends_the_trial_at_the_meta_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    run = started(DIFFICULTY_NET)
    run_epochs(run, 1)
    batches = run.loaded.meta.batches
    broken = {3: math.inf}  # the fourth image of each meta batch
    monkeypatch.setattr(
        run.loaded.meta,
        "batches",
        lambda requests: (
            batch._replace(images=batch.images.index_fill(0, torch.tensor(list(broken)), math.inf)) for batch in batches(requests)
        ),
    )
    with pytest.raises(Diverged, match=rf"^meta/loss became nan in step {run.steps_per_epoch + 1}$"):
        run_epochs(run, 1)


def test_the_comparison_with_double_backward_becomes_a_metric() -> None:
    config = DIFFICULTY_NET.model_copy(update={"bilevel": BilevelConfig(check_interval=2, meta_interval=2)})
    assert started(config).run_epoch()["meta/grad_cosine"] == pytest.approx(1, abs=1e-6)
    assert "meta/grad_cosine" not in started(DIFFICULTY_NET).run_epoch()


def test_zero_meta_gradients_are_counted_over_a_restart(tmp_path: Path) -> None:
    run = started(DIFFICULTY_NET)
    run.health.zero_updates = 7
    run.save(tmp_path)
    resumed = TrialRun()
    resumed.load(tmp_path, DIFFICULTY_NET)
    assert resumed.health.zero_updates == 7


def test_later_trials_trace_nothing_whatever_their_method_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Except that the first without a meta step is traced without forward mode."""
    run = started(DIFFICULTY_NET)
    run_epochs(run, 1)
    run.start(DIFFICULTY_NET.model_copy(update={"method": CrossEntropyConfig()}))
    run_epochs(run, 1)
    monkeypatch.setattr(trainables.engine.linearize, "trace", lambda *given: pytest.fail("traced again"))
    for method in (DifficultyNetConfig(hidden_width=13), MetaWeightNetConfig(), MFRWConfig(), L2RWConfig(), FocalConfig()):
        run.start(DIFFICULTY_NET.model_copy(update={"method": method, "seed": 5}))
        run_epochs(run, 1)
    run.start(DIFFICULTY_NET.model_copy(update={"classifier": SmallCNNConfig(head="cosine", scale=9.0)}))
    run_epochs(run, 1)


@pytest.mark.parametrize(
    "compute", [{"precision": "bf16"}, {"channels_last": True}, {"precision": "bf16", "channels_last": True}]
)
def test_other_ways_to_compute_train_alike(compute: dict[str, Any]) -> None:
    plain = run_epochs(started(DIFFICULTY_NET), 2)[-1]
    run = started(DIFFICULTY_NET.model_copy(update={"compute": ComputeConfig(**compute)}))
    other = run_epochs(run, 2)[-1]
    second_convolution = run.classifier.backbone[3].weight
    assert second_convolution.dtype == torch.float32
    assert second_convolution.is_contiguous(memory_format=torch.channels_last) is ("channels_last" in compute)
    pixels, labels = images_of(run.loaded.train, 4)
    batch = ImageBatch(pixels.repeat(1, 3, 1, 1), labels, torch.arange(4))  # with one channel, first and last are the same
    images = run._batch(batch).images
    assert images.is_contiguous(memory_format=torch.channels_last) is ("channels_last" in compute)
    assert (abs(other["train/loss"] / plain["train/loss"] - 1) > 1e-5) is ("precision" in compute)
    for name in ("train/loss", "meta/loss"):
        assert other[name] == pytest.approx(plain[name], rel=0.05)


def test_gradients_lie_in_memory_as_their_parameters_do() -> None:
    """With the digits' one channel, a convolution hands out gradients with the channels last."""
    run = started(DIFFICULTY_NET)
    run_epochs(run, 1)
    assert all(parameter.grad.stride() == parameter.stride() for parameter in run.classifier.parameters())


def test_only_batches_of_the_usual_sizes_are_compiled() -> None:
    small = DIFFICULTY_NET.model_copy(update={"compute": ComputeConfig(compile=True), "data": DigitsConfig(meta_per_class=5)})
    assert started(small)._traced.linearizer._compiled_batch_sizes == (32, 50)
    assert started(DIFFICULTY_NET)._traced.linearizer._compiled_batch_sizes == ()


def test_a_crop_belongs_to_the_training_images_alone() -> None:
    config = DIFFICULTY_NET.model_copy(update={"data": DigitsConfig(augment=["crop_flip"])})
    run = started(config)
    loaded = run.loaded
    order = training_order(torch.from_numpy(loaded.data.train.labels), config.optim.batch_size, config.seed, 1)
    steps = list(run.batches())
    assert [step for _, _, step in steps] == list(range(len(order)))
    for positions, (batch, meta_batch, step) in zip(order, steps, strict=True):
        meta_request = Request(meta_order(len(loaded.meta), 100, config.seed, step))
        assert torch.equal(meta_batch.images, next(loaded.meta.batches([meta_request]))[0])
        images, labels, *_ = next(loaded.train.batches([Request(positions)]))
        assert torch.equal(batch.labels, labels)
        assert not torch.equal(batch.images, images)


def test_every_epoch_has_an_order_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = []

    def spy(*arguments: Any) -> list[torch.Tensor]:
        orders.append(training_order(*arguments))
        return orders[-1]

    monkeypatch.setattr(trainables.trial_run, "training_order", spy)
    run_epochs(started(TrialConfig(epochs=2, method=CrossEntropyConfig())), 2)
    first, second = (torch.cat(order) for order in orders)
    assert sorted(first.tolist()) == sorted(second.tolist())
    assert first.tolist() != second.tolist()


def test_phi_and_theta_start_from_different_numbers() -> None:
    run = started(DIFFICULTY_NET)
    phi, theta = (next(module.parameters()).flatten()[:4] for module in (run.classifier, run.method))
    torch.testing.assert_close(torch.corrcoef(torch.stack([phi, theta])).abs()[0, 1] < 0.99, torch.tensor(True))


def test_cross_entropy_falls_and_has_no_meta_metrics() -> None:
    epochs = run_epochs(started(TrialConfig(epochs=5, method=CrossEntropyConfig())), 5)
    assert epochs[-1]["train/loss"] < 0.3 * epochs[0]["train/loss"]
    assert set(epochs[0]) == {"train/loss", "val/acc", "val/plain_acc", "val/acc_many", "val/acc_medium", "val/acc_few"}


def test_difficulty_net_reports_a_meta_gradient_that_is_alive() -> None:
    epochs = run_epochs(started(DIFFICULTY_NET), 3)
    assert all(epoch["meta/grad_norm"] > 0 for epoch in epochs)
    assert {"meta/loss", "meta/driver_loss", "meta/acc", "difficulty/kl_uniform"} <= set(epochs[0])


def test_val_accuracy_is_what_a_plain_loop_finds() -> None:
    run = started(TrialConfig(epochs=1, method=CrossEntropyConfig()))
    metrics = run.run_epoch()
    images, labels = images_of(run.loaded.val, len(run.loaded.val))
    run.classifier.eval()
    hits = [int(run.classifier(image[None]).argmax()) == int(label) for image, label in zip(images, labels, strict=True)]
    few = [hit for hit, label in zip(hits, labels, strict=True) if run.class_counts[label] < 20]
    assert metrics["val/acc"] == pytest.approx(sum(hits) / len(hits))
    assert metrics["val/acc_few"] == pytest.approx(sum(few) / len(few))
    assert math.isnan(metrics["val/acc_many"])  # no class has more than 100 images


@pytest.mark.parametrize("method", [DIFFICULTY_NET.method, MetaWeightNetConfig(), L2RWConfig()])
def test_the_weight_of_a_class_is_the_mean_weight_that_its_images_got(
    method: MethodConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started(DIFFICULTY_NET.model_copy(update={"method": method}))
    run_epochs(run, 1)  # of another epoch, nothing is left
    got: dict[int, list[float]] = {}
    sample_weights = run.method.sample_weights

    def remembering(context: Context, state: Any) -> torch.Tensor:
        weights = sample_weights(context, state)
        for label, weight in zip(context.labels.tolist(), weights.tolist(), strict=True):
            got.setdefault(label, []).append(weight)
        return weights

    monkeypatch.setattr(run.method, "sample_weights", remembering)
    run.run_epoch()
    assert run.class_table()["weight"] == pytest.approx([statistics.fmean(got[label]) for label in range(10)])


def test_the_table_by_class_says_what_theta_says() -> None:
    run = started(DIFFICULTY_NET)
    run.run_epoch()
    table = run.class_table()
    assert table["train_count"] == [90, 58, 37, 24, 15, 10, 6, 4, 2, 1]
    assert all(0 < difficulty < 1 for difficulty in table["difficulty"])
    assert sum(table["accuracy"]) / 10 == pytest.approx(run.best.metrics["val/acc"])
    plain = started(TrialConfig(method=CrossEntropyConfig()))
    plain.run_epoch()
    assert plain.class_table()["weight"] == [1.0] * 10
    assert plain.class_table()["difficulty"] == [None] * 10


def test_the_best_epoch_keeps_its_own_weights() -> None:
    run = started(TrialConfig(epochs=8, method=CrossEntropyConfig()))
    accuracies = [epoch["val/acc"] for epoch in run_epochs(run, 8)]
    assert run.best.epoch == accuracies.index(max(accuracies)) + 1
    run.classifier.load_state_dict(run.best.phi)
    run.classifier.eval()
    images, labels = images_of(run.loaded.val, len(run.loaded.val))
    assert (run.classifier(images).argmax(1) == labels).float().mean().item() == pytest.approx(max(accuracies))


def test_selecting_by_a_band_without_classes_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"select_by is val/acc_many, but no class .*; allowed: val/acc, val/acc_medium, val/acc_few"
    ):
        TrialRun().start(TrialConfig(select_by="val/acc_many"))
    TrialRun().start(TrialConfig(select_by="val/acc_few", data=DigitsConfig()))


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    with pytest.raises(ValueError, match="device is cuda"):
        choose_device("cuda")


@pytest.mark.parametrize("sampler", ["class_balanced", "square_root"])
def test_the_sampler_of_the_settings_draws_the_batches(sampler: str) -> None:
    config = TrialConfig(method=CrossEntropyConfig(), optim=OptimConfig(sampler=sampler))
    labels = torch.cat([batch.labels for batch, _, _ in started(config).batches()])
    order = training_order(torch.from_numpy(started(config).loaded.data.train.labels), 32, 0, 1, sampler)
    assert torch.equal(labels, torch.from_numpy(started(config).loaded.data.train.labels)[torch.cat(order)])


def test_a_step_asks_for_a_meta_batch_only_when_theta_is_due() -> None:
    run = started(DIFFICULTY_NET.model_copy(update={"bilevel": BilevelConfig(meta_interval=3)}))
    assert [meta_batch is not None for _, meta_batch, _ in run.batches()] == [step % 3 == 0 for step in range(8)]


@pytest.mark.parametrize(("seconds", "steps"), [(30, 1), (9, 2)])
def test_of_slow_steps_few_are_timed(seconds: float, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrialConfig(epochs=2, data=GeneratedConfig(n_max=30, imbalance_factor=1), method=CrossEntropyConfig())
    run, clock = started(config), Clock()
    monkeypatch.setattr(trainables.trial_run, "time", clock)
    slow_down(run.loaded.train, clock, monkeypatch, seconds)
    began = clock.now
    assert run.time_epoch(5) == pytest.approx(run.stage.steps_per_epoch * seconds)
    assert clock.now - began == steps * seconds


@pytest.mark.parametrize("limit_s", [10, 0])  # two epochs, or one step
def test_an_epoch_takes_as_long_as_it_is_said_to(limit_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training batch takes a fifth of a second here, a val batch a second, and nothing else takes any time."""
    config = TrialConfig(epochs=2, data=GeneratedConfig(n_max=30, imbalance_factor=1), method=CrossEntropyConfig())
    run, clock = started(config), Clock()
    monkeypatch.setattr(trainables.trial_run, "time", clock)
    slow_down(run.loaded.train, clock, monkeypatch, seconds=0.2)
    slow_down(run.loaded.val, clock, monkeypatch, seconds=1)
    estimate = run.time_epoch(limit_s)
    began = clock.now
    run.run_epoch()
    assert estimate == pytest.approx(clock.now - began)


def test_the_time_of_a_step_is_that_of_the_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training batch takes a fifth of a second here, the measuring of accuracies a minute, and tracing an hour."""
    config = with_method(DIFFICULTY_NET.model_copy(update={"bilevel": BilevelConfig(meta_interval=3)}), refresh_interval=0.25)
    run, clock = started(config), Clock()
    measure, trace = trainables.trial_run.class_accuracies, trainables.engine.linearize.trace

    def slowly(function: Any, seconds: float) -> Any:
        def slow(*arguments: Any) -> Any:
            clock.now += seconds
            return function(*arguments)

        return slow

    monkeypatch.setattr(trainables.trial_run, "time", clock)
    monkeypatch.setattr(trainables.trial_run, "class_accuracies", slowly(measure, 60))
    monkeypatch.setattr(trainables.engine.linearize, "trace", slowly(trace, 3600))
    slow_down(run.loaded.train, clock, monkeypatch, seconds=0.2)
    first, second = run.run_epoch(), run.run_epoch()
    assert first["time/step_ms"] == pytest.approx(200)
    assert second["time/step_ms"] == pytest.approx(200)
    assert first["time/epoch_s"] > 3600
    assert second["time/epoch_s"] == pytest.approx(8 * 0.2 + (3 + 2) * 60)
    # Before steps 2, 4 and 6, and after them on val and meta; before the first step, what was measured last holds still.


def test_a_trial_that_is_asked_reports_what_it_takes_of_its_machine() -> None:
    assert not [name for name in started(DIFFICULTY_NET).run_epoch() if name.startswith("system/")]
    compute = ComputeConfig(system_metrics=True)
    before_s = time.process_time()
    found = started(DIFFICULTY_NET.model_copy(update={"compute": compute})).run_epoch()
    assert 0 < found["system/cpu_cores"] * found["time/epoch_s"] <= time.process_time() - before_s
    assert found["system/memory_gib"] == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, rel=0.1)


def test_an_epoch_whose_only_step_traces_has_no_time_of_a_step() -> None:
    data = DigitsConfig(n_max=2, imbalance_factor=1)
    run = started(DIFFICULTY_NET.model_copy(update={"data": data, "optim": OptimConfig(batch_size=20)}))
    first, second = run.run_epoch(), run.run_epoch()
    assert math.isnan(first["time/step_ms"])
    assert 0 < second["time/step_ms"] < 1e3 * second["time/epoch_s"]


def test_a_checkpoint_of_other_images_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = started(DIFFICULTY_NET)
    run.save(tmp_path)
    other = build_data(DIFFICULTY_NET.data, DIFFICULTY_NET.seed + 1)
    monkeypatch.setattr(trainables.data.loaded, "build_data", lambda config, seed: other)
    with pytest.raises(ValueError, match=r"belongs to other images or labels: the split's sha256 was [0-9a-f]{64}"):
        TrialRun().load(tmp_path, DIFFICULTY_NET)


def test_equal_weights_train_like_cross_entropy() -> None:
    """With the weighting network at its start and mean-one weights near 1, both methods see almost the same loss."""
    plain = started(TrialConfig(epochs=1, method=CrossEntropyConfig()))
    images, labels = images_of(plain.loaded.train, 32)
    run = started(TrialConfig(epochs=1, method=DifficultyNetConfig(hidden_width=8)))
    for parameter in run.method.network[-2].parameters():
        torch.nn.init.zeros_(parameter)  # sigmoid(0) for every class
    features = plain.classifier.backbone(images)
    context = Context(run.method, plain.classifier.head, features.detach(), labels, torch.arange(32), Moment.zero())
    loss = run.method.train_loss(plain.classifier.head, features, context, run.method.begin_batch(context))
    torch.testing.assert_close(loss, F.cross_entropy(plain.classifier(images), labels), rtol=1e-5, atol=1e-6)
