"""Measures how fast training images are prepared, how soon a second trial has its data, and how much memory the images take.

    python -m benchmarks.data [--repeats 7] [--root FOLDER] [--json]

Speed: our loader is compared with the usual way, PIL images in a DataLoader with two workers. The data are 10 000 random colour
images of 32x32 pixels, in batches of 128 on the CPU. Our loader runs with one thread, the default of trials, and with two. The
arms take turns, an epoch each, so that other load on the machine falls on all of them. Figures are medians of images per second.
The DataLoader's workers stay alive between epochs and sleep while our loader runs. Two threads wait for each other after every
kernel: with another busy program on the same two cores, two threads can be far slower than one.

Start and memory: the data are a set of parquet files, from FOLDER or 20 000 random images that are written for the purpose. The
start is the time from the second trial's request for its data until the data are ready, on the same split, and on the split of
another seed with all images decoded. The memory is the growth of a fresh process while it loads every image, divided by the bytes
of the images.

Streams: the data are JPEG files of 500 x 375 pixels, seen as 224 x 224 pixels. One core prepares training images from the files
and from copies with a short side of 256 pixels (`data.shrink: 256`), and images of meta and val that are decoded each time and
that are kept. The arms take turns; figures are medians of images per second of CPU time. `decodes_per_image` is counted in a
streamed trial of Difficulty-Net: decoded images, divided by the images that are needed, which are all training images in each
epoch and those of meta and val once; `decodes_per_image_unkept` is the same with `compute.keep_gib: 0`.
"""

import argparse
import functools
import io
import itertools
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks import streams
from benchmarks.step_cost import versions
from trainables.data import ImageSet
from trainables.data.loaded import load_data
from trainables.data.loader import ImageFormat, Normalisation, training_order, training_requests
from trainables.data.memory import MemorySet, Pool
from trainables.data.source import as_one_pool
from trainables.data_config import ParquetConfig

NUM_IMAGES, BATCH_SIZE = 10_000, 128
NUM_WORKERS = 2
NUM_PHOTOGRAPHS = 128
NAMES = ("crop_flip", "autoaugment", "cutout")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

Epoch = Callable[[], Iterator[Tensor]]
"""Normalised float32 batches (128, 3, 32, 32), the last one smaller."""


def random_images(number: int) -> Tensor:
    """(number, 3, 32, 32) uint8."""
    return torch.randint(0, 256, (number, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def ours(images: Tensor) -> Epoch:
    """Epochs of a trial's loader."""
    ids = np.arange(len(images))
    source = as_one_pool(images.numpy(), np.zeros_like(ids), ("any",))
    mean, std = (tuple(255 * value for value in values) for values in (MEAN, STD))
    form = ImageFormat((3, 32, 32), Normalisation(mean, std))
    loaded = MemorySet(Pool(source, torch.device("cpu")), ImageSet(ids, source.labels), form, NAMES)
    epochs = itertools.count(1)

    def epoch() -> Iterator[Tensor]:
        number = next(epochs)
        order = training_order(loaded.labels, BATCH_SIZE, seed=0, epoch=number)
        requests = training_requests(order, seed=0, first_step=number * len(order), augmented=True)
        return (batch.images for batch in loaded.batches(requests))

    return epoch


class PilImages(Dataset[Tensor]):
    """Transforms one image at a time with torchvision."""

    def __init__(self, images: Tensor) -> None:
        self.images = [Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())) for image in images]
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
                cover_a_square,
            ]
        )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        """(3, 32, 32)."""
        image: Tensor = self.transform(self.images[index])
        return image


