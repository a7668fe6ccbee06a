from pathlib import Path

import pytest
import torch
from clock import Clock

from benchmarks import streams
from benchmarks.data import (
    cover_a_square,
    decodes_per_image,
    measure_augment,
    measure_memory,
    measure_start,
    ours,
    random_images,
    reference,
    write_images,
)
from trainables.data.loaded import LoadedData, load_data
from trainables.data_config import ParquetConfig


@pytest.mark.slow
def test_both_sides_hand_out_every_image_in_normalised_batches_of_128() -> None:
    images = random_images(300)
    for epoch in (ours(images), reference(images)):
        batches = list(epoch())
        assert [tuple(batch.shape) for batch in batches] == [(128, 3, 32, 32), (128, 3, 32, 32), (44, 3, 32, 32)]
        pixels = torch.cat(batches)
        assert pixels.dtype == torch.float32
        assert pixels.min() == pytest.approx(-0.4914 / 0.2470, abs=0.1)
        assert pixels.max() == pytest.approx((1 - 0.4465) / 0.2616, abs=0.1)
        # A square with its centre anywhere covers 16 x 16 pixels, less what lies outside: on average (1 - 8 / 64)^2 of them.
        assert (pixels.abs() < 0.01).float().mean().item() == pytest.approx(0.25 * 0.875**2, abs=0.03)


def test_the_references_square_is_clipped_at_the_edges() -> None:
    torch.manual_seed(0)
    sizes = {int((cover_a_square(torch.ones(1, 32, 32)) == 0).sum()) for _ in range(500)}
    assert min(sizes) >= 8 * 8
    assert max(sizes) == 16 * 16
    assert len(sizes) > 20


@pytest.mark.slow
def test_the_ratios_are_of_the_figures_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.data.NUM_IMAGES", 256)
    threads = torch.get_num_threads()
    result = measure_augment(repeats=1)
    torch.set_num_threads(threads)
    reference_speed = result["augment_reference_images_per_s"]
    assert result["augment_speedup"] == result["augment_ours_images_per_s"] / reference_speed
    assert result["augment_two_threads_speedup"] == result["augment_two_threads_images_per_s"] / reference_speed


@pytest.mark.slow
def test_the_memory_is_of_the_images_given(tmp_path: Path) -> None:
    write_images(tmp_path, 3000)
    memory = measure_memory(tmp_path)
    assert memory["cached_mb"] == pytest.approx((3000 - 10) * 3072 / 1e6)  # but for the test set
    assert memory["cached_bytes_ratio"] > 0.5


@pytest.mark.slow
def test_a_start_is_timed_after_the_first_on_the_same_and_on_another_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, loads = Clock(), []

    def load(config: ParquetConfig, seed: int, device: torch.device, readers: int, kept: LoadedData | None = None) -> LoadedData:
        loads.append((seed, kept is not None))
        clock.now += 8 if kept is None else 1 + seed
        return load_data(config, seed, device, readers, kept)

    monkeypatch.setattr("benchmarks.data.load_data", load)
    monkeypatch.setattr("benchmarks.data.time", clock)
    write_images(tmp_path, 300)
    assert measure_start(tmp_path, repeats=2) == {
        "first_start_ms": 8000,
        "second_start_ms": 1000,
        "second_start_other_seed_ms": 2000,
    }
    assert loads == [(0, False), (0, True), (0, True), (1, True), (1, True)]


@pytest.mark.slow
def test_an_image_is_decoded_hardly_more_often_than_it_is_needed() -> None:
    assert 1 <= decodes_per_image() <= 1.05


@pytest.mark.slow
def test_without_room_the_same_trial_decodes_meta_and_val_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "EPOCHS", 2)
    # 72 training images, 20 of meta and 20 of val; in each epoch 9 meta batches of 8, val and A_C at the end, and A_C once more
    # before the first step of all.
    needed = 2 * 72 + 20 + 20
    assert streams.decodes(keep_gib=0) == (2 * (72 + 9 * 8 + 20 + 20) + 20) / needed


@pytest.mark.slow
def test_the_places_of_the_work_on_streams_are_compared_with_the_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PHOTO": (40, 30), "IMAGE_SIZE": 16}.items():
        monkeypatch.setattr(streams, name, value)
    threads = torch.get_num_threads()
    result = streams.measure_places(repeats=1, number=16, device=torch.device("cpu"), readers=1)
    torch.set_num_threads(threads)
    for name in ("augment_on_device", "decode_on_device"):
        speed = result[f"{name}_images_per_s"]
        assert speed > 0
        assert result[f"{name}_speedup"] == speed / result["all_on_readers_images_per_s"]
    assert result["readers"] == 1


@pytest.mark.slow
def test_the_arms_of_streams_are_compared_with_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PHOTO": (40, 30), "IMAGE_SIZE": 16, "SHRUNK": 20}.items():
        monkeypatch.setattr(streams, name, value)
    threads = torch.get_num_threads()
    result = streams.measure_streams(repeats=1, number=16)
    torch.set_num_threads(threads)
    for name, arms in {
        "shrunk_speedup": ("shrunk_train", "stream_train"),
        "kept_speedup": ("kept_again", "stream_again"),
    }.items():
        ours, theirs = (result[f"{arm}_images_per_s_core"] for arm in arms)
        assert result[name] == ours / theirs
