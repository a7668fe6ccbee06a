"""Tables of names: the error for unknown names, settings that are chosen by name, and the import of plug-ins that add names."""

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
"""The entry point group in which installed packages announce plug-ins. Each entry point names a module."""


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """The entry `name` of `table`.

    Raises:
        ValueError: when the table has no such entry; the message names `kind`, `name` and all names in the table.
    """
    if name not in table:
        raise ValueError(f"unknown {kind} {name!r}; choose one of {sorted(table)}")
    return table[name]


class OneOf:
    """Settings chosen by name, as `method: Annotated[MethodSettings, OneOf(METHOD_SETTINGS, "name")]`.

    Plug-ins add rows to the table while the program runs, so each validation reads the table again. Pydantic's tagged unions have
    fixed members, so they cannot be used. Wrong names give the same errors as a tagged union.

    Args:
        table: the settings classes by name.
        selector: the field that contains the name.
    """

    def __init__(self, table: Mapping[str, type[BaseModel]], selector: str) -> None:
        self._table, self.selector = table, selector

    @staticmethod
    def of(field: FieldInfo) -> "OneOf | None":
        """The OneOf of a field; None if the field's settings are not chosen by name."""
        return next((mark for mark in field.metadata if isinstance(mark, OneOf)), None)

    def rows(self) -> Mapping[str, type[BaseModel]]:
        """The settings classes by name, including those of installed plug-ins.

        Raises:
            ValueError: when an installed plug-in cannot be imported.
        """
        load_installed_plugins()
        return self._table

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validates a value against the settings class that the value's name selects."""
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
        return rows[name].model_validate(value)  # pydantic prefixes the locations of errors with that of `value`


def load_plugins(modules: Iterable[str]) -> None:
    """Imports modules that add rows to tables by the functions in plugins.py. A process imports each module once.

    Raises:
        ValueError: when a module cannot be imported; the message names the module, what is wrong with it, and what is allowed.
    """
    for module in modules:
        if not all(part.isidentifier() for part in module.split(".")):
            raise ValueError(f"{module!r} is not a module's name; allowed: words joined by dots, as my_methods for my_methods.py")
        try:
            import_module(module)
        except (Exception, SystemExit) as error:  # the module is a user's program, which may raise anything
            raise ValueError(_fault(module, error)) from error


def _fault(module: str, error: BaseException) -> str:
    """Why a module could not be imported: Python did not find the module, or the module's own code failed."""
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
        ValueError: when a plug-in cannot be imported; the message names the entry point, its module and what is wrong with it.
    """
    for point in entry_points(group=GROUP):
        try:
            load_plugins([point.module])
        except ValueError as error:
            package = f" of the installed package {point.dist.name}" if point.dist else ""
            raise ValueError(f"entry point {point.name!r} in the group {GROUP}{package}: {error}") from error
