"""The SELECTs of readers, for both databases: SQLAlchemy Core over the tables' metadata, compiled once for each form.

To build and compile a statement takes longer than to ask it, so what is kept is the form: which columns are compared
and how. Values are always parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Final, Literal, NamedTuple, cast

import orjson
from sqlalchemy import BigInteger, ClauseElement, ColumnElement, Dialect, Text, any_, bindparam, func, or_, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import ARRAY, asyncpg

from trading.adapters.sql.stored import EVENT_COLUMNS
from trading.adapters.sql.tables import Shape, Value, metadata_for

#: How the parameters are written: ``?`` for the sqlite3 driver, ``$1`` for asyncpg.
_SQLITE: Final[Dialect] = sqlite.dialect(paramstyle="qmark")
_POSTGRES: Final[Dialect] = asyncpg.dialect()

_FORMS_MAX: Final = 512


@dataclass(frozen=True, slots=True)
class Query:
    """A compiled SELECT.

    Attributes:
        text: as the driver takes it.
        names: of its parameters, in their order in the text.
        fixed: the parameters that the dialect has added itself.
    """

    text: str
    names: tuple[str, ...]
    fixed: Mapping[str, object]

    def parameters(self, values: Mapping[str, object]) -> list[object]:
        """Return the parameters in order; raises KeyError for one that has no value."""
        return [values[name] if name in values else self.fixed[name] for name in self.names]


class Condition(NamedTuple):
    """How one column is compared: with nothing, one or several values, and perhaps with NULL."""

    position: int
    values: Literal["none", "one", "several"]
    or_null: bool


def _compile(statement: ClauseElement, *, postgres: bool) -> Query:
    compiled = cast("Any", statement.compile(dialect=_POSTGRES if postgres else _SQLITE))
    fixed = {name: value for name, value in compiled.params.items() if value is not None}
    return Query(str(compiled), tuple(compiled.positiontup or ()), fixed)


def compile_statement(statement: ClauseElement, *, postgres: bool) -> Query:
    """Return a statement of another module as the database's driver takes it."""
    return _compile(statement, postgres=postgres)


@cache
def events_page(room: str, *, postgres: bool) -> Query:
    """Return the SELECT of whole event rows by sequence; parameters ``after`` and ``limit``."""
    return _page(room, EVENT_COLUMNS, postgres=postgres)


@cache
def hashes_page(room: str, *, postgres: bool) -> Query:
    """Return the SELECT of sequence and hash by sequence; parameters ``after`` and ``limit``."""
    return _page(room, ("seq", "hash"), postgres=postgres)


def _page(room: str, columns: Sequence[str], *, postgres: bool) -> Query:
    events = metadata_for(room).tables["events"].c
    statement = select(*(events[name] for name in columns)).where(events.seq > bindparam("after", type_=BigInteger()))
    return _compile(statement.order_by(events.seq).limit(_limit()), postgres=postgres)


def _limit() -> ColumnElement[int]:
    return bindparam("limit", type_=BigInteger())


@cache
def newest_seq(room: str, *, postgres: bool) -> Query:
    """Return the SELECT of the newest event's sequence, 0 if there is none."""
    events = metadata_for(room).tables["events"].c
    return _compile(select(func.coalesce(func.max(events.seq), 0)), postgres=postgres)


@cache
def newest_event(room: str, *, postgres: bool) -> Query:
    """Return the SELECT of the newest event's sequence and hash; no row if there is none."""
    events = metadata_for(room).tables["events"].c
    statement = select(events.seq, events.hash).order_by(events.seq.desc()).limit(_limit())
    return _compile(statement, postgres=postgres)


@cache
def row_count(shape: Shape, *, postgres: bool) -> Query:
    """Return the SELECT of a table's number of rows."""
    return _compile(select(func.count()).select_from(shape.table), postgres=postgres)


