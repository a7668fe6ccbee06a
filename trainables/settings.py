"""What all settings have in common: frozen, checked and explained."""

import os
from typing import Any

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


def differences(first: dict[str, Any], second: dict[str, Any], absent: Any = None) -> dict[str, tuple[Any, Any]]:
    """Both values of each setting in which two trees of settings differ, by dotted name; `absent` where one lacks it.

    A setting that is None and one that is not there are the same.
    """
    flat, other = flatten(first), flatten(second)
    differing = [key for key in sorted(flat.keys() | other.keys()) if flat.get(key) != other.get(key)]
    return {key: (flat.get(key, absent), other.get(key, absent)) for key in differing}


def absolute(place: str) -> str:
    """A folder as an absolute path; addresses such as `s3://bucket/folder` stay as they are."""
    return place if "://" in place else os.path.abspath(os.path.expanduser(place))
