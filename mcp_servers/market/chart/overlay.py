"""The desk's own orders and fills of a symbol, read from the execution room's ledger and never written.

Rules kept here:

- The ledger may be absent, locked or damaged: the chart is drawn without marks then, and says so.
- What is read is bounded in rows and in time.
- A chart that ends in the past shows nothing that happened after its end, not even how an order ended.
- In a replay the chart's clock is the recording's while orders live on the desk's own; the pace of the replay says
  where on the chart they belong. Orders from before this replay began have no place on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar, cast

from mcp_servers.market.chart.drawing import FillMark, Marks, OrderMark
from trading.adapters import codec
from trading.adapters.config import DeskSettings
from trading.adapters.sql import LedgerLocation, open_reader
from trading.domain.errors import InvalidValue, LedgerUnavailable
from trading.domain.identifiers import Venue
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import OrderBook, Side
from trading.domain.money import parse_decimal
from trading.domain.orders import TERMINAL, Order, OrderStatus
from trading.ports.ledger import Row

M = TypeVar("M", OrderMark, FillMark)

#: Orders and fills on one chart.
MAX_MARKS: Final = 200
_ASKED: Final = MAX_MARKS + 1  # one more tells that there are more
_READ_S: Final = 2.0
_MAX_REASON: Final = 120
_MAX_MS: Final = 2**62
_NOT_OVER: Final = [status.value for status in OrderStatus if status not in TERMINAL]


class OrderLedger(Protocol):
    """What is asked of the execution room's ledger; ``trading.adapters.sql.SqlReader`` answers it."""

    async def last_seq(self) -> int:
        """Return the newest event's sequence, 0 when there is no ledger."""
        ...

    async def rows(self, table: str, where: Row | None = None, *, limit: int | None = None) -> list[Row]:
        """Return rows whose columns equal ``where``."""
        ...

    async def rows_between(
        self, table: str, column: str, low: int, high: int, where: Row | None = None, *, limit: int
    ) -> list[Row]:
        """Return the newest rows of a span of time, newest first."""
        ...


@dataclass(frozen=True, slots=True)
class ReplayPace:
    """How a replay runs: recorded seconds per second (0 as fast as possible), and since when on the desk's clock."""

    speed: float
    since_ms: int


@dataclass(frozen=True, slots=True)
class _Clocks:
    """Turns the desk's time into the chart's and back: a straight line through the newest book's two times."""

    chart_ms: int = 0
    desk_ms: int = 0
    speed: float = 1.0

    def chart(self, desk_ms: int) -> int:
        return self.chart_ms + round((desk_ms - self.desk_ms) * self.speed)

    def desk(self, chart_ms: int) -> int:
        return self.desk_ms + round((chart_ms - self.chart_ms) / self.speed)


