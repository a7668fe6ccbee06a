"""Measures streams of large images for benchmarks/data.py and benchmarks/gpu.py: how often images are decoded, how many a core
prepares, and how many a machine prepares when some of the work is done on the device.
"""

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from trainables.classifier_config import SmallCNNConfig
from trainables.config import BilevelConfig, ComputeConfig, OptimConfig, TrialConfig
from trainables.data import stream
from trainables.data.cache import CACHE
from trainables.data.loaded import LoadedData, load_data
from trainables.data.loader import IN_READERS, OnDevice, Request, training_order, training_requests
from trainables.data_config import ImageFolderConfig
from trainables.method_config import DifficultyNetConfig
from trainables.trial_run import TrialRun

PHOTO, IMAGE_SIZE, SHRUNK = (500, 375), 224, 256
"""Width and height of a usual photograph of ImageNet, and the sides that are usual for it."""
QUALITY = 90
EPOCHS, PER_CLASS, NUM_CLASSES = 5, 30, 4
CPU = torch.device("cpu")
EVERYTHING = ["resized_crop", "flip", "color_jitter", "rand_augment"]
PLACES = {
    "all_on_readers": IN_READERS,
    "augment_on_device": OnDevice(augment=True),
    "decode_on_device": OnDevice(augment=True, decode=True),
}
"""Where training images are decoded and augmented, by the settings `compute.augment_on` and `compute.decode_on`."""


def write_photographs(root: Path, number: int, size: tuple[int, int]) -> None:
    """JPEG files of this width and height in NUM_CLASSES classes: smooth shapes with some noise, as large as photographs are."""
    for image in range(number):
        rng = np.random.default_rng(image)
        coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
        noisy = np.clip(np.array(coarse) + rng.normal(0, 12, (size[1], size[0], 1)), 0, 255).astype(np.uint8)
        file = root / f"class{image % NUM_CLASSES}" / f"{image:05}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy).save(file, quality=QUALITY)


def decodes(keep_gib: float | None) -> float:
    """Decoded images of a streamed trial of Difficulty-Net with a reader process, divided by the images that it needs.

    It needs each training image once in each epoch, and each image of meta and val once.

    Args:
        keep_gib: the trial's `compute.keep_gib`; 0 keeps no image.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder), PER_CLASS * NUM_CLASSES, (24, 18))
        data = ImageFolderConfig(root=folder, image_size=16, meta_per_class=5, val_per_class=5, test_per_class=2)
        config = TrialConfig(
            epochs=EPOCHS,
            device="cpu",
            data=data,
            classifier=SmallCNNConfig(),
            method=DifficultyNetConfig(hidden_width=8),
            optim=OptimConfig(batch_size=8),
            bilevel=BilevelConfig(meta_batch_size=8),
            compute=ComputeConfig(readers=1, keep_gib=keep_gib),
        )
        with _counted() as count:
            run = TrialRun()
            run.start(config)
            for _ in range(EPOCHS):
                run.run_epoch()
            sets = run.loaded.data
        return count() / (EPOCHS * len(sets.train) + len(sets.meta) + len(sets.val))


@contextmanager
def _counted() -> Iterator[Callable[[], int]]:
    """Counts the images that streams decode, also in reader processes, which are forked off this one."""
    number, decode = multiprocessing.get_context("fork").Value("q", 0), stream.open_image

    def counting(*arguments: Any) -> Image.Image:
        with number.get_lock():
            number.value += 1
        return decode(*arguments)

    with patch.object(stream, "open_image", counting):
        yield lambda: number.value


def measure_streams(repeats: int, number: int) -> dict[str, float]:
    """Images per second of one core, each arm once in each round: training images from files and from shrunk copies, and meta
    and val images that are decoded each time and that are kept.

    Args:
        repeats: rounds; the figures are medians.
        number: images of a round.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, {CACHE: f"{folder}/cache"}):
        root = Path(folder) / "photographs"
        write_photographs(root, number + 3 * NUM_CLASSES, PHOTO)
        counts = {"meta_per_class": 1, "val_per_class": 1, "test_per_class": 1}
        plain = ImageFolderConfig(root=str(root), image_size=IMAGE_SIZE, **counts)
        streamed = load_data(plain, 0, CPU, 0)
        cpu_s = time.process_time()  # all threads shrink
        shrunk = load_data(plain.model_copy(update={"shrink": SHRUNK}), 0, CPU, 0)
        making = number / (time.process_time() - cpu_s)
        kept = load_data(plain.model_copy(update={"augment": []}), 0, CPU, 0, room=2**33)
        arms = {
            "stream_train": lambda: _training(streamed),
            "shrunk_train": lambda: _training(shrunk),
            "stream_again": lambda: _as_they_are(streamed),
            "kept_again": lambda: _as_they_are(kept),
        }
        _as_they_are(kept)  # decodes them
        speeds: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(repeats):
            for name, arm in arms.items():
                speeds[name].append(arm())
    result = {f"{name}_images_per_s_core": statistics.median(values) for name, values in speeds.items()}
    result["shrunk_speedup"] = result["shrunk_train_images_per_s_core"] / result["stream_train_images_per_s_core"]
    result["kept_speedup"] = result["kept_again_images_per_s_core"] / result["stream_again_images_per_s_core"]
    return result | {"shrinking_images_per_s_core": making}


def measure_places(repeats: int, number: int, device: torch.device, readers: int) -> dict[str, float]:
    """Training images per second that a machine brings to the device with all augmentations, each arm of PLACES once in each
    round.

    Args:
        repeats: rounds; the figures are medians.
        number: images of a round.
        device: of the batches.
        readers: reader processes.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder), number + 3 * NUM_CLASSES, PHOTO)
        counts = {"meta_per_class": 1, "val_per_class": 1, "test_per_class": 1}
        config = ImageFolderConfig(root=folder, image_size=IMAGE_SIZE, augment=EVERYTHING, **counts)
        arms = {name: load_data(config, 0, device, readers, moved=moved) for name, moved in PLACES.items()}
        for arm in arms.values():
            _wall_speed(arm)  # starts the readers
        speeds: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(repeats):
            for name, arm in arms.items():
                speeds[name].append(_wall_speed(arm))
    result = {f"{name}_images_per_s": statistics.median(values) for name, values in speeds.items()}
    for name in ("augment_on_device", "decode_on_device"):
        result[f"{name}_speedup"] = result[f"{name}_images_per_s"] / result["all_on_readers_images_per_s"]
    return result | {"readers": readers}


def _wall_speed(data: LoadedData) -> float:
    """Images of an epoch per second of real time, until the last one is on the device."""
    order = training_order(torch.from_numpy(data.data.train.labels), 32, 0, 1)
    began = time.perf_counter()
    number = sum(len(batch.labels) for batch in data.train.batches(training_requests(order, 0, 0, augmented=True)))
    if data.train.labels.is_cuda:
        torch.cuda.synchronize()
    return number / (time.perf_counter() - began)


def _training(data: LoadedData) -> float:
    order = training_order(torch.from_numpy(data.data.train.labels), 32, 0, 1)
    return _speed(data, training_requests(order, 0, 0, augmented=True))


def _as_they_are(data: LoadedData) -> float:
    return _speed(data, [Request(some) for some in torch.arange(len(data.train)).split(32)])


def _speed(data: LoadedData, requests: list[Request]) -> float:
    """Images of the training set per second of this process's CPU time."""
    began = time.process_time()
    number = sum(len(batch.labels) for batch in data.train.batches(requests))
    return number / (time.process_time() - began)
