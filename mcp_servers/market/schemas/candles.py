"""Candles: prices in quote per base, volume in base, times in milliseconds."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import Field, PlainSerializer, WithJsonSchema

from mcp_servers.envelope import Row
from trading.domain.money import plain

#: Decimals of our own making, as strings; the schema says no more, it would say it once per column.
Column = Annotated[list[Annotated[Decimal, PlainSerializer(plain, return_type=str)]], WithJsonSchema({"type": "array"})]


class Candles(Row):
    """Columns of decimal strings, oldest first; no row where nothing was traded."""

    symbol: str
    venue: str
    timeframe: str
    open_ts_ms: Annotated[list[int], WithJsonSchema({"type": "array"})]
    open: Column
    high: Column
    low: Column
    close: Column
    volume: Column
    last_closed: bool
    first_complete: bool
    sources: list[str]
    gaps: int = Field(description="Bars absent or partly known")
    notes: list[str]
