"""What the market tools answer: prices in quote per base, quantities in base, times in milliseconds."""

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


class Candles(Row):
    """Columns of equal length, oldest first. Intervals without a trade are absent."""

    symbol: str
    venue: str
    timeframe: str
    open_ts_ms: list[int]
    open: list[DecimalText]
    high: list[DecimalText]
    low: list[DecimalText]
    close: list[DecimalText]
    volume: list[DecimalText]
    last_closed: bool = Field(description="False: the last candle may still change")
    first_complete: bool = Field(description="False: the first candle began before this server did")


class Rules(Row):
    """A venue's rules for one instrument; fees are rates of notional."""

    symbol: str
    venue: str
    base: str
    quote: str
    price_tick: DecimalText
    quantity_step: DecimalText
    quantity_min: DecimalText
    quantity_max: DecimalText | None
    notional_min: DecimalText
    notional_max: DecimalText | None
    maker_fee: DecimalText
    taker_fee: DecimalText


class Found(Row):
    """Instruments that match, best match first."""

    instruments: list[Rules]


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


class FeedRow(Row):
    """One instrument's feed."""

    symbol: str
    venue: str
    feed: str | None
    book_age_ms: int | None
    trade_age_ms: int | None
    sequence: int
    usable: bool
    book_state: str | None
    gaps: int
    skew_ms: int | None = Field(description="Receive time less venue time of the newest book")


class Status(Row):
    """Whether prices can be trusted now, and why not."""

    safe_to_trade: bool
    reasons: list[str]
    role: str = Field(description="publisher, or follower when another process publishes for this desk")
    source: str
    source_state: str
    source_code: str
    source_message: str
    bus_connected: bool
    feeds: list[FeedRow]
    counters: dict[str, int]
