import itertools
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from pictures import LARGEST_DRAW, pictures, uniform
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from trainables.data import large_augment
from trainables.data.large_augment import LARGE_AUGMENTATIONS, augment, augment_image, crop_box, num_draws, up_to_crop
from trainables.data.operations import contrast

SIZES = [(3, 32, 32), (1, 8, 8), (3, 5, 7), (3, 2, 9), (1, 1, 4), (3, 37, 50), (1, 61, 33)]
RAND_AUGMENT = v2.RandAugment(num_ops=2, magnitude=10)
JITTERS = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
EVERYTHING = ["resized_crop", "flip", "color_jitter", "rand_augment"]


def of_rand_augment(image: Tensor, which: float, sign: float) -> Tensor:
    """An operation of torchvision's forward pass, with its random numbers given."""
    name, (magnitudes, signed) = list(RAND_AUGMENT._AUGMENTATION_SPACE.items())[int(which * 14)]
    found = magnitudes(31, *image.shape[1:])
    magnitude = 0.0 if found is None else float(found[10]) * (-1 if signed and sign < 0.5 else 1)
    interpolation, fill = RAND_AUGMENT.interpolation, RAND_AUGMENT._fill
    return RAND_AUGMENT._apply_image_or_video_transform(image, name, magnitude, interpolation, fill)  # type: ignore[arg-type]


def of_color_jitter(image: Tensor, draws: list[float]) -> Tensor:
    which, *others = draws
    for number in list(itertools.permutations(range(3)))[int(which * 6)]:
        image = JITTERS[number](image, float(np.float32(0.6) + np.float32(0.8) * np.float32(others[number])))
    return image


# Random numbers


