"""The one rule for the best epoch of a trial, shared by the process that trains the trial and by the readers of its ledger."""

import math


def improves(value: float | None, best: float | None) -> bool:
    """Whether an epoch with `value` of `select_by` takes the place of the best one so far.

    It has to be higher: of equals the earlier epoch stays. What is no number (None in a ledger, NaN in training) never improves.
    """
    if value is None or math.isnan(value):
        return False
    return best is None or value > best
