"""The SQL of candles, for both databases: SQLAlchemy Core over the tables' metadata, compiled once for each form."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from sqlalchemy import BigInteger, Column, Text, and_, bindparam, delete, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from trading.adapters.sql.selects import Query, compile_statement
from trading.adapters.sql.tables import metadata_for

ROOM: Final = "market"
#: The columns that name a series of candles.
SERIES_KEY: Final = ("feed", "venue", "symbol", "interval_ms")

_CANDLES: Final = metadata_for(ROOM).tables["candles"]
_SPANS: Final = metadata_for(ROOM).tables["candle_spans"]


def _of_series(columns: Any) -> Any:
    return and_(*(columns[name] == bindparam(name, type_=_kind(columns[name])) for name in SERIES_KEY))


def _kind(column: Column[Any]) -> Any:
    return Text() if isinstance(column.type, Text) else BigInteger()


def _number(name: str) -> Any:
    return bindparam(name, type_=BigInteger())


@cache
def select_candles(*, postgres: bool) -> Query:
    """Return the SELECT of the candles that open within [from, until), oldest first."""
    c = _CANDLES.c
    names = ("open_ts_ms", "open", "high", "low", "close", "volume", "trades", "complete", "source")
    within = (c.open_ts_ms >= _number("from"), c.open_ts_ms < _number("until"))
    statement = select(*(c[name] for name in names)).where(_of_series(c), *within).order_by(c.open_ts_ms)
    return compile_statement(statement, postgres=postgres)


@cache
def select_spans(*, postgres: bool) -> Query:
    """Return the SELECT of the spans of a series, by start."""
    c = _SPANS.c
    statement = select(c.from_ms, c.until_ms, c.source, c.written_ms).where(_of_series(c)).order_by(c.from_ms)
    return compile_statement(statement, postgres=postgres)


@cache
def delete_candles(*, postgres: bool) -> Query:
    """Return the DELETE of the candles that open before ``until``."""
    c = _CANDLES.c
    return compile_statement(delete(_CANDLES).where(_of_series(c), c.open_ts_ms < _number("until")), postgres=postgres)


@cache
def delete_spans(*, postgres: bool) -> Query:
    """Return the DELETE of the spans of one source that start within [first, last]."""
    c = _SPANS.c
    statement = delete(_SPANS).where(
        _of_series(c), c.source == bindparam("of", type_=Text()), c.from_ms.between(_number("first"), _number("last"))
    )
    return compile_statement(statement, postgres=postgres)


@cache
def upsert_rows(name: str, rows: int, *, postgres: bool) -> Query:
    """Return the INSERT of ``rows`` rows that replaces worse ones; parameters ``v<row>_<column>``."""
    table = metadata_for(ROOM).tables[name]
    insert = postgresql.insert if postgres else sqlite.insert
    values = [
        {column.name: bindparam(f"v{index}_{column.name}", type_=_kind(column)) for column in table.c}
        for index in range(rows)
    ]
    statement = insert(table).values(values)
    key = [column.name for column in table.primary_key.columns]
    new = statement.excluded
    statement = statement.on_conflict_do_update(
        index_elements=key,
        set_={column.name: new[column.name] for column in table.c if column.name not in key},
        where=_is_better(new) if table is _CANDLES else None,
    )
    return compile_statement(statement, postgres=postgres)


def _is_better(new: Any) -> Any:
    old = _CANDLES.c
    return or_(
        and_(new.source == "trades", new.complete == 1),
        and_(new.complete == 1, old.complete == 0),
        and_(new.source == "venue", old.source == "venue"),
        and_(old.complete == 0, new.trades >= old.trades),
    )
