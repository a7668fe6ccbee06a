import pytest

from trainables.registry import lookup


def test_an_unknown_name_is_answered_with_all_that_there_are() -> None:
    assert lookup({"focal": 1}, "focal", "loss") == 1
    with pytest.raises(ValueError, match=r"unknown loss 'focl'; choose one of \['cross_entropy', 'focal'\]"):
        lookup({"focal": 1, "cross_entropy": 2}, "focl", "loss")
