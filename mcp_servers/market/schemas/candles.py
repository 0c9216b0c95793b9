"""Candles: prices in quote per base, volume in base, times in milliseconds."""

from __future__ import annotations

from pydantic import Field

from mcp_servers.envelope import DecimalText, Row


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
