"""What there is to set: every setting with its type, default, allowed values and meaning, from the settings themselves."""

import json
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from orchestrator.config.sweep_config import SweepConfig
from trainables.loss_config import LossSettings, MethodSettings
from trainables.registry import OneOf
from trainables.settings import Settings

OUR_PACKAGES = ("orchestrator", "trainables")
"""Plug-ins that happen to be installed are left out."""
SELECTORS = ("name", "source", "type")
"""Fields that choose one of several groups of settings."""


class Entry(NamedTuple):
    """A setting."""

    name: str
    """Dotted, as on a command line."""
    kind: str
    default: str
    allowed: str
    meaning: str


class Section(NamedTuple):
    """Settings that stand together."""

    path: str
    """Their dotted prefix, empty for those of the sweep itself."""
    choice: str
    """`name: difficulty_net` where the section is one of several, else empty."""
    model: type[BaseModel]
    hidden: frozenset[str] = frozenset()
    """Fields that another section explains."""

    @property
    def title(self) -> str:
        """The heading."""
        return " with ".join(f"`{part}`" for part in (self.path, self.choice) if part) or "The sweep"


def entries(section: Section) -> Iterator[Entry]:
    """The settings of a section, each cell in the words of the reference."""
    for name, field in section.model.model_fields.items():
        if name not in section.hidden:
            full = f"{section.path}.{name}".lstrip(".")
            meaning = one_line(field.description or inherited(section.model, name))
            yield Entry(full, kind_of(field.annotation), default_of(field), allowed_in(field), meaning)


def sections() -> Iterator[Section]:
    """All sections, each before those inside it."""
    yield from _sections_of("", "", SweepConfig, frozenset())


def setting_names() -> set[str]:
    """Every setting by dotted name, and every prefix that holds settings: `trial`, `trial.optim`, `trial.optim.lr`."""
    names = {section.path for section in sections() if section.path}
    for section in sections():
        names |= {f"{section.path}.{name}".lstrip(".") for name in section.model.model_fields}
    return names


def _sections_of(path: str, choice: str, model: type[BaseModel], hidden: frozenset[str]) -> Iterator[Section]:
    yield Section(path, choice, model, hidden)
    for name, field in model.model_fields.items():
        if name in hidden:
            continue
        inner = f"{path}.{name}".lstrip(".")
        if field.annotation is LossSettings or (field.annotation is MethodSettings and path != "trial"):
            continue  # all methods stand under trial.method, and every loss is a method, too
        models = _models_of(field)
        if get_origin(field.annotation) is dict:
            inner += ".<setting>"
        if get_origin(field.annotation) is list and models:
            inner += ".<number>"
        if len(models) == 1:
            yield from _sections_of(inner, "", models[0], frozenset())
        elif models:
            base, selector = _common_base(models), frozenset(SELECTORS) & set(models[0].model_fields)
            if base.model_fields.keys() - selector:
                yield from _sections_of(inner, "", base, selector)
            for one in models:
                shared = frozenset(key for key in one.model_fields if key in base.model_fields and _same(one, base, key))
                yield from _sections_of(inner, _choice(one), one, shared | selector)


def _models_of(field: FieldInfo) -> list[type[BaseModel]]:
    """The groups of settings that a field allows."""
    choice = OneOf.of(field)
    if choice is None and get_origin(field.annotation) is list:  # a list of choices carries the mark inside
        marks = getattr(get_args(field.annotation)[0], "__metadata__", ())
        choice = next((mark for mark in marks if isinstance(mark, OneOf)), None)
    if choice is None:
        return _models(field.annotation)
    return [model for model in choice.rows().values() if model.__module__.split(".")[0] in OUR_PACKAGES]