def rows_where(
    shape: Shape, wanted: Sequence[tuple[int, tuple[Value, ...]]], limit: int | None, *, postgres: bool
) -> tuple[str, list[object]]:
    """Return the SELECT of rows by columns, in the order of the primary key, and its parameters.

    Args:
        shape: of the table.
        wanted: positions of columns and the values each may have, see ``Shape.condition``.
        limit: largest number of rows, or None for all.
        postgres: for which database.
    """
    conditions, values = _conditions(wanted, postgres=postgres)
    query = _rows_query(shape, conditions, limit is not None, postgres)
    return query.text, query.parameters({**values, "limit": limit})


def rows_between(
    shape: Shape,
    column: int,
    span: tuple[int, int],
    wanted: Sequence[tuple[int, tuple[Value, ...]]],
    limit: int,
    *,
    postgres: bool,
) -> tuple[str, list[object]]:
    """Return the SELECT of rows whose ``column`` lies in ``span`` (both ends included), greatest first.

    Args:
        shape: of the table.
        column: position of a column of integers.
        span: least and greatest value.
        wanted: as for ``rows_where``.
        limit: largest number of rows.
        postgres: for which database.
    """
    conditions, values = _conditions(wanted, postgres=postgres)
    query = _span_query(shape, column, conditions, postgres)
    return query.text, query.parameters({**values, "low": span[0], "high": span[1], "limit": limit})


def _conditions(
    wanted: Sequence[tuple[int, tuple[Value, ...]]], *, postgres: bool
) -> tuple[tuple[Condition, ...], dict[str, object]]:
    conditions: list[Condition] = []
    values: dict[str, object] = {}
    for index, (position, allowed) in enumerate(wanted):
        some = [value for value in allowed if value is not None]
        or_null = len(some) < len(allowed)
        if len(some) == 1:
            conditions.append(Condition(position, "one", or_null))
            values[f"p{index}"] = some[0]
        elif some or not or_null:  # among no values at all: a test that no row passes
            conditions.append(Condition(position, "several", or_null))
            values[f"p{index}"] = some if postgres else orjson.dumps(some).decode()
        else:
            conditions.append(Condition(position, "none", or_null))
    return tuple(conditions), values


@lru_cache(maxsize=_FORMS_MAX)
def _rows_query(shape: Shape, conditions: tuple[Condition, ...], limited: bool, postgres: bool) -> Query:
    columns = list(shape.table.c)
    statement = select(shape.table).order_by(*(columns[position] for position in shape.key))
    for index, condition in enumerate(conditions):
        statement = statement.where(_compared(shape, condition, f"p{index}", postgres=postgres))
    return _compile(statement.limit(_limit()) if limited else statement, postgres=postgres)


@lru_cache(maxsize=_FORMS_MAX)
def _span_query(shape: Shape, column: int, conditions: tuple[Condition, ...], postgres: bool) -> Query:
    columns = list(shape.table.c)
    by = columns[column]
    low, high = bindparam("low", type_=BigInteger()), bindparam("high", type_=BigInteger())
    statement = select(shape.table).where(by >= low, by <= high)
    for index, condition in enumerate(conditions):
        statement = statement.where(_compared(shape, condition, f"p{index}", postgres=postgres))
    order = (by.desc(), *(columns[position] for position in shape.key))
    return _compile(statement.order_by(*order).limit(_limit()), postgres=postgres)


def _compared(shape: Shape, condition: Condition, name: str, *, postgres: bool) -> ColumnElement[bool]:
    column = list(shape.table.c)[condition.position]
    kind = Text() if shape.kinds[condition.position] is str else BigInteger()
    ways: list[ColumnElement[bool]] = [column.is_(None)] if condition.or_null else []
    if condition.values == "one":
        ways.append(column == bindparam(name, type_=kind))
    elif condition.values == "several" and postgres:
        ways.append(column == any_(bindparam(name, type_=ARRAY(kind))))
    elif condition.values == "several":  # one JSON array: the text stays the same however many values there are
        array = func.json_each(bindparam(name, type_=Text())).table_valued("value")
        ways.append(column.in_(select(array.c.value)))
    return or_(*ways)
