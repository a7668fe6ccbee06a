"""Decoding of JPEG images by torchvision on a trial's device: by nvJPEG on a GPU."""

import functools
import io
import warnings
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from trainables.data.source import UnreadableImage

CURE = "allowed: compute.decode_on=readers, which decodes with Pillow"


def check_decoder(device: torch.device) -> None:
    """Decodes a small image.

    Raises:
        ValueError: when torchvision cannot decode JPEG images on the device; the message says what to change.
    """
    Image.new("RGB", (16, 16)).save(file := io.BytesIO(), "JPEG")
    try:
        decode_jpegs([torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)], False, device)
    except (ImportError, RuntimeError) as error:
        needed = "a torchvision with nvJPEG is needed; " if device.type == "cuda" else ""
        why = str(error).partition("\n")[0]
        raise ValueError(
            f"compute.decode_on is 'device', but torchvision cannot decode JPEG images on {device.type} ({why}); {needed}{CURE}"
        ) from error


def decode_each(images: Sequence[Tensor], places: Sequence[str], grey: bool, device: torch.device) -> list[Tensor]:
    """The pixels (C, H, W) of images on the device.

    Args:
        images: uint8, on the CPU: encoded (N,), or pixels (C, H, W) already.
        places: what the images are called in errors.
        grey: one channel instead of three.
        device: decodes, and gets the pixels.

    Raises:
        UnreadableImage: when an image cannot be decoded; the message names its place.
    """
    encoded = [image for image in images if image.dim() == 1]
    try:
        decoded = iter(decode_jpegs(encoded, grey, device) if encoded else [])
    except RuntimeError:
        # The error of a batch does not say which image is damaged.
        for image, place in zip(images, places, strict=True):
            _check(image, place, grey, device)
        raise
    return [next(decoded) if image.dim() == 1 else image.to(device, non_blocking=True) for image in images]


def _check(image: Tensor, place: str, grey: bool, device: torch.device) -> None:
    if image.dim() > 1:
        return
    try:
        decode_jpegs([image], grey, device)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        why = str(error).partition("\n")[0]
        raise UnreadableImage(
            f"data.root: {place}: not an image that compute.decode_on=device can read ({why}); {CURE}"
        ) from error


def decode_jpegs(encoded: Sequence[Tensor], grey: bool, device: torch.device) -> list[Tensor]:
    """The pixels (C, H, W) of encoded images (N,) on the device.

    Raises:
        RuntimeError: when an image cannot be decoded.
    """
    if device.type != "cuda":
        return _decoded(encoded, grey, device)
    # nvJPEG writes in a stream of its own, which does not wait for ours. So it must get memory that no kernel of ours still
    # uses: that of a stream without kernels. What `record_stream` marks returns there only when our stream is done with it.
    ours, decoding = torch.cuda.current_stream(device), _stream(device)
    with torch.cuda.stream(decoding):
        images = _decoded(encoded, grey, device)
    ours.wait_stream(decoding)
    for image in images:
        image.record_stream(ours)
    return images


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _decoded(encoded: Sequence[Tensor], grey: bool, device: torch.device) -> list[Tensor]:
    from torchvision.io import ImageReadMode, decode_jpeg  # imported here, because the import takes a second

    with warnings.catch_warnings():
        # The torchvision that is installed decodes; that a later one will not is no news for whoever trains.
        warnings.filterwarnings("ignore", "The image decoding and encoding capabilities", DeprecationWarning)
        images: list[Tensor] = decode_jpeg(list(encoded), ImageReadMode.GRAY if grey else ImageReadMode.RGB, device)
    return images
