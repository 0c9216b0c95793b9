"""The SQL of the writers' transactions, made from table shapes; what readers ask is in ``selects``.

Text and not SQLAlchemy, since these are the hot path and each database has its own fastest form: rows as one long
VALUES list on SQLite, as one array per column on PostgreSQL. Names come from our own metadata, values are always
parameters.
"""

# ruff: noqa: S608 - see above: nothing from outside becomes part of a statement

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import chain

import orjson

from trading.adapters.sql.tables import Shape, Value, Values

#: Largest number of rows in one SQLite statement; 256 rows of 13 columns stay far below the 32,766 parameters allowed.
CHUNK = 256


@cache
def sqlite_insert(table: str, columns: tuple[str, ...], rows: int, key: tuple[str, ...] = ()) -> str:
    """Return one INSERT of ``rows`` rows; with ``key`` it replaces rows of the same key.

    One statement of many rows instead of ``executemany``: the driver gives up and takes back the interpreter lock at
    every step, and while the event loop is busy each taking back costs up to the switch interval (5 ms). Measured at
    256 rows a commit with a busy loop: 320 rows/s with executemany, 9,400 with this; with an idle loop 64,000, 81,000.
    """
    one = f"({', '.join('?' * len(columns))})"
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES {', '.join([one] * rows)}{_replacing(columns, key)}"


def _replacing(columns: tuple[str, ...], key: tuple[str, ...]) -> str:
    if not key:
        return ""
    rest = ", ".join(f"{name} = excluded.{name}" for name in columns if name not in key)
    return f" ON CONFLICT ({', '.join(key)}) DO {f'UPDATE SET {rest}' if rest else 'NOTHING'}"


def chunks(rows: Sequence[tuple[Value, ...]]) -> list[tuple[int, list[Value]]]:
    """Split rows into powers of two, so that few distinct statements are prepared; returns row count and parameters."""
    out: list[tuple[int, list[Value]]] = []
    start = 0
    while start < len(rows):
        size = min(CHUNK, 1 << (len(rows) - start).bit_length() - 1)
        out.append((size, list(chain.from_iterable(rows[start : start + size]))))
        start += size
    return out


@cache
def postgres_insert(table: str, columns: tuple[str, ...], kinds: tuple[type, ...], key: tuple[str, ...] = ()) -> str:
    """Return an INSERT whose parameters are one array per column."""
    arrays = ", ".join(f"${index}::{_POSTGRES[kind]}[]" for index, kind in enumerate(kinds, start=1))
    names = ", ".join(columns)
    return f"INSERT INTO {table} ({names}) SELECT * FROM unnest({arrays}){_replacing(columns, key)}"


_POSTGRES: dict[type, str] = {str: "text", int: "bigint", bytes: "bytea"}


@cache
def sqlite_lookup(shape: Shape, key: tuple[int, ...]) -> str:
    """Return a SELECT of the rows whose ``key`` is among those in one JSON parameter."""
    columns = ", ".join(shape.columns)
    if len(key) == 1:
        return f"SELECT {columns} FROM {shape.name} WHERE {shape.columns[key[0]]} IN (SELECT value FROM json_each(?))"
    names = ", ".join(shape.columns[position] for position in key)
    parts = ", ".join(f"json_extract(value, '$[{index}]')" for index in range(len(key)))
    return f"SELECT {columns} FROM {shape.name} WHERE ({names}) IN (SELECT {parts} FROM json_each(?))"


def lookup_parameter(wanted: Sequence[Values]) -> str:
    """Return the parameter of ``sqlite_lookup``."""
    return orjson.dumps([keys[0] if len(keys) == 1 else list(keys) for keys in wanted]).decode()


@cache
def postgres_lookup(shape: Shape, key: tuple[int, ...]) -> str:
    """Return a SELECT of the rows whose ``key`` is among those in one array parameter per key column."""
    names = ", ".join(shape.columns[position] for position in key)
    arrays = ", ".join(f"${index}::{_POSTGRES[shape.kinds[position]]}[]" for index, position in enumerate(key, start=1))
    return f"SELECT {', '.join(shape.columns)} FROM {shape.name} WHERE ({names}) IN (SELECT * FROM unnest({arrays}))"
