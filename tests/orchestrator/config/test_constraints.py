from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.constraints import parse_constraint

NUMBERS = st.integers(-9, 9) | st.floats(-9, 9).map(lambda value: round(value, 2))
TERMS = st.recursive(
    NUMBERS.map(str) | st.sampled_from(["method.width", "optim.batch_size", "beta"]),
    lambda terms: (
        st.tuples(terms, st.sampled_from("+-*/"), terms).map(lambda parts: f"({parts[0]} {parts[1]} {parts[2]})")
        | terms.map(lambda term: f"-{term}")
    ),
    max_leaves=8,
)
RELATIONS = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])


@given(first=TERMS, one=RELATIONS, middle=TERMS, two=RELATIONS, last=TERMS, width=NUMBERS, batch_size=NUMBERS, beta=NUMBERS)
def test_a_constraint_says_what_python_would(
    first: str, one: str, middle: str, two: str, last: str, width: float, batch_size: float, beta: float
) -> None:
    text = f"beta - {first} {one} {middle} {two} {last}"
    values = {"method": SimpleNamespace(width=width), "optim": SimpleNamespace(batch_size=batch_size), "beta": beta}
    try:
        expected = bool(eval(text, values))
    except ZeroDivisionError:
        expected = False
    assert parse_constraint(text).holds({"method.width": width, "optim.batch_size": batch_size, "beta": beta}) == expected


def test_a_constraint_knows_what_it_mentions() -> None:
    constraint = parse_constraint("method.hidden_width <= 4 * optim.batch_size + method.hidden_width / 2")
    assert constraint.names == {"method.hidden_width", "optim.batch_size"}


def test_a_relation_holds_for_a_trial_that_lacks_a_setting() -> None:
    assert parse_constraint("method.hidden_width < 0").holds({"optim.batch_size": 4})
    assert not parse_constraint("method.hidden_width < 0").holds({"method.hidden_width": 4})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("abs(method.hidden_width) < 4", "holds 'abs(method.hidden_width)'; allowed: settings and numbers with"),
        ("method.hidden_width < __import__('os').system('true')", "holds \"__import__('os').system('true')\""),
        ("'a'.upper < optim.lr", "holds \"'a'.upper\""),
        ("optim.lr", "holds 'optim.lr'"),
        ("optim.lr ** 2 < 4", "holds 'optim.lr ** 2'"),
        ("optim.lr % 2 < 4", "holds 'optim.lr % 2'"),
        ("optim.lr < 4 and optim.lr > 1", "holds 'optim.lr < 4 and optim.lr > 1'"),
        ("(optim.lr < 4) + 1 < 2", "holds 'optim.lr < 4'"),
        ("optim.lr in [1, 2]", "holds 'optim.lr in [1, 2]'"),
        ("optim.lr is 1", "holds 'optim.lr is 1'"),
        ("not optim.lr < 4", "holds 'not optim.lr < 4'"),
        ("optim['lr'] < 4", "holds \"optim['lr']\""),
        ("optim.lr < True", "holds 'True'"),
        ("optim.lr < 1j", "holds '1j'"),
        ("optim.schedule == 'cosine'", "holds \"'cosine'\""),
        ("(lambda: 1) < optim.lr", "holds 'lambda: 1'"),
        ("optim.lr <", "is not a relation; allowed: settings and numbers with"),
        ("optim.lr = 4", "is not a relation"),
        ("", "is not a relation"),
        ("\0", "is not a relation"),
        ("(" * 500 + "optim.lr" + ")" * 500 + "< 1", "is not a relation"),
        ("+".join(["optim.lr"] * 5000) + " < 1", "is not a relation"),
        ("1 < 2", "mentions no setting"),
    ],
)
def test_what_is_no_relation_between_numbers_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        parse_constraint(text)
    assert message in str(error.value)
    assert "allowed: " in str(error.value)
