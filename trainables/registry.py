"""Names are found in tables: the error for an unknown name, settings that are chosen by name, and the plug-ins that add names."""

import functools
import traceback
from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

T = TypeVar("T")
GROUP = "tailtune.plugins"
"""The entry point group by which installed packages announce plug-ins. Each entry point names a module."""


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """The entry `name` of `table`.

    Raises:
        ValueError: when there is none; the message names `kind`, `name` and all that the table holds.
    """
    if name not in table:
        raise ValueError(f"unknown {kind} {name!r}; choose one of {sorted(table)}")
    return table[name]


class OneOf:
    """Settings chosen by name, as `method: Annotated[MethodSettings, OneOf(METHOD_SETTINGS, "name")]`.

    Plug-ins add rows to the table while the program runs, so the table is read at each check. Wrong names give the same errors as
    pydantic's tagged unions, whose members are fixed.

    Args:
        table: the settings by name.
        selector: the field that holds the name.
    """

    def __init__(self, table: Mapping[str, type[BaseModel]], selector: str) -> None:
        self._table, self.selector = table, selector

    @staticmethod
    def of(field: FieldInfo) -> "OneOf | None":
        """The choice that a field offers, if its settings are chosen by name."""
        return next((mark for mark in field.metadata if isinstance(mark, OneOf)), None)

    def rows(self) -> Mapping[str, type[BaseModel]]:
        """The settings by name, those of installed plug-ins included.

        Raises:
            ValueError: when an installed plug-in cannot be imported.
        """
        load_installed_plugins()
        return self._table

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Checks a value against the settings that its name selects."""
        return core_schema.no_info_plain_validator_function(self._check)

    def _check(self, value: Any) -> BaseModel:
        rows, selector = self.rows(), {"discriminator": f"'{self.selector}'"}
        if not isinstance(value, dict | BaseModel):
            raise PydanticKnownError("model_attributes_type")
        fields = value if isinstance(value, dict) else value.__dict__
        if self.selector not in fields:
            raise PydanticKnownError("union_tag_not_found", selector)
        name = fields[self.selector]
        if not isinstance(name, str) or name not in rows:
            expected = ", ".join(f"'{known}'" for known in rows)
            raise PydanticKnownError("union_tag_invalid", {**selector, "tag": str(name), "expected_tags": expected})
        return rows[name].model_validate(value)  # pydantic puts the place of `value` before the places of its errors


def load_plugins(modules: Iterable[str]) -> None:
    """Imports modules that add rows to tables by the functions in plugins.py; a module is imported once in a process.

    Raises:
        ValueError: naming the module, what is wrong with it, and what is allowed.
    """
    for module in modules:
        if not all(part.isidentifier() for part in module.split(".")):
            raise ValueError(f"{module!r} is not a module's name; allowed: words joined by dots, as my_methods for my_methods.py")
        try:
            import_module(module)
        except (Exception, SystemExit) as error:  # the module is a user's program, which may raise anything
            raise ValueError(_fault(module, error)) from error


def _fault(module: str, error: BaseException) -> str:
    """Why a module could not be imported: Python does not find it, or its own code failed."""
    if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
        allowed = "modules that Python finds from the folder you start in, or installed ones"
        return f"{module!r} cannot be imported: {error}; allowed: {allowed}"
    frames = traceback.walk_tb(error.__traceback__)
    lines = [(frame.f_code.co_filename, line) for frame, line in frames if frame.f_globals.get("__name__") == module]
    where = f"{Path(lines[-1][0]).name}, line {lines[-1][1]}: " if lines else ""
    return f"{module!r} cannot be imported: {where}{type(error).__name__}: {error}; repair the module, or leave it out"


@functools.cache
def load_installed_plugins() -> None:
    """Imports the plug-ins of installed packages, once in a process.

    Raises:
        ValueError: naming the entry point, its module and what is wrong with it.
    """
    for point in entry_points(group=GROUP):
        try:
            load_plugins([point.module])
        except ValueError as error:
            package = f" of the installed package {point.dist.name}" if point.dist else ""
            raise ValueError(f"entry point {point.name!r} in the group {GROUP}{package}: {error}") from error
