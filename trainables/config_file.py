"""Turns a YAML file and `key=value` overrides into validated settings, or into an error with file, field, given and allowed."""

import difflib
import functools
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from trainables.registry import OneOf, load_installed_plugins, load_plugins
from trainables.settings import without_password
from trainables.shown_commands import shipped

Tree = dict[str, Any]
S = TypeVar("S", bound=BaseModel)


class ConfigError(ValueError):
    """The input was wrong. Nothing has been started and nothing written. Programs end with exit code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(without_password(message))


class Origin(NamedTuple):
    """The source of settings: a file, and the dotted keys that the command line has overridden."""

    file: str
    overridden: frozenset[str] = frozenset()

    def of(self, message: str) -> str:
        """The source of the field in a message: the command line if the message names an overridden key, or begins with a parent
        of one; otherwise the file.
        """
        plain, subject = message.replace(": ", "."), message.split(": ")[0]
        named = any(key in plain or key.startswith(f"{subject}.") for key in self.overridden)
        return "command line" if named else self.file


def read_settings(kind: type[S], path: Path, overrides: Iterable[str] = (), section: str | None = None) -> S:
    """Reads `path`, applies the `key=value` overrides and validates the result against `kind`.

    Args:
        kind: the settings class.
        path: a YAML file.
        overrides: `key=value` texts; the keys are relative to `kind`.
        section: if the file has this key, the settings below the key are read instead of the whole file.

    Raises:
        ConfigError: when the input is wrong; the message names the file (or the command line), the field, given and allowed.
    """
    return check(kind, *read_tree(kind, path, overrides, section))


def read_tree(
    kind: type[BaseModel], path: Path, overrides: Iterable[str] = (), section: str | None = None
) -> tuple[Tree, Origin]:
    """The settings of a file with the overrides applied, not yet validated, and their origin.

    Raises:
        ConfigError: when the file or an override cannot be read, or a plug-in that the settings name cannot be imported.
    """
    tree = read_yaml(path)
    if section and isinstance(tree.get(section), dict):
        tree = tree[section]
    words = ["", *overrides, ""]
    changes = [parse_override(text, before, after) for before, text, after in zip(words, words[1:], words[2:], strict=False)]
    origin = Origin(str(path), frozenset(".".join(keys) for keys, _ in changes))
    nested = [nest(keys, value) for keys, value in changes]
    # The merge below looks up names, which may come from a plug-in that a later override adds. So plug-ins are imported first.
    import_plugins(kind, functools.reduce(functools.partial(merge, None), nested, tree), origin)
    return functools.reduce(functools.partial(merge, kind), nested, tree), origin


def read_yaml(path: Path) -> Tree:
    """A YAML mapping with its dotted keys nested: `a.b: 1` equals `a: {b: 1}`.

    Raises:
        ConfigError: when the file cannot be read, is not a mapping, or sets a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        names = f"; shipped, by name: {', '.join(shipped())}" if isinstance(error, FileNotFoundError) else ""
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}{names}") from error
    try:
        loaded = yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, found {type(loaded).__name__}")
    return nest_dotted(loaded, str(path))


def import_plugins(kind: Any, tree: Tree, origin: Origin) -> None:
    """Imports the plug-ins of installed packages and the plug-ins that `tree` lists in settings named `plugins`.

    Raises:
        ConfigError: when a module cannot be imported; the message names the module, and the setting or the package that names it.
    """
    try:
        load_installed_plugins()
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for field, modules in _plugins(kind, tree):
        try:
            load_plugins(modules)
        except ValueError as error:
            message = f"{field}: {error}"
            raise ConfigError(f"{origin.of(message)}: {message}") from error


def _plugins(kind: Any, tree: Tree) -> Iterator[tuple[str, list[str]]]:
    """The modules of each setting `plugins`, with the setting's dotted name. Values of a wrong type are skipped; `check` reports
    them.
    """
    fields = kind.model_fields if isinstance(kind, type) and issubclass(kind, BaseModel) else {}
    for name, value in tree.items():
        if name == "plugins" and name in fields and isinstance(value, list):
            yield name, [module for module in value if isinstance(module, str)]
        elif name in fields and isinstance(value, dict):
            yield from ((f"{name}.{inner}", modules) for inner, modules in _plugins(fields[name].annotation, value))


