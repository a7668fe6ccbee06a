"""Whether a weighting has collapsed: three signs, each a function of a few numbers of an epoch, and the verdict in words.

A collapsed trial goes on, but it is said. Thresholds lie between what working and collapsed trials showed on the digits and on
100 generated classes (lambda 0 to 1, beta 1e-4 to 1). A weight of 1e-6 of the mean still recovers, and so does the output of a
network that the driver loss pulls to within 4e-4 of 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

ZERO_WEIGHT = 1e-7
"""A class whose weight is at most this share of the classes' mean weight adds less to a gradient than float32 rounds off. Weights
down to 2e-7 were seen in trials that work; collapsed ones have 1e-11 and less."""
DEAD_OUTPUT = 1e-5
"""Outputs closer to 0 or 1 are saturated: the sigmoid's derivative is at most as large. Difficulty-Net's driver loss pulls
difficulties to a distance of 1 / num_classes from 1, and before the first measured accuracies to 1: 4e-4 was seen."""
SAME_OUTPUT = 1e-9
"""Outputs of a network that differ by less between the images of every batch do not depend on the image."""
DEAD_LEVER = 1e-6
"""Length of the meta-gradient in units of ||v|| ||dL/dphi||: how much a step of theta changes phi's gradient. Independent of how
well the training images are fitted, unlike `meta/grad_norm`. Working trials have 8e-5 and more, collapsed ones 1e-11."""
NO_MOVE = 1e-8
"""theta stands still if an epoch moves it by less than this share of its length, at full step sizes."""
PATIENCE = 3
"""Consecutive epochs in which a sign has to be there: single epochs recover."""
ENOUGH_IMAGES = 20
"""Consecutive images of a class that got the weight 0, where each image has a weight of its own: one may get it by chance."""

ZERO_CLASSES, SATURATED, STILL = "collapse/zero_weight_classes", "collapse/saturated", "collapse/theta_still"


def zero_weight(weights: Sequence[float | None]) -> list[bool]:
    """Which classes have the weight 0, next to the mean of all; None is a class without an image, and never one of them."""
    known = [abs(weight) for weight in weights if weight is not None]
    limit = ZERO_WEIGHT * sum(known) / max(len(known), 1)
    return [weight is not None and abs(weight) <= limit for weight in weights]


def saturated(liveliest: float, widest: float | None = None) -> bool:
    """Whether the outputs of a sigmoid pass no gradient on, or do not depend on the image.

    Args:
        liveliest: the largest distance of an output from the nearer of 0 and 1, in [0, 0.5].
        widest: the largest difference of an output between two images of a batch; None where outputs are not of images.
    """
    return liveliest < DEAD_OUTPUT or (widest is not None and widest < SAME_OUTPUT)


def still(moved: float, step_factor: float, lever: float | None) -> bool:
    """Whether theta no longer moves.

    Args:
        moved: length of theta's change over an epoch, divided by theta's length.
        step_factor: by which schedules scaled the steps of theta and of the virtual step; 0 moves nothing, which is no sign.
        lever: length of the meta-gradient in units of ||v|| ||dL/dphi||; None if no meta-gradient was computed.
    """
    return (step_factor > 0 and moved < NO_MOVE * step_factor) or (lever is not None and lever < DEAD_LEVER)


@dataclass
class Watch:
    """How long each sign has been there. Part of a trial's state, so that a resumed trial reports the same."""

    epochs_at_zero: list[int] = field(default_factory=list)
    images_at_zero: list[int] = field(default_factory=list)
    epochs_saturated: int = 0
    epochs_still: int = 0

    def take(
        self, weights: Sequence[float | None] | None, images: Sequence[int] | None, is_saturated: bool, is_still: bool | None
    ) -> dict[str, float]:
        """Takes the signs of an epoch; returns the metrics: a number of classes, and 0 or 1.

        Args:
            weights: of the classes, (num_classes,); None if the method does not weigh.
            images: how many images of each class the weights were measured on, (num_classes,); None if they are exact.
            is_saturated: the result of `saturated`.
            is_still: the result of `still`; None if nothing was to move theta, which leaves the count as it is.
        """
        zero = zero_weight(weights or [])
        seen = [ENOUGH_IMAGES] * len(zero) if images is None else images
        before = zip(self.epochs_at_zero or [0] * len(zero), self.images_at_zero or [0] * len(zero), strict=True)
        streaks = [
            (epochs + 1, counted + new) if is_zero else (0, 0)
            for is_zero, new, (epochs, counted) in zip(zero, seen, before, strict=True)
        ]
        self.epochs_at_zero, self.images_at_zero = [epochs for epochs, _ in streaks], [counted for _, counted in streaks]
        self.epochs_saturated = self.epochs_saturated + 1 if is_saturated else 0
        if is_still is not None:
            self.epochs_still = self.epochs_still + 1 if is_still else 0
        return {
            ZERO_CLASSES: float(sum(epochs >= PATIENCE and counted >= ENOUGH_IMAGES for epochs, counted in streaks)),
            SATURATED: float(self.epochs_saturated >= PATIENCE),
            STILL: float(self.epochs_still >= PATIENCE),
        }


def verdict(metrics: Mapping[str, float | None]) -> str:
    """What an epoch's metrics say about a collapse, in words; empty if there is none."""
    said = []
    if number := int(metrics.get(ZERO_CLASSES) or 0):
        said.append(f"the weights of {number} classes are 0" if number > 1 else "the weight of 1 class is 0")
    if metrics.get(SATURATED):
        said.append("the weighting network's outputs are saturated")
    if metrics.get(STILL):
        said.append("the weighting network no longer learns")
    return "; ".join(said)
