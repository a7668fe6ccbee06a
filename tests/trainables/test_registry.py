from typing import Annotated, Any, Literal

import pytest
from pydantic import ValidationError

from trainables.registry import OneOf, lookup
from trainables.settings import Settings


class Shape(Settings):
    name: str


class Circle(Shape):
    name: Literal["circle"] = "circle"
    radius: float


class Square(Shape):
    name: Literal["square"] = "square"
    sides: list[int]


TABLE: dict[str, type[Shape]] = {"circle": Circle}


class Drawing(Settings):
    shape: Annotated[Shape, OneOf(TABLE, "name")] = Circle(radius=1.0)


@pytest.fixture
def with_square(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABLE, "square", Square)


def test_an_unknown_name_is_answered_with_all_that_there_are() -> None:
    assert lookup({"focal": 1}, "focal", "loss") == 1
    with pytest.raises(ValueError, match=r"unknown loss 'focl'; choose one of \['cross_entropy', 'focal'\]"):
        lookup({"focal": 1, "cross_entropy": 2}, "focl", "loss")


def test_a_name_selects_its_settings() -> None:
    drawing = Drawing.model_validate({"shape": {"name": "circle", "radius": 2}})
    assert drawing.shape == Circle(radius=2.0)
    assert drawing.model_dump() == {"shape": {"name": "circle", "radius": 2.0}}


def test_a_row_that_comes_later_counts(with_square: None) -> None:
    drawing = Drawing.model_validate({"shape": {"name": "square", "sides": [3]}})
    assert drawing == Drawing(shape=Square(sides=[3]))
    assert Drawing.model_validate(drawing.model_dump()) == drawing
    assert Drawing.model_validate_json(drawing.model_dump_json()) == drawing


@pytest.mark.parametrize(
    ("shape", "place", "kind"),
    [
        ({"name": "circle", "radius": "x"}, ("shape", "radius"), "float_type"),
        ({"name": "circle"}, ("shape", "radius"), "missing"),
        ({"name": "circle", "radius": 1, "sides": [1]}, ("shape", "sides"), "extra_forbidden"),
        ({"name": "square", "sides": [1, "x"]}, ("shape", "sides", 1), "int_type"),
        ({"name": "cube"}, ("shape",), "union_tag_invalid"),
        ({"name": ["circle"]}, ("shape",), "union_tag_invalid"),
        ({"radius": 1}, ("shape",), "union_tag_not_found"),
        ("circle", ("shape",), "model_attributes_type"),
        (Settings(), ("shape",), "union_tag_not_found"),
    ],
)
def test_errors_have_the_place_and_the_type_of_a_tagged_unions_without_its_tags(
    with_square: None, shape: Any, place: tuple[str | int, ...], kind: str
) -> None:
    with pytest.raises(ValidationError) as raised:
        Drawing.model_validate({"shape": shape})
    assert [(error["loc"], error["type"]) for error in raised.value.errors()] == [(place, kind)]


def test_settings_of_a_class_that_is_no_row_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"Input tag 'square' found using 'name' does not match any of the .*: 'circle'"):
        Drawing(shape=Square(sides=[1]))


def test_a_field_tells_its_choice() -> None:
    choice = OneOf.of(Drawing.model_fields["shape"])
    assert choice is not None
    assert (choice.selector, choice.rows()) == ("name", {"circle": Circle})
    assert OneOf.of(Circle.model_fields["radius"]) is None
