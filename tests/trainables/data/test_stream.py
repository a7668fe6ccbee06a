import errno
import io
import multiprocessing
import re
import shutil
import subprocess
import sys
import time
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import miniatures
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from trainables.collectives import Collectives
from trainables.data.decode import middle
from trainables.data.handover import PixelBatch
from trainables.data.loaded import LoadedData, load_data
from trainables.data.loader import Request, training_order, training_requests
from trainables.data.source import EncodedImages
from trainables.data.stream import GREY, IMAGENET
from trainables.data_config import ImageFolderConfig, ImageListsConfig, ParquetConfig

CPU = torch.device("cpu")
EVERYTHING = ["resized_crop", "flip", "color_jitter", "rand_augment"]


def stream(root: Path, readers: int = 0, **settings: Any) -> LoadedData:
    counts = miniatures.own_images(root, endings=(".png",))
    config = ImageFolderConfig(root=str(root), image_size=8, **counts, **{"augment": EVERYTHING, **settings})
    return load_data(config, 0, CPU, readers)


def requests(loaded: LoadedData, epoch: int = 1, batch_size: int = 4, **settings: Any) -> list[Request]:
    order = training_order(torch.from_numpy(loaded.data.train.labels), batch_size, 0, epoch)
    return training_requests(order, 0, (epoch - 1) * len(order), **{"augmented": True, **settings})


