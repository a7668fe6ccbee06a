"""Writes docs/reference/settings.md from the settings themselves: name, type, default, allowed values and explanation.

    python docs/generate_reference.py [--check]

`--check` writes nothing; the exit code is 1 when the page is out of date. Needs neither torch nor Ray.
"""

import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # also without an installed package

from orchestrator.config.sweep_config import SweepConfig  # noqa: E402
from trainables.loss_config import LossSettings, MethodSettings  # noqa: E402
from trainables.registry import OneOf  # noqa: E402
from trainables.settings import Settings  # noqa: E402

PAGE = ROOT / "docs" / "reference" / "settings.md"
OUR_PACKAGES = ("orchestrator", "trainables")
"""Plug-ins that happen to be installed are left out."""
SELECTORS = ("name", "source", "type")
"""Fields that choose one of several groups of settings."""
HEAD = """# Settings

<!-- Written by docs/generate_reference.py from the settings themselves: change the docstrings there, then `make docs`. -->

Every setting of a sweep, by section. In a YAML file, a dotted name is the same as nested keys: `trial.optim.lr: 0.1` equals
`trial: {optim: {lr: 0.1}}`. On the command line, `trial.optim.lr=0.1` changes the setting for one run.
`python -m trainables.train` reads the settings of one trial, so `trial.` may be left out there. Unknown names are errors.
`null` means that nothing is set; explanations also call it None.
"""


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


def render() -> str:
    """The page."""
    parts = [HEAD]
    for section in sections():
        parts.append(f"## {section.title}\n\n{_one_line(section.model.__doc__ or '')}\n")
        rows = [_row(section, name, field) for name, field in section.model.model_fields.items() if name not in section.hidden]
        if rows:
            parts.append("\n".join(["| setting | type | default | allowed | meaning |", "|---|---|---|---|---|", *rows]) + "\n")
    return "\n".join(parts)


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


def _row(section: Section, name: str, field: FieldInfo) -> str:
    full = f"{section.path}.{name}".lstrip(".")
    kind = _kind(field.annotation)
    cells = [f"`{full}`", kind, _default(field), _allowed(field), _one_line(field.description or _inherited(section.model, name))]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _inherited(model: type[BaseModel], name: str) -> str:
    """The explanation that the nearest base gives."""
    for base in model.__mro__:
        if issubclass(base, Settings) and name in base.model_fields and (text := base.model_fields[name].description):
            return text
    return ""


def _kind(kind: Any) -> str:
    """The type of a value in words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _kind(inner[0])
    if _models(kind) and origin is not dict:
        return "settings"
    if origin in (Union, types.UnionType):
        words = [_kind(part) for part in inner if part is not types.NoneType]
        return " or ".join(dict.fromkeys([*words, *(["null"] if types.NoneType in inner else [])]))
    if origin is Literal:
        return {"str": "word", "int": "whole number"}[type(inner[0]).__name__]
    if origin is list:
        return f"list of {_plural(_kind(inner[0]))}"
    if origin is dict:
        return "mapping"
    return {bool: "true or false", int: "whole number", float: "number", str: "text"}.get(kind, "any value")


def _plural(words: str) -> str:
    return words if words.endswith("text") or words == "settings" else words.replace("any value", "value") + "s"


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, list) and value and isinstance(value[0], BaseModel):
        return f"`[{{name: {value[0].name}}}]`"
    if isinstance(value, BaseModel):
        selector = next((name for name in SELECTORS if name in type(value).model_fields), None)
        return f"`{selector}: {getattr(value, selector)}`" if selector else "its defaults"
    return f"`{json.dumps(value)}`" if not isinstance(value, str) else f"`{value}`"


def _allowed(field: FieldInfo) -> str:
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


def _one_line(text: str) -> str:
    return " ".join(text.split())


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    page = render()
    if "--check" in arguments:
        if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page:
            return 0
        print(f"{PAGE.relative_to(ROOT)} is out of date; run: python docs/generate_reference.py", file=sys.stderr)
        return 1
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
