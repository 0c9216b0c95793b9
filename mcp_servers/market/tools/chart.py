"""The tool that draws a chart: a picture for every host, numbers for every model, a page for hosts that show pages."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Final, Protocol

from mcp.types import CallToolResult, ImageContent
from pydantic import Field

from mcp_servers.envelope import LookbackMs, Meta, Reply, illustrated, ok, timestamp, untrusted
from mcp_servers.hosting import Context, state
from mcp_servers.market.chart.app import PAGE
from mcp_servers.market.chart.composition import CandleSource, Wish, compose
from mcp_servers.market.chart.drawing import Drawing, FillMark, OrderMark
from mcp_servers.market.chart.overlay import Overlay
from mcp_servers.market.chart.picture import Painter
from mcp_servers.market.prices import Tick
from mcp_servers.market.schemas import chart as schemas
from mcp_servers.market.tools.arguments import Register, SymbolText, Timeframe, VenueText
from trading.domain.errors import Unavailable
from trading.domain.market_data import Candle
from trading.domain.money import plain

#: Key of the page's data in the result's ``_meta``: the same form as ``data``, with more of everything.
VIEW_KEY: Final = "grekko/chart"
#: How much of a chart its text tells, newest first; the picture and the page show all of it.
_CANDLE_CHARS: Final = 5_500
_ORDERS_TOLD: Final = 8
_FILLS_TOLD: Final = 16
_REASON_TOLD: Final = 60
_NOTES_TOLD: Final = 8
#: Quotes and commas around the six values of a candle.
_PUNCTUATION: Final = 16

Periods = Annotated[list[Annotated[int, Field(ge=2, le=200)]], Field(max_length=3)]


class HasTick(Protocol):
    """Newest prices; ``Prices`` is one."""

    def tick(self, symbol: str, venue: str | None = None) -> Tick:
        """Return the ticker of a symbol."""
        ...


class HasChart(Protocol):
    """What this tool needs of the room."""

    @property
    def prices(self) -> HasTick:
        """The newest prices."""
        ...

    @property
    def history(self) -> CandleSource:
        """Candles."""
        ...

    @property
    def overlay(self) -> Overlay:
        """The desk's own orders and fills."""
        ...


def register(read: Register) -> None:
    """Add the tool to a server that was built with ``extensions=[chart_page()]``."""
    painter = Painter()

    @read(title="Get chart", app=PAGE)
    async def market_get_chart(
        ctx: Context[HasChart],
        symbol: SymbolText,
        timeframe: Timeframe,
        lookback: LookbackMs,
        venue: VenueText = None,
        as_of: Annotated[str, Field(max_length=40)] = "",
        ema: Periods = [],  # noqa: B006 - the SDK hands each call a copy
    ) -> Annotated[CallToolResult, Reply[schemas.Chart]]:
        """Draw candles, volume, EMAs and this desk's orders and fills as a picture, with the newest as numbers.

        For numbers alone use market_get_candles. Example: "1m", "2h", ema [20].
        """
        service = state(ctx)
        tick = service.prices.tick(symbol, venue)
        wish = Wish(timeframe=timeframe, lookback_ms=lookback, as_of=as_of, ema=ema)
        made = await compose(tick, service.history, service.overlay, wish)
        drawing = made.drawing
        pictures: list[ImageContent] = []
        try:
            png = await painter.paint(drawing)
            pictures.append(ImageContent(type="image", data=base64.b64encode(png).decode(), mime_type="image/png"))
        except Unavailable as error:
            drawing = replace(drawing, notes=(f"no picture: {error}", *drawing.notes))
        data = told(drawing)
        meta = Meta(
            venue=drawing.venue,
            as_of=timestamp(made.at_ms) if made.at_ms > 0 else None,
            age_ms=None if as_of else tick.age_ms,
            source=tick.book.feed.value if tick.book else None,
            truncated=made.truncated or len(data.at) < len(drawing.candles),
        )
        return illustrated(ok(data, meta), *pictures, view={VIEW_KEY: view(drawing)})


def told(drawing: Drawing) -> schemas.Chart:
    """Return the part of a chart that its text tells: the newest candles, orders and fills."""
    shown = drawing.candles[len(drawing.candles) - _fitting(drawing.candles) :]
    orders = [
        replace(order, reason=untrusted(order.reason, max_chars=_REASON_TOLD) if order.reason else "")
        for order in drawing.marks.orders[-_ORDERS_TOLD:]
    ]
    return _chart(drawing, shown, orders, drawing.marks.fills[-_FILLS_TOLD:], drawing.notes[:_NOTES_TOLD])


def view(drawing: Drawing) -> dict[str, Any]:
    """Return a whole chart as the page reads it; texts from outside are plain here, the page shows them as text."""
    marks = drawing.marks
    return {
        **_chart(drawing, drawing.candles, marks.orders, marks.fills, drawing.notes).model_dump(mode="json"),
        "venue": drawing.venue,
        "interval_ms": drawing.interval_ms,
        "last_closed": bool(drawing.candles) and drawing.candles[-1].closed,
        "until_ts_ms": drawing.until_ms,
        "decimals": drawing.decimals,
        "last": None if drawing.last is None else plain(drawing.last),
        "badges": list(drawing.badges),
        "ema": {str(period): [_rounded(value, drawing) for value in values] for period, values in drawing.ema.items()},
    }


def _chart(
    drawing: Drawing,
    candles: Sequence[Candle],
    orders: Sequence[OrderMark],
    fills: Sequence[FillMark],
    notes: Sequence[str],
) -> schemas.Chart:
    start = candles[0].open_ts_ms if candles else drawing.since_ms
    return schemas.Chart(
        symbol=drawing.symbol,
        timeframe=drawing.timeframe,
        start=timestamp(max(0, start)),
        at=[(candle.open_ts_ms - start) // drawing.interval_ms for candle in candles],
        candles={
            "open": [plain(candle.open) for candle in candles],
            "high": [plain(candle.high) for candle in candles],
            "low": [plain(candle.low) for candle in candles],
            "close": [plain(candle.close) for candle in candles],
            "volume": [plain(candle.volume) for candle in candles],
        },
        orders={
            "side": [order.side.value for order in orders],
            "price": [plain(order.price) for order in orders],
            "quantity": [plain(order.quantity) for order in orders],
            "status": [order.status for order in orders],
            "since": [timestamp(order.since_ms) for order in orders],
            "until": ["" if order.until_ms is None else timestamp(order.until_ms) for order in orders],
            "reason": [order.reason for order in orders],
        },
        fills={
            "side": [fill.side.value for fill in fills],
            "price": [plain(fill.price) for fill in fills],
            "quantity": [plain(fill.quantity) for fill in fills],
            "at": [timestamp(fill.at_ms) for fill in fills],
        },
        notes=list(notes),
    )


def _rounded(value: float | None, drawing: Drawing) -> float | None:
    return None if value is None else round(value, drawing.decimals + 2)


def _fitting(candles: Sequence[Candle]) -> int:
    """Return how many of the newest candles the text has room for, at least one if there is one."""
    used = 0
    for count, candle in enumerate(reversed(candles)):
        values = (candle.open, candle.high, candle.low, candle.close, candle.volume)
        used += sum(len(plain(value)) for value in values) + _PUNCTUATION + len(str(count))
        if count and used > _CANDLE_CHARS:
            return count
    return len(candles)
