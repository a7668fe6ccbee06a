"""Parquet files that appear whole or not at all, and are written part by part: a large table never lies in memory as a whole."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainables.files import sync

ROWS_AT_A_TIME = 20_000
"""Rows of dicts that are turned into columns at a time."""
ROWS_OF_GROUP = 500_000
"""Rows of a row group at most: parts are collected up to this number, because many small groups are slow to read."""
Columns = dict[str, pa.DataType]


def write_table(table: pa.Table, path: Path) -> None:
    """Writes a table that is in memory."""
    write_parts(path, table.schema, [table])


def write_parts(path: Path, schema: pa.Schema, parts: Iterable[pa.Table]) -> None:
    """Writes the parts one below the other."""
    partial = path.with_name(f"{path.name}.partial")
    with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        for group in _groups(parts):
            writer.write_table(group)
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


def schema_of(rows: Iterable[dict[str, Any]], columns: Columns) -> pa.Schema:
    """First `columns` with their types, then all other keys of the rows, each with the type that its values need.

    A column that holds numbers in some rows and words in others becomes text.
    """
    found: dict[str, _Values] = {}
    for row in rows:
        for key, value in row.items():
            if key not in columns:
                found.setdefault(key, _Values()).add(value)
    return pa.schema([*columns.items(), *((key, values.kind()) for key, values in found.items())])


def tables_of(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows as tables, some rows at a time. A value that a row lacks is null."""
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    count = 0
    for row in rows:
        for name, values in columns.items():
            values.append(row.get(name))
        count += 1
        if count == ROWS_AT_A_TIME:
            yield _table(columns, schema)
            columns, count = {name: [] for name in schema.names}, 0
    yield _table(columns, schema)


def table_of(rows: list[dict[str, Any]], columns: Columns) -> pa.Table:
    """A table of rows that are in memory; see `schema_of`."""
    return pa.concat_tables(tables_of(rows, schema_of(rows, columns)))


class _Values:
    """What a column holds, as far as its type depends on it."""

    def __init__(self) -> None:
        self._types: set[type] = set()
        self._others: list[Any] = []

    def add(self, value: Any) -> None:
        if value is not None:
            self._types.add(type(value))
            if not isinstance(value, str | int | float):
                self._others.append(value)

    def kind(self) -> pa.DataType:
        if float in self._types and all(issubclass(kind, int | float) for kind in self._types):
            return pa.float64()
        if len(self._types) > 1:
            return pa.string()
        known = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
        return next((known[kind] for kind in self._types if kind in known), pa.infer_type(self._others))


def _table(columns: dict[str, list[Any]], schema: pa.Schema) -> pa.Table:
    return pa.table([_array(columns[field.name], field.type) for field in schema], schema=schema)


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """A column; in one of text, what is no text becomes text: pyarrow alone refuses values of several types."""
    if pa.types.is_string(kind):
        values = [value if value is None else str(value) for value in values]
    return pa.array(values, type=kind)


def _groups(parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of about ROWS_OF_GROUP rows."""
    waiting: list[pa.Table] = []
    for part in parts:
        waiting.append(part)
        if sum(table.num_rows for table in waiting) >= ROWS_OF_GROUP:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)
