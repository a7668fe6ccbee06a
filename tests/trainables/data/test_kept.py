"""Images of a stream that are used again and again without augmentation are decoded once, and nothing else changes."""

import itertools
import multiprocessing
from collections import Counter
from pathlib import Path
from typing import Any

import miniatures
import numpy as np
import psutil
import pytest
import torch

from trainables.classifier_config import SmallCNNConfig
from trainables.collectives import Collectives
from trainables.config import BilevelConfig, ComputeConfig, OptimConfig, TrialConfig
from trainables.data.kept import KeptImages, room_for_images
from trainables.data.loaded import LoadedData, load_data
from trainables.data.loader import Request, meta_order, training_order, training_requests
from trainables.data.source import EncodedImages, Ids
from trainables.data_config import ImageFolderConfig
from trainables.machine import memory_limit, num_cores
from trainables.method_config import DifficultyNetConfig
from trainables.trial_run import TrialRun

CPU = torch.device("cpu")
IMAGE_BYTES = 3 * 8 * 8
PLENTY = 2**20
SEPARATE = {"meta_per_class": 2, "val_per_class": 1, "test_per_class": 1}
FROM_TRAIN = {"meta": "from_train", "val_per_class": 1, "test_per_class": 1}


def folder(root: Path, **settings: Any) -> ImageFolderConfig:
    """21 images of 3 classes in files of their own."""
    if not root.exists():
        miniatures.own_images(root, endings=(".png",))
    return ImageFolderConfig(root=str(root), image_size=8, **{**SEPARATE, "augment": ["resized_crop"], **settings})