def dump_yaml(tree: Tree) -> str:
    """The settings as YAML. `read_yaml` reads equal values back."""
    return yaml.dump(tree, Dumper=_StrictDumper, sort_keys=False, width=120)


def written(value: Any) -> str:
    """A setting's value as it is written on the command line."""
    if isinstance(value, str):
        return value
    return f"[{','.join(map(written, value))}]" if isinstance(value, list) else json.dumps(value)


def nest_dotted(tree: Mapping[Any, Any], where: str) -> Tree:
    """The same settings with all dotted keys nested. `where` names the source in errors."""
    try:
        leaves = list(_leaves(tree, where))
    except RecursionError:
        raise ConfigError(f"{where}: a setting contains itself, through a YAML alias") from None
    result: Tree = {}
    for keys, value in leaves:
        level = result
        for depth, key in enumerate(keys[:-1], 1):
            level = level.setdefault(key, {})
            if not isinstance(level, dict):
                raise ConfigError(f"{where}: {'.'.join(keys[:depth])} is set both as one value and by its parts")
        if keys[-1] in level:
            raise ConfigError(f"{where}: {'.'.join(keys)} is set twice")
        level[keys[-1]] = value
    return result


def _leaves(tree: Mapping[Any, Any], where: str, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each value with the keys that lead to the value."""
    for key, value in tree.items():
        if not isinstance(key, str) or not all(key.split(".")):
            raise ConfigError(f"{where}: {key!r} is not a setting's name; names are words joined by dots")
        keys = (*above, *key.split("."))
        if isinstance(value, dict) and value:
            yield from _leaves(value, where, keys)
        else:
            yield keys, value


def parse_override(text: str, before: str = "", after: str = "") -> tuple[list[str], Any]:
    """`trial.optim.lr=0.1` as (["trial", "optim", "lr"], 0.1). The value is parsed as YAML.

    Args:
        text: the word.
        before: the word before it, for hints in errors.
        after: the word after it.

    Raises:
        ConfigError: when it is no change of a setting.
    """
    key, equals, value = text.partition("=")
    keys = key.strip().split(".")
    if not equals or not all(keys):
        hint = ""
        if re.fullmatch(r"[a-z_]+(\.\w+)+", text) and after and "=" not in after:
            hint = f"; did you mean {shlex.quote(f'{text}={after}')}?"
        elif "=" in before:
            hint = f"; a value with spaces needs quotes: did you mean {shlex.quote(f'{before} {text}')}?"
        raise ConfigError(f"command line: {text!r} is not of the form key=value, for example trial.optim.lr=0.1{hint}")
    try:
        parsed = yaml.load(value, Loader=_StrictLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"command line: {key} is {value!r}, which is not a YAML value: {' '.join(str(error).split())}"
        ) from error
    return keys, nest_dotted(parsed, f"command line: {key}") if isinstance(parsed, dict) else parsed


def nest(keys: list[str], value: Any) -> Tree:
    """`(["a", "b"], 1)` as `{"a": {"b": 1}}`."""
    for key in reversed(keys):
        value = {key: value}
    return value  # type: ignore[no-any-return]


def merge(kind: Any, tree: Tree, changes: Tree) -> Tree:
    """`tree` with `changes` applied, key by key.

    Some names select settings (`method.name`, `data.source`). If such a name changes, old settings that also exist under the new
    name are kept, except those that have the old one's default: the new one has defaults of its own. The other old settings are
    dropped, because they belonged to the old method or source. An empty mapping replaces a whole part.
    """
    result = dict(tree)
    selector = _selector(kind)
    if selector in changes and changes[selector] != tree.get(selector):
        chosen, defaults = _model(kind, changes), _defaults(_model(kind, tree))
        result = {
            key: value
            for key, value in tree.items()
            if chosen and key in chosen.model_fields and not (key in defaults and value == defaults[key])
        }
    for key, value in changes.items():
        old, child = result.get(key), _child(kind, result | changes, key)
        if value and isinstance(old, dict) and isinstance(value, dict):
            value = merge(child, old, value)
        elif value and isinstance(old, list) and isinstance(value, dict):
            value = _merge_list(child, old, value)
        result[key] = value
    return result


def _defaults(model: type[BaseModel] | None) -> Tree:
    """The defaults of a settings class, as they are dumped."""
    if model is None:
        return {}
    fields = {name: field for name, field in model.model_fields.items() if not field.is_required()}
    return {
        name: default.model_dump() if isinstance(default := field.get_default(call_default_factory=True), BaseModel) else default
        for name, field in fields.items()
    }


def _merge_list(kind: Any, parts: list[Any], changes: Tree) -> Any:
    """A list with some of its parts changed, by number: `stages.1.epochs: 5` changes the second. Other changes are kept as they
    are, for `check` to report.
    """
    numbered = {str(number): part for number, part in enumerate(parts)}
    if not changes.keys() <= numbered.keys() or not all(isinstance(part, dict) for part in [*parts, *changes.values()]):
        return changes
    inner = _child(kind, None, "0")
    return [merge(inner, part, changes[number]) if number in changes else part for number, part in numbered.items()]


def check(kind: type[S], tree: Tree, origin: Origin) -> S:
    """Validates `tree` against `kind`. `origin` names the source in errors.

    Raises:
        ConfigError: when fields are wrong; the message has one line for each wrong field.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as errors:
        lines = [_explain(kind, tree, dict(error), origin) for error in errors.errors()]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def _explain(kind: Any, tree: Tree, error: dict[str, Any], origin: Origin) -> str:
    """One line for one error of pydantic: source, field, given and allowed."""
    place = _locate(kind, tree, error["loc"])
    field = ".".join(place.path)
    if error["type"] == "value_error":  # messages of our own validators already say given and allowed
        message = (f"{field}: " if field else "") + error["msg"].removeprefix("Value error, ")
        return f"{origin.of(message)}: {message}"
    overridden = any(key == field or key.startswith(f"{field}.") or field.startswith(f"{key}.") for key in origin.overridden)
    return f"{'command line' if overridden else origin.file}: {field}{_fault(error, place)}"


def _fault(error: dict[str, Any], place: "_Place") -> str:
    """The part of the message after the field's name: what is wrong."""
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(place.path[-1], place.siblings, n=1) or place.deeper
        hint = f" (did you mean {close[0]}?)" if close else ""
        return f" is not a setting{hint}; allowed here: {', '.join(sorted(place.siblings))}"
    if error["type"] == "missing":
        return " is missing; it has no default"
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        selector, given = _selector(place.kind) or "", error["input"]
        state = f"is {given[selector]!r}" if isinstance(given, dict) and selector in given else "is missing"
        return f".{selector} {state}; allowed: {', '.join(_named(place.kind))}"
    allowed = error["msg"].removeprefix("Input should be ")
    if error["type"] == "list_type":
        allowed = "a list, as [a, b]"
        if isinstance(error["input"], dict) and all(str(key).isdigit() for key in error["input"]):
            allowed += "; a number, as in stages.1.epochs, changes one of the parts that the list has, counted from 0"
    if error["type"] == "string_pattern_mismatch" and error["ctx"]["pattern"] == "=":
        allowed = "text of the form old=new"
    if error["type"] in ("model_type", "model_attributes_type", "dict_type"):
        allowed = "settings, as `key: value`"
    elif error["type"] in ("too_short", "too_long"):
        allowed = f"{error['ctx'].get('min_length', error['ctx'].get('max_length'))} values"
    return f" is {error['input']!r}; allowed: {allowed}"


class _Place(NamedTuple):
    """The place of an error: the keys that lead to it, the names that its parent allows, and its own annotation."""

    path: list[str]
    siblings: list[str]
    deeper: list[str]
    """Dotted names, one level below, under which the same name is a setting."""
    kind: Any


def _locate(kind: Any, tree: Any, loc: tuple[int | str, ...]) -> _Place:
    """Follows pydantic's location. The location contains tags of unions, which no user has typed; they are left out."""
    path: list[str] = []
    siblings: list[str] = []
    deeper: list[str] = []
    for part in loc:
        selector = _selector(kind)
        tagged = selector and not isinstance(kind, OneOf)
        if tagged and isinstance(tree, dict) and part == tree.get(selector) and part not in tree:
            continue
        path.append(str(part))
        model = _model(kind, tree)
        siblings = list(model.model_fields) if model else []
        below = [(name, _models(_kind(field))) for name, field in model.model_fields.items()] if model else []
        deeper = [f"{name}.{part}" for name, models in below for inner in models if part in inner.model_fields]
        kind = _child(kind, tree, str(part))
        if isinstance(tree, list):
            tree = tree[part] if isinstance(part, int) and part < len(tree) else None
        else:
            tree = tree.get(part) if isinstance(tree, dict) else None
    return _Place(path, siblings, deeper, kind)


def _models(kind: Any) -> list[type[BaseModel]]:
    """All settings classes that an annotation or a choice allows."""
    if isinstance(kind, OneOf):
        return list(kind.rows().values())
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [model for part in get_args(kind) if get_origin(kind) is not dict for model in _models(part)]


def _selector(kind: Any) -> str | None:
    """The field whose value selects a settings class: `name` for methods, `source` for data, `type` for parameters. None if there
    is no such field.
    """
    if isinstance(kind, OneOf):
        return kind.selector
    for model in _models(kind):
        first = next(iter(model.model_fields))
        if get_origin(model.model_fields[first].annotation) is Literal and first in ("name", "source", "type"):
            return first
    return None


def _named(kind: Any) -> Mapping[Any, type[BaseModel]]:
    """The settings classes by the name that selects them; empty if there is nothing to select."""
    if isinstance(kind, OneOf):
        return kind.rows()
    selector = _selector(kind)
    return {get_args(model.model_fields[selector].annotation)[0]: model for model in _models(kind)} if selector else {}


def _model(kind: Any, level: Any) -> type[BaseModel] | None:
    """The settings class that validates `level`; None if the selecting name is unknown."""
    models = _models(kind)
    if len(models) == 1 and not isinstance(kind, OneOf):
        return models[0]
    name = level.get(_selector(kind)) if isinstance(level, dict) else None
    return _named(kind).get(name) if isinstance(name, str) else None


def _child(kind: Any, level: Any, key: str) -> Any:
    """What is allowed at `key` inside `kind`: an annotation, or a choice by name. None if there is no such key."""
    if get_origin(kind) is dict:
        return get_args(kind)[1]
    if get_origin(kind) is list:
        inner = get_args(kind)[0]
        return next((mark for mark in getattr(inner, "__metadata__", ()) if isinstance(mark, OneOf)), inner)
    model = _model(kind, level)
    field = model.model_fields.get(key) if model else None
    return _kind(field) if field else None


def _kind(field: FieldInfo) -> Any:
    """What a field allows: its choice by name if the field has one, otherwise its annotation."""
    return OneOf.of(field) or field.annotation


class _StrictLoader(yaml.SafeLoader):
    """YAML as people mean it: 1e-4 is a number; 010, 1:30, yes and 2020-01-01 are text. A key may be set only once."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]  # separate from the base class's table

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.YAMLError(f"line {key_node.start_mark.line + 1}: the key {key!r} is not a word")
            if key in seen:
                raise yaml.YAMLError(f"line {key_node.start_mark.line + 1}: {key} is set twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


class _StrictDumper(yaml.SafeDumper):
    """Writes text in quotes if it looks like another type, so that `_StrictLoader` and other YAML readers read the same value."""


_FLOAT = r"[-+]?(\d+\.\d*|\.\d+)([eE][-+]?\d+)?|[-+]?\d+[eE][-+]?\d+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9]\d*)", "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
):
    _resolver = (f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), ["" if c == "\0" else c for c in _first])
    _StrictLoader.add_implicit_resolver(*_resolver)
    _StrictDumper.add_implicit_resolver(*_resolver)
