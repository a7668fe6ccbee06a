"""How far accuracies on a finite number of images can be trusted: binomial intervals. Needs no library."""

import math

Z = 1.959963984540054
"""Quantile of the normal distribution for intervals of 95 %."""


def wilson(share: float, number: float) -> tuple[float, float]:
    """The 95 % interval of a proportion. Source: Wilson, JASA 1927.

    For a mean over classes with equally many images, the interval is a little too wide: between classes there is no chance.

    Args:
        share: of the images that are right, in [0, 1].
        number: of the images; a fraction for a mean over classes of different sizes.

    Raises:
        ValueError: when there is no image.
    """
    if number < 1:
        raise ValueError(f"number is {number:g}; allowed: 1 and more images")
    centre = share + Z**2 / (2 * number)
    half = Z * math.sqrt(share * (1 - share) / number + Z**2 / (4 * number**2))
    return max(0.0, (centre - half) / (1 + Z**2 / number)), min(1.0, (centre + half) / (1 + Z**2 / number))


def newcombe(first: float, second: float, number: float) -> tuple[float, float]:
    """The 95 % interval of the difference of two proportions of equally many images. Source: Newcombe, Statist. Med. 1998, method
    10.

    The formula is that for independent images. Two classifiers that look at the same images tend to be right on the same ones, so
    their difference is known better than the interval says.

    Args:
        first: share of the images that are right.
        second: the same of the other classifier, which is subtracted.
        number: of the images; a fraction for a mean over classes of different sizes.
    """
    (low, high), (other_low, other_high) = wilson(first, number), wilson(second, number)
    difference = first - second
    below = math.hypot(first - low, other_high - second)
    above = math.hypot(high - first, second - other_low)
    return difference - below, difference + above
