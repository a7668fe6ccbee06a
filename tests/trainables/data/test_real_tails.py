"""Real long tails: classes of a few images or one, meta batches from the training set, and sets that share the tail."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from miniatures import photograph
from pydantic import ValidationError

from trainables.classifier_config import SmallCNNConfig
from trainables.config import BilevelConfig, ComputeConfig, OptimConfig, TrialConfig
from trainables.data import build_data
from trainables.data.inspection import all_ids, sets_of
from trainables.data.loader import Request, balanced_meta_orders
from trainables.data.manifest import check_manifest, write_manifest
from trainables.data_config import DigitsConfig, GeneratedConfig, ImageFolderConfig, LongTailConfig, NoiseConfig
from trainables.evaluate import accuracy_metrics, without_gaps
from trainables.export_model import read_test, write_model
from trainables.method_config import DifficultyNetConfig
from trainables.trial_run import TrialRun

SIZES = (60, 20, 5, 1)
FROM_TRAIN: dict[str, Any] = {"meta": "from_train", "at_least_per_class": 0, "val_per_class": 5, "test_per_class": 10}


def pets(root: Path, sizes: tuple[int, ...] = SIZES, **settings: Any) -> ImageFolderConfig:
    """A folder with so many images of each class."""
    for c, size in enumerate(sizes):
        for number in range(size):
            file = root / f"class{c}" / f"{number:02}.png"
            if not file.exists():
                photograph(file, c, number)
    return ImageFolderConfig.model_validate({"root": str(root), "loading": "memory", "image_size": 8, "augment": []} | settings)


def counts(config: LongTailConfig, seed: int = 0) -> dict[str, list[int]]:
    data = build_data(config, seed)
    num_classes = len(data.class_names)
    return {
        name: np.bincount(getattr(data, name).labels, minlength=num_classes).tolist() for name in ("train", "meta", "val", "test")
    }


def trial(data: LongTailConfig) -> TrialConfig:
    return TrialConfig(
        epochs=2,
        device="cpu",
        data=data,
        classifier=SmallCNNConfig(),
        method=DifficultyNetConfig(hidden_width=8, meta_lr=1e-2),
        optim=OptimConfig(batch_size=16),
        bilevel=BilevelConfig(meta_batch_size=10),
        compute=ComputeConfig(readers=0),
    )


def started(config: TrialConfig) -> TrialRun:
    run = TrialRun()
    run.start(config)
    return run


def test_small_classes_give_what_they_can_and_one_note_lists_them(tmp_path: Path) -> None:
    config = pets(tmp_path, at_least_per_class=0)  # 10 for meta, 10 for val and 20 for test, of a class that is large enough
    assert counts(config) == {"train": [30, 10, 3, 1], "meta": [7, 2, 0, 0], "val": [8, 3, 1, 0], "test": [15, 5, 1, 0]}
    _, note = build_data(config, 0).notes
    assert note.startswith("data.at_least_per_class is 0: 4 of 4 classes are too small")
    assert "class 2 (class2): meta 0, val 1, test 1; class 3 (class3): meta 0, val 0, test 0" in note
    sets = [set(getattr(build_data(config, 0), name).ids) for name in ("train", "meta", "val", "test")]
    assert sum(map(len, sets)) == len(set.union(*sets)) == sum(SIZES)


def test_large_classes_are_balanced_and_without_small_ones_there_is_no_note(tmp_path: Path) -> None:
    config = pets(tmp_path, (30, 16), at_least_per_class=0, meta_per_class=2, val_per_class=2, test_per_class=4)
    plain = pets(tmp_path, (30, 16), meta_per_class=2, val_per_class=2, test_per_class=4)
    assert counts(config)["test"] == [4, 4]
    (same_pool,) = build_data(config, 0).notes
    assert "meta, val and test come from the same images as train" in same_pool
    assert build_data(config, 0).sha256 == build_data(plain, 0).sha256


@pytest.mark.parametrize("floor", [1, 2, 3])
def test_each_balanced_set_has_at_least_the_floor_of_every_class(tmp_path: Path, floor: int) -> None:
    sizes = (60, 20, 3 * floor + 1)
    found = counts(pets(tmp_path, sizes, at_least_per_class=floor))
    assert all(min(found[name]) >= floor for name in ("meta", "val", "test"))
    assert found["train"][-1] == 1
    with pytest.raises(ValueError, match=f"data.at_least_per_class is {floor + 1}, but class 2 .* lower it to at most {floor}$"):
        build_data(pets(tmp_path, sizes, at_least_per_class=floor + 1), 0)


def test_a_class_that_is_too_small_is_refused_with_a_cure_that_works(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"class 3 \(class3\) has only 1.*data.at_least_per_class=0 lets small classes"):
        build_data(pets(tmp_path), 0)
    build_data(pets(tmp_path, at_least_per_class=0), 0)
    with pytest.raises(ValueError, match=r"data.meta_per_class is 10, but no class .*; data.meta=from_train needs none"):
        build_data(pets(tmp_path / "tiny", (2, 1), at_least_per_class=0), 0)


def test_own_parts_may_lack_small_classes(tmp_path: Path) -> None:
    for part, sizes in (("train", (9, 4, 1)), ("val", (6, 1, 0)), ("test", (5, 2, 0))):
        for c, size in enumerate(sizes):
            for number in range(size):
                photograph(tmp_path / part / f"class{c}" / f"{part}{number}.png", c, number)
    settings = {"root": str(tmp_path), "test_per_class": None, "meta_per_class": 3, "val_per_class": 3}
    found = counts(ImageFolderConfig(at_least_per_class=0, **settings))
    assert found == {"train": [9, 4, 1], "meta": [3, 0, 0], "val": [3, 1, 0], "test": [5, 2, 0]}


def test_a_test_set_shares_the_tail_of_the_pool_or_of_the_profile(tmp_path: Path) -> None:
    shared = pets(tmp_path, **(FROM_TRAIN | {"test_distribution": "long_tailed", "test_per_class": 4}))
    assert counts(shared)["test"] == [11, 4, 1, 0]  # 16 images, as 60 : 20 : 5 : 1
    made = DigitsConfig(n_max=50, imbalance_factor=25, test_distribution="long_tailed", test_per_class=10, val_per_class=10)
    found = counts(made)
    assert abs(sum(found["test"]) - 100) <= 5
    expected = np.array(found["train"]) * 100 / sum(found["train"])
    assert np.abs(np.array(found["test"]) - expected).max() <= 0.5


def test_meta_draws_from_the_training_set_are_balanced_to_one_image_per_class_over_an_epoch() -> None:
    labels = torch.from_numpy(np.random.default_rng(0).permutation(np.repeat([0, 1, 3, 4], [60, 20, 5, 1])))  # no class 2
    for number, size in ((7, 10), (1, 3), (50, 128)):
        orders = balanced_meta_orders(labels, size, seed=3, epoch=2, number=number)
        assert [len(order) for order in orders] == [size] * number
        drawn = torch.bincount(labels[torch.cat(orders)], minlength=5)[[0, 1, 3, 4]]
        assert drawn.max() - drawn.min() <= 1
    assert len(torch.cat(orders).unique()) == len(labels)  # every image is drawn at some time
    assert balanced_meta_orders(labels, 10, 3, 2, 0) == []
    again, other = (torch.cat(balanced_meta_orders(labels, 10, 3, epoch, 9)) for epoch in (2, 3))
    assert torch.equal(again, torch.cat(balanced_meta_orders(labels, 10, 3, 2, 9)))
    assert not torch.equal(again, other)


def test_meta_from_train_takes_no_image_away_and_reports_no_duplicates(tmp_path: Path) -> None:
    data = build_data(pets(tmp_path, **FROM_TRAIN), 0)
    assert data.meta is data.train
    assert len(data.split.meta) == 0
    assert len(all_ids(data)) == len(set(all_ids(data))) == sum(SIZES)
    assert "meta" not in sets_of(data)


@pytest.mark.parametrize("loading", ["memory", "stream"])
@pytest.mark.parametrize("meta", [FROM_TRAIN, {"at_least_per_class": 0}])
def test_a_folder_with_a_class_of_one_image_trains(tmp_path: Path, meta: dict[str, Any], loading: str) -> None:
    config = trial(pets(tmp_path, loading=loading, **meta))
    run = started(config)
    assert 1 in run.class_counts.tolist()
    for _ in range(2):
        metrics = run.run_epoch()
        assert all(math.isfinite(metrics[name]) for name in ("val/acc", "val/plain_acc", "meta/acc", "meta/driver_loss"))
    table = run.class_table()
    assert table["accuracy"][3] is None  # val has no image of the class
    json.dumps(table, allow_nan=False)
    assert all(0 < difficulty < 1 for difficulty in table["difficulty"])  # type: ignore[operator]
    if meta is not FROM_TRAIN:
        seen = table["meta_accuracy"]
        assert seen[3] == pytest.approx(np.mean(seen[:2]))  # type: ignore[arg-type]  # meta has images of two classes


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_a_resumed_trial_draws_the_same_meta_batches(tmp_path: Path, loading: str) -> None:
    config = trial(pets(tmp_path / "images", loading=loading, **FROM_TRAIN))
    whole = started(config)
    whole.run_epoch()
    whole.save(tmp_path / "saved")
    expected = whole.run_epoch()
    resumed = TrialRun()
    resumed.load(tmp_path / "saved", config)
    found = resumed.run_epoch()
    times = {"time/step_ms", "time/epoch_s"}
    assert str({k: v for k, v in found.items() if k not in times}) == str({k: v for k, v in expected.items() if k not in times})
    for ours, theirs in zip(resumed.method.parameters(), whole.method.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_workers_share_a_meta_batch_that_repeats_images(tmp_path: Path, loading: str) -> None:
    loaded = started(trial(pets(tmp_path, loading=loading, **FROM_TRAIN))).loaded
    labels = torch.from_numpy(loaded.data.train.labels)
    (order,) = balanced_meta_orders(labels, 120, 0, 1, 1)
    ((whole, of_whole, *_),) = loaded.meta.batches([Request(order)])
    shares = [next(loaded.meta.batches([Request(order, share=half)])) for half in (slice(0, 60), slice(60, 120))]
    assert torch.equal(torch.cat([batch.images for batch in shares]), whole)
    assert all(torch.equal(batch.labels, of_whole) for batch in shares)


def test_plain_and_balanced_accuracy_equal_those_computed_from_predictions(tmp_path: Path) -> None:
    data = pets(tmp_path / "images", val_distribution="long_tailed", test_distribution="long_tailed", **FROM_TRAIN)
    config = trial(data)
    run = started(config)
    run.run_epoch()
    metrics = run.run_epoch()
    write_model(tmp_path / "model", run.classifier.state_dict(), config, run.loaded.data, run.loaded.format)
    tested = read_test(tmp_path / "model")
    test = run.loaded.store
    test.hold(np.concatenate([run.loaded.data.val.ids, run.loaded.data.test.ids]))
    run.classifier.eval()
    for prefix, found in (("val", metrics), ("test", tested)):
        part = test.load(getattr(run.loaded.data, prefix), run.loaded.format)
        ((pixels, labels, *_),) = part.batches([Request(torch.arange(len(part)))])
        right = (run.classifier(pixels).argmax(1) == labels).numpy()
        truth = labels.numpy()
        recalls = [right[truth == c].mean() for c in np.unique(truth)]
        assert found[f"{prefix}/acc"] == pytest.approx(np.mean(recalls))
        assert found[f"{prefix}/plain_acc"] == pytest.approx(right.mean())


def test_plain_and_balanced_accuracy_differ_on_a_tail_and_agree_on_a_balanced_set() -> None:
    accuracy, training = torch.tensor([1.0, 0.5, math.nan]), torch.tensor([200, 50, 1])
    tail = accuracy_metrics("val", accuracy, training, torch.tensor([8, 2, 0]))
    assert tail["val/acc"] == 0.75
    assert tail["val/plain_acc"] == 0.9
    assert tail["val/acc_many"] == 1.0
    assert math.isnan(tail["val/acc_few"])  # its only class is absent
    even = accuracy_metrics("val", accuracy, training, torch.tensor([4, 4, 0]))
    assert even["val/acc"] == even["val/plain_acc"]
    assert without_gaps(accuracy).tolist() == [1.0, 0.5, 0.75]


def test_clean_counts_stand_beside_the_counts_that_the_trainer_sees() -> None:
    noisy = GeneratedConfig(noise=NoiseConfig(kind="symmetric", rate=0.8))
    run = started(trial(noisy))
    table = run.class_table()
    assert table["clean_count"] == counts(GeneratedConfig())["train"]
    assert table["train_count"] == run.loaded.data.class_counts.tolist() != table["clean_count"]


def test_records_of_unchanged_settings_stay_as_they_were(tmp_path: Path) -> None:
    new = {"meta", "at_least_per_class", "val_distribution", "test_distribution"}
    config = GeneratedConfig()
    assert not new & config.model_dump().keys()
    tails = GeneratedConfig(meta="from_train", at_least_per_class=1, val_distribution="long_tailed")
    assert new - {"test_distribution"} <= tails.model_dump().keys()
    assert GeneratedConfig.model_validate(tails.model_dump()) == tails
    write_manifest(tmp_path / "split.json", tails, 0, build_data(tails, 0))
    assert check_manifest(tmp_path / "split.json", tails, 0, build_data(tails, 0))
    assert not check_manifest(tmp_path / "split.json", config, 0, build_data(config, 0))


def test_the_test_set_of_a_real_tail_is_the_same_for_every_seed(tmp_path: Path) -> None:
    for settings in (FROM_TRAIN, {"at_least_per_class": 0, "test_distribution": "long_tailed"}):
        first, second = (build_data(pets(tmp_path, **settings), seed) for seed in (0, 1))
        assert first.test.ids.tolist() == second.test.ids.tolist()
        assert first.val.ids.tolist() != second.val.ids.tolist()
        held, out = (build_data(pets(tmp_path, fixed_sets="held_out", **settings), seed) for seed in (0, 1))
        assert held.val.ids.tolist() == out.val.ids.tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"meta": "from_train", "val": "meta"}, "val is meta, but meta is from_train.*allowed: val separate"),
        (
            {"val": "meta", "val_distribution": "long_tailed"},
            "val_distribution is long_tailed, but val is meta.*allowed: val sep",
        ),
        (
            {"test_distribution": "long_tailed", "test_per_class": None},
            "test_per_class is None.*allowed: test_distribution balanced",
        ),
        ({"at_least_per_class": -1}, "greater than or equal to 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GeneratedConfig(**settings)


@pytest.mark.parametrize("tails", [["test"], ["val"], ["val", "test"]])
def test_a_tail_that_takes_too_much_is_refused_with_a_cure_that_works(tails: list[str]) -> None:
    settings: dict[str, Any] = {f"{name}_distribution": "long_tailed" for name in tails}
    with pytest.raises(ValueError, match="of class 0, which has only 178 images; lower data") as refused:
        build_data(DigitsConfig(**settings), 0)
    settings |= {name: int(number) for name, number in re.findall(r"data\.(\w+) to at most (\d+)", str(refused.value))}
    data = build_data(DigitsConfig(**settings), 0)
    assert all(np.bincount(getattr(data, name).labels, minlength=10)[0] > 2 for name in tails)
