"""The market server and its tools."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from mcp_servers.envelope import LookbackMs, Meta, PositiveDecimalText, Reply, fit, ok, timestamp
from mcp_servers.hosting import Context, DeskServer, build_server, load_authorization, state, tool_kind
from mcp_servers.market import rows, schemas
from mcp_servers.market.bootstrap import open_market
from mcp_servers.market.service import MarketService
from mcp_servers.market.settings import MarketSettings, check_allowed, load_market_settings
from trading.adapters.config import load_settings
from trading.domain.market_data import Side

_INSTRUCTIONS: Final = """
    Market data of this desk: prices, order books, candles, trading rules. It holds no key and cannot trade.
    Prices age: look at `stale` before you use one, and at market_get_status when one is stale or missing.
    `source` says whether the data is live or a replayed recording.
    Symbols are spot, BASE/QUOTE such as BTC/USDT; prices and amounts are decimal strings.
"""
_CANDLES_MAX: Final = 100

_Register = Callable[..., Callable[[Any], Any]]
SymbolText = Annotated[str, Field(min_length=1, max_length=41)]
VenueText = Annotated[str | None, Field(max_length=64)]
SymbolTexts = Annotated[list[SymbolText], Field(min_length=1, max_length=20)]
Depth = Annotated[int, Field(ge=1, le=50)]
Limit = Annotated[int, Field(ge=1, le=20)]
Timeframe = Literal["1s", "5s", "15s", "1m", "5m", "15m", "1h", "4h", "1d"]


def build(market: MarketSettings | None = None) -> DeskServer[MarketService]:
    """Read the settings and return the server; nothing is connected before its lifespan.

    Args:
        market: instead of the ``[market]`` section.

    Raises:
        ConfigurationError: the configuration refuses to start.
    """
    desk, chosen = load_settings(), market or load_market_settings()
    check_allowed(desk, chosen)
    server: DeskServer[MarketService] = build_server(
        "grekko-market",
        title="Market",
        instructions=_INSTRUCTIONS,
        lifespan=lambda: open_market(desk, chosen),
        mode=desk.mode,
        authorization=load_authorization(),
    )
    register(server)
    return server


def register(server: DeskServer[MarketService]) -> None:
    """Add the market tools to a server."""
    read = tool_kind(server, read_only=True, destructive=False, idempotent=True, open_world=False, scope="market:read")
    _register_prices(read)
    _register_rules(read)
    _register_questions(read)


def _register_prices(read: _Register) -> None:
    @read(title="Get tickers")
    async def market_get_tickers(
        ctx: Context[MarketService], symbols: SymbolTexts, venue: VenueText = None
    ) -> Reply[schemas.Tickers]:
        """Get best bid and ask, mid, last price and volume of up to 20 symbols. Example: symbols ["BTC/USDT"]."""
        service = state(ctx)
        ticks = [service.tick(symbol, venue) for symbol in symbols]
        age = max((tick.age_ms for tick in ticks if tick.age_ms is not None), default=None)
        data = schemas.Tickers(tickers=[rows.ticker(tick) for tick in ticks])
        return ok(data, Meta(venue=service.venue, age_ms=age))

    @read(title="Get order book")
    async def market_get_order_book(
        ctx: Context[MarketService], symbol: SymbolText, depth: Depth = 20, venue: VenueText = None
    ) -> Reply[schemas.Book]:
        """Get the best levels of a symbol's book, at most 50 a side.

        For the cost of an order of a given size use market_estimate_fill instead.
        """
        service = state(ctx)
        book = service.book(symbol, venue)
        age = service.age_ms(book)
        data = rows.book_row(book, depth=depth, age_ms=age, stale=service.is_stale(book))
        meta = Meta(venue=service.venue, age_ms=age, as_of=timestamp(book.published_ts_ms), source=book.feed.value)
        return ok(data, meta)

    @read(title="Get candles")
    async def market_get_candles(
        ctx: Context[MarketService],
        symbol: SymbolText,
        timeframe: Timeframe,
        lookback: LookbackMs,
        venue: VenueText = None,
    ) -> Reply[schemas.Candles]:
        """Get candles built from the trades this server saw, as columns, oldest first, the newest 100 at most.

        It knows nothing from before its start. Times are the venue's. Example: timeframe "1m", lookback "30m".
        """
        service = state(ctx)
        found = service.candles(symbol, timeframe, lookback, venue)
        shown = found[-_CANDLES_MAX:]
        complete = bool(shown) and service.is_complete(shown[0])
        data = rows.columns(shown, symbol=symbol, venue=service.venue, timeframe=timeframe, complete=complete)
        return ok(data, Meta(venue=service.venue, truncated=len(shown) < len(found)))


def _register_rules(read: _Register) -> None:
    @read(title="Search instruments")
    async def market_search_instruments(
        ctx: Context[MarketService], query: Annotated[str, Field(max_length=41)] = "", limit: Limit = 10
    ) -> Reply[schemas.Found]:
        """Find instruments by a part of their symbol; an empty query lists all. Example: query "BTC"."""
        service = state(ctx)
        page = fit([rows.rules(item) for item in service.search(query)], cursor_of=lambda row: row.symbol, limit=limit)
        return ok(schemas.Found(instruments=page.rows), Meta(venue=service.venue, truncated=page.truncated))

    @read(title="Get instrument rules")
    async def market_get_instrument(
        ctx: Context[MarketService], symbol: SymbolText, venue: VenueText = None
    ) -> Reply[schemas.Rules]:
        """Get the venue's rules for a symbol: price tick, quantity step, minimums, maximums and fee rates."""
        service = state(ctx)
        return ok(rows.rules(service.instrument(symbol, venue)), Meta(venue=service.venue))


def _register_questions(read: _Register) -> None:
    @read(title="Estimate a fill")
    async def market_estimate_fill(
        ctx: Context[MarketService],
        symbol: SymbolText,
        side: Literal["buy", "sell"],
        amount: PositiveDecimalText,
        unit: Literal["base", "quote"] = "base",
        venue: VenueText = None,
    ) -> Reply[schemas.FillEstimate]:
        """Estimate what a market order would get now: average price, impact, fee and what stays unfilled.

        Nothing is reserved and the price may move. A stale book is refused. Example: side "buy", amount "0.5".
        """
        service = state(ctx)
        found = service.estimate(symbol, Side(side), amount, unit, venue)
        return ok(rows.fill_estimate(found, side), Meta(venue=service.venue, age_ms=found.age_ms))

    @read(title="Market status")
    async def market_get_status(ctx: Context[MarketService]) -> Reply[schemas.Status]:
        """Show whether prices can be traded on now, and why not: source, feeds, ages, gaps, clock skew."""
        service = state(ctx)
        return ok(rows.status(service), Meta(venue=service.venue))
