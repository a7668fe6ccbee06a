import pytest

from orchestrator.terminal.lines import duration


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(59, "59 s"), (119, "119 s"), (120, "2.0 min"), (7199, "120.0 min"), (9000, "2.5 h"), (259200, "3.0 days")],
)
def test_a_time_is_said_in_the_unit_of_which_there_are_two(seconds: float, words: str) -> None:
    assert duration(seconds) == words