def _models(kind: Any) -> list[type[BaseModel]]:
    """The groups of settings that an annotation allows."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [model for part in get_args(kind) for model in _models(part)] if get_origin(kind) is not Literal else []


def _common_base(models: list[type[BaseModel]]) -> type[BaseModel]:
    """The nearest class that all of `models` come from."""
    bases = [kind for kind in models[0].__mro__ if issubclass(kind, BaseModel)]
    return next(base for base in bases if all(issubclass(one, base) for one in models))


def _same(one: type[BaseModel], base: type[BaseModel], key: str) -> bool:
    """Whether a field of `one` is what its base says already."""
    mine, theirs = one.model_fields[key], base.model_fields[key]
    return all(getattr(mine, part) == getattr(theirs, part) for part in ("annotation", "default", "description", "metadata"))


def _choice(model: type[BaseModel]) -> str:
    """`name: difficulty_net` for the settings of that method."""
    selector = next(name for name in SELECTORS if name in model.model_fields)
    return f"{selector}: {get_args(model.model_fields[selector].annotation)[0]}"


def inherited(model: type[BaseModel], name: str) -> str:
    """The explanation that the nearest base gives."""
    for base in model.__mro__:
        if issubclass(base, Settings) and name in base.model_fields and (text := base.model_fields[name].description):
            return text
    return ""


def kind_of(kind: Any) -> str:
    """The type of a value in words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return kind_of(inner[0])
    if _models(kind) and origin is not dict:
        return "settings"
    if origin in (Union, types.UnionType):
        words = [kind_of(part) for part in inner if part is not types.NoneType]
        return " or ".join(dict.fromkeys([*words, *(["null"] if types.NoneType in inner else [])]))
    if origin is Literal:
        return {"str": "word", "int": "whole number"}[type(inner[0]).__name__]
    if origin is list:
        return f"list of {_plural(kind_of(inner[0]))}"
    if origin is dict:
        return "mapping"
    return {bool: "true or false", int: "whole number", float: "number", str: "text"}.get(kind, "any value")


def _plural(words: str) -> str:
    return words if words.endswith("text") or words == "settings" else words.replace("any value", "value") + "s"


def default_of(field: FieldInfo) -> str:
    """The default of a setting, as one writes it."""
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, list) and value and isinstance(value[0], BaseModel):
        return f"`[{{name: {getattr(value[0], 'name', '')}}}]`"
    if isinstance(value, BaseModel):
        selector = next((name for name in SELECTORS if name in type(value).model_fields), None)
        return f"`{selector}: {getattr(value, selector)}`" if selector else "its defaults"
    return f"`{json.dumps(value)}`" if not isinstance(value, str) else f"`{value}`"


def allowed_in(field: FieldInfo) -> str:
    """The range, the words, or nothing where every value of the type is allowed."""
    models = _models_of(field)
    words = [_choice(one).split(": ")[1] for one in models] if len(models) > 1 else _words(field.annotation)
    if words and get_origin(field.annotation) is not dict:
        return ", ".join(f"`{word}`" for word in words)
    return ", ".join(dict.fromkeys(_bounds(field.metadata) + _inner_bounds(field.annotation)))


def _words(kind: Any) -> list[Any]:
    """The values of a Literal, also inside a list or beside null."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    if get_origin(kind) is dict:
        return []
    return [word for part in get_args(kind) for word in _words(part)]


def _inner_bounds(kind: Any) -> list[str]:
    """The bounds of an annotated part, for instance of a list's members."""
    found = []
    if get_origin(kind) is Annotated:
        found += _bounds(list(get_args(kind)[1:]))
    if get_origin(kind) not in (dict, Literal) and not _models(kind):
        for part in get_args(kind):
            if get_origin(part) is not None:
                found += _inner_bounds(part)
    return found


def _bounds(metadata: list[Any]) -> list[str]:
    """Pydantic's constraints in words."""
    found = []
    for one in metadata:
        parts = getattr(one, "metadata", None) or [one]  # a Field inside Annotated holds more of them
        for part in parts:
            for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
                if (bound := getattr(part, name, None)) is not None:
                    found.append(f"{sign} {_number(bound)}")
            if (least := getattr(part, "min_length", None)) is not None:
                found.append(f"at least {least} long")
            if (most := getattr(part, "max_length", None)) is not None:
                found.append(f"at most {most} long")
            if pattern := getattr(part, "pattern", None):
                found.append("of the form `old=new`" if pattern == "=" else "an address, such as `sqlite:///mlflow.db`")
    return found


def _number(bound: float) -> str:
    if bound == 2**31:
        return "2³¹"
    return str(int(bound)) if bound == int(bound) else str(bound)


def one_line(text: str) -> str:
    """The text without line breaks."""
    return " ".join(text.split())
