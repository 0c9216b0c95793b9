"""Tickers, books and fill estimates: prices in quote per base, quantities in base, times in milliseconds."""

from __future__ import annotations

from pydantic import Field

from mcp_servers.envelope import DecimalText, Row


class Ticker(Row):
    """Top of one book and its last trade."""

    symbol: str
    venue: str
    bid: DecimalText | None
    ask: DecimalText | None
    mid: DecimalText | None
    last: DecimalText | None
    volume: DecimalText = Field(description="Base traded on the venue's clock in the last 24 h that this server saw")
    age_ms: int | None = Field(description="Since publication")
    stale: bool
    source: str | None = Field(description="live, replay or synthetic")


class Tickers(Row):
    """One row per asked symbol, in the order asked."""

    tickers: list[Ticker]


class Book(Row):
    """Best levels first; each level is [price, quantity]."""

    symbol: str
    venue: str
    bids: list[tuple[DecimalText, DecimalText]]
    asks: list[tuple[DecimalText, DecimalText]]
    sequence: int
    venue_ts_ms: int
    age_ms: int
    stale: bool = Field(description="Too old, or not two-sided: do not price an order from it")
    source: str


class FillEstimate(Row):
    """What a market order of that size would get from the book as it is."""

    symbol: str
    venue: str
    side: str
    requested: DecimalText = Field(description="Base, rounded down to the step")
    filled: DecimalText
    unfilled: DecimalText = Field(description="Base that 50 levels cannot give")
    vwap: DecimalText | None
    worst_price: DecimalText | None
    notional: DecimalText
    fee: DecimalText = Field(description="Quote, at the taker rate")
    impact_bps: DecimalText | None = Field(description="How much worse than mid, fees not counted")
    age_ms: int
