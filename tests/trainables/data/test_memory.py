from pathlib import Path

import miniatures
import numpy as np
import pytest
import torch

from trainables.collectives import Collectives
from trainables.data import ImageSet, build_data
from trainables.data.augment import augment, num_draws
from trainables.data.decode import decode_all
from trainables.data.loaded import load_data
from trainables.data.loader import ImageFormat, Normalisation, Request, training_requests
from trainables.data.memory import PREPARED_TOGETHER, MemorySet, Pool
from trainables.data.source import EncodedImages, as_one_pool
from trainables.data_config import DigitsConfig, GeneratedConfig, ImageFolderConfig

CPU = torch.device("cpu")
PLAIN = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def colour_set(number: int = 40, augmentations: tuple[str, ...] = ()) -> tuple[torch.Tensor, MemorySet]:
    images = np.random.default_rng(0).integers(0, 256, (number, 3, 8, 8), dtype=np.uint8)
    pool = Pool(as_one_pool(images, np.zeros(number, dtype=np.int64), ("a",)), CPU)
    ids = np.arange(number)[::-1].copy()
    return torch.from_numpy(images), MemorySet(pool, ImageSet(ids, ids % 7), ImageFormat((3, 8, 8), PLAIN), augmentations)


def test_a_batch_holds_the_images_and_labels_at_its_positions() -> None:
    images, loaded = colour_set()
    positions = torch.tensor([3, 0, 39])
    (batch,) = loaded.batches([Request(positions)])
    assert torch.equal(batch.images, images[39 - positions].float())
    assert torch.equal(batch.labels, (39 - positions) % 7)
    assert torch.equal(batch.positions, positions)
    assert batch.positions.dtype == torch.int64
    assert batch.partners is batch.label_weight is None


def test_images_are_normalised_by_the_mean_and_deviation_of_each_channel_of_the_training_set() -> None:
    loaded = load_data(GeneratedConfig(), 0, CPU, 0)
    source = loaded.data.source.images
    assert isinstance(source, np.ndarray)
    train = source[loaded.data.train.ids].astype(np.float64)
    np.testing.assert_allclose(loaded.format.normalisation.mean, train.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(loaded.format.normalisation.std, train.std((0, 2, 3)), rtol=1e-12)
    ((pixels, *_),) = loaded.val.batches([Request(torch.arange(5))])
    mean, std = (np.array(values)[:, None, None] for values in loaded.format.normalisation)
    np.testing.assert_allclose(pixels, (source[loaded.data.val.ids[:5]] - mean) / std, rtol=1e-5, atol=1e-5)


def test_a_channel_without_contrast_is_not_divided_by_zero() -> None:
    images = np.full((4, 1, 2, 2), 7, dtype=np.uint8)
    pool = Pool(as_one_pool(images, np.zeros(4, dtype=np.int64), ("a",)), CPU)
    assert pool.statistics(np.arange(4)) == Normalisation((7.0,), (1.0,))


def test_batches_are_the_same_alone_together_and_from_the_middle_on() -> None:
    images, loaded = colour_set(3000, ("crop_flip", "autoaugment", "cutout"))
    requests = [Request(torch.randperm(3000)[:128], (draw,)) for draw in range(1, 100)]
    assert 60 * 128 * images[0].numel() < PREPARED_TOGETHER < 1e9
    together = [batch.images for batch in loaded.batches(requests)]
    assert len(together) == 99
    for number in (0, 42, 98):
        ((alone, *_),) = loaded.batches(requests[number : number + 1])
        assert torch.equal(alone, together[number])
    rest = [batch.images for batch in loaded.batches(requests[60:])]
    assert all(map(torch.equal, rest, together[60:]))


def test_an_augmentation_has_the_draws_of_its_request() -> None:
    names = ("crop_flip", "cutout")
    images, loaded = colour_set(40, names)
    ((pixels, *_),) = loaded.batches([Request(torch.arange(40), (17,))])
    draws = torch.rand(40, num_draws(names), generator=torch.Generator().manual_seed(17))
    assert torch.equal(pixels, augment(names, images.flip(0), draws, torch.zeros(3)).float())
    ((other, *_),) = loaded.batches([Request(torch.arange(40), (18,))])
    assert not torch.equal(pixels, other)


def test_requests_without_draws_are_not_augmented_whatever_stands_beside_them() -> None:
    images, loaded = colour_set(40, ("crop_flip",))
    everything = torch.arange(40)
    requests = [Request(everything, (1,)), Request(everything), Request(everything, (2,))]
    batches = [batch.images for batch in loaded.batches(requests)]
    assert torch.equal(batches[1], images.flip(0).float())
    assert not torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[2], batches[1])


def test_the_shares_of_workers_put_together_are_the_batch_of_one() -> None:
    _, loaded = colour_set(40, ("crop_flip", "autoaugment", "cutout"))
    order = [torch.arange(20).flip(0), torch.arange(3)]  # the second has fewer images than there are workers
    for augmented in (True, False):
        whole = list(loaded.batches(training_requests(order, 0, 0, augmented)))
        shares = [list(loaded.batches(training_requests(order, 0, 0, augmented, Collectives(rank, 4)))) for rank in range(4)]
        for number, batch in enumerate(whole):
            assert torch.equal(torch.cat([share[number].images for share in shares]), batch.images)
            assert all(torch.equal(share[number].labels, batch.labels) for share in shares)
            assert all(torch.equal(share[number].positions, batch.positions) for share in shares)
        assert [len(share[0][0]) for share in shares] == [5, 5, 5, 5]
        assert [len(share[1][0]) for share in shares] == [1, 1, 1, 0]


