"""The base class of all settings, and functions for nested settings and paths."""

import os
import re
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

PASSWORD = re.compile(
    r"://[^\s/:@]*:(?!\d+/)\S*@|[?&;](password|passwd|pwd|secret\w*|token|access_key\w*)=[^&;\s]", re.IGNORECASE
)
"""A secret in an address: `user:password@`, or a parameter."""
CURES = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "http": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    "https": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
}
"""Where credentials belong, by the scheme of an address: the environment variables that the libraries read by themselves."""
DATABASE_CURE = "MLFLOW_TRACKING_URI with the whole address, and leave tracking.uri out"


class Settings(BaseModel):
    """Base class of all settings. Settings are frozen, unknown keys are errors, and no value changes its type silently."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,  # it may be a password
    )

    @model_validator(mode="before")
    @classmethod
    def _holds_no_secret(cls, values: Any) -> Any:
        for key, value in values.items() if isinstance(values, dict) else ():
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str):
                    refuse_secret(key, text)
        return values


def refuse_secret(field: str, text: str) -> None:
    """Sees that a setting is no address with a password: settings are written to sweep.yaml, ledger, MLflow and models.

    Raises:
        ValueError: naming the address without the password, and the environment variable that it belongs into.
    """
    if PASSWORD.search(text):
        scheme = text.partition("://")[0].partition("+")[0].lower()
        raise ValueError(
            f"{field} is the address {without_password(text)!r}, which holds a password and would be written to every record; "
            f"allowed: an address without one; set the environment variable {CURES.get(scheme, DATABASE_CURE)}"
        )


def without_password(text: str) -> str:
    """A text with `***` in place of whatever stands before the host in its addresses, and of parameters that are secret."""
    text = re.sub(r"://\S*@", "://***@", text)
    return re.sub(
        r"([?&;](?:password|passwd|pwd|secret\w*|token|access_key\w*)=)[^&;\s'\"]+", r"\1***", text, flags=re.IGNORECASE
    )


def named_values(settings: Settings | type[Settings]) -> dict[str, Any]:
    """All settings by dotted name: those of an object, or the defaults of a class.

    Unlike a dump, they include settings that are not written to files while they have their default.
    """
    values: dict[str, Any] = {}
    for name, field in (settings if isinstance(settings, type) else type(settings)).model_fields.items():
        value = field.get_default(call_default_factory=True) if isinstance(settings, type) else getattr(settings, name)
        values |= {f"{name}.{inner}".rstrip("."): given for inner, given in _parts(value).items()}
    return values


def _parts(value: Any) -> dict[str, Any]:
    """The settings inside a value by dotted name, those in a list with their number; otherwise the value, with an empty name."""
    if isinstance(value, Settings):
        return named_values(value)
    if isinstance(value, list) and value and all(isinstance(part, Settings) for part in value):
        return {f"{number}.{name}": given for number, part in enumerate(value) for name, given in named_values(part).items()}
    return {"": value}


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted keys: `{"method": {"name": "x"}}` becomes `{"method.name": "x"}`.

    Settings in a list get their number: `{"stages": [{"name": "x"}]}` becomes `{"stages.0.name": "x"}`.
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
            value = {str(number): part for number, part in enumerate(value)}
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def differences(first: dict[str, Any], second: dict[str, Any], absent: Any = None) -> dict[str, tuple[Any, Any]]:
    """The settings in which two trees of settings differ: by dotted name, the value in each tree, or `absent` if a tree lacks the
    setting.

    A setting that is None equals a setting that is missing.
    """
    flat, other = flatten(first), flatten(second)
    differing = [key for key in sorted(flat.keys() | other.keys()) if flat.get(key) != other.get(key)]
    return {key: (flat.get(key, absent), other.get(key, absent)) for key in differing}


def absolute(place: str) -> str:
    """The absolute path of a folder or file. Addresses such as `s3://bucket/folder` are returned unchanged."""
    return place if "://" in place else os.path.abspath(os.path.expanduser(place))