def cover_a_square(image: Tensor, side: int = 16) -> Tensor:
    """Cutout of a normalised image, in place."""
    row, column = (int(torch.randint(size, ())) for size in image.shape[1:])
    image[:, max(row - side // 2, 0) : row + side // 2, max(column - side // 2, 0) : column + side // 2] = 0
    return image


def reference(images: Tensor) -> Epoch:
    """Epochs of a DataLoader with PIL and torchvision."""
    loader = DataLoader(PilImages(images), BATCH_SIZE, shuffle=True, num_workers=NUM_WORKERS, persistent_workers=True)
    return lambda: iter(loader)


def images_per_second(epoch: Epoch, num_threads: int = 1) -> float:
    """Images per second over one whole epoch."""
    torch.set_num_threads(num_threads)
    began = time.perf_counter()
    number = sum(len(batch) for batch in epoch())
    return number / (time.perf_counter() - began)


def measure_augment(repeats: int) -> dict[str, float]:
    """Images per second of each arm, with random crop, flip, AutoAugment, cutout and normalisation."""
    images = random_images(NUM_IMAGES)
    resident, loaded = ours(images), reference(images)
    sides = {
        "ours": functools.partial(images_per_second, resident),
        "two_threads": functools.partial(images_per_second, resident, num_threads=2),
        "reference": functools.partial(images_per_second, loaded),
    }
    for measured in sides.values():
        measured()  # starts the workers
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, measured in sides.items():
            speeds[name].append(measured())
    result = {f"augment_{name}_images_per_s": statistics.median(values) for name, values in speeds.items()}
    result["augment_speedup"] = result["augment_ours_images_per_s"] / result["augment_reference_images_per_s"]
    result["augment_two_threads_speedup"] = result["augment_two_threads_images_per_s"] / result["augment_reference_images_per_s"]
    return result


def write_images(folder: Path, number: int) -> None:
    """Random images as a parquet file, in ten classes."""
    encoded = []
    for pixels in random_images(number):
        Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())).save(file := io.BytesIO(), format="PNG")
        encoded.append(file.getvalue())
    table = pa.table({"image": encoded, "label": np.arange(number) % 10})
    pq.write_table(table, folder / "train.parquet", row_group_size=2000)


def everything(root: Path) -> ParquetConfig:
    """Settings that train on all images except those of the test set."""
    return ParquetConfig(root=str(root), profile="natural", selection="first", test_per_class=1)


def measure_start(root: Path, repeats: int) -> dict[str, float]:
    """Milliseconds until the second trial of a process has its data."""
    plain = ParquetConfig(root=str(root), profile="natural", test_per_class=1)
    cpu = torch.device("cpu")
    first_began = time.perf_counter()
    kept = load_data(plain, 0, cpu, 0)
    first = time.perf_counter() - first_began
    kept.store.hold(np.arange(len(kept.data.source.labels)))

    def started(seed: int) -> float:
        began = time.perf_counter()
        load_data(plain, seed, cpu, 0, kept)
        return time.perf_counter() - began

    same, other = ([started(seed) for _ in range(repeats)] for seed in (0, 1))
    return {
        "first_start_ms": first * 1e3,
        "second_start_ms": statistics.median(same) * 1e3,
        "second_start_other_seed_ms": statistics.median(other) * 1e3,
    }


def measure_memory(root: Path) -> dict[str, float]:
    """Growth of a process while it loads images, divided by the bytes of the images."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        growth, size = pool.apply(grown, (root,))
    return {"cached_mb": size / 1e6, "cached_bytes_ratio": growth / size}


def grown(root: Path) -> tuple[int, int]:
    """Bytes by which this process grows while `everything` is loaded, and the bytes of the images."""
    with tempfile.TemporaryDirectory() as small:  # loads the libraries first, so that they do not count
        write_images(Path(small), 400)
        load_data(everything(Path(small)), 0, torch.device("cpu"), 0)
    process = psutil.Process()
    before = process.memory_info().rss
    loaded = load_data(everything(root), 0, torch.device("cpu"), 0)
    assert isinstance(loaded.store, Pool)
    return process.memory_info().rss - before, loaded.store.pixels.nbytes


def decodes_per_image() -> float:
    """Decoded images of a streamed trial with a meta set, divided by the images that it needs; 1 is the least."""
    return streams.decodes(keep_gib=None)


def measure_decodes() -> dict[str, float]:
    """The same, beside a trial that keeps no image."""
    return {"decodes_per_image": decodes_per_image(), "decodes_per_image_unkept": streams.decodes(keep_gib=0)}


def measure(repeats: int, root: Path) -> dict[str, float]:
    """All figures. Start and memory are measured on the images of `root`."""
    resident = measure_augment(repeats) | measure_start(root, repeats) | measure_memory(root)
    return resident | measure_decodes() | streams.measure_streams(repeats, NUM_PHOTOGRAPHS)


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data")
    parser.add_argument("--repeats", type=int, default=7, help="rounds of timing (default: 7)")
    parser.add_argument("--root", type=Path, help="folder of .parquet files (default: random images)")
    parser.add_argument("--json", action="store_true", help="print one flat JSON object")
    given = parser.parse_args(arguments)
    origin = versions()  # before the number of threads changes
    with tempfile.TemporaryDirectory() as folder:
        if given.root is None:
            write_images(Path(folder), 20_000)
        result = measure(given.repeats, given.root or Path(folder))
    if given.json:
        print(json.dumps(result | origin))
    else:
        print("\n".join(f"{name:<34} {value:12.2f}" for name, value in result.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
