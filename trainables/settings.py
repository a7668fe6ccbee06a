"""What all settings have in common: frozen, checked, explained, and chosen by name where there is a choice."""

import os
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Base of all settings: frozen, unknown keys are errors, and no value changes its type in silence."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted keys: `{"method": {"name": "x"}}` becomes `{"method.name": "x"}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def settings_by_name(union: Any, discriminator: str) -> dict[str, type[BaseModel]]:
    """The settings of a discriminated union (or its only member) by name, for instance of all methods."""
    members = get_args(get_args(union)[0]) if get_args(union) else (union,)
    return {get_args(member.model_fields[discriminator].annotation)[0]: member for member in members}


def differences(first: dict[str, Any], second: dict[str, Any], absent: Any = None) -> dict[str, tuple[Any, Any]]:
    """Both values of each setting in which two trees of settings differ, by dotted name; `absent` where one lacks it.

    A setting that is None and one that is not there are the same.
    """
    flat, other = flatten(first), flatten(second)
    differing = [key for key in sorted(flat.keys() | other.keys()) if flat.get(key) != other.get(key)]
    return {key: (flat.get(key, absent), other.get(key, absent)) for key in differing}


def names_of(union: Any, discriminator: str) -> list[str]:
    """The names that a discriminated union accepts."""
    return list(settings_by_name(union, discriminator))


def absolute(place: str) -> str:
    """A folder as an absolute path; addresses such as `s3://bucket/folder` stay as they are."""
    return place if "://" in place else os.path.abspath(os.path.expanduser(place))