def test_a_share_that_has_no_image_in_any_batch_is_empty() -> None:
    _, loaded = colour_set(40, ("crop_flip", "autoaugment", "cutout"))
    ((images, labels, *_),) = loaded.batches(training_requests([torch.arange(3)], 0, 0, True, Collectives(3, 4)))
    assert images.shape == (0, 3, 8, 8)
    assert len(labels) == 3


@pytest.mark.parametrize("augmentations", [("crop_flip", "autoaugment", "cutout"), ()])
def test_views_are_the_same_images_with_draws_of_their_own(augmentations: tuple[str, ...]) -> None:
    _, loaded = colour_set(40, augmentations)
    order = [torch.arange(20).flip(0), torch.arange(3)]
    augmented = bool(augmentations)
    alone = loaded.batches(training_requests(order, 0, 5, augmented))
    together = loaded.batches(training_requests(order, 0, 5, augmented, views=3))
    for one, three in zip(alone, together, strict=True):
        first, second, third = three.images.chunk(3)
        assert torch.equal(first, one.images)
        assert torch.equal(second, first) == torch.equal(third, second) == (not augmented)
        assert torch.equal(three.labels, one.labels.repeat(3))
        assert torch.equal(three.positions, one.positions.repeat(3))


def test_the_shares_of_workers_put_together_are_all_views_of_the_batch() -> None:
    _, loaded = colour_set(40, ("crop_flip", "autoaugment", "cutout"))
    order = [torch.arange(20).flip(0), torch.arange(3), torch.arange(1)]  # two rows of the last are for four workers
    whole = list(loaded.batches(training_requests(order, 0, 0, True, views=2)))
    workers = [Collectives(rank, 4) for rank in range(4)]
    shares = [list(loaded.batches(training_requests(order, 0, 0, True, worker, views=2))) for worker in workers]
    for number, batch in enumerate(whole):
        assert torch.equal(torch.cat([share[number].images for share in shares]), batch.images)
        for name in ("labels", "positions"):
            assert all(torch.equal(getattr(share[number], name), getattr(batch, name)) for share in shares)
    assert [[len(batch.images) for batch in share] for share in shares] == [[10, 2, 1], [10, 2, 1], [10, 1, 0], [10, 1, 0]]


def encoded(root: Path) -> ImageFolderConfig:
    settings = miniatures.own_images(root, endings=(".png",))
    return ImageFolderConfig(root=str(root), loading="memory", image_size=8, augment=[], **settings)


def test_a_pool_decodes_what_it_is_asked_for_and_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = encoded(tmp_path)
    source = build_data(config, 0).source
    assert isinstance(source.images, EncodedImages)
    everything = decode_all(source.images, np.arange(27), 8, False)
    reads = []
    read = type(source.images).read
    monkeypatch.setattr(type(source.images), "read", lambda images, image: reads.append(image) or read(images, image))
    pool = Pool(source, CPU, 8)
    for ids in ([4, 2, 9], [2, 4], [20, 9, 1], [20]):
        pool.hold(np.array(ids))
        assert (pool.pixels[pool.rows(np.array(ids))].numpy() == everything[ids]).all()
    assert sorted(reads) == [1, 2, 4, 9, 20]


def test_the_test_set_is_not_read_while_training(tmp_path: Path) -> None:
    config = encoded(tmp_path)
    data = build_data(config, 0)
    for image in data.test.ids.tolist():
        Path(data.source.images.place(image)).write_bytes(b"sealed")  # type: ignore[union-attr]
    loaded = load_data(config, 0, CPU, 0)
    assert isinstance(loaded.store, Pool)
    assert len(loaded.store.pixels) == 27 - len(data.test)


def test_the_next_trial_goes_on_using_what_fits(tmp_path: Path) -> None:
    config = encoded(tmp_path)
    first = load_data(config, 0, CPU, 0)
    assert load_data(config, 0, CPU, 0, first) is first
    # Another split of the same images: nothing is opened or decoded again but what is new.
    second = load_data(config, 1, CPU, 0, first)
    assert second is not first
    assert second.store is first.store
    assert second.data.source is first.data.source
    fresh = load_data(config, 1, CPU, 0)
    for name in ("train", "meta", "val"):
        ours, theirs = (next(getattr(loaded, name).batches([Request(torch.arange(2))])) for loaded in (second, fresh))
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
    larger = load_data(config.model_copy(update={"image_size": 9}), 0, CPU, 0, first)
    assert larger.store is not first.store
    assert larger.format.shape == (3, 9, 9)
    elsewhere = load_data(config, 0, torch.device("meta"), 0, first)
    assert elsewhere.store is not first.store
    assert elsewhere.train.labels.device.type == "meta"


def test_val_is_the_meta_set_where_the_settings_say_so() -> None:
    loaded = load_data(DigitsConfig(val="meta"), 0, CPU, 0)
    assert loaded.val is loaded.meta
