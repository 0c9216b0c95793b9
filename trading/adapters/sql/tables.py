"""The tables of every room, as SQLAlchemy metadata, and what the writer must know of each.

One ``MetaData`` per writing room: ``events`` and ``lease`` are common, the rest are projections. Decimals and JSON are
text, times are milliseconds in a 64-bit integer, so that both databases and the in-memory ledger hold the same values.
Text compares byte by byte everywhere (``COLLATE "C"`` on PostgreSQL), so "order by primary key" means one thing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from typing import Any, Final, cast

from sqlalchemy import BigInteger, Column, Integer, LargeBinary, MetaData, Table, Text, UniqueConstraint
from sqlalchemy.dialects import postgresql

from trading.domain.errors import InvalidValue
from trading.domain.money import plain

#: Rooms that write a ledger.
ROOMS: Final = ("coordinator", "risk", "execution", "wallet")
#: Rooms that keep tables in the ledger's database without events: what they hold can be fetched again.
ARCHIVES: Final = ("market",)

Value = str | int | bytes | None
Values = tuple[Value, ...]

_TEXT: Final = Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
#: SQLite makes only a column of exactly INTEGER the row id; on PostgreSQL a 32-bit sequence would run out.
_SEQUENCE: Final = BigInteger().with_variant(Integer(), "sqlite")


def _key(name: str) -> Column[Any]:
    return Column(name, _TEXT, primary_key=True, nullable=False)


def _text(*names: str) -> list[Column[Any]]:
    return [Column(name.rstrip("?"), _TEXT, nullable=name.endswith("?")) for name in names]


def _int(*names: str) -> list[Column[Any]]:
    return [Column(name.rstrip("?"), BigInteger, nullable=name.endswith("?")) for name in names]


def _int_key(*names: str) -> list[Column[Any]]:
    return [Column(name, BigInteger, primary_key=True, autoincrement=False) for name in names]


def _common(metadata: MetaData) -> None:
    Table(
        "events",
        metadata,
        Column("seq", _SEQUENCE, primary_key=True, autoincrement=False),
        *_text("event_id", "event_type"),
        *_int("timestamp_ms"),
        *_text("payload", "metadata"),
        Column("hash", LargeBinary, nullable=False),
    )
    Table("lease", metadata, _key("room"), *_int("generation"), *_text("holder"), *_int("acquired_ms"))


def _risk(metadata: MetaData) -> None:
    Table("requests", metadata, _key("principal"), _key("request_id"), *_text("digest", "answer"), *_int("created_ms"))
    Table(
        "approvals",
        metadata,
        _key("approval_id"),
        *_text("request_id", "principal", "decision_id?", "agent_id", "client_order_id", "state"),
        *_int("expires_ms"),
        *_text("envelope"),
        *_int("created_ms"),
        UniqueConstraint("client_order_id"),
    )
    Table(
        "pending",
        metadata,
        _key("pending_id"),
        *_text("request_id", "agent_id", "state", "document", "approval_id?", "detail"),
        *_int("asked_ms", "expires_ms", "updated_ms"),
    )
    Table("decisions_used", metadata, _key("proposal_id"), *_text("decision_id", "request_id"))
    Table(
        "desk_state",
        metadata,
        _key("scope"),
        *_text("state"),
        *_int("generation", "counter"),
        *_text("reason"),
        *_int("updated_ms"),
    )
    Table(
        "policies",
        metadata,
        Column("version", BigInteger, primary_key=True, autoincrement=False),
        *_text("digest", "document"),
        *_int("loaded_ms"),
    )
    Table(
        "standing_exits",
        metadata,
        _key("exit_id"),
        *_text("venue", "symbol", "state", "envelope"),
        *_int("issued_ms", "expires_ms"),
    )


def _execution(metadata: MetaData) -> None:
    Table("approval_fates", metadata, _key("approval_id"), *_text("fate", "order_id?"), *_int("at_ms"))
    Table(
        "orders",
        metadata,
        _key("order_id"),
        *_text("approval_id", "client_order_id", "venue", "symbol", "account_id", "agent_id", "side", "status"),
        *_text("order_json"),
        *_int("created_ms", "updated_ms"),
        UniqueConstraint("approval_id"),
    )
    Table(
        "fills",
        metadata,
        _key("venue"),
        _key("trade_id"),
        *_text("order_id", "client_order_id", "symbol", "side", "quantity", "price", "fee", "fee_currency"),
        *_text("liquidity"),
        *_int("venue_ts_ms"),
    )
    Table("positions", metadata, _key("account_id"), _key("venue"), _key("symbol"), *_text("position_json"))
    Table("balances", metadata, _key("account_id"), _key("currency"), *_text("total", "locked"))
    Table(
        "epochs",
        metadata,
        _key("account_id"),
        *_int("generation", "counter"),
        *_text("state"),
        *_int("min_policy_version", "updated_ms"),
        *_text("scopes"),
    )
    Table(
        "standing_exits",
        metadata,
        *(_key(name) for name in ("account_id", "venue", "symbol", "side")),
        *_text("exit_id", "envelope"),
        *_int("expires_ms", "adopted_ms"),
    )
    Table("protections", metadata, _key("account_id"), _key("venue"), _key("symbol"), *_text("guard_json"))
    Table("equity_days", metadata, _key("account_id"), *_int("day"), *_text("equity"), *_int("taken_ms"))


def _coordinator(metadata: MetaData) -> None:
    Table(
        "roster",
        metadata,
        _key("agent_id"),
        *_text("role", "family", "key_id", "public_key"),
        *_int("roster_version", "revoked_version?"),
    )
    Table(
        "proposals",
        metadata,
        _key("proposal_id"),
        *_text("agent_id", "state", "envelope", "digest"),
        *_int("roster_version", "deadline_ms", "expires_ms"),
        *_text("decision_id?"),
        *_int("updated_ms"),
    )
    Table("votes", metadata, _key("proposal_id"), _key("agent_id"), *_text("choice", "envelope"), *_int("received_ms"))
    Table(
        "decisions",
        metadata,
        _key("decision_id"),
        *_text("proposal_id", "outcome", "envelope", "state", "detail"),
        *_int("updated_ms"),
        UniqueConstraint("proposal_id"),
    )


def _market(metadata: MetaData) -> None:
    Table(
        "candles",
        metadata,
        *(_key(name) for name in ("feed", "venue", "symbol")),
        *_int_key("interval_ms", "open_ts_ms"),
        *_text("open", "high", "low", "close", "volume"),
        *_int("trades", "complete"),
        *_text("source"),
        *_int("written_ms"),
        sqlite_with_rowid=False,
    )
    Table(
        "candle_spans",
        metadata,
        *(_key(name) for name in ("feed", "venue", "symbol")),
        *_int_key("interval_ms"),
        _key("source"),
        *_int_key("from_ms"),
        *_int("until_ms", "written_ms"),
        sqlite_with_rowid=False,
    )


@cache
def metadata_for(room: str) -> MetaData:
    """Return the tables of a room.

    Raises:
        InvalidValue: no such writing room.
    """
    if room not in (*ROOMS, *ARCHIVES):
        raise InvalidValue(f"no ledger for room {room[:64]!r}", code="UNKNOWN_ROOM", allowed=ROOMS)
    metadata = MetaData()
    if room in ROOMS:
        _common(metadata)
    build = {"risk": _risk, "execution": _execution, "coordinator": _coordinator, "market": _market}.get(room)
    if build is not None:
        build(metadata)
    return metadata


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """One projection table as the writer sees it.

    Attributes:
        name: the table.
        columns: all columns, in the order of a stored row.
        kinds: the Python type of each column, ``str`` or ``int``.
        nullable: whether each column may be None.
        key: positions of the primary key, in key order.
        keys: positions of every unique key, the primary key first.
        table: the table itself, to build statements from.
        storable: types of whole rows that were stored as they came; types alone decide whether a value can be.
    """

    name: str
    columns: tuple[str, ...]
    kinds: tuple[type, ...]
    nullable: tuple[bool, ...]
    key: tuple[int, ...]
    keys: tuple[tuple[int, ...], ...]
    table: Table
    storable: set[tuple[type, ...]] = field(default_factory=set[tuple[type, ...]], repr=False)

    def values(self, row: Mapping[str, object]) -> Values:
        """Return the row as stored values in column order; enums and decimals become text.

        Raises:
            InvalidValue: a column that does not exist, is missing, or has a value of another kind.
        """
        given = tuple(row.values())
        types = tuple(map(type, given))
        if types in self.storable and tuple(row) == self.columns:
            return cast("Values", given)  # the usual row of a busy writer: complete, in order, nothing to convert
        found = 0
        out: list[Value] = []
        for name, kind, nullable in zip(self.columns, self.kinds, self.nullable, strict=True):
            value = row.get(name)
            found += name in row
            if value is None:
                if not nullable:
                    raise InvalidValue(f"{self.name}.{name} is missing", code="MALFORMED_ROW")
                out.append(None)
            elif type(value) is kind:
                out.append(cast("Value", value))
            else:
                out.append(self._convert(name, kind, value))
        if found != len(row):
            unknown = ", ".join(sorted(set(row) - set(self.columns)))
            raise InvalidValue(f"{self.name} has no column {unknown}", code="MALFORMED_ROW")
        values = tuple(out)
        if tuple(map(type, values)) == types and tuple(row) == self.columns:
            self.storable.add(types)
        return values

    def _convert(self, name: str, kind: type, value: object) -> Value:
        if kind is str and isinstance(value, Decimal):
            return plain(value)
        if kind is str and isinstance(value, str):  # StrEnum and other subclasses
            return str(value)
        if kind is int and isinstance(value, int) and not isinstance(value, bool):
            return int(value)
        raise InvalidValue(f"{self.name}.{name} cannot hold a {type(value).__name__}", code="MALFORMED_ROW")

    def condition(self, where: Mapping[str, object]) -> list[tuple[int, tuple[Value, ...]]]:
        """Return for each column of ``where`` its position and the values it may have; a list or tuple means IN.

        Raises:
            InvalidValue: a column that does not exist or a value of another kind.
        """
        wanted: list[tuple[int, tuple[Value, ...]]] = []
        for name, value in where.items():
            if name not in self.columns:
                raise InvalidValue(f"{self.name} has no column {name}", code="MALFORMED_ROW")
            position = self.columns.index(name)
            several = cast("Sequence[object]", value) if isinstance(value, (list, tuple)) else (value,)
            wanted.append((position, tuple(self._wanted(position, item) for item in several)))
        return wanted

    def _wanted(self, position: int, value: object) -> Value:
        kind = self.kinds[position]
        if value is None or type(value) is kind:
            return cast("Value", value)
        return self._convert(self.columns[position], kind, value)

    def row(self, values: Values) -> dict[str, object]:
        """Return stored values as a row by column name."""
        return dict(zip(self.columns, values, strict=True))


@cache
def shapes_for(room: str) -> Mapping[str, Shape]:
    """Return the projection tables of a room by name; ``events`` and ``lease`` are not among them."""
    return {
        table.name: _shape(table) for table in metadata_for(room).sorted_tables if table.name not in ("events", "lease")
    }


def shape_of(room: str, table: str) -> Shape:
    """Return one projection table.

    Raises:
        InvalidValue: the room has no such table.
    """
    shape = shapes_for(room).get(table)
    if shape is None:
        raise InvalidValue(f"the {room} ledger has no table {table[:64]!r}", code="UNKNOWN_TABLE")
    return shape


def _shape(table: Table) -> Shape:
    columns = list(table.columns)
    position = {column.name: index for index, column in enumerate(columns)}
    key = tuple(position[column.name] for column in table.primary_key.columns)
    uniques = sorted(
        tuple(position[column.name] for column in constraint.columns)
        for constraint in table.constraints
        if isinstance(constraint, UniqueConstraint)
    )
    return Shape(
        name=table.name,
        columns=tuple(column.name for column in columns),
        kinds=tuple(str if isinstance(column.type, Text) else int for column in columns),
        nullable=tuple(bool(column.nullable) for column in columns),
        key=key,
        keys=(key, *uniques),
        table=table,
    )
