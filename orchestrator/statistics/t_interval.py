"""Student's interval of a mean over seeds."""

import math


def half_width(sd: float, number: int, confidence: float = 0.95) -> float:
    """Half the width of the interval of a mean.

    Args:
        sd: sample standard deviation (n - 1 in the denominator).
        number: of the values, at least 2.
        confidence: in (0, 1).
    """
    from scipy import stats  # importing it takes a second

    return float(stats.t.ppf(0.5 + confidence / 2, number - 1)) * sd / math.sqrt(number)
