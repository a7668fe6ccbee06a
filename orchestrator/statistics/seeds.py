"""How many seeds a comparison needs, and when to look at its results. Needs no library, so that a plan is checked at once."""

import itertools
import math


def looks(fewest: int, most: int) -> list[int]:
    """Numbers of seeds at which to look at the results: from `fewest` to `most`, each about half as many again as the last.

    From 3 to 12: 3, 5, 8, 12. Each look costs a share of the level, so there are few.
    """
    if not 2 <= fewest <= most:
        raise ValueError(f"seeds from {fewest} to {most}; allowed: at least 2 to begin with, and no fewer in the end")
    num_steps = max(1, round(math.log(most / fewest) / math.log(1.5)))
    return sorted({round(fewest * (most / fewest) ** (step / num_steps)) for step in range(num_steps + 1)})


def smallest_p(num_seeds: int, num_tests: int) -> float:
    """The smallest corrected p-value that the exact sign-flip test can reach.

    Two of the 2^n signs, all plus and all minus, are as extreme as the most extreme observation.

    Args:
        num_seeds: pairs of each test.
        num_tests: variants without the reference, times looks.
    """
    return min(1.0, num_tests * 2 * 0.5**num_seeds)


def seeds_needed(num_tests: int, level: float = 0.05) -> int:
    """The smallest number of seeds with which the exact sign-flip test can reach the level; see `smallest_p`."""
    return next(number for number in itertools.count(1) if smallest_p(number, num_tests) <= level)
