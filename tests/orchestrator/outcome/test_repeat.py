import math

from orchestrator.outcome.repeat import compare


def test_the_first_epoch_that_differs_is_named_with_the_largest_difference_of_all_epochs() -> None:
    recorded = {
        1: {"train/loss": 2.0, "val/acc": 0.5, "val/acc_few": None, "time/epoch_s": 1.0},
        2: {"train/loss": 1.0, "val/acc": 0.6, "val/acc_few": None, "time/epoch_s": 1.0},
        3: {"train/loss": 0.5, "val/acc": 0.7, "val/acc_few": 0.1, "time/epoch_s": 1.0},
    }
    again = {
        1: {"train/loss": 2.0, "val/acc": 0.5, "val/acc_few": math.nan, "time/epoch_s": 9.0},
        2: {"train/loss": 1.25, "val/acc": 0.6, "val/acc_few": math.nan, "time/epoch_s": 9.0},
        3: {"train/loss": 0.0, "val/acc": 0.75, "val/acc_few": math.nan, "time/epoch_s": 9.0},
        4: {"train/loss": 0.1, "val/acc": 0.7, "val/acc_few": 0.1, "time/epoch_s": 9.0},
    }
    found = compare(recorded, again)
    assert not found.is_identical
    assert [(one.epoch, one.metric, one.recorded, one.again) for one in found.first] == [(2, "train/loss", 1.0, 1.25)]
    assert {name: round(size, 9) for name, size in found.largest.items()} == {
        "train/loss": 0.5,
        "val/acc": 0.05,
        "val/acc_few": math.inf,
    }
    assert (found.epochs, found.numbers) == (3, 9)
    assert compare(recorded, recorded).is_identical