def loaded(root: Path, room: int, readers: int = 0, **settings: Any) -> LoadedData:
    return load_data(folder(root, **settings), 0, CPU, readers, room=room)


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each image was decoded in this process."""
    from trainables.data import stream

    found: Counter[int] = Counter()
    decode = stream.open_image

    def counting(images: EncodedImages, image: int, grey: bool) -> Any:
        found[image] += 1
        return decode(images, image, grey)

    monkeypatch.setattr(stream, "open_image", counting)
    return found


def seen(data: LoadedData) -> list[torch.Tensor]:
    """What a trial of two epochs sees: meta batches beside training batches, then val, then the whole meta set."""
    found = []
    for epoch in (1, 2):
        order = training_order(torch.from_numpy(data.data.train.labels), 4, 0, epoch)
        training = data.train.batches(training_requests(order, 0, epoch * len(order), True))
        meta = data.meta.batches([Request(meta_order(len(data.meta), 3, 0, step)) for step in range(len(order))])
        for batch, meta_batch in zip(training, meta, strict=True):
            found += [batch.images, meta_batch.images, meta_batch.labels, meta_batch.positions]
        for part in (data.val, data.meta, data.train):
            found += [batch.images for batch in part.batches([Request(some) for some in torch.arange(len(part)).split(2)])]
    return found


@pytest.mark.parametrize("readers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("settings", [SEPARATE, FROM_TRAIN, {**SEPARATE, "augment": []}, {**SEPARATE, "val": "meta"}])
@pytest.mark.parametrize("images", [0, 1, 4, PLENTY])
def test_a_trial_sees_the_same_pixels_however_many_images_are_kept(
    tmp_path: Path, readers: int, settings: dict[str, Any], images: int
) -> None:
    alike = zip(
        seen(loaded(tmp_path / "pets", 0, **settings)),
        seen(loaded(tmp_path / "pets", images * IMAGE_BYTES, readers, **settings)),
        strict=True,
    )
    assert all(torch.equal(streamed, kept) for streamed, kept in alike)


@pytest.mark.parametrize("settings", [SEPARATE, FROM_TRAIN])
def test_images_of_meta_and_val_are_decoded_once_and_training_images_each_time(
    tmp_path: Path, decodes: Counter[int], settings: dict[str, Any]
) -> None:
    data = loaded(tmp_path / "pets", PLENTY, **settings)
    seen(data)
    # Two epochs of augmented training batches, and two passes over train without augmentation.
    once = 2 + (1 if data.data.meta is data.data.train else 2)
    assert {decodes[image] for image in data.data.train.ids.tolist()} == {once}
    assert {decodes[image] for image in data.data.val.ids.tolist()} == {1}
    if data.data.meta is not data.data.train:
        assert {decodes[image] for image in data.data.meta.ids.tolist()} == {1}


def test_training_images_that_are_not_augmented_are_decoded_once(tmp_path: Path, decodes: Counter[int]) -> None:
    data = loaded(tmp_path / "pets", PLENTY, augment=[])
    for _ in range(2):
        order = training_order(torch.from_numpy(data.data.train.labels), 4, 0, 1)
        list(data.train.batches(training_requests(order, 0, 0, augmented=False)))
    assert set(decodes.values()) == {1}
    assert decodes.keys() == set(data.data.train.ids.tolist())


def test_images_for_which_there_is_no_room_are_decoded_each_time_and_counted(tmp_path: Path, decodes: Counter[int]) -> None:
    data = loaded(tmp_path / "pets", 7 * IMAGE_BYTES)  # 6 of meta and 3 of val are used again
    assert data.data.notes[-1].startswith("compute.keep_gib: for 2 images that are used again and again")
    for _ in range(3):
        for part in (data.meta, data.val):
            list(part.batches([Request(torch.arange(len(part)))]))
    assert Counter(decodes.values()) == {1: 7, 3: 2}
    assert {decodes[image] for image in data.data.meta.ids.tolist()} == {1}  # every step needs them
    assert not [note for note in loaded(tmp_path / "pets", 9 * IMAGE_BYTES).data.notes if "keep_gib" in note]


def test_with_too_little_room_those_training_images_are_kept_that_meta_batches_draw_most_often(
    tmp_path: Path, decodes: Counter[int]
) -> None:
    data = loaded(tmp_path / "pets", (3 + 4) * IMAGE_BYTES, **FROM_TRAIN)  # val, and the class with 4 images
    for _ in range(3):
        list(data.meta.batches([Request(torch.arange(len(data.meta)))]))
    smallest = data.data.train.ids[data.data.train.labels == 2]
    assert {image for image, times in decodes.items() if times == 1} == set(smallest.tolist())


def test_an_image_that_a_batch_has_twice_is_decoded_once_for_it(tmp_path: Path, decodes: Counter[int]) -> None:
    data = loaded(tmp_path / "pets", 0)
    ((twice, *_),) = data.meta.batches([Request(torch.tensor([1, 0, 1]))])
    assert torch.equal(twice[0], twice[2])
    assert not torch.equal(twice[0], twice[1])
    assert set(decodes.values()) == {1}


def test_a_pass_that_is_given_up_loses_no_image(tmp_path: Path, decodes: Counter[int]) -> None:
    data = loaded(tmp_path / "pets", PLENTY)
    expected = [batch.images for batch in data.meta.batches([Request(torch.tensor([some])) for some in range(6)])]
    fresh = loaded(tmp_path / "pets", PLENTY, readers=1)
    batches = fresh.meta.batches([Request(torch.tensor([some])) for some in range(6)])
    next(batches)
    batches.close()  # some images were asked for and never arrived
    again = [batch.images for batch in fresh.meta.batches([Request(torch.tensor([some])) for some in range(6)])]
    assert all(torch.equal(one, two) for one, two in zip(expected, again, strict=True))


@pytest.mark.slow
def test_kept_images_need_no_readers(tmp_path: Path) -> None:
    data = loaded(tmp_path / "pets", PLENTY, readers=1)
    everything = [Request(torch.arange(len(data.meta)))]
    first = [batch.images for batch in data.meta.batches(everything)]
    data.store._idle.clear()  # type: ignore[attr-defined]
    again = [batch.images for batch in data.meta.batches(everything * 3)]
    assert all(torch.equal(first[0], images) for images in again)
    assert not multiprocessing.active_children()


def test_a_worker_decodes_its_share_of_val_alone(tmp_path: Path, decodes: Counter[int]) -> None:
    data = loaded(tmp_path / "pets", PLENTY, val_per_class=2)
    whole = next(iter(loaded(tmp_path / "pets", 0, val_per_class=2).val.batches([Request(torch.arange(6))])))
    decodes.clear()
    share = Collectives(1, 3).share(6)
    for _ in range(2):
        ((images, labels, *_),) = data.val.batches([Request(torch.arange(6), share=share)])
        assert torch.equal(images, whole.images[share])
        assert torch.equal(labels, whole.labels)
    assert decodes == dict.fromkeys(data.data.val.ids[share].tolist(), 1)


def test_the_next_trial_decodes_only_what_the_one_before_had_not(tmp_path: Path, decodes: Counter[int]) -> None:
    first = loaded(tmp_path / "pets", PLENTY)
    seen(first)
    decodes.clear()
    second = load_data(folder(tmp_path / "pets", n_max=5, imbalance_factor=2, profile="exponential"), 0, CPU, 0, first, PLENTY)
    assert second.store is first.store
    both = [np.concatenate([some.data.meta.ids, some.data.val.ids]) for some in (first, second)]
    for part in (second.meta, second.val):
        list(part.batches([Request(torch.arange(len(part)))]))
    assert decodes == dict.fromkeys(np.setdiff1d(both[1], both[0]).tolist(), 1)
    fresh = load_data(folder(tmp_path / "pets", n_max=5, imbalance_factor=2, profile="exponential"), 0, CPU, 0)
    for part in ("meta", "val"):
        ours, theirs = (next(iter(getattr(some, part).batches([Request(torch.arange(3))]))) for some in (second, fresh))
        assert torch.equal(ours.images, theirs.images)


def test_images_that_are_no_longer_planned_give_their_places_to_others() -> None:
    kept = KeptImages((1, 1, 1), CPU, room=3)
    pixels = torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1)

    def keep(*ids: int) -> None:
        kept.keep(np.array(ids), pixels[list(ids)])

    def held() -> list[int]:
        every = np.arange(10)
        return every[kept.has(every)].tolist()

    def plan(*sets: tuple[int, ...]) -> int:
        return kept.plan([np.array(some) for some in sets])

    assert plan((1, 9), (9, 2)) == 0  # 9 counts once
    keep(1, 2)
    assert held() == [1, 2]
    assert plan((3, 4)) == 0
    keep(3)
    assert held() == [1, 2, 3]  # there are three places
    keep(4)
    assert held() == [3, 4]
    assert kept.pixels(np.array([4, 3, 4])).flatten().tolist() == [4, 3, 4]
    assert plan((3, 5, 6), (7, 5)) == 1
    assert kept.is_planned(np.array([3, 5, 6, 7, 500])).tolist() == [True, True, True, False, False]
    keep(5, 6)
    assert held() == [3, 5, 6]
    assert kept.pixels(np.array([3, 5, 6])).flatten().tolist() == [3, 5, 6]


def test_places_that_no_image_has_taken_take_no_memory() -> None:
    process, number = psutil.Process(), 4000
    kept = KeptImages((3, 128, 128), CPU, room=2**30)
    before = process.memory_info().rss
    assert kept.plan([np.arange(number)]) == 0
    assert process.memory_info().rss - before < 2**23
    mine: Ids = np.arange(0, number, 8)
    kept.keep(mine, torch.ones(len(mine), 3, 128, 128, dtype=torch.uint8))
    # An eighth of all, with copies on the way, which a process may keep for later ones.
    assert process.memory_info().rss - before < number * 3 * 128 * 128 / 2


def test_the_room_is_what_the_setting_says_or_a_worker_s_share_of_a_quarter_of_the_memory() -> None:
    assert room_for_images(0.5, CPU, 1) == 2**29
    assert room_for_images(None, CPU, num_cores()) == memory_limit() // 4
    assert room_for_images(None, CPU, 100 * num_cores()) == memory_limit() // 4
    assert room_for_images(None, CPU, 1) == pytest.approx(memory_limit() / 4 / num_cores(), abs=1)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [SEPARATE, FROM_TRAIN])
def test_a_trial_has_the_same_metrics_and_decodes_less(tmp_path: Path, decodes: Counter[int], settings: dict[str, Any]) -> None:
    def trained(keep_gib: float | None) -> tuple[list[dict[str, float]], int, LoadedData]:
        config = TrialConfig(
            epochs=3,
            device="cpu",
            data=folder(tmp_path / "pets", **settings),
            classifier=SmallCNNConfig(),
            method=DifficultyNetConfig(hidden_width=8, meta_lr=1e-2),
            optim=OptimConfig(batch_size=6),
            bilevel=BilevelConfig(meta_batch_size=4),
            compute=ComputeConfig(readers=0, keep_gib=keep_gib),
            read_test=True,
        )
        decodes.clear()
        run = TrialRun()
        run.start(config)
        found = [run.run_epoch() for _ in range(config.epochs)]
        without_times = [{name: value for name, value in some.items() if not name.startswith("time/")} for some in found]
        return without_times, decodes.total(), run.loaded

    (streamed, often, _), (kept, few, data) = trained(0), trained(None)
    assert repr(streamed) == repr(kept)  # nan equals nan
    parts = data.data
    again = set(itertools.chain(parts.meta.ids.tolist(), parts.val.ids.tolist()))
    assert few == 3 * len(parts.train) + len(again) + 2 * len(parts.test)  # test by the best epoch and by the last one
    assert often > 1.5 * few