def test_the_random_numbers_of_an_image_are_those_of_splitmix64() -> None:
    """The first numbers of the seed 1234567 in the reference implementation by Vigna."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    expected = [(number >> 40) / 2**24 for number in known]
    drawn = large_augment.uniform(np.array([1, 1234567, 2**64 - 1], np.uint64), 5)
    assert drawn.dtype == torch.float32
    assert drawn[1].tolist() == expected
    assert large_augment.uniform(np.array([1234567], np.uint64), 2)[0].tolist() == expected[:2]


def test_the_random_numbers_are_even_and_those_of_neighbouring_seeds_have_nothing_in_common() -> None:
    drawn = large_augment.uniform(np.arange(20_000, dtype=np.uint64), 6)
    assert 0 <= drawn.min() < 1e-4
    assert 0.9999 < drawn.max() < 1
    counts = torch.stack([torch.histc(column, 20, 0, 1) for column in drawn.unbind(1)])
    assert (counts - 1000).abs().max() < 5 * math.sqrt(1000)  # five standard deviations
    both = torch.cat([drawn[:-1], drawn[1:]], 1)
    assert (torch.corrcoef(both.T) - torch.eye(12)).abs().max() < 5 / math.sqrt(20_000)


# Against torchvision


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("sign", [0.25, 0.75])
@pytest.mark.parametrize("which", range(14))
def test_every_operation_of_rand_augment_is_torchvisions_pixel_for_pixel(
    which: int, sign: float, size: tuple[int, int, int]
) -> None:
    images, first = pictures(*size), (which + 0.5) / 14
    identity = 0.5 / 14
    for draws in ([first, sign, identity, 0.0], [identity, 0.0, first, sign]):
        ours = LARGE_AUGMENTATIONS["rand_augment"].apply(images, torch.tensor(draws).expand(len(images), -1), 1)
        assert torch.equal(ours, torch.stack([of_rand_augment(image, first, sign) for image in images]))


@pytest.mark.slow
@pytest.mark.parametrize("side", [224, 256, 384])  # pixels that come from half-way between two are many at 384
def test_large_images_are_torchvisions_pixel_for_pixel(side: int) -> None:
    images = pictures(3, side, side)
    draws = torch.tensor([[(which + 0.5) / 14, sign] for which in range(14) for sign in (0.25, 0.75)])
    if side > 256:  # there torchvision's float32 sums are rounded
        draws = draws[draws[:, 0].mul(14).long() != large_augment.RAND_OPERATIONS.index("contrast")]
    for draw in draws:
        both = torch.cat([draw, torch.tensor([0.0, 0.0])])  # the second one is the identity
        ours = LARGE_AUGMENTATIONS["rand_augment"].apply(images, both.expand(len(images), -1), 1)
        expected = torch.stack([of_rand_augment(image, *draw.tolist()) for image in images])
        assert torch.equal(ours, expected), large_augment.RAND_OPERATIONS[int(draw[0] * 14)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_rand_augment_is_torchvisions_for_the_same_draws(size: tuple[int, int, int]) -> None:
    images, draws = pictures(*size).repeat(40, 1, 1, 1), uniform(320, 4)
    ours = LARGE_AUGMENTATIONS["rand_augment"].apply(images, draws, 1)
    for image, row, result in zip(images, draws, ours, strict=True):
        assert torch.equal(result, of_rand_augment(of_rand_augment(image, *row.tolist()[:2]), *row.tolist()[2:])), row


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_color_jitter_is_torchvisions_for_the_same_draws(size: tuple[int, int, int]) -> None:
    images, draws = pictures(*size).repeat(40, 1, 1, 1), uniform(320, 4)
    ours = LARGE_AUGMENTATIONS["color_jitter"].apply(images, draws, 1)
    for image, row, result in zip(images, draws, ours, strict=True):
        assert torch.equal(result, of_color_jitter(image, row.tolist())), row


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_an_image_is_mirrored_if_its_draw_is_below_one_half(size: tuple[int, int, int]) -> None:
    images, draws = pictures(*size), torch.tensor([0.0, 0.499, 0.5, LARGEST_DRAW]).repeat(2)[:, None]
    ours = LARGE_AUGMENTATIONS["flip"].apply(images, draws, 1)
    for image, draw, result in zip(images, draws, ours, strict=True):
        assert torch.equal(result, functional.horizontal_flip(image) if draw < 0.5 else image)


def box_of_torchvision(draws: list[float], height: int, width: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, ...]:
    """The box that torchvision's code makes of our random numbers, in the order in which it asks for them."""
    *tries, top, left = draws
    drawn, last = iter(tries), iter((top, left))

    def uniform_(_: Tensor, first: Any, end: Any) -> Tensor:
        return torch.tensor([float(first) + next(drawn) * (float(end) - float(first))], dtype=torch.float64)

    def randint(low: int, high: int, size: tuple[int, ...]) -> Tensor:
        return torch.full(size, low + int(next(last) * (high - low)))

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "uniform_", uniform_)
        patch.setattr(torch, "randint", randint)
        found = v2.RandomResizedCrop(8).make_params([torch.empty(3, height, width)])
    return found["top"], found["left"], found["height"], found["width"]


