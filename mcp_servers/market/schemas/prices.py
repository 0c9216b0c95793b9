"""Tickers, books and fill estimates: prices in quote per base, quantities in base, times in milliseconds.

A model reads these schemas before every call, so they are short: types stand once and are referred to by a letter, rows
of a list name their own fields, and nothing is said to be required although every field is always sent.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field, WithJsonSchema
from typing_extensions import TypeAliasType

from mcp_servers.envelope import DecimalText, Row

D = TypeAliasType("D", DecimalText)
N = TypeAliasType("N", D | None)
I = TypeAliasType("I", int | None)  # noqa: E741  as short as the others
L = TypeAliasType("L", tuple[D, D])


#: Rows name their own fields; their schema would only repeat that.
_OBJECT = WithJsonSchema({"type": "object"})


def _without_required(schema: dict[str, Any]) -> None:
    schema.pop("required", None)


class _Answer(Row):
    model_config = ConfigDict(json_schema_extra=_without_required)


class Ticker(Row):
    """Top of one book and its last trade."""

    symbol: str
    venue: str
    bid: N
    ask: N
    mid: N
    last: N
    last_age_ms: I
    volume: D = Field(description="Base in the last 24 h that this server saw")
    venue_ts_ms: I
    received_ts_ms: I
    age_ms: I
    stale: bool
    marks: list[str]
    source: str | None
    failed_over_from: str | None


class Tickers(_Answer):
    """In the order asked; stale: do not price an order from it, marks say why."""

    tickers: list[Annotated[Ticker, _OBJECT]]


class Book(_Answer):
    """Best levels first, [price, quantity]; of a merged book the oldest times."""

    symbol: str
    venue: str
    bids: list[L]
    asks: list[L]
    bid_venues: list[str]
    ask_venues: list[str]
    sequence: int
    venue_ts_ms: int
    received_ts_ms: int
    age_ms: int
    stale: bool
    marks: list[str]
    source: str
    left_out: dict[str, str]


class VenuePrice(Row):
    """One venue; it takes part when ``marks`` is empty."""

    venue: str
    bid: N
    ask: N
    mid: N
    deviation_bps: N
    volume: D
    venue_ts_ms: int
    received_ts_ms: int
    age_ms: int
    skew_ms: I
    source: str
    marks: list[str]


class Comparison(_Answer):
    """Venues without marks together."""

    symbol: str
    bid: N
    bid_venue: str | None
    ask: N
    ask_venue: str | None
    spread_bps: N = Field(description="Negative: venues cross. Before fees and transfer")
    spread_after_fees_bps: N
    mid: N
    index: N = Field(description="Median mid")
    mark: N = Field(description="Index within bid and ask")
    volume: D
    venues: list[Annotated[VenuePrice, _OBJECT]]
    left_out: dict[str, str]


class FillEstimate(_Answer):
    """Fees in quote at taker rates."""

    symbol: str
    venue: str
    side: str
    requested: D
    filled: D
    unfilled: D
    vwap: N
    worst_price: N
    notional: D
    fee: D
    fee_rate: D
    fee_assumed: bool
    impact_bps: N = Field(description="Worse than mid, without fees")
    break_even_bps: N = Field(description="Move that pays a round trip")
    venue_ts_ms: int
    received_ts_ms: int
    age_ms: int
    parts: dict[str, D]
    left_out: dict[str, str]
    opposite: Annotated[FillEstimate | None, WithJsonSchema({})] = None
