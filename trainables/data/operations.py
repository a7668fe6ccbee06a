"""Operations on the pixels of a batch of images of one size, each image with parameters of its own.

The results equal, pixel for pixel, those of torchvision.transforms.v2.functional, which processes one image at a time. The
operations are of few kinds: moving pixels, looking each pixel up in a table of 256 bytes, and blending an image with a grey or a
blurred version. The images of a batch are sorted by kind, so that each kind takes a few kernels for all of its images, whatever
their parameters.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Kind = Callable[[Tensor, Tensor], Tensor]
"""Images (n, C, H, W) uint8 and their parameters (n, ...) -> images."""


def operate(images: Tensor, kind: Tensor, kinds: Sequence[Kind], parameters: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Applies an operation to each image.

    Args:
        images: (B, C, H, W) uint8.
        kind: position in `kinds` for each image, (B,) int64; len(kinds) leaves the image as it is. If `kind` is on the CPU, a GPU
            is not waited for.
        kinds: the operations.
        parameters: a position in `kinds` and the positions of n images in the batch, on the device of `kind` -> the parameters of
            these images, (n, ...) on the device of the images.
    """
    if len(images) == 1:  # sorting would cost as much as an operation
        number = int(kind)
        return images if number == len(kinds) else kinds[number](images, parameters(number, torch.zeros_like(kind)))
    kind, order = kind.sort()
    counts = torch.bincount(kind, minlength=len(kinds) + 1).tolist()
    images = images.index_select(0, order.to(images.device, non_blocking=True))
    parts, places = torch.split(images, counts), torch.split(order, counts)
    for number, (apply, part, those) in enumerate(zip(kinds, parts, places, strict=False)):  # the last part is left unchanged
        if len(part):
            part.copy_(apply(part, parameters(number, those)))
    return images.index_select(0, order.argsort().to(images.device, non_blocking=True))


def move(images: Tensor, sources: Tensor) -> Tensor:
    """Images (n, C, H, W) with pixels taken from `sources` (n, H * W), positions in a flat image; H * W is a black pixel."""
    pixels = F.pad(images.flatten(2), (0, 1))
    return pixels.gather(2, sources[:, None].expand(-1, images.shape[1], -1)).view_as(images)


def look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Images (n, C, H, W) with each value replaced by its entry in the image's table (n, C or 1, 256)."""
    return tables.expand(-1, images.shape[1], -1).gather(2, images.flatten(2).long()).view_as(images)


def auto_contrast(images: Tensor, _: Tensor) -> Tensor:
    """Stretches each channel to 0..255. A channel with a single value stays unchanged."""
    pixels = images.flatten(2)
    low, high = pixels.amin(2, keepdim=True).float(), pixels.amax(2, keepdim=True).float()
    varied = high > low
    tables = (_levels(images) - low.where(varied, 0.0)) / ((high - low) * (1 / 255)).where(varied, 1.0)
    return look_up(images, tables.clamp_(0, 255).to(torch.uint8))


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """Equalises the histogram of each channel, in PIL's integer arithmetic. A channel stays unchanged if its step would be 0."""
    pixels = images.flatten(2).long()
    one = torch.ones(1, dtype=torch.int32, device=images.device)
    histogram = one.new_zeros(*pixels.shape[:2], 256).scatter_add_(2, pixels, one.expand_as(pixels))
    below = histogram.cumsum(2, dtype=torch.int32) - histogram
    # As in PIL, the pixels of the largest value do not count when the others are divided among 255 steps.
    step = (pixels.shape[2] - histogram.gather(2, pixels.amax(2, keepdim=True))) // 255
    tables = ((below + step // 2) // step.clamp(min=1)).clamp_(0, 255).where(step > 0, _levels(images).int())
    return look_up(images, tables.to(torch.uint8))


def brightness(images: Tensor, weights: Tensor) -> Tensor:
    """Multiplies each image by the first of its weights; weights (n, 2)."""
    return images.float().mul_(weights[:, 0, None, None, None]).clamp_(0, 255).to(torch.uint8)


def contrast(images: Tensor, weights: Tensor) -> Tensor:
    """Blends each image with the mean of its grey version; weights (n, 2)."""
    # Grey values are whole numbers, so their float64 sum is exact in any order, on every device. Their float32 sum, which
    # torchvision takes, is exact for images of fewer than 2^16 pixels.
    mean = (_grey(images).sum((1, 2), dtype=torch.float64) / images[0, 0].numel()).float()
    return look_up(images, _blend(_levels(images)[None], mean[:, None], weights)[:, None])


def color(images: Tensor, weights: Tensor) -> Tensor:
    """Blends each image with its grey version; weights (n, 2). A grey image stays unchanged."""
    if images.shape[1] == 1:
        return images
    return _blend(images.float(), _grey(images)[:, None], weights)


def sharpness(images: Tensor, weights: Tensor) -> Tensor:
    """Blends each image with its version after PIL's 3x3 smoothing; weights (n, 2). The outermost pixels stay unchanged."""
    whole = images.to(torch.int16)
    across = whole[..., :-2] + whole[..., 1:-1] + whole[..., 2:]
    total = across[..., :-2, :] + across[..., 1:-1, :] + across[..., 2:, :] + 4 * whole[..., 1:-1, 1:-1]
    smooth = (total.float() / 13).round_()
    sharpened = images.float()
    inner = sharpened[..., 1:-1, 1:-1]
    # The same blend as _blend in another form, which rounds differently. torchvision uses this form for sharpness.
    inner.addcmul_(smooth.sub_(inner), weights[:, 1, None, None, None])
    return sharpened.clamp_(0, 255).to(torch.uint8)


def _blend(values: Tensor, other: Tensor, weights: Tensor) -> Tensor:
    """The sum of values (n or 1, ...) and other (n, ...), weighted by weights (n, 2), as uint8."""
    of_values, of_other = (weight.view(-1, *[1] * (other.dim() - 1)) for weight in weights.unbind(1))
    # addcmul rounds once, after the sum, as torchvision's add with alpha does. With a rounded product 1 pixel in 200 differs.
    return torch.addcmul(values * of_values, other, of_other).clamp_(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """Luma (n, H, W) as whole numbers in float32; adds and rounds in torchvision's order."""
    if images.shape[1] == 1:
        return images[:, 0].float()
    red, green, blue = images.float().unbind(1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()


def _levels(images: Tensor) -> Tensor:
    return torch.arange(256, dtype=torch.float32, device=images.device)