def same(first: list[Any], second: list[Any]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and torch.equal(a.positions, b.positions)
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.slow
def test_images_and_their_order_do_not_depend_on_the_number_of_readers(tmp_path: Path) -> None:
    alone, one, two = [stream(tmp_path, readers) for readers in (0, 1, 2)]
    expected = list(alone.train.batches(requests(alone)))
    assert [len(batch.labels) for batch in expected] == [4, 4, 4, 3]
    for loaded in (one, two):
        assert same(expected, list(loaded.train.batches(requests(loaded))))
        # The readers live on; the next epoch has an order and draws of its own.
        assert same(list(alone.train.batches(requests(alone, 2))), list(loaded.train.batches(requests(loaded, 2))))


@pytest.mark.slow
def test_a_trial_goes_on_in_the_middle_of_an_epoch_with_the_batches_that_are_left(tmp_path: Path) -> None:
    loaded = stream(tmp_path, readers=2)
    whole = list(loaded.train.batches(requests(loaded)))
    assert same(whole[2:], list(stream(tmp_path, readers=1).train.batches(requests(loaded)[2:])))


@pytest.mark.slow
@pytest.mark.parametrize("readers", [0, 1])
def test_the_shares_of_workers_put_together_are_the_batch_of_one(tmp_path: Path, readers: int) -> None:
    loaded = stream(tmp_path, readers)
    whole = list(loaded.train.batches(requests(loaded)))
    asked = requests(loaded)
    for size in (2, 4):
        workers = [Collectives(rank, size) for rank in range(size)]
        mine = [[request._replace(share=worker.share(len(request.positions))) for request in asked] for worker in workers]
        shares = [list(loaded.train.batches(requests)) for requests in mine]  # 4 workers: of the last 3 images one has none
        for number, batch in enumerate(whole):
            assert torch.equal(torch.cat([share[number].images for share in shares]), batch.images)
            for name in ("labels", "positions"):
                assert all(torch.equal(getattr(share[number], name), getattr(batch, name)) for share in shares)


@pytest.mark.slow
@pytest.mark.parametrize("readers", [0, 1])
@pytest.mark.parametrize("augmented", [True, False])
def test_views_are_the_same_images_with_draws_of_their_own(tmp_path: Path, readers: int, augmented: bool) -> None:
    loaded = stream(tmp_path, readers)
    alone = list(loaded.train.batches(requests(loaded, augmented=augmented)))
    together = list(loaded.train.batches(requests(loaded, augmented=augmented, views=2)))
    workers = [Collectives(rank, 3) for rank in range(3)]
    shares = [
        list(loaded.train.batches(requests(loaded, augmented=augmented, views=2, collectives=worker))) for worker in workers
    ]
    for number, (one, two) in enumerate(zip(alone, together, strict=True)):
        first, second = two.images.chunk(2)
        assert torch.equal(first, one.images)
        assert torch.equal(first, second) == (not augmented)
        assert torch.equal(two.labels, one.labels.repeat(2))
        assert torch.equal(two.positions, one.positions.repeat(2))
        assert torch.equal(torch.cat([share[number].images for share in shares]), two.images)


@pytest.mark.slow
def test_two_passes_at_a_time_and_one_given_up_do_not_disturb_each_other(tmp_path: Path) -> None:
    loaded = stream(tmp_path, readers=1)
    expected = list(loaded.train.batches(requests(loaded)))
    first = loaded.train.batches(requests(loaded))
    assert same(expected[:1], [next(first)])
    second = loaded.train.batches(requests(loaded))
    assert same(expected[:2], [next(second), next(second)])
    assert same(expected[1:2], [next(first)])
    second.close()
    assert same(expected[2:], list(first))
    assert same(expected, list(loaded.train.batches(requests(loaded))))


@pytest.mark.slow
def test_readers_serve_all_sets_and_are_as_many_as_lists_of_batches_are_open(tmp_path: Path) -> None:
    loaded = stream(tmp_path, readers=1)
    list(loaded.train.batches(requests(loaded)))
    readers = {child.pid for child in multiprocessing.active_children()}
    assert len(readers) == 1
    for part in (loaded.val, loaded.meta, loaded.train):
        list(part.batches([Request(torch.arange(2))]))
    assert {child.pid for child in multiprocessing.active_children()} == readers
    open_ones = [part.batches([Request(torch.arange(2))] * 9) for part in (loaded.train, loaded.meta, loaded.val)]
    for batches in open_ones:
        next(batches)
    assert len(multiprocessing.active_children()) == 3


@pytest.mark.slow
def test_readers_of_the_trial_before_do_not_serve_rows_that_they_do_not_have(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (90, 9, 9, 3), dtype=np.uint8)
    encoded = []
    for pixels in images:
        Image.fromarray(pixels).save(file := io.BytesIO(), format="PNG")
        encoded.append(file.getvalue())
    pq.write_table(pa.table({"image": encoded, "label": np.arange(90) % 3}), tmp_path / "a.parquet")
    counts = {"n_max": 8, "imbalance_factor": 1, "meta_per_class": 2, "val_per_class": 2, "test_per_class": 2}
    config = ParquetConfig(root=str(tmp_path), loading="stream", image_size=8, augment=["flip"], **counts)
    first = load_data(config, 0, CPU, 1)
    list(first.train.batches(requests(first)))
    second, fresh = load_data(config, 1, CPU, 1, first), load_data(config, 1, CPU, 1)
    assert second.store is first.store
    assert same(list(second.train.batches(requests(second))), list(fresh.train.batches(requests(fresh))))


@pytest.mark.slow
def test_readers_end_with_the_set_that_they_serve(tmp_path: Path) -> None:
    loaded = stream(tmp_path, readers=2)
    list(loaded.train.batches(requests(loaded)))
    list(loaded.train.batches(requests(loaded, 2)))
    assert len(multiprocessing.active_children()) == 2  # the same two
    del loaded
    deadline = time.monotonic() + 60
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not multiprocessing.active_children()


def test_images_of_meta_and_val_are_the_middle_of_the_resized_image(tmp_path: Path) -> None:
    loaded = stream(tmp_path)
    images = loaded.data.source.images
    assert isinstance(images, EncodedImages)
    for part, ids in ((loaded.meta, loaded.data.meta.ids), (loaded.val, loaded.data.val.ids)):
        ((pixels, labels, positions, *_),) = part.batches([Request(torch.arange(3))])
        theirs = v2.Compose([v2.Resize(9), v2.CenterCrop(8), v2.PILToTensor()])  # 9 = 8 * 256 / 224
        expected = torch.stack([theirs(Image.open(images.place(image))) for image in ids[:3].tolist()])
        assert torch.equal(pixels, IMAGENET(expected))
        torch.testing.assert_close(pixels[:, 1] * 0.224 + 0.456, expected[:, 1] / 255, rtol=1e-4, atol=1e-5)
        assert labels.tolist() == loaded.data.source.labels[ids[:3]].tolist()
        assert positions.tolist() == [0, 1, 2]


@pytest.mark.parametrize("size", [(50, 37), (37, 50), (31, 31), (8, 97)])
def test_the_middle_of_an_image_is_torchvision_s(size: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    expected = v2.Compose([v2.Resize(20), v2.CenterCrop(17)])(image)
    assert (np.array(middle(image, 20, 17)) == np.array(expected)).all()


def test_grey_streams_have_one_channel(tmp_path: Path) -> None:
    loaded = stream(tmp_path, grey=True, augment=["resized_crop"])
    assert loaded.format.shape == (1, 8, 8)
    assert loaded.format.normalisation == GREY
    ((pixels, *_),) = loaded.train.batches(requests(loaded)[:1])
    assert pixels.shape == (4, 1, 8, 8)


def test_each_image_has_its_own_draw_and_torch_s_generator_is_left_alone(tmp_path: Path) -> None:
    loaded = stream(tmp_path, augment=["color_jitter"])
    before = torch.get_rng_state()
    twice = torch.tensor([1, 1])
    ((first, *_),) = loaded.train.batches([Request(twice, (5,))])
    ((again, *_),) = loaded.train.batches([Request(twice, (5,))])
    ((other, *_),) = loaded.train.batches([Request(twice, (6,))])
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, other)
    ((many, *_),) = loaded.train.batches([Request(torch.ones(300, dtype=torch.int64), (7,))])
    assert len(many.unique(dim=0)) == 300
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("readers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_image_that_breaks_while_training_is_named(tmp_path: Path, readers: int) -> None:
    loaded = stream(tmp_path, readers)
    broken = Path(loaded.data.source.images.place(int(loaded.data.train.ids[6])))  # type: ignore[union-attr]
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(ValueError, match=f"^data.root: {broken}: not an image that can be read .[^\n]*$"):
        list(loaded.train.batches(requests(loaded)))


COMPARE = """
import sys, torch
from trainables.data.loaded import load_data
from trainables.data.loader import Request
from trainables.data_config import ImageFolderConfig

counts = {"meta_per_class": 1, "val_per_class": 1, "test_per_class": 2}
config = ImageFolderConfig(root=sys.argv[1], image_size=224, augment=["flip"], **counts)
alone, read = (load_data(config, 0, torch.device("cpu"), readers) for readers in (0, 2))
requests = [Request(torch.arange(5), (draw,)) for draw in range(6)]  # batches of 0.7 MiB
batches = zip(alone.train.batches(requests), read.train.batches(requests), strict=True)
print("equal batches:", sum(torch.equal(ours.images, theirs.images) for ours, theirs in batches))
"""
SMALL_SHM = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"', "sh"]


def may_mount() -> bool:
    """Whether this process may give another one a /dev/shm of its own."""
    return bool(shutil.which("unshare")) and not subprocess.run([*SMALL_SHM, "true"], capture_output=True).returncode


@pytest.mark.slow
@pytest.mark.skipif(not may_mount(), reason="needs root and unshare, to mount a small /dev/shm")
def test_batches_that_do_not_fit_into_shared_memory_arrive_all_the_same_and_a_warning_says_how(tmp_path: Path) -> None:
    """An error in the thread of a reader that sends batches would leave the trial waiting for ever."""
    miniatures.own_images(tmp_path)
    command = [*SMALL_SHM, sys.executable, "-c", COMPARE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.stdout == "equal batches: 6\n", done.stderr
    (found,) = re.findall("a batch of .*", done.stderr)
    assert found.startswith("a batch of 0.7 MiB cannot be handed over in shared memory (/dev/shm has 1 MiB, ")
    assert "readers send their batches through pipes, which is slower: unable to allocate shared memory" in found


@pytest.mark.slow
@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), RuntimeError("unable to open shared memory")])
def test_whatever_keeps_a_reader_from_sharing_a_batch_reaches_the_trial_and_does_not_stop_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    expected = stream(tmp_path)
    loaded = stream(tmp_path, readers=1)

    class Failing(ForkingPickler):
        @classmethod
        def dumps(cls, obj: Any, protocol: int | None = None) -> memoryview:
            raise error

    monkeypatch.setattr("trainables.data.handover.ForkingPickler", Failing)  # reader processes inherit it
    with pytest.warns(UserWarning, match=rf"compute.readers is 1: .* through pipes, which is slower: .*{error.args[-1]}"):
        assert same(list(loaded.train.batches(requests(loaded))), list(expected.train.batches(requests(expected))))
    assert same(  # said once
        list(loaded.train.batches(requests(loaded, 2))), list(expected.train.batches(requests(expected, 2)))
    )