@pytest.mark.parametrize(("height", "width"), [(375, 500), (31, 31), (100, 7), (7, 100), (40, 30), (1, 1), (3, 200), (50, 66)])
def test_the_box_of_a_crop_is_torchvisions_for_the_same_draws(height: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = torch.cat([uniform(300, 22), torch.zeros(1, 22), torch.full((1, 22), LARGEST_DRAW)])
    boxes = [crop_box(row, height, width) for row in draws.tolist()]
    assert boxes == [box_of_torchvision(row, height, width, monkeypatch) for row in draws.tolist()]
    for top, left, high, wide in boxes:
        assert 0 <= top <= top + high <= height
        assert 0 <= left <= left + wide <= width


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_cropped_image_is_torchvisions(size: tuple[int, int, int]) -> None:
    images, draws = pictures(*size), uniform(8, 22)
    ours = LARGE_AUGMENTATIONS["resized_crop"].apply(images, draws, 16)
    for image, row, result in zip(images, draws.tolist(), ours, strict=True):
        box = crop_box(row, *size[1:])
        assert torch.equal(result, functional.resized_crop(image, *box, size=[16, 16], antialias=True))


def test_without_a_crop_an_image_is_first_cut_to_its_middle() -> None:
    for size in SIZES:
        for image in pictures(*size):
            expected = v2.Compose([v2.Resize(18, antialias=True), v2.CenterCrop(16)])(image)
            assert torch.equal(augment_image([], image, torch.empty(0), 16), expected)
            draws = torch.tensor([0.1])
            assert torch.equal(augment_image(["flip"], image, draws, 16), functional.horizontal_flip(expected))


# Frequencies


def test_over_even_draws_every_operation_comes_as_often_as_in_torchvision() -> None:
    image = pictures(3, 8, 8)[0]
    choices = [
        ((which + share) / 14, sign) for which in range(14) for share in (0.0, 0.5, 0.999) for sign in (0.0, 0.499, 0.5, 0.999)
    ]
    draws = torch.tensor([[*choice, 0.01, 0.0] for choice in choices])
    ours = LARGE_AUGMENTATIONS["rand_augment"].apply(image.expand(len(draws), -1, -1, -1), draws, 1)
    expected: Counter[bytes] = Counter()
    for which, sign in itertools.product(range(14), (0.25, 0.75)):
        expected[of_rand_augment(image, (which + 0.5) / 14, sign).numpy().tobytes()] += 6  # 1/28 of the 168
    assert Counter(result.numpy().tobytes() for result in ours) == expected


def test_over_even_draws_every_order_of_the_colours_comes_equally_often_and_every_factor_is_between_0_6_and_1_4() -> None:
    images = torch.full((600, 1, 2, 2), 100, dtype=torch.uint8)
    images[:, :, 0] = 180
    draws = torch.tensor([[(order + 0.5) / 6, 0.999, 0.0, 0.0] for order in range(6)]).repeat(100, 1)
    results = LARGE_AUGMENTATIONS["color_jitter"].apply(images, draws, 1)
    # Of a grey image, three orders have brightness (1.4, where 255 is the limit) before contrast (0.6), and three after.
    counts = Counter(result.flatten().numpy().tobytes() for result in results)
    assert sorted(counts.values()) == [300, 300]
    ends = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.0, LARGEST_DRAW, 0.5, 0.5]])
    dark, bright = LARGE_AUGMENTATIONS["color_jitter"].apply(torch.full((2, 1, 1, 1), 100, dtype=torch.uint8), ends, 1).flatten()
    assert abs(int(dark) - 60) <= 1
    assert abs(int(bright) - 140) <= 1


def test_boxes_have_areas_and_ratios_that_are_spread_evenly() -> None:
    """In a large square image the first box fits, unless it is wider or higher than the image."""
    boxes = [crop_box(row, 1000, 1000) for row in uniform(4000, 22).tolist()]
    small = [(high, wide) for _, _, high, wide in boxes if high * wide < 700_000]  # these always fit
    areas = np.array([high * wide / 1e6 for high, wide in small])
    ratios = np.array([math.log(wide / high) / math.log(4 / 3) for high, wide in small])
    for values, low, end in ((areas, 0.08, 0.7), (ratios, -1, 1)):
        counts, _ = np.histogram(values, 10, (low, end))
        assert abs(counts - len(small) / 10).max() < 5 * math.sqrt(len(small) / 10)


# All of them


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", LARGE_AUGMENTATIONS)
def test_every_augmentation_keeps_the_contract(name: str, size: tuple[int, int, int]) -> None:
    images = pictures(*size)
    before, num = images.clone(), num_draws([name])
    shape = LARGE_AUGMENTATIONS[name].apply(images[:1], uniform(1, num), 5).shape[1:]
    assert shape in (size, (size[0], 5, 5))
    for draws in (torch.zeros(8, num), torch.full((8, num), LARGEST_DRAW), uniform(8, num)):
        changed = LARGE_AUGMENTATIONS[name].apply(images, draws, 5)
        assert changed.shape == (8, *shape)
        assert changed.dtype == torch.uint8
        assert torch.equal(images, before)


