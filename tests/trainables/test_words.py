import pytest

from trainables.words import accuracies, brief, duration


def test_both_accuracies_stand_side_by_side_where_they_differ() -> None:
    both = accuracies({"test/acc": 0.5, "test/plain_acc": 0.75}, "test")
    assert both == "test/acc 0.5000 (mean over classes), test/plain_acc 0.7500 (share of all images)"
    assert accuracies({"test/acc": 0.5, "test/plain_acc": 0.50001}, "test") == "test/acc 0.5000"
    assert accuracies({"val/acc": 0.5}, "val", remark=", so far:") == "val/acc, so far: 0.5000"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (1e-4, "under 1 ms"),
        (0.18, "180 ms"),
        (0.9999, "1 s"),
        (59, "59 s"),
        (119, "119 s"),
        (120, "2.0 min"),
        (7199, "120.0 min"),
        (9000, "2.5 h"),
        (259200, "3.0 days"),
    ],
)
def test_a_time_is_said_in_the_unit_of_which_there_are_two(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_number_of_a_few_digits_is_shown_as_it_is() -> None:
    given = [0.9999, 0.999, 0.0001, 1e-05, 0.3, 1.0, 0.089214, 123456.0, 1234567.0, 8.4412e-05, 0.99987]
    shown = ["0.9999", "0.999", "0.0001", "1e-05", "0.3", "1", "0.0892", "123456", "1.23e+06", "8.44e-05", "1"]
    assert [brief(value) for value in given] == shown