def test_pinned_batches_keep_their_pixels_and_the_reason_for_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.arange(12, dtype=torch.uint8).reshape(1, 3, 2, 2)
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda batch: pinned.append(batch) or batch)  # needs no GPU
    for on_its_way in (pixels, pixels.clone().numpy(), bytes(ForkingPickler.dumps(pixels.clone()))):
        batch = PixelBatch(on_its_way, "why").pin_memory()
        assert torch.equal(batch.tensor(), pixels)
        assert batch.by_pipe == "why"
    assert len(pinned) == 3
    encoded, shapes = torch.arange(9, dtype=torch.uint8), (torch.Size([3]), torch.Size([1, 2, 3]))
    batch = PixelBatch(bytes(ForkingPickler.dumps(encoded.clone())), "why", shapes).pin_memory()
    assert batch.by_pipe == "why"
    assert [image.tolist() for image in batch.images()] == [[0, 1, 2], [[[3, 4, 5], [6, 7, 8]]]]
    assert len(pinned) == 3  # images of different shapes are not pinned


def test_readers_that_cannot_be_started_end_the_trial_with_the_size_of_shared_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = stream(tmp_path, readers=1)

    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("trainables.data.stream.DataLoader.__iter__", full)  # its locks take shared memory as well
    with pytest.raises(
        ValueError, match=r"^compute.readers is 1, but the reader .* No space left on device \(/dev/shm has \d+ .*; allowed: 0"
    ):
        next(loaded.train.batches(requests(loaded)))


def test_a_file_that_is_missing_is_named_when_the_data_are_loaded(tmp_path: Path) -> None:
    settings = miniatures.imagenet_lt(tmp_path)
    lists = {f"{part}_list": f"ImageNet_LT_{part}.txt" for part in ("train", "val", "test")}
    config = ImageListsConfig(root=str(tmp_path), **lists, **settings)
    (tmp_path / "train/n01440765/n01440765_3.JPEG").unlink()
    with pytest.raises(
        ValueError, match=r"data.root: .*ImageNet_LT_train.txt, line 13: .*n01440765_3.JPEG: there is no such file"
    ):
        load_data(config, 0, CPU, 0)
