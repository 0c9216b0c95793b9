"""A market room with a chart, over a market and a ledger that the test fills by hand."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Final

from mcp_servers.execution.rows import fill_row, order_row
from mcp_servers.hosting import DeskServer, build_server, tool_kind
from mcp_servers.market.candles import CandleStore
from mcp_servers.market.chart.app import chart_page
from mcp_servers.market.chart.overlay import Overlay, ReplayPace
from mcp_servers.market.history import History
from mcp_servers.market.market_time import MarketTime
from mcp_servers.market.prices import Prices
from mcp_servers.market.sources.base import SourceState, SourceStatus
from mcp_servers.market.tools import chart
from trading.adapters.clock import Uuid7Factory
from trading.adapters.market_stream import BookUpdate, LocalMarketFeed, TradeUpdate
from trading.adapters.sql import LedgerLocation, open_reader, open_writer
from trading.domain.events import AlarmRaised
from trading.domain.identifiers import Symbol, Venue
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Feed, Side
from trading.domain.orders import Order, OrderStatus
from trading.domain.proposals import Mode
from trading.ports.ledger import EventDraft, Insert, Ledger, Unit
from trading.testing.builders import build_fill, build_instrument, build_order
from trading.testing.clock import ManualClock

MINUTE: Final = 60_000
#: 2025-06-15T00:00Z; the charts of these tests begin here.
START: Final = 1_749_945_600_000
BTC: Final = InstrumentId(Venue("binance"), Symbol("BTC/USDT"))


@dataclass(frozen=True)
class Service:
    """What the chart's tool needs of the room."""

    prices: Prices
    history: History
    overlay: Overlay


class ChartRoom:
    """An async context manager: the room's parts, and a server with the one tool.

    Args:
        directory: where the execution ledger is, once somebody writes it.
        now_ms: the desk's clock; the market's too when it is live.
        feed: live, or a replay at its recorded pace from START on.
        symbol: under which the instrument trades.
    """

    def __init__(
        self, directory: Path, *, now_ms: int = START, feed: Feed = Feed.LIVE, symbol: str = "BTC/USDT"
    ) -> None:
        self.clock = ManualClock(now_ms)
        self.id = InstrumentId(BTC.venue, Symbol(symbol))
        instrument = replace(build_instrument(venue=BTC.venue), id=self.id)
        self.feed = LocalMarketFeed(self.clock, feed=feed, instruments=[instrument])
        self.candles = CandleStore()
        live = feed is Feed.LIVE
        self._pace = None if live else ReplayPace(1.0, now_ms)
        self._time = MarketTime(self.candles, clock=self.clock if live else None)
        self._location = LedgerLocation.sqlite(directory / "ledger")
        self._stack = AsyncExitStack()
        self._ledger: Ledger | None = None

    async def __aenter__(self) -> ChartRoom:
        reader = await self._stack.enter_async_context(open_reader("execution", self._location))
        prices = Prices(
            self.feed,
            self.candles,
            self.clock,
            venue=BTC.venue,
            aliases=(Venue("paper"),),
            max_age_ms=3_000,
            source=lambda: SourceStatus(SourceState.RUNNING),
        )
        overlay = Overlay(reader, venue=Venue("paper"), replay=self._pace)
        self.service = Service(prices, History(self.candles, time=self._time), overlay)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def server(self) -> DeskServer[Service]:
        """Return a new server over this room."""

        @asynccontextmanager
        async def lifespan() -> AsyncGenerator[Service]:
            yield self.service

        server: DeskServer[Service] = build_server(
            "grekko-market",
            title="Market",
            instructions="x",
            lifespan=lifespan,
            mode=Mode.PAPER,
            extensions=[chart_page()],
        )
        chart.register(
            tool_kind(server, read_only=True, destructive=False, idempotent=True, open_world=False, scope="market:read")
        )
        return server

    def trade(self, at_ms: int, price: float, quantity: str = "0.1") -> None:
        """Let somebody trade at the venue."""
        self.candles.add(self.id, at_ms, Decimal(f"{price:.2f}"), Decimal(quantity))
        self.feed.publish_trade(TradeUpdate(self.id, str(at_ms), f"{price:.2f}", quantity, Side.BUY, at_ms, at_ms))

    def walk(self, minutes: int, *, start: int = 0) -> None:
        """Trade for some minutes from START on: every third candle falls, every candle has wicks, prices drift up."""
        for minute in range(start, start + minutes):
            at, base = START + minute * MINUTE, 60_000 + 4 * minute
            turn = -14 if minute % 3 == 2 else 12
            for second, price in ((1, base), (15, base + 20), (30, base - 18), (59, base + turn)):
                self.trade(at + second * 1_000, price, f"0.{minute % 7 + 1}")

    def book(self, mid: int = 60_400, *, at_ms: int | None = None) -> None:
        """Publish a good book now; its own times are the clock's unless given."""
        then = self.clock.now_ms() if at_ms is None else at_ms
        self.feed.publish_book(BookUpdate(self.id, [[str(mid - 1), "5"]], [[str(mid + 1), "5"]], then, then))

    async def ledger(self) -> Ledger:
        """Return the execution room's ledger, opened for writing."""
        if self._ledger is None:
            opened = open_writer("execution", self._location, clock=self.clock, ids=Uuid7Factory())
            self._ledger = await self._stack.enter_async_context(opened)
        return self._ledger

    async def order(
        self,
        name: str,
        *,
        since_ms: int,
        price: str,
        side: Side = Side.BUY,
        status: OrderStatus = OrderStatus.ACCEPTED,
        updated_ms: int | None = None,
        reason: str = "",
        venue: str = "paper",
    ) -> Order:
        """Write an order as execution does."""
        order = build_order(order_id=name, quantity="0.05", side=side)
        terms = replace(order.terms, limit_price=Decimal(price), symbol=self.id.symbol, venue=Venue(venue))
        order = replace(
            order, terms=terms, status=status, created_ms=since_ms, updated_ms=updated_ms or since_ms, reason=reason
        )
        await self._write(Insert("orders", order_row(order)))
        return order

    async def fill(self, name: str, *, at_ms: int, price: str, side: Side = Side.BUY, venue: str = "paper") -> None:
        """Write a fill as execution does."""
        fill = build_fill(trade_id=name, quantity="0.05", price=price, side=side)
        fill = replace(fill, instrument_id=InstrumentId(Venue(venue), self.id.symbol), venue_ts_ms=at_ms)
        await self._write(Insert("fills", fill_row(fill)))

    async def _write(self, row: Insert) -> None:
        ledger = await self.ledger()
        event = EventDraft(AlarmRaised(code="TEST", message="a test", subject="chart"))
        await ledger.commit(Unit(events=(event,), writes=(row,)))
