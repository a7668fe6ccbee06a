"""What trials share, and the sealed test set at the end of a trial."""

from pathlib import Path
from typing import Any

import pytest

from trainables.checkpoint import pack, unpack
from trainables.classifier_config import SmallCNNConfig
from trainables.config import OptimConfig, TrialConfig
from trainables.data import build_data
from trainables.data_config import DigitsConfig, GeneratedConfig
from trainables.export_model import read_test, write_model
from trainables.loss_config import CrossEntropyConfig, FocalConfig
from trainables.trial_run import TrialRun

TINY = {"num_classes": 3, "images_per_class": 40, "image_size": 6, "n_max": 12, "imbalance_factor": 3.0, "val_per_class": 4}
THINGS = {"split", "test", "weights", "order", "augmentation"}


def trial(**changed: Any) -> TrialConfig:
    data = GeneratedConfig(**{**TINY, "test_per_class": 10, "meta_per_class": 4, **changed.pop("data", {})})
    return TrialConfig(
        **{
            "epochs": 3,
            "device": "cpu",
            "data": data,
            "classifier": SmallCNNConfig(widths=[3, 4]),
            "method": CrossEntropyConfig(),
            "optim": OptimConfig(batch_size=7),
            **changed,
        }
    )


def done(config: TrialConfig) -> TrialRun:
    run = TrialRun()
    run.start(config)
    while run.epoch < config.epochs:
        run.run_epoch()
    return run


def shared(first: TrialConfig, second: TrialConfig) -> set[str]:
    one, other = (done(config).pairing_digests() for config in (first, second))
    assert one.keys() == other.keys() == THINGS
    return {thing for thing in THINGS if one[thing] == other[thing]}


AUGMENTED = {"augment": ["crop_flip"]}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"method": FocalConfig()}, THINGS),
        ({"optim": OptimConfig(batch_size=7, lr=0.3)}, THINGS),
        ({"classifier": SmallCNNConfig(widths=[3, 5])}, THINGS - {"weights"}),
        ({"optim": OptimConfig(batch_size=7, sampler="class_balanced")}, THINGS - {"order"}),
        ({"data": AUGMENTED | {"imbalance_factor": 2.0}}, {"test", "weights"}),
        ({"data": AUGMENTED | {"mix": "mixup"}}, THINGS - {"augmentation"}),
        ({"data": {}}, THINGS - {"augmentation"}),
        ({"seed": 1}, {"test"}),
    ],
)
def test_trials_share_what_their_settings_do_not_touch(changes: dict[str, Any], expected: set[str]) -> None:
    base = {"data": AUGMENTED}
    found = shared(trial(**base), trial(**{**base, **changes}))
    # Another tail has another number of batches, and so of draws.
    assert found - {"augmentation"} == expected - {"augmentation"}
    assert ("augmentation" in found) == ("augmentation" in expected) or "imbalance_factor" in str(changes)


def test_a_resumed_trial_has_the_digests_of_an_unbroken_one() -> None:
    config = trial(data=AUGMENTED)
    whole, cut, resumed = done(config), TrialRun(), TrialRun()
    cut.start(config)
    cut.run_epoch()
    resumed.resume(unpack(pack(cut.state()), "x"), config, "x")
    resumed.run_epoch()
    resumed.run_epoch()
    assert resumed.pairing_digests() == whole.pairing_digests()
    assert cut.pairing_digests()["order"] != whole.pairing_digests()["order"]


def test_the_test_set_is_read_at_the_end_with_the_models_of_the_best_and_of_the_last_epoch(tmp_path: Path) -> None:
    config = trial(epochs=6, read_test=True, data={"images_per_class": 60, "test_per_class": 30})
    run = TrialRun()
    run.start(config)
    metrics = [run.run_epoch() for _ in range(6)]
    assert not any(name.startswith("test") for before in metrics[:-1] for name in before)
    assert run.best is not None
    for prefix, phi in (("test", run.best.phi), ("test_last", run.classifier.state_dict())):
        write_model(tmp_path / "model", phi, config, run.loaded.data, run.loaded.format)
        for name, value in read_test(tmp_path / "model").items():
            assert metrics[-1][name.replace("test/", f"{prefix}/")] == pytest.approx(value, nan_ok=True)
    assert not any(name.startswith("test") for name in run.best.metrics)


def test_the_best_epoch_of_an_earlier_stage_is_read_with_its_own_head(tmp_path: Path) -> None:
    stages = [{"name": "representation"}, {"name": "lws", "epochs": 1}]
    tree = trial(epochs=4, read_test=True).model_dump() | {"stages": stages}
    run = TrialRun()
    run.start(TrialConfig.model_validate(tree))
    for _ in range(3):
        run.run_epoch()
    assert run.best is not None
    run.best.metrics["val/acc"] = 2.0  # no later epoch is better
    phi, epoch = run.best.phi, run.best.epoch
    found = run.run_epoch()
    write_model(tmp_path / "model", phi, run.config, run.loaded.data, run.loaded.format, epoch)
    assert found["test/acc"] == pytest.approx(read_test(tmp_path / "model")["test/acc"])


def test_the_next_trial_in_the_process_is_not_disturbed_by_the_reading() -> None:
    expected = done(trial(seed=3)).best
    run = TrialRun()
    for config in (trial(seed=2, read_test=True), trial(seed=3)):
        run.start(config)
        while run.epoch < config.epochs:
            metrics = run.run_epoch()
    assert expected is not None
    assert run.best is not None
    assert run.best.metrics["val/acc"] == expected.metrics["val/acc"]
    assert not any(name.startswith("test") for name in metrics)


@pytest.mark.parametrize("changes", [{"meta_per_class": 2}, {"val": "meta"}, {"meta": "from_train"}])
def test_with_a_reserve_meta_sets_of_another_size_or_kind_leave_the_other_sets_alone(changes: dict[str, Any]) -> None:
    given = {"imbalance_factor": 10, "n_max": 40, "meta_per_class": 6, "meta_reserve": 8}
    one, other = (build_data(DigitsConfig.model_validate(given | more), 0) for more in ({}, changes))
    assert (one.split.train == other.split.train).all()
    assert (one.split.test == other.split.test).all()
    assert len(one.meta) == 60
    if "meta_per_class" in changes:
        assert len(other.meta) == 20
        assert set(other.split.meta) < set(one.split.meta)
        assert (one.split.val == other.split.val).all()
    assert set(one.split.train).isdisjoint(one.split.meta)
    assert len(other.split.val) == (0 if "val" in changes else len(one.split.val))


def test_a_reserve_smaller_than_the_meta_set_is_refused() -> None:
    with pytest.raises(ValueError, match="meta_per_class is 10, but meta_reserve is 8; allowed: meta_per_class 1 to 8"):
        DigitsConfig(meta_per_class=10, meta_reserve=8)