class Overlay:
    """Finds marks for charts.

    Args:
        ledger: of the execution room.
        venue: where the desk's orders go.
        replay: how the replay runs; None for a live market, whose clock is the desk's.
    """

    def __init__(self, ledger: OrderLedger, *, venue: Venue, replay: ReplayPace | None = None) -> None:
        self._ledger = ledger
        self._venue = venue
        self._replay = replay

    async def marks(
        self, instrument_id: InstrumentId, since_ms: int, until_ms: int, *, book: OrderBook | None, past: bool
    ) -> Marks:
        """Return what the desk did with a symbol within [since_ms, until_ms] of the chart's clock; never raises.

        Args:
            instrument_id: whose chart it is; orders of that symbol at the desk's own venue are shown on it.
            since_ms, until_ms: edges of the chart.
            book: the newest book, which tells the time of a replay.
            past: the chart ends before the present.
        """
        clocks, floor_ms = self._clocks(book)
        if clocks is None:
            return Marks(notes=("no orders or fills shown: this replay has no steady clock to place them on",))
        low, high = max(clocks.desk(since_ms), floor_ms), clocks.desk(until_ms) if past else _MAX_MS
        try:
            async with asyncio.timeout(_READ_S):
                if await self._ledger.last_seq() == 0:
                    return Marks(notes=("no orders or fills shown: this desk has not written an execution ledger",))
                where: Row = {"symbol": instrument_id.symbol, "venue": sorted({self._venue, instrument_id.venue})}
                fills = await self._ledger.rows_between("fills", "venue_ts_ms", low, high, where, limit=_ASKED)
                orders = await self._orders(where, low, high)
        except (LedgerUnavailable, TimeoutError):
            return Marks(notes=("no orders or fills shown: the execution ledger does not answer",))
        return _collect(orders, fills, clocks, high, self._notes(instrument_id, orders, fills))

    def _clocks(self, book: OrderBook | None) -> tuple[_Clocks | None, int]:
        if self._replay is None:
            return _Clocks(), 0
        if book is None or self._replay.speed <= 0:
            return None, 0
        return _Clocks(book.received_ts_ms, book.published_ts_ms, self._replay.speed), self._replay.since_ms

    async def _orders(self, where: Row, low: int, high: int) -> list[Row]:
        """Return the orders that began or ended within the span, or wait still.

        One that began before and ended after it is not found; a table by time would be needed for that.
        """
        begun = await self._ledger.rows_between("orders", "created_ms", low, high, where, limit=_ASKED)
        ended = await self._ledger.rows_between("orders", "updated_ms", low, high, where, limit=_ASKED)
        waiting = await self._ledger.rows("orders", {**where, "status": _NOT_OVER}, limit=MAX_MARKS)
        by_id = {row["order_id"]: row for row in (*begun, *ended, *waiting)}
        return [row for row in by_id.values() if cast("int", row["created_ms"]) <= high]

    def _notes(self, instrument_id: InstrumentId, orders: Sequence[Row], fills: Sequence[Row]) -> list[str]:
        notes: list[str] = []
        if len(orders) > MAX_MARKS or len(fills) > MAX_MARKS:
            notes.append(f"only the newest {MAX_MARKS} orders and fills are shown")
        if (orders or fills) and instrument_id.venue != self._venue:
            notes.append(f"orders and fills are the desk's at {self._venue}")
        return notes


def _collect(orders: Sequence[Row], fills: Sequence[Row], clocks: _Clocks, end_ms: int, notes: list[str]) -> Marks:
    shown: list[OrderMark] = []
    made: list[FillMark] = []
    damaged = 0
    for row in orders:
        try:
            shown.extend(_order_mark(row, clocks, end_ms))
        except InvalidValue:
            damaged += 1
    for row in fills:
        try:
            made.append(_fill_mark(row, clocks))
        except (InvalidValue, ValueError):
            damaged += 1
    if damaged:
        notes.append(f"{damaged} orders or fills of the ledger could not be read")
    return Marks(
        orders=_newest(shown, lambda mark: mark.since_ms),
        fills=_newest(made, lambda mark: mark.at_ms),
        notes=tuple(notes),
    )


def _order_mark(row: Row, clocks: _Clocks, end_ms: int) -> list[OrderMark]:
    order = codec.decode(Order, cast("str", row["order_json"]))
    price = order.terms.limit_price or order.terms.stop_price
    if price is None:
        return []
    over = order.is_terminal and order.updated_ms <= end_ms
    known = order.updated_ms <= end_ms
    return [
        OrderMark(
            side=order.terms.side,
            price=price,
            quantity=order.terms.quantity,
            status=order.status.value if known else "working",
            since_ms=clocks.chart(order.created_ms),
            until_ms=clocks.chart(order.updated_ms) if over else None,
            reason=order.reason[:_MAX_REASON] if known else "",
        )
    ]


def _fill_mark(row: Row, clocks: _Clocks) -> FillMark:
    return FillMark(
        side=Side(cast("str", row["side"])),
        price=parse_decimal(cast("str", row["price"])),
        quantity=parse_decimal(cast("str", row["quantity"])),
        at_ms=clocks.chart(cast("int", row["venue_ts_ms"])),
    )


def _newest(marks: list[M], when: Callable[[M], int]) -> tuple[M, ...]:
    return tuple(sorted(marks, key=when)[-MAX_MARKS:])


@asynccontextmanager
async def open_overlay(desk: DeskSettings, *, replay: ReplayPace | None) -> AsyncGenerator[Overlay]:
    """Yield the overlay of a desk; its ledger is opened read-only when a chart first asks, and need not exist.

    Args:
        desk: whose ledger and venue.
        replay: see :class:`Overlay`.
    """
    async with open_reader("execution", LedgerLocation.of(desk)) as reader:
        yield Overlay(reader, venue=desk.venue, replay=replay)