@pytest.mark.parametrize("size", [*SIZES, pytest.param((3, 260, 260), marks=pytest.mark.slow)], ids=str)
def test_an_image_does_not_depend_on_the_others_in_its_batch(size: tuple[int, int, int]) -> None:
    names = ["flip", "color_jitter", "rand_augment"]
    images = pictures(*size).repeat(12, 1, 1, 1)
    draws = uniform(len(images), num_draws(names))
    whole = augment(names, images, draws, 1)
    for sizes in ([1] * 96, [3, 1, 75, 17]):
        parts = [augment(names, *part, 1) for part in zip(images.split(sizes), draws.split(sizes), strict=True)]
        assert torch.equal(torch.cat(parts), whole)


def test_the_contrast_of_an_image_of_more_than_65536_pixels_is_that_of_its_exact_mean() -> None:
    """With float32 sums, some of these would have a mean below 128."""
    generator = torch.Generator().manual_seed(0)
    half = torch.randint(1, 256, (16, 700 * 350), generator=generator)
    pixels = torch.cat([half, 256 - half], 1)[:, torch.randperm(700 * 700, generator=generator)]
    assert (pixels.sum(1) == 128 * 700 * 700).all()
    images = pixels.view(16, 1, 700, 700).to(torch.uint8)
    assert contrast(images, torch.tensor([[0.0, 1.0]]).expand(16, -1)).unique().tolist() == [128]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (EVERYTHING, ("resized_crop",)),
        (["flip", "color_jitter"], ()),
        (["flip", "resized_crop", "color_jitter"], ("flip", "resized_crop")),
        (["resized_crop", "flip", "resized_crop", "flip"], ("resized_crop", "flip", "resized_crop")),
        (["flip", "resized_crop"], ("flip", "resized_crop")),
        ([], ()),
    ],
)
def test_what_follows_the_crop_of_single_images_may_be_done_for_the_batch(names: list[str], expected: tuple[str, ...]) -> None:
    alone = up_to_crop(names)
    assert alone == expected
    images = [pictures(3, 20 + place, 30)[place] for place in range(8)]
    draws, split = uniform(8, num_draws(names)), num_draws(alone)
    whole = torch.stack([augment_image(names, image, row, 16) for image, row in zip(images, draws, strict=True)])
    cropped = torch.stack([augment_image(alone, image, row[:split], 16) for image, row in zip(images, draws, strict=True)])
    assert torch.equal(augment(names[len(alone) :], cropped, draws[:, split:], 16), whole)


def test_an_unknown_augmentation_is_answered_with_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"unknown augmentation 'cutout'; choose one of \['color_jitter', 'flip', 'rand_augment', "
    ):
        num_draws(["flip", "cutout"])


class OneDevice(TorchDispatchMode):  # type: ignore[misc]
    """Fails when an operation other than a copy mixes devices, which a GPU would refuse."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = [leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim()]
        assert len(set(found)) <= 1 or "copy" in func.name(), (func, found)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def one_device() -> Iterator[None]:
    with OneDevice():
        yield


@pytest.mark.parametrize("name", LARGE_AUGMENTATIONS)
@pytest.mark.usefixtures("one_device")
def test_no_augmentation_reads_pixels_back_from_the_device_or_mixes_devices(name: str) -> None:
    """Tensors on the device `meta` have no values: reading one is an error, where a GPU would be waited for."""
    images = torch.empty(64, 3, 20, 24, dtype=torch.uint8, device="meta")
    for some in (images, images[:1]):
        changed = LARGE_AUGMENTATIONS[name].apply(some, uniform(len(some), num_draws([name])), 16)
        assert changed.device.type == "meta"
        assert len(changed) == len(some)


@pytest.mark.gpu
def test_a_gpu_makes_the_same_images_after_the_crop_and_nearly_the_same_crops() -> None:
    names = ["flip", "color_jitter", "rand_augment"]
    images, draws = pictures(3, 64, 64).repeat(100, 1, 1, 1), uniform(800, num_draws(names))
    assert torch.equal(augment(names, images.cuda(), draws, 1).cpu(), augment(names, images, draws, 1))
    crops = uniform(800, 22)
    ours, expected = (augment(["resized_crop"], some, crops, 32).cpu() for some in (images.cuda(), images))
    assert (ours.int() - expected.int()).abs().max() <= 1
